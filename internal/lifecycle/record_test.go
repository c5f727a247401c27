package lifecycle

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

func digest(b byte) string { return hex.EncodeToString(bytes.Repeat([]byte{b}, 32)) }

func TestBuildRecordGrantsWhatTheSpecAsksFor(t *testing.T) {
	c := class(t, ordinaryClass)
	o := &Observed{
		Kind: v1alpha1.KindAPIKey, Namespace: "payments", Name: "ci", UID: "u", Labels: map[string]string{"app": "x"}, Class: c, Rule: &c.Rules[0],
		Spec: spec(t, `{permissions: [b, a], roles: [z, q], attributes: {department: payments}, allowedCIDRs: [10.0.0.0/8],
			rateLimit: {requests: 5, per: 1m}, jwt: {ttl: 30m, audiences: [b, a]}}`),
	}
	d := &Decision{Status: &v1alpha1.CredentialStatus{Epoch: 3, Versions: []v1alpha1.CredentialVersion{
		{Version: 2, State: v1alpha1.VersionActive, Digest: digest(2), Pepper: "p", Prefix: "mk", Created: metav1.Unix(100, 0), Expires: &metav1.Time{Time: time.Unix(200, 0)}},
		{Version: 1, State: v1alpha1.VersionRevoked, Digest: digest(1), Pepper: "p"},
	}}}
	want := &credential.Record{
		UID: "u", Kind: v1alpha1.KindAPIKey, Namespace: "payments", Name: "ci", Epoch: 3, Class: "prod", Labels: map[string]string{"app": "x"},
		Permissions: []string{"a", "b"}, Roles: []string{"q", "z"}, Attributes: map[string]string{"department": "payments"}, CIDRs: []string{"10.0.0.0/8"},
		Rate:            &credential.RecordRate{Requests: 5, PerMillis: 60_000, Burst: 5},
		JWT:             credential.RecordJWT{TTLSeconds: 1800, Audiences: []string{"a", "b"}},
		RevokedVersions: []int64{1},
		Versions: []credential.SealedVersion{{
			Number: 2, Digest: bytes.Repeat([]byte{2}, 32), Pepper: "p", Prefix: "mk", State: v1alpha1.VersionActive, Created: 100, Expires: 200,
		}},
	}
	got, err := BuildRecord(o, d)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	t.Run("and what it granted before where the spec is refused", func(t *testing.T) {
		o := *o
		o.Record, o.Spec = got, spec(t, `{permissions: ["mintmark:admin"], admin: true}`)
		d := *d
		d.Refused = true
		again, err := BuildRecord(&o, &d)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, again); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("and remembers a revoked version that was sealed, and none that was not", func(t *testing.T) {
		o, d := *o, *d
		o.Record = got
		d.Status = d.Status.DeepCopy()
		d.Status.Versions[0].State = v1alpha1.VersionRevoked
		again, err := BuildRecord(&o, &d)
		if err != nil {
			t.Fatal(err)
		}
		if v := again.Versions; len(v) != 1 || v[0].Number != 2 || v[0].State != v1alpha1.VersionRevoked || !slices.Equal(again.RevokedVersions, []int64{1, 2}) {
			t.Errorf("versions %+v, revoked %v", v, again.RevokedVersions)
		}
		o.Record = again
		d.Status.Versions[0].Digest = digest(7) // written into status by somebody
		if forged, err := BuildRecord(&o, &d); err != nil || len(forged.Versions) != 0 {
			t.Errorf("a digest that was never sealed is vouched for: %+v, %v", forged, err)
		}
	})
	t.Run("and nothing where there is nothing to vouch for", func(t *testing.T) {
		if rec, err := BuildRecord(o, &Decision{Status: &v1alpha1.CredentialStatus{}}); rec != nil || err != nil {
			t.Errorf("got %v, %v", rec, err)
		}
	})
	t.Run("and a digest that is none is an error", func(t *testing.T) {
		status := &v1alpha1.CredentialStatus{Versions: []v1alpha1.CredentialVersion{{Version: 1, State: v1alpha1.VersionActive, Digest: "x"}}}
		if _, err := BuildRecord(o, &Decision{Status: status}); err == nil {
			t.Error("no error")
		}
	})
}

func TestTrustedBelievesTheRecordAlone(t *testing.T) {
	rec := &credential.Record{Epoch: 7, RevokedThrough: 1, Settled: []string{"r"}, Versions: []credential.SealedVersion{
		{Number: 3, Digest: bytes.Repeat([]byte{3}, 32), Pepper: "p", State: v1alpha1.VersionActive, Created: 50, Superseded: 0, Expires: 500},
	}}
	status := &v1alpha1.CredentialStatus{
		Epoch: 99, SettledRevocations: []string{"forged"},
		Versions: []v1alpha1.CredentialVersion{
			{Version: 4, State: v1alpha1.VersionActive, Digest: digest(4), Pepper: "p"},                               // a value of one's own
			{Version: 3, State: v1alpha1.VersionRetired, Digest: digest(9), Pepper: "q", Reason: "Age", Actor: "bob"}, // ended by hand
			{Version: 2, State: v1alpha1.VersionRevoked, Digest: digest(2), Pepper: "p"},                              // history
		},
	}
	got := Trusted(status, rec)
	var versions []string
	for _, v := range got.Versions {
		versions = append(versions, fmt.Sprintf("%d %s %.2s %s", v.Version, v.State, v.Digest, v.Actor))
	}
	want := []string{"4 Retired 04 ", "3 Active 03 bob", "2 Revoked 02 "}
	if !slices.Equal(versions, want) {
		t.Errorf("got %q, want %q", versions, want)
	}
	if got.Epoch != 7 || !slices.Equal(got.SettledRevocations, []string{"r"}) || got.Revocation == nil || got.Revocation.ThroughVersion != 1 {
		t.Errorf("got epoch %d, settled %v, revocation %v", got.Epoch, got.SettledRevocations, got.Revocation)
	}
	if v := got.Versions[1]; v.Expires.Unix() != 500 || v.Created.Unix() != 50 || v.Superseded != nil {
		t.Errorf("the times are not the record's: %+v", v)
	}
	if without := Trusted(status, nil); without.Epoch != 0 || without.Revocation != nil || slices.ContainsFunc(without.Versions, func(v v1alpha1.CredentialVersion) bool { return v.State.Live() }) {
		t.Errorf("without a record something is believed: %+v", without)
	}
}

func TestEffective(t *testing.T) {
	limit := int32(2)
	c := class(t, ordinaryClass)
	c.HistoryLimit = &limit
	for name, test := range map[string]struct {
		spec string
		want Settings
	}{
		"the class's defaults": {`{}`, Settings{
			TTL: 180 * day, RotateEvery: 90 * day, Overlap: day, MaxOverlap: 7 * day, Retire: v1alpha1.RetireWhenUnused, History: 2,
			JWT: JWTSettings{TTL: 15 * time.Minute, Audiences: []string{"default"}},
		}},
		"what the spec says": {`{ttl: Never, expiresAt: "2030-01-01T00:00:00Z", rotation: {every: Never, overlap: 2d, maxOverlap: 3d, retire: AfterOverlap, suspend: true}, jwt: {ttl: 1h, audiences: [x]}}`, Settings{
			ExpiresAt: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), Overlap: 2 * day, MaxOverlap: 3 * day, Retire: v1alpha1.RetireAfterOverlap, Suspend: true, History: 2,
			JWT: JWTSettings{TTL: time.Hour, Audiences: []string{"x"}},
		}},
		"never less than the class's least": {`{rotation: {overlap: 1m, maxOverlap: 2m}, jwt: {ttl: 1s}}`, Settings{
			TTL: 180 * day, RotateEvery: 90 * day, Overlap: time.Hour, MaxOverlap: time.Hour, Retire: v1alpha1.RetireWhenUnused, History: 2,
			JWT: JWTSettings{TTL: time.Minute, Audiences: []string{"default"}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Effective(spec(t, test.spec), c)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(Calendar{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	if got := Effective(&v1alpha1.CredentialSpec{}, &v1alpha1.CredentialClassSpec{}); got.Overlap != day || got.Retire != v1alpha1.RetireWhenUnused {
		t.Errorf("a class that says nothing: %+v", got)
	}
}

const day = 24 * time.Hour
