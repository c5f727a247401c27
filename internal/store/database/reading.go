package database

import (
	"context"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// What is read of the store is read of the engine, while it is open.

// Events is that of the engine.
func (d *Database) Events(ctx context.Context, t store.Tenant, f store.EventFilter, p store.Page) (store.Events, error) {
	e, err := d.Engine()
	if err != nil {
		return store.Events{}, err
	}
	return e.Events(ctx, t, f, p)
}

// Chains is that of the engine.
func (d *Database) Chains(ctx context.Context, after string, limit int) ([]store.Chain, error) {
	e, err := d.Engine()
	if err != nil {
		return nil, err
	}
	return e.Chains(ctx, after, limit)
}

// Batches is that of the engine.
func (d *Database) Batches(ctx context.Context, chain string, after uint64, limit int) ([]*audit.Batch, error) {
	e, err := d.Engine()
	if err != nil {
		return nil, err
	}
	return e.Batches(ctx, chain, after, limit)
}

// Usage is that of the engine.
func (d *Database) Usage(ctx context.Context, t store.Tenant, uid string) ([]store.VersionUsage, error) {
	e, err := d.Engine()
	if err != nil {
		return nil, err
	}
	return e.Usage(ctx, t, uid)
}

// Analytics is that of the engine.
func (d *Database) Analytics(ctx context.Context, t store.Tenant, f store.AnalyticsFilter) (store.Analytics, error) {
	e, err := d.Engine()
	if err != nil {
		return store.Analytics{}, err
	}
	return e.Analytics(ctx, t, f)
}
