package authn_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

var benchSizes = []int{10, 10_000, 1_000_000}

// BenchmarkVerify stands beside its floor: the two hashes and a hit or a miss in a
// bare map of as many digests. Compare good with floor/good, unknown with
// floor/unknown.
func BenchmarkVerify(b *testing.B) {
	for _, size := range benchSizes {
		p := pepper(b, "p1")
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		x := authn.New(authn.Config{Peppers: credential.Peppers{p}})
		_ = x.SetClass("default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"*"}, Except: []v1alpha1.Permission{"mintmark:*"}}}})
		sample := fill(b, x, p, size)
		runtime.GC()
		runtime.ReadMemStats(&after)
		perCredential := float64(after.HeapAlloc-before.HeapAlloc) / float64(size)

		bare := make(map[credential.Digest]int64, size)
		for _, tok := range sample {
			bare[p.Digest(tok.Inner())] = 1 << 40
		}
		for i := len(bare); i < size; i++ {
			bare[p.Digest(credential.Inner{byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)})] = 1 << 40
		}
		unknown := make([]credential.Token, len(sample))
		for i := range unknown {
			unknown[i] = mint(b, v1alpha1.KindServiceToken)
		}
		floor := func(tokens []credential.Token, hit bool) func(*testing.B) {
			return func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					expires, ok := bare[p.Digest(tokens[i%len(tokens)].Inner())]
					if ok != hit || ok && expires < epoch.Unix() {
						b.Fatal("the floor is not what it should be")
					}
				}
			}
		}
		verify := func(tokens []credential.Token, want authn.Reason) func(*testing.B) {
			return func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if v := x.Verify(tokens[i%len(tokens)], authn.Request{}, epoch); v.Reason != want {
						b.Fatal(v.Reason)
					}
				}
			}
		}
		b.Run(fmt.Sprintf("%d/floor/good", size), floor(sample, true))
		b.Run(fmt.Sprintf("%d/good", size), func(b *testing.B) {
			verify(sample, authn.ReasonAccepted)(b)
			b.ReportMetric(perCredential, "B/credential")
		})
		b.Run(fmt.Sprintf("%d/floor/unknown", size), floor(unknown, false))
		b.Run(fmt.Sprintf("%d/unknown", size), verify(unknown, authn.ReasonUnknown))
		runtime.KeepAlive(x)
	}
}

func BenchmarkAllows(b *testing.B) {
	f := newFixture(b)
	p := f.verify(f.index()).Principal
	b.ReportAllocs()
	for b.Loop() {
		if !p.Allows("deploy:write") {
			b.Fatal("refused")
		}
	}
}

// BenchmarkRevoke revokes every credential by one Revocation, and takes it back.
func BenchmarkRevoke(b *testing.B) {
	const size = 100_000
	p := pepper(b, "p1")
	x := authn.New(authn.Config{Peppers: credential.Peppers{p}})
	_ = x.SetClass("default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"*"}}}})
	fill(b, x, p, size)
	for name, spec := range map[string]v1alpha1.RevocationSpec{
		"all of 100000":           {All: true},
		"one namespace of 100000": {Namespaces: []string{"team-07"}},
	} {
		b.Run(name, func(b *testing.B) {
			r := revocation("r", spec)
			for b.Loop() {
				if err := x.SetRevocation(r); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				x.DeleteRevocation(settled(r))
				b.StartTimer()
			}
		})
	}
}
