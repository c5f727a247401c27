package policy_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// spec of a policy whose expressions have their place as their name.
func spec(effect v1alpha1.PolicyEffect, conditions []string, rules ...string) *v1alpha1.AccessPolicySpec {
	return &v1alpha1.AccessPolicySpec{
		Effect: effect, Enforcement: v1alpha1.PolicyEnforce, MatchConditions: named("condition", conditions), Rules: named("rule", rules),
	}
}

func named(kind string, expressions []string) []v1alpha1.PolicyExpression {
	var all []v1alpha1.PolicyExpression
	for i, e := range expressions {
		all = append(all, v1alpha1.PolicyExpression{Name: fmt.Sprintf("%s-%d", kind, i), Expression: e})
	}
	return all
}

func allow(rules ...string) *v1alpha1.AccessPolicySpec {
	return spec(v1alpha1.PolicyAllow, nil, rules...)
}
func deny(rules ...string) *v1alpha1.AccessPolicySpec {
	return spec(v1alpha1.PolicyDeny, nil, rules...)
}

func where(s *v1alpha1.AccessPolicySpec, conditions ...string) *v1alpha1.AccessPolicySpec {
	s.MatchConditions = named("condition", conditions)
	return s
}

func dry(s *v1alpha1.AccessPolicySpec) *v1alpha1.AccessPolicySpec {
	s.Enforcement = v1alpha1.PolicyDryRun
	return s
}

func compiled(t testing.TB, name string, s *v1alpha1.AccessPolicySpec) *policy.Compiled {
	t.Helper()
	c, err := policy.Compile(name, s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

// set of policies by name.
func set(t testing.TB, policies map[string]*v1alpha1.AccessPolicySpec) *policy.Set {
	t.Helper()
	var all []*policy.Compiled
	for name, s := range policies {
		all = append(all, compiled(t, name, s))
	}
	return policy.NewSet(all)
}

// payments is a request of a service token for an invoice, in working hours.
func payments() *policy.Input {
	return &policy.Input{
		Subject: policy.Subject{
			ID: "servicetoken:payments:ci-deploy", Kind: "ServiceToken", Namespace: "payments", Name: "ci-deploy", Class: "production", Version: 3,
			Method: "key", Roles: []string{"deployer"}, Permissions: []string{"deploy:write", "invoice:*"},
			Attributes: map[string]string{"department": "payments", "clearance": "2"},
		},
		Resource: policy.Resource{
			Type: "invoice", ID: "42", Owner: "jane", OwnerDepartment: "payments", Classification: "internal",
			Created: time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC), Attributes: map[string]string{"currency": "EUR"},
		},
		Request: policy.Request{
			Method: "POST", Scheme: "https", Host: "api.example.com", Path: "/invoices/42", Action: "pay",
			Permissions: []string{"invoice:pay"}, Audiences: []string{"https://api.example.com"}, UserAgent: "curl/8.5.0",
			Headers: map[string]string{"x-tenant": "eu"},
		},
		Environment: policy.Environment{
			Now: time.Date(2026, 11, 23, 8, 30, 0, 0, time.UTC), IP: netip.MustParseAddr("10.1.2.3"), Device: "managed",
		},
	}
}
