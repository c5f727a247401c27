package cli

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

// What the command would delete as the class says is what the controller deletes.
func TestCleanupAgreesWithTheController(t *testing.T) {
	rule := &v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"api:*"}}
	deleted, kept := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		now := noonOf(15)
		days := func(name string, from, to int) time.Time {
			return now.AddDate(0, 0, rapid.IntRange(from, to).Draw(rt, name))
		}
		class := &v1alpha1.CredentialClassSpec{
			Defaults: v1alpha1.ClassDefaults{TTL: "180d", Rotation: v1alpha1.RotationDefaults{Every: rapid.SampledFrom([]v1alpha1.Duration{"90d", v1alpha1.Never}).Draw(rt, "every")}},
			Expired: v1alpha1.ExpiredPolicy{
				Action: rapid.SampledFrom([]string{"Deactivate", "Delete"}).Draw(rt, "action"), After: rapid.SampledFrom([]v1alpha1.Duration{"", "7d", "0s"}).Draw(rt, "after"),
			},
		}
		o := &v1alpha1.ServiceToken{}
		o.Name, o.Namespace, o.UID, o.Generation, o.CreationTimestamp = "ci", "payments", "u", 1, metav1.NewTime(now.AddDate(-1, 0, 0))
		o.Spec = v1alpha1.CredentialSpec{CredentialClassName: "c", Permissions: []v1alpha1.Permission{"api:read"}}
		if rapid.Bool().Draw(rt, "over the ceiling") { // then nothing renews it
			o.Spec.Permissions = append(o.Spec.Permissions, "deploy:write")
		}
		if rapid.Bool().Draw(rt, "ends") {
			at := metav1.NewTime(days("end", -60, 30))
			o.Spec.ExpiresAt = &at
		}
		if rapid.Bool().Draw(rt, "rotation of its own") {
			o.Spec.Rotation = &v1alpha1.Rotation{
				Every: rapid.SampledFrom([]v1alpha1.Duration{"", "10d", v1alpha1.Never}).Draw(rt, "own"), Suspend: rapid.Bool().Draw(rt, "suspend"),
				Schedule: rapid.SampledFrom([]string{"", "", "0 3 * * SUN"}).Draw(rt, "schedule"),
			}
		}
		for n := int64(1); n <= int64(rapid.IntRange(0, 3).Draw(rt, "versions")); n++ {
			v := v1alpha1.CredentialVersion{
				Version: n, Created: metav1.NewTime(now.AddDate(0, -6, 0)), Digest: "d", Pepper: "p",
				State: rapid.SampledFrom([]v1alpha1.VersionState{
					v1alpha1.VersionActive, v1alpha1.VersionSuperseded, v1alpha1.VersionExpired, v1alpha1.VersionExpired, v1alpha1.VersionRevoked, v1alpha1.VersionRetired,
				}).Draw(rt, "state"),
			}
			at := metav1.NewTime(days("ended", -60, 0))
			if !v.State.Live() {
				v.Ended = &at
				if expires := metav1.NewTime(at.AddDate(0, 0, rapid.IntRange(-1, 1).Draw(rt, "expires after its end"))); rapid.Bool().Draw(rt, "expires") {
					v.Expires = &expires
				}
			} else if expires := metav1.NewTime(days("expires", -10, 10)); true {
				v.Expires = &expires
			}
			o.Status.Versions = append([]v1alpha1.CredentialVersion{v}, o.Status.Versions...)
		}
		if rapid.IntRange(0, 3).Draw(rt, "revoked") == 0 {
			o.Status.Revocation = &v1alpha1.RevocationStatus{At: metav1.NewTime(days("revocation", -60, 0)), ThroughVersion: int64(rapid.IntRange(0, 3).Draw(rt, "through"))}
		}
		observe := func() *lifecycle.Observed {
			return &lifecycle.Observed{
				Kind: v1alpha1.KindServiceToken, Namespace: o.Namespace, Name: o.Name, UID: string(o.UID), Generation: o.Generation, Created: o.CreationTimestamp.Time,
				Spec: &o.Spec, Status: &o.Status, Class: class, Rule: rule, Ceiling: authz.NewCeiling(rule), Pepper: "p",
			}
		}
		decision := lifecycle.Plan(observe(), now)
		o.Status = *decision.Status // as the command finds it
		if decision.Mint != nil {
			return // it lives on
		}
		want := lifecycle.Plan(observe(), now).Delete
		d, _ := (&cleanupOptions{}).disposal(o, class, now)
		// What is none of the expired yet for the command, which does not plan, is left to the
		// controller: it may end the last version and delete it in one go.
		if d.delete != want && (d.delete || d.why != "") {
			rt.Fatalf("the command would delete it: %t (%s), the controller: %t\n%+v\n%+v", d.delete, d.why, want, o.Spec, o.Status)
		}
		if d.delete {
			deleted++
		} else {
			kept++
		}
	})
	if deleted == 0 || kept == 0 {
		t.Errorf("%d deleted and %d kept: the cases say nothing", deleted, kept)
	}
}

func TestAnInterruptedCleanupSaysSo(t *testing.T) {
	app, _, _ := apiServer(t, http.NotFound)
	c, err := app.cluster()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	kept := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "ci"}}
	err = (&cleanupOptions{app: app, timeout: time.Minute}).deactivated(ctx, c, []disposal{{credential: kept}})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "ServiceToken payments/ci") {
		t.Errorf("error: %v", err)
	}
	err = (&cleanupOptions{app: app, timeout: 0}).deactivated(t.Context(), c, []disposal{{credential: kept}})
	if err == nil || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "is the controller running?") {
		t.Errorf("error: %v", err)
	}
}

func TestWhatIsToBeDoneWithTheExpired(t *testing.T) {
	now := noonOf(31)
	class := func(action string) *v1alpha1.CredentialClassSpec {
		return &v1alpha1.CredentialClassSpec{Expired: v1alpha1.ExpiredPolicy{Action: action, After: "7d"}}
	}
	for name, c := range map[string]struct {
		options cleanupOptions
		class   *v1alpha1.CredentialClassSpec
		ended   time.Time
		change  func(*v1alpha1.ServiceToken)
		delete  bool
		why     string // empty: it is none of the expired
	}{
		"its class has it deleted":                  {cleanupOptions{}, class("Delete"), noonOf(20), nil, true, "delete"},
		"not yet":                                   {cleanupOptions{}, class("Delete"), noonOf(28), nil, false, "kept until 2026-02-04T12:00:00Z"},
		"longer than the class asks":                {cleanupOptions{after: "30d"}, class("Delete"), noonOf(20), nil, false, "kept until 2026-02-19T12:00:00Z"},
		"sooner than the class asks is not granted": {cleanupOptions{after: "1d"}, class("Delete"), noonOf(28), nil, false, "kept until 2026-02-04T12:00:00Z"},
		"sooner, and meant":                         {cleanupOptions{after: "1d", delete: true}, class("Delete"), noonOf(28), nil, true, "delete"},
		"its class keeps it":                        {cleanupOptions{}, class("Deactivate"), noonOf(20), nil, false, "kept, deactivated: its class says so; --delete deletes it"},
		"its class keeps it, and deleting is meant": {cleanupOptions{delete: true}, class("Deactivate"), noonOf(20), nil, true, "delete"},
		"nothing is to be deleted":                  {cleanupOptions{deactivateOnly: true}, class("Delete"), noonOf(1), nil, false, "kept, deactivated"},
		"its class is not known":                    {cleanupOptions{}, nil, noonOf(1), nil, false, "kept, deactivated: its class is not known; --delete deletes it"},
		"Argo CD would make it again": {cleanupOptions{}, class("Delete"), noonOf(20), func(o *v1alpha1.ServiceToken) {
			o.Annotations = map[string]string{"argocd.argoproj.io/tracking-id": "x"}
		}, false, "kept: Argo CD would make it again; take it out of Git, or say --managed"},
		"Argo CD would, and it is meant": {cleanupOptions{managed: true}, class("Delete"), noonOf(20), func(o *v1alpha1.ServiceToken) {
			o.Labels = map[string]string{"argocd.argoproj.io/instance": "x"}
		}, true, "delete"},
		"its end was put off, and the controller has not seen it": {cleanupOptions{delete: true}, class("Delete"), noonOf(20), func(o *v1alpha1.ServiceToken) {
			o.Generation++
		}, false, ""},
		"a rotation is requested": {cleanupOptions{delete: true}, class("Delete"), noonOf(20), func(o *v1alpha1.ServiceToken) {
			o.Annotations = map[string]string{v1alpha1.AnnotationRotateRequestedAt: "2026-01-31T11:59:00Z"}
			o.Status.Handled = &v1alpha1.HandledRequests{}
		}, false, ""},
		"a rotation would renew it, and is held up": {cleanupOptions{delete: true}, class("Delete"), noonOf(20), func(o *v1alpha1.ServiceToken) {
			o.Spec.ExpiresAt, o.Spec.Rotation = nil, &v1alpha1.Rotation{Every: "90d"}
		}, false, ""},
		"it never rotates": {cleanupOptions{}, class("Delete"), noonOf(20), func(o *v1alpha1.ServiceToken) {
			o.Spec.ExpiresAt, o.Spec.Rotation = nil, &v1alpha1.Rotation{Every: v1alpha1.Never}
			o.Status.Versions[0].Expires = o.Status.Versions[0].Ended
		}, true, "delete"},
		"it rotates by a schedule": {cleanupOptions{delete: true}, class("Delete"), noonOf(20), func(o *v1alpha1.ServiceToken) {
			o.Spec.ExpiresAt, o.Spec.Rotation = nil, &v1alpha1.Rotation{Every: v1alpha1.Never, Schedule: "0 3 * * SUN"}
			o.Status.Versions[0].Expires = o.Status.Versions[0].Ended
		}, false, ""},
		"its end has been put off": {cleanupOptions{delete: true}, class("Delete"), noonOf(20), func(o *v1alpha1.ServiceToken) {
			o.Spec.ExpiresAt, o.Spec.Rotation = nil, &v1alpha1.Rotation{Every: v1alpha1.Never}
		}, false, ""},
		"a version is accepted": {cleanupOptions{delete: true}, class("Delete"), noonOf(20), func(o *v1alpha1.ServiceToken) {
			o.Status.Versions = append(o.Status.Versions, v1alpha1.CredentialVersion{Version: 2, State: v1alpha1.VersionActive})
		}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ended, end := metav1.NewTime(c.ended), metav1.NewTime(noonOf(1))
			o := &v1alpha1.ServiceToken{}
			o.Spec.ExpiresAt = &end
			o.Status.Versions = []v1alpha1.CredentialVersion{{Version: 1, State: v1alpha1.VersionExpired, Ended: &ended}}
			if c.change != nil {
				c.change(o)
			}
			d, expired := c.options.disposal(o, c.class, now)
			if d.delete != c.delete || d.why != c.why || expired != (c.why != "") {
				t.Errorf("got %t %q, want %t %q", d.delete, d.why, c.delete, c.why)
			}
		})
	}
}
