package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// usageTimeout is how long the servers are waited for. They are asked at once.
const usageTimeout = 30 * time.Second

// freshUsage has the controller ask the servers how often and when each version
// was used, and gives the credential with what they said. Status has these
// numbers of some time of the day otherwise: use costs no write.
func (c *cluster) freshUsage(ctx context.Context, o v1alpha1.Credential, progress io.Writer) (v1alpha1.Credential, error) {
	r := refOf(o)
	// Its time is later than that of any request before.
	l := lever{annotation: v1alpha1.AnnotationUsageRequestedAt, verb: "use", handled: func(*v1alpha1.HandledRequests) *metav1.MicroTime { return nil }}
	var at time.Time
	if _, err := c.update(ctx, o, func(o v1alpha1.Credential) map[string]any {
		now, _ := c.clock.now()
		at = l.nextTime(o, now)
		return map[string]any{"metadata": map[string]any{
			"resourceVersion": o.GetResourceVersion(), "annotations": map[string]any{l.annotation: at.Format(time.RFC3339Nano)},
		}}
	}); err != nil {
		return nil, explain(err, "asking for the use of", r.String())
	}
	done, err := c.await(ctx, r, goal{
		what: "to show its use", uid: o.GetUID(),
		reached: func(o v1alpha1.Credential) bool {
			u := o.CredentialStatus().Usage
			return u != nil && u.RequestedAt != nil && !u.RequestedAt.Time.Before(at)
		},
		hopeless: func(v1alpha1.Credential, *metav1.Condition) bool { return false },
	}, usageTimeout, progress)
	if err != nil {
		return nil, fmt.Errorf("%w; it is counted by the servers, and each of them must answer: 'mintmark doctor' tells which does not", err)
	}
	return done, nil
}

// used is a version's last use.
func used(v v1alpha1.CredentialVersion, now time.Time) string {
	if v.LastUsed == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s ago)", v.LastUsed.UTC().Format(time.RFC3339), duration.HumanDuration(now.Sub(v.LastUsed.Time)))
}
