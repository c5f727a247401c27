package webhook_test

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// The webhooks of credentials, by what they stand for in these tests.
const (
	defaults = "MutatingWebhookConfiguration servicetokens.mintmark.dev"
	actor    = "MutatingWebhookConfiguration actor.mintmark.dev"
	changes  = "MutatingWebhookConfiguration changes.mintmark.dev"
	brakes   = "MutatingWebhookConfiguration revocations.mintmark.dev"
	checks   = "ValidatingWebhookConfiguration servicetokens.mintmark.dev"
)

// configurations are the webhooks of config/webhook by kind and name.
func configurations(t *testing.T) map[string]admissionregistrationv1.ValidatingWebhook {
	t.Helper()
	file, err := os.ReadFile("../config/webhook/manifests.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]admissionregistrationv1.ValidatingWebhook{}
	for _, document := range strings.Split(string(file), "\n---\n") {
		// What is asked about here, both kinds have in common.
		var configuration admissionregistrationv1.ValidatingWebhookConfiguration
		if err := yaml.Unmarshal([]byte(document), &configuration); err != nil {
			t.Fatal(err)
		}
		for _, hook := range configuration.Webhooks {
			all[configuration.Kind+" "+hook.Name] = hook
		}
	}
	return all
}

// called tells whether the API server calls a webhook for an update of a credential: all
// of its conditions hold.
func called(t *testing.T, hook admissionregistrationv1.ValidatingWebhook, operation string, old, updated map[string]any) bool {
	t.Helper()
	return calledFor(t, hook, operation, "servicetokens", old, updated)
}

func calledFor(t *testing.T, hook admissionregistrationv1.ValidatingWebhook, operation, resource string, old, updated map[string]any) bool {
	t.Helper()
	base, err := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()).Env(environment.NewExpressions)
	if err != nil {
		t.Fatal(err)
	}
	env, err := base.Extend(cel.Variable("object", cel.DynType), cel.Variable("oldObject", cel.DynType), cel.Variable("request", cel.DynType))
	if err != nil {
		t.Fatal(err)
	}
	for _, condition := range hook.MatchConditions {
		ast, issues := env.Compile(condition.Expression)
		if issues.Err() != nil {
			t.Fatalf("%s, %s: %v", hook.Name, condition.Name, issues.Err())
		}
		program, err := env.Program(ast)
		if err != nil {
			t.Fatal(err)
		}
		input := map[string]any{"object": updated, "oldObject": nil, "request": m{"operation": operation, "resource": m{"resource": resource}}}
		if old != nil {
			input["oldObject"] = old
		}
		holds, _, err := program.Eval(input)
		if err != nil {
			t.Fatalf("%s, %s: %v", hook.Name, condition.Name, err)
		}
		if holds.Value() != true {
			return false
		}
	}
	return true
}

func object(annotations, spec map[string]any) map[string]any {
	metadata := map[string]any{"name": "ci"}
	if annotations != nil {
		metadata["annotations"] = annotations
	}
	return map[string]any{"metadata": metadata, "spec": spec}
}

type m = map[string]any

func TestWhichUpdatesTheWebhooksSee(t *testing.T) {
	whole, one, two := m{"reason": "x"}, m{"reason": "x", "versions": []any{1}}, m{"reason": "x", "versions": []any{2, 1}}
	for sentence, test := range map[string]struct {
		old, updated m
		want         []string
	}{
		"nothing changes":                       {object(nil, m{"ttl": "1d"}), object(nil, m{"ttl": "1d"}), nil},
		"an annotation that is not Mintmark's":  {object(nil, m{}), object(m{"a": "b"}, m{}), nil},
		"a request":                             {object(nil, m{}), object(m{v1alpha1.AnnotationRotateRequestedAt: "t"}, m{}), []string{defaults, checks}},
		"a request taken back":                  {object(m{v1alpha1.AnnotationDiscardRequestedAt: "t"}, m{}), object(m{}, m{}), []string{defaults, checks}},
		"a reason":                              {object(m{v1alpha1.AnnotationReason: "a"}, m{}), object(m{v1alpha1.AnnotationReason: "b"}, m{}), []string{defaults, checks}},
		"a name that is Mintmark's to write":    {object(nil, m{}), object(m{v1alpha1.AnnotationRequestedBy: "root"}, m{}), []string{defaults, checks}},
		"a field of the spec":                   {object(nil, m{}), object(nil, m{"ttl": "1d"}), []string{defaults, checks}},
		"a revocation":                          {object(nil, m{"ttl": "1d"}), object(nil, m{"ttl": "1d", "revoked": whole}), []string{actor}},
		"a revocation of a version":             {object(m{"a": "b"}, m{}), object(nil, m{"revoked": one}), []string{actor}},
		"a revocation of one more":              {object(nil, m{"revoked": one}), object(nil, m{"revoked": two}), []string{actor}},
		"a revocation of the rest":              {object(nil, m{"revoked": two}), object(nil, m{"revoked": whole}), []string{actor}},
		"another reason":                        {object(nil, m{"revoked": whole}), object(nil, m{"revoked": m{"reason": "y"}}), []string{actor}},
		"a version taken back":                  {object(nil, m{"revoked": two}), object(nil, m{"revoked": one}), []string{defaults, checks}},
		"all but one version taken back":        {object(nil, m{"revoked": whole}), object(nil, m{"revoked": one}), []string{defaults, checks}},
		"an empty list is the whole credential": {object(nil, m{"revoked": one}), object(nil, m{"revoked": m{"reason": "x", "versions": []any{}}}), []string{actor}},
		"a revocation taken back":               {object(nil, m{"revoked": whole}), object(nil, m{}), []string{defaults, checks}},
		"a revocation and another field":        {object(nil, m{"ttl": "1d"}), object(nil, m{"ttl": "2d", "revoked": whole}), []string{defaults, checks}},
		"a revocation and a field left out":     {object(nil, m{"ttl": "1d"}), object(nil, m{"revoked": whole}), []string{defaults, checks}},
		"a revocation and a request":            {object(nil, m{}), object(m{v1alpha1.AnnotationRotateRequestedAt: "t"}, m{"revoked": whole}), []string{defaults, checks}},
		// The mutating webhooks come first: what they write, the validating ones
		// see. That one only asks what may be handed out, and that is nothing.
		"a revocation in somebody's name": {object(nil, m{}), object(m{v1alpha1.AnnotationRevokedBy: "root"}, m{"revoked": whole}), []string{defaults}},
	} {
		t.Run(sentence, func(t *testing.T) {
			hooks := configurations(t)
			for _, name := range []string{defaults, actor, checks} {
				if got := called(t, hooks[name], "UPDATE", test.old, test.updated); got != slices.Contains(test.want, name) {
					t.Errorf("%s is called: %v", name, got)
				}
			}
		})
	}
}

func TestWhichUpdatesAreOfWhatIsAllowed(t *testing.T) {
	hook := configurations(t)[changes]
	mark := m{v1alpha1.AnnotationChangedBy: "1 ann"}
	for sentence, test := range map[string]struct {
		resource     string
		old, updated m
		want         bool
	}{
		"nothing changes":                    {"servicetokens", object(nil, m{"ttl": "1d"}), object(nil, m{"ttl": "1d"}), false},
		"how long a credential lives":        {"servicetokens", object(nil, m{"ttl": "1d"}), object(nil, m{"ttl": "2d"}), false},
		"a revocation":                       {"apikeys", object(mark, m{}), object(mark, m{"revoked": m{"reason": "x"}}), false},
		"a permission":                       {"servicetokens", object(nil, m{}), object(nil, m{"permissions": []any{"a"}}), true},
		"a permission less":                  {"apikeys", object(nil, m{"permissions": []any{"a"}}), object(nil, m{}), true},
		"a role":                             {"apikeys", object(nil, m{"roles": []any{"a"}}), object(nil, m{"roles": []any{"b"}}), true},
		"a class":                            {"servicetokens", object(nil, m{"credentialClassName": "a"}), object(nil, m{"credentialClassName": "b"}), true},
		"a network less":                     {"servicetokens", object(nil, m{"allowedCIDRs": []any{"10.0.0.0/8"}}), object(nil, m{}), true},
		"an attribute":                       {"apikeys", object(nil, m{"attributes": m{"a": "b"}}), object(nil, m{"attributes": m{"a": "c"}}), true},
		"a rate":                             {"apikeys", object(nil, m{"rateLimit": m{"requests": 1}}), object(nil, m{}), true},
		"an audience":                        {"apikeys", object(nil, m{}), object(nil, m{"jwt": m{"audiences": []any{"a"}}}), true},
		"an administrator":                   {"servicetokens", object(nil, m{}), object(nil, m{"admin": true}), true},
		"the name of who changed it":         {"servicetokens", object(mark, m{}), object(m{v1alpha1.AnnotationChangedBy: "1 bob"}, m{}), true},
		"that it is taken away":              {"accessroles", object(mark, m{}), object(nil, m{}), true},
		"any field of what is no credential": {"accessroles", object(mark, m{"description": "a"}), object(mark, m{"description": "b"}), true},
		"the labels of what is none":         {"accesspolicies", m{"metadata": m{"labels": m{"a": "b"}}, "spec": m{}}, m{"metadata": m{}, "spec": m{}}, false},
	} {
		if got := calledFor(t, hook, "UPDATE", test.resource, test.old, test.updated); got != test.want {
			t.Errorf("%s: it is called: %v", sentence, got)
		}
	}
	for sentence, test := range map[string]struct {
		resource string
		made     m
		want     bool
	}{
		"what is no credential":                  {"credentialclasses", object(nil, m{}), true},
		"a credential":                           {"servicetokens", object(nil, m{"permissions": []any{"a"}}), false},
		"a credential that says who has made it": {"apikeys", object(mark, m{}), true},
	} {
		if got := calledFor(t, hook, "CREATE", test.resource, nil, test.made); got != test.want {
			t.Errorf("a creation of %s: it is called: %v", sentence, got)
		}
	}
}

func TestEveryCreationIsSeen(t *testing.T) {
	hooks := configurations(t)
	for _, name := range []string{defaults, checks} {
		if !called(t, hooks[name], "CREATE", nil, object(nil, m{"revoked": m{"reason": "x"}})) {
			t.Errorf("%s is not called", name)
		}
	}
}

// A field that is added to the spec must not be smuggled in beside a revocation.
func TestEveryFieldButRevokedIsSeenBesideARevocation(t *testing.T) {
	hooks, spec := configurations(t), reflect.TypeOf(v1alpha1.CredentialSpec{})
	for i := range spec.NumField() {
		name, _, _ := strings.Cut(spec.Field(i).Tag.Get("json"), ",")
		if name == "revoked" {
			continue
		}
		revoked := m{"reason": "x"}
		for sentence, update := range map[string][2]m{
			"added":      {m{}, m{name: "new", "revoked": revoked}},
			"changed":    {m{name: []any{"old"}}, m{name: []any{"new"}, "revoked": revoked}},
			"taken away": {m{name: m{"old": true}}, m{"revoked": revoked}},
		} {
			for _, hook := range []string{defaults, checks} {
				if !called(t, hooks[hook], "UPDATE", object(nil, update[0]), object(nil, update[1])) {
					t.Errorf("spec.%s %s: %s is not called", name, sentence, hook)
				}
			}
			if called(t, hooks[actor], "UPDATE", object(nil, update[0]), object(nil, update[1])) {
				t.Errorf("spec.%s %s: taken for a revocation alone", name, sentence)
			}
		}
	}
}

func TestHowTheWebhooksAreCalled(t *testing.T) {
	hooks := configurations(t)
	for _, kind := range []string{"Mutating", "Validating"} {
		tokens, keys := hooks[kind+"WebhookConfiguration servicetokens.mintmark.dev"], hooks[kind+"WebhookConfiguration apikeys.mintmark.dev"]
		if !reflect.DeepEqual(tokens.MatchConditions, keys.MatchConditions) {
			t.Errorf("%s: servicetokens and apikeys differ in their conditions", kind)
		}
	}
	for name, hook := range hooks {
		if *hook.SideEffects != admissionregistrationv1.SideEffectClassNone || *hook.MatchPolicy != admissionregistrationv1.Equivalent {
			t.Errorf("%s: sideEffects %s, matchPolicy %s", name, *hook.SideEffects, *hook.MatchPolicy)
		}
		if hook.NamespaceSelector != nil || hook.ObjectSelector != nil {
			t.Errorf("%s leaves out a part of the cluster, where people could hide", name)
		}
		ignored := []string{actor, changes, brakes, "ValidatingWebhookConfiguration credentialclasses-by-administrators.mintmark.dev"}
		if open := *hook.FailurePolicy == admissionregistrationv1.Ignore; open != slices.Contains(ignored, name) {
			t.Errorf("%s: failurePolicy %s", name, *hook.FailurePolicy)
		}
		for _, rule := range hook.Rules {
			if slices.Contains(rule.Operations, admissionregistrationv1.Delete) || slices.ContainsFunc(rule.Resources, func(r string) bool { return strings.Contains(r, "/") }) {
				t.Errorf("%s stands in the way of deletion or of status: %v", name, rule)
			}
		}
	}
	if len(hooks) != 12 {
		t.Errorf("there are %d webhooks; is a new one to be looked at here?", len(hooks))
	}
}
