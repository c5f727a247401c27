//go:build !race

package authn_test

import (
	"net/netip"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
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
