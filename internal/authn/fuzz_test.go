package authn_test

import (
	"net/netip"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// FuzzVerify presents anything to an index that holds one of each format. Only
// the very values pass (THREATS: one character more or less, NUL, line ends).
func FuzzVerify(f *testing.F) {
	const foreign = "ghp_abcdefghijklmnopqrstuvwxyz0123456789"
	p := pepper(f, "p1")
	x := authn.New(authn.Config{Peppers: credential.Peppers{p}})
	if err := x.SetClass("default", &v1alpha1.CredentialClassSpec{
		Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"*"}, External: true}}, ExternalFormat: &v1alpha1.ExternalFormat{Pattern: `ghp_.*`},
	}); err != nil {
		f.Fatal(err)
	}
	good := make(map[string]bool)
	for uid, tok := range map[string]credential.Token{
		"token": mint(f, v1alpha1.KindServiceToken), "key": mint(f, v1alpha1.KindAPIKey), "foreign": parse(f, foreign),
	} {
		live := authn.Live{UID: uid, Kind: v1alpha1.KindServiceToken, Namespace: "n", Name: uid, ClassName: "default", External: []string{declared(tok)}}
		x.Apply(live, &credential.Record{
			UID: uid, Kind: live.Kind, Namespace: "n", Name: uid, Epoch: 1, Class: "default", External: true,
			Versions: []credential.SealedVersion{sealedVersion(1, tok, p, v1alpha1.VersionActive)},
		})
		value := tok.Reveal()
		good[value] = true
		for _, seed := range []string{value, value + "\x00", value + "\r\n", " " + value, value[1:], value[:len(value)-1], value + value, "sk_live_" + value[3:]} {
			f.Add(seed, "10.0.0.1")
		}
	}
	f.Fuzz(func(t *testing.T, presented, address string) {
		tok, err := credential.Parse(presented)
		if err != nil {
			tok = credential.Token{}
		}
		ip, _ := netip.ParseAddr(address)
		v := x.Verify(tok, authn.Request{IP: ip}, epoch)
		if v.OK != good[presented] {
			t.Errorf("%q: %s", presented, v.Reason)
		}
	})
}
