package management

import (
	"context"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// Store is what is read of what was recorded. All its methods may fail at any time, for a
// database may be down. It is safe for concurrent use.
type Store interface {
	Events(ctx context.Context, t store.Tenant, f store.EventFilter, p store.Page) (store.Events, error)
	Chains(ctx context.Context, after string, limit int) ([]store.Chain, error)
	Batches(ctx context.Context, chain string, after uint64, limit int) ([]*audit.Batch, error)
	Usage(ctx context.Context, t store.Tenant, uid string) ([]store.VersionUsage, error)
	Analytics(ctx context.Context, t store.Tenant, f store.AnalyticsFilter) (store.Analytics, error)
	Credentials(ctx context.Context, t store.Tenant, f store.CredentialFilter, p store.Page) (store.Credentials, error)
}
