package authn_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

func TestLiveOf(t *testing.T) {
	created, ends := metav1.NewTime(epoch), metav1.NewTime(epoch.Add(time.Hour))
	key := &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{UID: "u", Namespace: "ns", Name: "n", Labels: map[string]string{"a": "b"}, CreationTimestamp: created, DeletionTimestamp: &ends},
		Spec: v1alpha1.CredentialSpec{
			CredentialClassName: "c", Permissions: []v1alpha1.Permission{"a:b"}, Roles: []string{"r"}, Admin: true, ExpiresAt: &ends,
			AllowedCIDRs: []v1alpha1.CIDR{"10.0.0.0/8"}, JWT: &v1alpha1.JWT{TTL: "5m", Audiences: []string{"x"}},
			External: &v1alpha1.External{}, Revoked: &v1alpha1.Revoked{Reason: "leak"},
		},
	}
	want := authn.Live{
		UID: "u", Kind: v1alpha1.KindAPIKey, Namespace: "ns", Name: "n", Created: epoch, Labels: map[string]string{"a": "b"}, Deleting: true,
		ClassName: "c", Permissions: []string{"a:b"}, Roles: []string{"r"}, Admin: true, CIDRs: []string{"10.0.0.0/8"}, ExpiresAt: ends.Time,
		Revoked: &v1alpha1.Revoked{Reason: "leak"}, External: []string{}, JWTTTL: 5 * time.Minute, JWTAudiences: []string{"x"},
	}
	if diff := cmp.Diff(want, authn.LiveOf(key)); diff != "" {
		t.Error(diff)
	}
	if live := authn.LiveOf(&v1alpha1.ServiceToken{}); live.External != nil || !live.ExpiresAt.IsZero() || live.Deleting {
		t.Errorf("an empty object reads as %+v", live)
	}
}

func TestApplyKeepsTheLastGoodRecord(t *testing.T) {
	f := newFixture(t)
	for sentence, test := range map[string]struct {
		change func(*credential.Record)
		want   authn.RecordOutcome
	}{
		"a record of another UID is refused":          {func(r *credential.Record) { r.UID = "uid-2" }, authn.RecordForeign},
		"a record of another kind is refused":         {func(r *credential.Record) { r.Kind = v1alpha1.KindAPIKey }, authn.RecordForeign},
		"a record of another namespace is refused":    {func(r *credential.Record) { r.Namespace = "other" }, authn.RecordForeign},
		"a record of another name is refused":         {func(r *credential.Record) { r.Name = "other" }, authn.RecordForeign},
		"an older record is refused":                  {func(r *credential.Record) { r.Epoch = 4 }, authn.RecordOutdated},
		"another record of the same epoch is refused": {func(r *credential.Record) { r.Epoch = 5 }, authn.RecordOutdated},
		"the same record again changes nothing": {
			func(r *credential.Record) {
				r.Epoch, r.Permissions, r.Versions = 5, []string{"api:read", "deploy:*"}, f.rec.Versions
			}, authn.RecordHeld,
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			f.live.Deleting, f.rec.Epoch = false, 5
			x := f.index()
			late := f.record(6)
			late.Permissions = []string{"*"}
			test.change(late)
			out := x.Apply(f.live, late)
			if out.Record != test.want || out.Record.Refused() != (test.want != authn.RecordHeld) {
				t.Errorf("outcome %+v, want %s", out, test.want)
			}
			expectReason(t, f.verify(x), authn.ReasonAccepted)
			// The live object that came with it narrows nevertheless.
			f.live.Deleting = true
			x.Apply(f.live, late)
			expectReason(t, f.verify(x), authn.ReasonDeleted)
		})
	}
	f = newFixture(t)
	x := f.index()
	if out := x.Apply(f.live, nil); out.Record != authn.RecordAbsent || out.Record.Refused() {
		t.Errorf("without a record: %+v", out)
	}
	expectReason(t, f.verify(x), authn.ReasonAccepted)
}

func TestTheIndexKeepsNothingOfItsArguments(t *testing.T) {
	f := newFixture(t)
	f.live.Labels = map[string]string{"app": "a"}
	f.rec.Labels = f.live.Labels
	f.rec.Settled = []string{"r"}
	x := f.index()
	f.live.Labels["app"] = "b"
	f.rec.Settled[0] = "s"
	clear(f.rec.Versions[0].Digest)
	f.rec.Permissions[0], f.live.Permissions[0] = "x", "x"
	if v := f.verify(x); !v.OK || !v.Principal.Allows("api:read") || v.Principal.Allows("x") {
		t.Errorf("%+v", v)
	}
	if err := x.SetRevocation(revocation("s", v1alpha1.RevocationSpec{Selector: selector("app", "b")})); err != nil {
		t.Fatal(err)
	}
	expectReason(t, f.verify(x), authn.ReasonAccepted)
}

// A Revocation is seen anew with every write of its status; what it selects is immutable.
func TestARevocationSeenAgainIsTheSame(t *testing.T) {
	f := newFixture(t)
	f.live.Labels = map[string]string{"app": "a"}
	f.rec.Labels = f.live.Labels
	x := f.index()
	set := func(generation int64, app string) {
		t.Helper()
		rv := revocation("s", v1alpha1.RevocationSpec{Selector: selector("app", app)})
		rv.Generation = generation
		if err := x.SetRevocation(rv); err != nil {
			t.Fatal(err)
		}
	}
	set(1, "b")
	set(1, "a")
	expectReason(t, f.verify(x), authn.ReasonAccepted)
	set(2, "a") // where nobody keeps it from being changed, the change counts
	expectReason(t, f.verify(x), authn.ReasonRevoked)
	set(2, "a")
	set(3, "b") // and what it took once it keeps
	expectReason(t, f.verify(x), authn.ReasonRevoked)
}

func selector(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

func TestADeletedCredentialStaysDeleted(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	x.Delete("uid-1")
	expectReason(t, f.verify(x), authn.ReasonUnknown)
	expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now), authn.ReasonUnknown)
	if out := x.Apply(f.live, f.rec); out.Record != authn.RecordDeleted {
		t.Errorf("an object that came late: %+v", out)
	}
	expectReason(t, f.verify(x), authn.ReasonUnknown)
	if got := x.Stats(); got.Credentials != 0 || got.Digests != 0 {
		t.Errorf("left behind: %+v", got)
	}
	x.Delete("uid-1")
	x.Delete("never seen")
}

func TestTheSameNameAgainIsAnotherCredential(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	x.Delete("uid-1")
	f.live.UID = "uid-2"
	if out := x.Apply(f.live, f.rec); out.Record != authn.RecordForeign {
		t.Errorf("the old record on the new object: %+v", out)
	}
	expectReason(t, f.verify(x), authn.ReasonUnknown)
	f.rec = f.record(1)
	f.present = f.addVersion(2, v1alpha1.VersionActive)
	x.Apply(f.live, f.rec)
	expectReason(t, f.verify(x), authn.ReasonAccepted)
	expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now), authn.ReasonUnknown)
}

func TestRelist(t *testing.T) {
	x := authn.New(authn.Config{})
	for _, live := range []authn.Live{
		{UID: "a", Kind: v1alpha1.KindServiceToken, Namespace: "one", Name: "a"},
		{UID: "b", Kind: v1alpha1.KindServiceToken, Namespace: "one", Name: "b"},
		{UID: "c", Kind: v1alpha1.KindServiceToken, Namespace: "two", Name: "c"},
		{UID: "d", Kind: v1alpha1.KindAPIKey, Namespace: "one", Name: "d"},
	} {
		x.Apply(live, nil)
	}
	r := x.BeginRelist(v1alpha1.KindServiceToken, "one")
	r.Seen("a")
	if gone := r.End(); !slices.Equal(gone, []string{"b"}) {
		t.Errorf("gone after a relist of one namespace: %v", gone)
	}
	r = x.BeginRelist(v1alpha1.KindServiceToken, "")
	r.Seen("a")
	if gone := r.End(); !slices.Equal(gone, []string{"c"}) {
		t.Errorf("gone after a relist of the kind: %v", gone)
	}
	if x.Len() != 2 {
		t.Errorf("%d are left", x.Len())
	}
	// What a lagging list did not hold comes back with the watch.
	if out := x.Apply(authn.Live{UID: "c", Kind: v1alpha1.KindServiceToken, Namespace: "two", Name: "c"}, nil); out.Record != authn.RecordAbsent {
		t.Errorf("%+v", out)
	}
}

// TestAcceptsIsAboutTheRecordTheObjectCarries: where that one was refused, the
// controller that wrote it must not deliver its value, however high the epoch of the
// record in force is.
func TestAcceptsIsAboutTheRecordTheObjectCarries(t *testing.T) {
	for sentence, carried := range map[string]func(f *fixture) *credential.Record{
		"an older one":              func(f *fixture) *credential.Record { return f.record(4) },
		"another of the same epoch": func(f *fixture) *credential.Record { return f.record(5) },
		"one of another credential": func(f *fixture) *credential.Record { r := f.record(6); r.UID = "uid-2"; return r },
		"none, or one with no seal": func(*fixture) *credential.Record { return nil },
		"one with another version 1": func(f *fixture) *credential.Record {
			r := f.record(5)
			r.Versions = []credential.SealedVersion{sealedVersion(1, mint(f.t, f.live.Kind), f.pepper, v1alpha1.VersionActive)}
			return r
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			f := newFixture(t)
			f.rec.Epoch = 5
			x := f.index()
			if !x.Accepts("uid-1", 5) || x.Accepts("uid-1", 6) {
				t.Fatal("the record in force is not accepted, or a later one is")
			}
			x.Apply(f.live, carried(f))
			if x.Accepts("uid-1", 4) || x.Accepts("uid-1", 5) {
				t.Error("accepted, and the object carries another record than the one in force")
			}
			expectReason(t, f.verify(x), authn.ReasonAccepted)
			x.SetRole("r", []string{"p"})
			mustSetClass(t, x, "default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{rule("*")}})
			if x.Accepts("uid-1", 5) {
				t.Error("a class changed, and the refusal is forgotten")
			}
			x.Apply(f.live, f.rec)
			if !x.Accepts("uid-1", 5) {
				t.Error("the record in force was put back, and is not accepted")
			}
		})
	}
}

func TestResetForgetsEpochsAndDeletions(t *testing.T) {
	f := newFixture(t)
	f.rec.Epoch = 9
	x := f.index()
	x.Reset()
	expectReason(t, f.verify(x), authn.ReasonUnknown)
	f.rec.Epoch = 3
	if out := x.Apply(f.live, f.rec); out.Record != authn.RecordAccepted {
		t.Errorf("%+v", out)
	}
	expectReason(t, f.verify(x), authn.ReasonAccepted)
}

// claimant is the fixture's value held by another credential as well.
func (f *fixture) claimant(uid string, created time.Time) (authn.Live, *credential.Record) {
	live := f.live
	live.UID, live.Name, live.Created = uid, "claims-"+uid, created
	rec := *f.rec
	rec.UID, rec.Name = live.UID, live.Name
	return live, &rec
}

func TestDigestConflict(t *testing.T) {
	owner := func(t *testing.T, f *fixture, x *authn.Index, want string) {
		t.Helper()
		if v := f.verify(x); !v.OK || v.Principal.UID != want {
			t.Errorf("the value belongs to %+v, want %s", v, want)
		}
	}
	t.Run("the older credential keeps the value", func(t *testing.T) {
		f := newFixture(t)
		x := f.index()
		younger, rec := f.claimant("uid-2", f.live.Created.Add(time.Second))
		if out := x.Apply(younger, rec); !slices.Equal(out.Conflicts, []int64{1}) {
			t.Errorf("%+v", out)
		}
		owner(t, f, x, "uid-1")
		expectReason(t, x.VerifyUse("uid-2", 1, f.req, f.now), authn.ReasonDigestConflict)
		expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now), authn.ReasonAccepted)
	})
	t.Run("the older credential takes the value even if it comes later", func(t *testing.T) {
		f := newFixture(t)
		x := f.index()
		older, rec := f.claimant("uid-2", f.live.Created.Add(-time.Second))
		if out := x.Apply(older, rec); out.Conflicts != nil {
			t.Errorf("%+v", out)
		}
		owner(t, f, x, "uid-2")
		if got := x.Stats().Conflicts; got != 1 {
			t.Errorf("%d conflicts", got)
		}
	})
	t.Run("of two of one age the lower UID keeps it", func(t *testing.T) {
		f := newFixture(t)
		x := f.index()
		x.Apply(f.claimant("uid-0", f.live.Created))
		owner(t, f, x, "uid-0")
	})
	t.Run("a refused older credential keeps it still", func(t *testing.T) {
		f := newFixture(t)
		f.rec.RevokedThrough = 1
		x := f.index()
		younger, rec := f.claimant("uid-2", f.live.Created.Add(time.Second))
		rec.RevokedThrough = 0
		x.Apply(younger, rec)
		expectReason(t, f.verify(x), authn.ReasonRevoked)
	})
	t.Run("when the owner goes the oldest of the others takes over", func(t *testing.T) {
		f := newFixture(t)
		x := f.index()
		x.Apply(f.claimant("uid-3", f.live.Created.Add(2*time.Second)))
		x.Apply(f.claimant("uid-2", f.live.Created.Add(time.Second)))
		x.Delete("uid-1")
		owner(t, f, x, "uid-2")
		x.Delete("uid-3")
		owner(t, f, x, "uid-2")
		x.Delete("uid-2")
		expectReason(t, f.verify(x), authn.ReasonUnknown)
		if got := x.Stats(); got.Conflicts != 0 || got.Digests != 0 {
			t.Errorf("left behind: %+v", got)
		}
	})
	t.Run("when the owner's record drops the value the other takes over", func(t *testing.T) {
		f := newFixture(t)
		x := f.index()
		x.Apply(f.claimant("uid-2", f.live.Created.Add(time.Second)))
		x.Apply(f.live, f.record(2))
		owner(t, f, x, "uid-2")
	})
}

func TestRevocation(t *testing.T) {
	other := selector("app", "other")
	for sentence, test := range map[string]struct {
		spec         v1alpha1.RevocationSpec
		sealed, live map[string]string
		settled      []string
		want         authn.Reason
	}{
		"all takes everything":                         {spec: v1alpha1.RevocationSpec{All: true}, want: authn.ReasonRevoked},
		"its kind":                                     {spec: v1alpha1.RevocationSpec{Kinds: []string{"APIKey", "ServiceToken"}}, want: authn.ReasonRevoked},
		"not another kind":                             {spec: v1alpha1.RevocationSpec{Kinds: []string{"APIKey"}}, want: authn.ReasonAccepted},
		"its namespace":                                {spec: v1alpha1.RevocationSpec{Namespaces: []string{"other", "payments"}}, want: authn.ReasonRevoked},
		"not another namespace":                        {spec: v1alpha1.RevocationSpec{Namespaces: []string{"other"}}, want: authn.ReasonAccepted},
		"its labels as sealed":                         {spec: v1alpha1.RevocationSpec{Selector: other}, sealed: other.MatchLabels, want: authn.ReasonRevoked},
		"its labels as they are":                       {spec: v1alpha1.RevocationSpec{Selector: other}, live: other.MatchLabels, want: authn.ReasonRevoked},
		"its labels among others":                      {spec: v1alpha1.RevocationSpec{Selector: other}, live: map[string]string{"app": other.MatchLabels["app"], "team": "x", "tier": "y"}, want: authn.ReasonRevoked},
		"not other labels":                             {spec: v1alpha1.RevocationSpec{Selector: other}, live: map[string]string{"app": "this"}, want: authn.ReasonAccepted},
		"its namespace and labels":                     {spec: v1alpha1.RevocationSpec{Namespaces: []string{"payments"}, Selector: other}, live: other.MatchLabels, want: authn.ReasonRevoked},
		"not its namespace with other labels":          {spec: v1alpha1.RevocationSpec{Namespaces: []string{"payments"}, Selector: other}, want: authn.ReasonAccepted},
		"not what the record accounts for":             {spec: v1alpha1.RevocationSpec{All: true}, settled: []string{"older", "r"}, want: authn.ReasonAccepted},
		"what the record accounts for another one for": {spec: v1alpha1.RevocationSpec{All: true}, settled: []string{"older"}, want: authn.ReasonRevoked},
	} {
		for order, revokeFirst := range map[string]bool{"before": true, "after": false} {
			t.Run(sentence+"/made "+order, func(t *testing.T) {
				f := newFixture(t)
				f.rec.Labels, f.live.Labels, f.rec.Settled = test.sealed, test.live, test.settled
				x := authn.New(authn.Config{Peppers: f.peppers})
				f.setUp(x)
				if !revokeFirst {
					x.Apply(f.live, f.rec)
				}
				if err := x.SetRevocation(revocation("r", test.spec)); err != nil {
					t.Fatal(err)
				}
				if revokeFirst {
					x.Apply(f.live, f.rec)
				}
				expectReason(t, f.verify(x), test.want)
				expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now), test.want)
				expectReason(t, x.VerifyUse("uid-1", 2, f.req, f.now), test.want)
			})
		}
	}
}

func TestARevocationThatSelectsNothingTellableRevokesNothing(t *testing.T) {
	for sentence, spec := range map[string]v1alpha1.RevocationSpec{
		"nothing":                     {},
		"an empty selector":           {Selector: &metav1.LabelSelector{}},
		"a selector of no operator":   {Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}},
		"a bad selector in a kind":    {Kinds: []string{"ServiceToken"}, Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a"}}}},
		"an empty selector in a kind": {Kinds: []string{"ServiceToken"}, Selector: &metav1.LabelSelector{}},
	} {
		t.Run(sentence, func(t *testing.T) {
			f := newFixture(t)
			x := f.index()
			if err := x.SetRevocation(revocation("r", spec)); err == nil {
				t.Error("no error")
			}
			expectReason(t, f.verify(x), authn.ReasonAccepted)
		})
	}
}

func TestWhatARevocationTookItKeeps(t *testing.T) {
	newRevoked := func(t *testing.T) (*fixture, *authn.Index, *v1alpha1.Revocation) {
		f := newFixture(t)
		f.live.Labels = map[string]string{"app": "a"}
		x := f.index()
		r := revocation("r", v1alpha1.RevocationSpec{Selector: selector("app", "a")})
		if err := x.SetRevocation(r); err != nil {
			t.Fatal(err)
		}
		expectReason(t, f.verify(x), authn.ReasonRevoked)
		return f, x, r
	}
	t.Run("changing the label slips nothing", func(t *testing.T) {
		f, x, _ := newRevoked(t)
		f.live.Labels = nil
		x.Apply(f.live, f.rec)
		expectReason(t, f.verify(x), authn.ReasonRevoked)
	})
	t.Run("a version minted in the same moment is revoked", func(t *testing.T) {
		f, x, _ := newRevoked(t)
		f.rec.Epoch = 2
		f.present = f.addVersion(2, v1alpha1.VersionPending)
		x.Apply(f.live, f.rec)
		expectReason(t, f.verify(x), authn.ReasonRevoked)
	})
	t.Run("deleting it before it settled undoes nothing", func(t *testing.T) {
		f, x, r := newRevoked(t)
		x.DeleteRevocation(r)
		expectReason(t, f.verify(x), authn.ReasonRevoked)
		expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now), authn.ReasonRevoked)
		x.Apply(f.live, f.rec)
		expectReason(t, f.verify(x), authn.ReasonRevoked)
		// What is made later has nothing to do with it.
		f.rec.Epoch = 2
		f.present = f.addVersion(2, v1alpha1.VersionPending)
		x.Apply(f.live, f.rec)
		expectReason(t, f.verify(x), authn.ReasonAccepted)
	})
	t.Run("once the record accounts for it later versions are good", func(t *testing.T) {
		f, x, r := newRevoked(t)
		old := f.present
		f.rec = f.record(2)
		f.rec.RevokedThrough, f.rec.Settled = 1, []string{"r"}
		f.present = f.addVersion(2, v1alpha1.VersionPending)
		x.Apply(f.live, f.rec)
		expectReason(t, f.verify(x), authn.ReasonAccepted)
		x.DeleteRevocation(settled(r))
		expectReason(t, f.verify(x), authn.ReasonAccepted)
		expectReason(t, x.Verify(old, f.req, f.now), authn.ReasonUnknown)
		expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now), authn.ReasonRevoked)
	})
	t.Run("one that is deleted settled leaves no mark on records that have forgotten it", func(t *testing.T) {
		f, x, r := newRevoked(t)
		x.DeleteRevocation(settled(r))
		expectReason(t, f.verify(x), authn.ReasonAccepted)
	})
	t.Run("a credential without a record yet is not marked by one that is gone", func(t *testing.T) {
		f := newFixture(t)
		x := authn.New(authn.Config{Peppers: f.peppers})
		f.setUp(x)
		x.Apply(f.live, nil)
		r := revocation("r", v1alpha1.RevocationSpec{All: true})
		if err := x.SetRevocation(r); err != nil {
			t.Fatal(err)
		}
		x.DeleteRevocation(r)
		x.Apply(f.live, f.rec)
		expectReason(t, f.verify(x), authn.ReasonAccepted)
	})
}

func TestTakingSpecRevokedAwayUndoesNothing(t *testing.T) {
	apply := func(f *fixture, x *authn.Index, revoked *v1alpha1.Revoked) {
		f.live.Revoked = revoked
		x.Apply(f.live, f.rec)
	}
	t.Run("of the whole credential, before it is sealed", func(t *testing.T) {
		f := newFixture(t)
		x := f.index()
		whole, _ := revokedWhole("leak")
		apply(f, x, whole)
		apply(f, x, nil)
		expectReason(t, f.verify(x), authn.ReasonRevoked)
		expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now), authn.ReasonRevoked)
		f.rec.Epoch = 2
		f.present = f.addVersion(2, v1alpha1.VersionActive)
		apply(f, x, nil)
		expectReason(t, f.verify(x), authn.ReasonAccepted)
	})
	t.Run("of one version, before it is sealed", func(t *testing.T) {
		f := newFixture(t)
		second := f.addVersion(2, v1alpha1.VersionActive)
		x := f.index()
		apply(f, x, &v1alpha1.Revoked{Versions: []int64{1, 7}, Reason: "leak"})
		apply(f, x, nil)
		apply(f, x, nil)
		expectReason(t, f.verify(x), authn.ReasonRevoked)
		expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now), authn.ReasonRevoked)
		expectReason(t, x.Verify(second, f.req, f.now), authn.ReasonAccepted)
		expectReason(t, x.VerifyUse("uid-1", 7, f.req, f.now), authn.ReasonAccepted)
	})
	t.Run("after it is sealed the record holds, and what is made later is good", func(t *testing.T) {
		f := newFixture(t)
		x := f.index()
		whole, digest := revokedWhole("leak")
		apply(f, x, whole)
		f.rec = f.record(2)
		f.rec.RevokedThrough, f.rec.RevokedSpec = 1, digest
		apply(f, x, whole)
		f.rec = f.record(3)
		f.rec.RevokedThrough, f.rec.RevokedSpec = 1, digest
		f.present = f.addVersion(2, v1alpha1.VersionActive)
		apply(f, x, whole)
		expectReason(t, f.verify(x), authn.ReasonAccepted)
		apply(f, x, nil)
		expectReason(t, f.verify(x), authn.ReasonAccepted)
		expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now), authn.ReasonRevoked)
		// Revoked again, it goes again.
		again, _ := revokedWhole("again")
		apply(f, x, again)
		expectReason(t, f.verify(x), authn.ReasonRevoked)
	})
}

func TestAccepts(t *testing.T) {
	f := newFixture(t)
	f.rec.Epoch = 3
	x := authn.New(authn.Config{Peppers: f.peppers})
	expect := func(epoch int64, want bool) {
		t.Helper()
		if got := x.Accepts("uid-1", epoch); got != want {
			t.Errorf("accepts epoch %d: %v", epoch, got)
		}
	}
	expect(0, false)
	x.Apply(f.live, nil)
	expect(0, false)
	x.Apply(f.live, f.rec)
	expect(3, false) // the class has not been seen
	changed := x.Changed()
	mustSetClass(t, x, "default", f.class)
	select {
	case <-changed:
	default:
		t.Error("the change was not told")
	}
	expect(3, true)
	expect(2, true)
	expect(4, false)
	f.class.Rules[0].NamespaceSelector = selector("team", "a")
	mustSetClass(t, x, "default", f.class)
	expect(3, false) // the labels of the namespace matter now, and have not been seen
	x.SetNamespace("payments", map[string]string{"team": "b"})
	expect(3, true) // refused, and for good
	expectReason(t, f.verify(x), authn.ReasonClass)
	x.Delete("uid-1")
	expect(3, false)
}

func TestChangedIsOneChannelUntilTheNextChange(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	first := x.Changed()
	if x.Changed() != first {
		t.Error("two channels for one change")
	}
	f.rec.Epoch++
	x.Apply(f.live, f.rec)
	select {
	case <-first:
	default:
		t.Error("the change was not told")
	}
	select {
	case <-x.Changed():
		t.Error("a change that has not come is told")
	default:
	}
}

func TestUsage(t *testing.T) {
	f := newFixture(t)
	second := f.addVersion(2, v1alpha1.VersionPending)
	x := f.index()
	x.Apply(authn.Live{UID: "without a record", Namespace: "n"}, nil)
	if items, next := x.UsageSince(0, 0); items != nil || next != 0 {
		t.Errorf("unused: %v, cursor %d", items, next)
	}
	f.verify(x)
	f.now = f.now.Add(1500 * time.Millisecond)
	f.verify(x)
	items, cursor := x.UsageSince(0, 0)
	want := authn.Usage{UID: "uid-1", Version: 1, Uses: 2, LastUsed: epoch.Add(time.Second)}
	if diff := cmp.Diff([]authn.Usage{want}, items); diff != "" {
		t.Error(diff)
	}
	if items, next := x.UsageSince(cursor, 0); items != nil || next != cursor {
		t.Errorf("nothing new: %v, cursor %d after %d", items, next, cursor)
	}
	// What is refused, and what a JWT does, is no use; a clock that jumps back
	// does not take the last use back.
	x.Verify(second, f.req, f.now.Add(-time.Hour))
	x.VerifyUse("uid-1", 1, f.req, f.now)
	f.live.Revoked = &v1alpha1.Revoked{Versions: []int64{1}, Reason: "leak"}
	f.rec.Epoch = 2
	f.rec.Versions[1].State = v1alpha1.VersionActive
	x.Apply(f.live, f.rec)
	f.verify(x)
	x.Verify(second, f.req, f.now.Add(-2*time.Hour))
	items, _ = x.UsageSince(cursor, 0)
	want = authn.Usage{UID: "uid-1", Version: 2, Uses: 2, LastUsed: epoch.Add(-time.Hour + time.Second)}
	if diff := cmp.Diff([]authn.Usage{want}, items); diff != "" {
		t.Error(diff)
	}
	// Page by page, and with a cursor of another process.
	all, last := x.UsageSince(0, 0)
	var pages []authn.Usage
	for cursor := uint64(0); ; {
		page, next := x.UsageSince(cursor, 1)
		if len(page) == 0 {
			break
		}
		pages, cursor = append(pages, page...), next
	}
	if diff := cmp.Diff(all, pages); diff != "" || len(all) != 2 {
		t.Errorf("pages differ: %s", diff)
	}
	if foreign, _ := x.UsageSince(last+100, 0); len(foreign) != 2 {
		t.Errorf("with a cursor never returned: %v", foreign)
	}
}

func TestAnotherValueUnderTheSameNumberCountsAnew(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	f.verify(x)
	f.present = mint(t, v1alpha1.KindServiceToken)
	f.rec = f.record(2)
	f.rec.Versions = []credential.SealedVersion{sealedVersion(1, f.present, f.pepper, v1alpha1.VersionActive)}
	x.Apply(f.live, f.rec)
	f.verify(x)
	if items, _ := x.UsageSince(0, 0); len(items) != 1 || items[0].Uses != 1 {
		t.Errorf("%+v", items)
	}
}

func TestDeletionsAreForgottenInTheEnd(t *testing.T) {
	x := authn.New(authn.Config{})
	for i := range 1<<16 + 1 {
		x.Delete(fmt.Sprint(i))
	}
	live := authn.Live{Kind: v1alpha1.KindServiceToken, Namespace: "n", Name: "n"}
	for uid, want := range map[string]authn.RecordOutcome{"0": authn.RecordAbsent, "1": authn.RecordDeleted, "65536": authn.RecordDeleted} {
		live.UID = uid
		if out := x.Apply(live, nil); out.Record != want {
			t.Errorf("UID %s: %s, want %s", uid, out.Record, want)
		}
	}
}

func TestStats(t *testing.T) {
	f := newFixture(t)
	f.addVersion(2, v1alpha1.VersionPending)
	x := f.index()
	if err := x.SetRevocation(&v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{UID: types.UID("r")}, Spec: v1alpha1.RevocationSpec{Kinds: []string{"APIKey"}}}); err != nil {
		t.Fatal(err)
	}
	want := authn.Stats{Credentials: 1, Digests: 2, Classes: 1, Namespaces: 1, Revocations: 1}
	if diff := cmp.Diff(want, x.Stats()); diff != "" {
		t.Error(diff)
	}
}
