package authn_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

func digestsOf(all []authn.Revoked) (digests []credential.Digest) {
	for _, r := range all {
		digests = append(digests, r.Digest)
	}
	return digests
}

func TestAnOlderRecordDoesNotBringBackWhatHasATombstone(t *testing.T) {
	f := newFixture(t)
	before := *f.rec
	before.Versions = append([]credential.SealedVersion(nil), f.rec.Versions...)
	x := f.index()
	expectReason(t, f.verify(x), authn.ReasonAccepted)

	f.rec.Epoch, f.rec.Versions[0].State = 2, v1alpha1.VersionRevoked
	x.Apply(f.live, f.rec)
	revoked := x.RevokedOf(f.live.UID)
	if len(revoked) != 1 || revoked[0].Version != 1 || revoked[0].Pepper != "p1" {
		t.Fatalf("revoked are %+v, want version 1 under p1", revoked)
	}
	x.SetTombstones(digestsOf(revoked))
	if again := x.RevokedOf(f.live.UID); len(again) > 0 {
		t.Errorf("what has a tombstone is still to be buried: %+v", again)
	}

	// The cluster is restored: the index starts anew with the record of before.
	x.Reset()
	f.setUp(x)
	if out := x.Apply(f.live, &before); out.Record != authn.RecordAccepted {
		t.Fatalf("the older record was %s", out.Record)
	}
	expectReason(t, f.verify(x), authn.ReasonRevoked)
	expectReason(t, x.VerifyUse(f.live.UID, 1, f.req, f.now), authn.ReasonRevoked)
}

func TestATombstoneThatComesLateTakesWhatIsAccepted(t *testing.T) {
	f := newFixture(t)
	f.addVersion(2, v1alpha1.VersionPending)
	x := f.index()
	x.SetTombstones([]credential.Digest{f.pepper.Digest(f.tokens[1].Inner())})
	expectReason(t, f.verify(x), authn.ReasonRevoked)
	f.present = f.tokens[2]
	expectReason(t, f.verify(x), authn.ReasonAccepted)
}

func TestADeclaredValueWithATombstoneIsRefused(t *testing.T) {
	f := newFixture(t)
	f.live.External, f.rec.External = []string{declared(f.present)}, true
	x := authn.New(authn.Config{Peppers: f.peppers})
	x.SetTombstones([]credential.Digest{f.pepper.Digest(f.present.Inner())})
	f.setUp(x)
	x.Apply(f.live, f.rec)
	expectReason(t, f.verify(x), authn.ReasonRevoked)
}

func TestNobodyBuriesTheValueOfAnother(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	other := f.live
	other.UID, other.Namespace, other.Name, other.Created = "uid-2", "payments", "thief", f.live.Created.Add(1)
	other.External = []string{declared(f.present)}
	rec := *f.rec
	rec.UID, rec.Name, rec.External = other.UID, other.Name, true
	rec.Versions = []credential.SealedVersion{sealedVersion(1, f.present, f.pepper, v1alpha1.VersionRevoked)}
	x.Apply(other, &rec)
	if got := x.RevokedOf(other.UID); len(got) > 0 {
		t.Errorf("who declares the value of another may bury it: %+v", got)
	}
	expectReason(t, f.verify(x), authn.ReasonAccepted)
}

func TestTheSlotOfAValue(t *testing.T) {
	for what, tc := range map[string]struct {
		state v1alpha1.VersionState
		want  authn.Slot
	}{
		"on its way":              {v1alpha1.VersionPending, authn.SlotCurrent},
		"the current one":         {v1alpha1.VersionActive, authn.SlotCurrent},
		"in its overlap":          {v1alpha1.VersionSuperseded, authn.SlotPrevious},
		"retired, and told about": {v1alpha1.VersionRetired, authn.SlotNone},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFixture(t)
			f.rec.Versions[0].State = tc.state
			v := f.verify(f.index())
			whose := v.Principal
			if whose == nil {
				whose = v.Refused
			}
			if diff := cmp.Diff(tc.want, whose.Slot); diff != "" {
				t.Error(diff)
			}
		})
	}
}
