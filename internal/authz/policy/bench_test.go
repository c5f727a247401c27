package policy_test

import (
	"fmt"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// benchmarked are rules as people write them, of which each is evaluated.
var benchmarked = []*v1alpha1.AccessPolicySpec{
	where(deny("environment.now.getHours('Europe/Berlin') < 7 || environment.now.getHours('Europe/Berlin') >= 19"), "request.host == 'api.example.com'"),
	deny("!cidr('10.0.0.0/8').containsIP(environment.ip)"),
	where(deny("has(resource.ownerDepartment) && resource.ownerDepartment != subject.attributes.department"), "resource.type == 'invoice'"),
	deny("'contractor' in subject.roles && request.method != 'GET'"),
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{0, 1, 10, 100} {
		policies := map[string]*v1alpha1.AccessPolicySpec{}
		for i := range n {
			policies[fmt.Sprintf("p%03d", i)] = benchmarked[i%len(benchmarked)]
		}
		s, in := set(b, policies), payments()
		b.Run(fmt.Sprintf("policies=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d := s.Decide(in); !d.Allowed {
					b.Fatalf("%+v", d)
				}
			}
		})
	}
}

func BenchmarkExpression(b *testing.B) {
	for _, e := range []string{
		"subject.namespace == 'payments'", "'deployer' in subject.roles", "cidr('10.0.0.0/8').containsIP(environment.ip)",
		"environment.now.getHours('Europe/Berlin') == 9", "request.path.matches('^/invoices/[0-9]+$')", "subject.permissions.exists(p, p.startsWith('deploy:'))",
	} {
		s, in := set(b, map[string]*v1alpha1.AccessPolicySpec{"p": allow(e)}), payments()
		b.Run(e, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Decide(in)
			}
		})
	}
}

// BenchmarkTheMostOneDecisionMayCost is how long an input can keep a server busy.
func BenchmarkTheMostOneDecisionMayCost(b *testing.B) {
	in := payments()
	in.Subject.Roles = make([]string, 5_000)
	policies := map[string]*v1alpha1.AccessPolicySpec{}
	for i := range 100 {
		policies[fmt.Sprintf("p%02d", i)] = deny("!subject.roles.all(r, r.size() == 0 && r.startsWith('') && r != 'x')")
	}
	s := set(b, policies)
	for b.Loop() {
		if d := s.Decide(in); d.Allowed {
			b.Fatal("allowed")
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		compiled(b, "p", benchmarked[0])
	}
}
