package authn_test

import (
	"fmt"
	"runtime"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

var benchSizes = []int{10, 10_000, 100_000, 1_000_000}

// BenchmarkVerify stands beside its floor: the two hashes and a hit or a miss in a
// bare map of as many digests. Compare good with floor/good, unknown with
// floor/unknown.
func BenchmarkVerify(b *testing.B) {
	for _, size := range benchSizes {
		p := pepper(b, "p1")
		x := authn.New(authn.Config{Peppers: credential.Peppers{p}})
		_ = x.SetClass("default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"*"}, Except: []v1alpha1.Permission{"mintmark:*"}}}})
		sample := fill(b, x, p, size)
		for _, tok := range sample {
			x.Verify(tok, authn.Request{}, epoch) // the first use after a change allocates
		}

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
		b.Run(fmt.Sprintf("%d/good", size), verify(sample, authn.ReasonAccepted))
		b.Run(fmt.Sprintf("%d/floor/unknown", size), floor(unknown, false))
		b.Run(fmt.Sprintf("%d/unknown", size), verify(unknown, authn.ReasonUnknown))
		runtime.KeepAlive(x)
	}
}

// BenchmarkMemory applies so many credentials to an index, and tells what each takes.
func BenchmarkMemory(b *testing.B) {
	p := pepper(b, "p1")
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			for b.Loop() {
				before := heap()
				x := authn.New(authn.Config{Peppers: credential.Peppers{p}})
				for i := range size {
					c := filler(p, i, int64(i))
					x.Apply(c.live, c.rec)
				}
				b.ReportMetric(float64(heap()-before)/float64(size), "B/credential")
				runtime.KeepAlive(x)
			}
		})
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
		"one label of 100000":     {Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "app-7"}}},
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

// BenchmarkChange changes what 100,000 credentials hold, or may hold.
func BenchmarkChange(b *testing.B) {
	const size = 100_000
	p := pepper(b, "p1")
	x := authn.New(authn.Config{Peppers: credential.Peppers{p}})
	for i := range size {
		c := filler(p, i, int64(i))
		c.live.Roles, c.rec.Roles = []string{"r"}, []string{"r"}
		x.Apply(c.live, c.rec)
	}
	names := []v1alpha1.Permission{"*", "a:*"}
	_ = x.SetClass("default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{Permissions: names[:1]}}})
	b.Run("a role that 100000 hold", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			x.SetRole("r", []string{string(names[i%2])})
		}
	})
	b.Run("the class of 100000", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			_ = x.SetClass("default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{Permissions: names[i%2 : i%2+1]}}})
		}
	})
}
