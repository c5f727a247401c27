//go:build !race

package authn_test

import (
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// The race detector makes sync.Pool forget at random, which is to allocate.

func TestVerifyDoesNotAllocate(t *testing.T) {
	good, revoked, external := newFixture(t), newFixture(t), newFixture(t)
	good.rec.CIDRs, good.req.IP = []string{"10.0.0.0/8"}, netip.MustParseAddr("10.1.2.3")
	revoked.rec.RevokedThrough = 1
	external.present = parse(t, "ghp_abcdefghijklmnopqrstuvwxyz0123456789")
	external.class.ExternalFormat = &v1alpha1.ExternalFormat{Pattern: `ghp_[a-z0-9]{36}`}
	external.class.Rules[0].External = true
	external.rec.External, external.live.External = true, []string{declared(external.present)}
	external.rec.Versions = []credential.SealedVersion{sealedVersion(1, external.present, external.pepper, v1alpha1.VersionActive)}
	unknown := newFixture(t)
	unknown.present = mint(t, v1alpha1.KindAPIKey)
	for name, f := range map[string]*fixture{"good": good, "revoked": revoked, "external": external, "unknown": unknown} {
		x := f.index()
		if n := testing.AllocsPerRun(1000, func() { f.verify(x) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	x := good.index()
	p := good.verify(x).Principal
	if n := testing.AllocsPerRun(1000, func() {
		p.Allows("deploy:write")
		x.VerifyUse("uid-1", 1, good.req, good.now)
	}); n != 0 {
		t.Errorf("use: %v allocations", n)
	}
}

// TestACredentialTakesLittleMemory: at most 300 bytes where it is like others but for its
// name and its value, whether it came in one write or after many, and 160 more for as
// long as it is in use.
func TestACredentialTakesLittleMemory(t *testing.T) {
	const size, most, mostUsed = 100_000, 300, 300 + 170
	p := pepper(t, "p1")
	before := heap()
	x := authn.New(authn.Config{Peppers: credential.Peppers{p}})
	mustSetClass(t, x, "default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{rule("*")}})
	expect := func(when string, bound int) {
		t.Helper()
		got := int(heap()-before) / size
		t.Logf("%s: %d bytes per credential", when, got)
		if got > bound {
			t.Errorf("%s: %d bytes per credential, at most %d are allowed", when, got, bound)
		}
	}
	credentials := make([]state, size)
	for i := range credentials {
		credentials[i] = filler(p, i, int64(i))
	}
	before = heap()
	for _, c := range credentials {
		x.Apply(c.live, c.rec)
	}
	expect("at rest", most)
	for i, c := range credentials {
		rotated := *c.rec
		rotated.Epoch++
		rotated.Versions = append(slices.Clone(c.rec.Versions), filler(p, i, int64(size+i)).rec.Versions...)
		rotated.Versions[1].Number = 2
		x.Apply(c.live, &rotated)
		rotated.Epoch++
		rotated.Versions = rotated.Versions[1:]
		x.Apply(c.live, &rotated)
	}
	r := revocation("r", v1alpha1.RevocationSpec{All: true})
	if err := x.SetRevocation(r); err != nil {
		t.Fatal(err)
	}
	x.DeleteRevocation(settled(r))
	expect("after a rotation and a revocation of each", most)
	for _, c := range credentials {
		if !x.VerifyUse(c.live.UID, 2, authn.Request{}, epoch).OK {
			t.Fatal("refused")
		}
	}
	expect("in use", mostUsed)
	for _, c := range credentials[size/100:] {
		x.Delete(c.live.UID)
	}
	// The UIDs deleted last are remembered.
	if left := int(heap() - before); left > 12<<20 {
		t.Errorf("%d bytes are left when nearly all are gone", left)
	}
	runtime.KeepAlive(x)
	runtime.KeepAlive(credentials)
}
