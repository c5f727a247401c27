package authn_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
)

func TestFindKnowsCredentialsThatAreNoGood(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	want := authn.Identity{UID: "uid-1", Kind: v1alpha1.KindServiceToken, Namespace: "payments", Name: "ci-deploy", Subject: "servicetoken:payments:ci-deploy"}
	if got, ok := x.Find("uid-1"); !ok || got != want {
		t.Errorf("found %+v, %v", got, ok)
	}
	f.live.Deleting = true
	x.Apply(f.live, f.rec)
	if got, ok := x.Find("uid-1"); !ok || got != want {
		t.Errorf("one that is being deleted: %+v, %v", got, ok)
	}
	x.Delete("uid-1")
	if _, ok := x.Find("uid-1"); ok {
		t.Error("one that is gone is found")
	}
	unsealed := authn.New(authn.Config{})
	unsealed.Apply(f.live, nil)
	if got, ok := unsealed.Find("uid-1"); !ok || got != want {
		t.Errorf("one without a record: %+v, %v", got, ok)
	}
}

func TestHolderTellsWhoseValueItIsAndCountsNoUse(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	if got := x.Holder(f.present.Inner()); got != "uid-1" {
		t.Errorf("the holder is %q", got)
	}
	if got := x.Holder(mint(t, v1alpha1.KindAPIKey).Inner()); got != "" {
		t.Errorf("nobody's value is %q's", got)
	}
	if items, _ := x.UsageSince(0, 10); len(items) > 0 && items[0].Uses != 0 {
		t.Errorf("uses were counted: %+v", items)
	}
}

// Whoever hands a pattern out has to hold all that it covers.
func TestCovers(t *testing.T) {
	for sentence, tc := range map[string]struct {
		held    []string
		except  []v1alpha1.Permission
		pattern string
		want    bool
	}{
		"what is held":                            {[]string{"api:read"}, nil, "api:read", true},
		"what is not":                             {[]string{"api:read"}, nil, "api:write", false},
		"a wildcard that is held":                 {[]string{"api:*"}, nil, "api:*", true},
		"what a wildcard covers":                  {[]string{"api:*"}, nil, "api:v1:*", true},
		"a wildcard over what is held":            {[]string{"api:read", "api:write"}, nil, "api:*", false},
		"everything, held":                        {[]string{"*"}, []v1alpha1.Permission{"mintmark:*"}, "deploy:*", true},
		"everything, with a hole in the ceiling":  {[]string{"*"}, []v1alpha1.Permission{"mintmark:*"}, "*", false},
		"a wildcard with a hole in the ceiling":   {[]string{"*"}, []v1alpha1.Permission{"deploy:prod"}, "deploy:*", false},
		"what is held and over the ceiling":       {[]string{"mintmark:status"}, []v1alpha1.Permission{"mintmark:*"}, "mintmark:status", false},
		"nothing":                                 {[]string{"*"}, nil, "", false},
		"everything, where nothing is taken out":  {[]string{"*"}, nil, "*", true},
		"a permission beside one that is covered": {[]string{"api:*"}, nil, "apis", false},
	} {
		t.Run(sentence, func(t *testing.T) {
			f := newFixture(t)
			f.live.Permissions, f.rec.Permissions = tc.held, tc.held
			f.class.Rules[0].Except = tc.except
			verdict := f.verify(f.index())
			expectReason(t, verdict, authn.ReasonAccepted)
			if got := verdict.Principal.Covers(tc.pattern); got != tc.want {
				t.Errorf("Covers(%q) is %v", tc.pattern, got)
			}
		})
	}
	if (&authn.Grant{Admin: true}).Covers("api:read") || (*authn.Grant)(nil).Covers("api:read") {
		t.Error("a grant that comes from no index covers something")
	}
}

func TestSelectedCountsWhatARevocationWouldTake(t *testing.T) {
	f := newFixture(t)
	f.live.Labels, f.rec.Labels = map[string]string{"team": "b"}, map[string]string{"team": "a"}
	x := f.index()
	labelled := func(team string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"team": team}}
	}
	for sentence, tc := range map[string]struct {
		spec v1alpha1.RevocationSpec
		want int
	}{
		"everything":                 {v1alpha1.RevocationSpec{All: true}, 1},
		"its namespace":              {v1alpha1.RevocationSpec{Namespaces: []string{"payments"}}, 1},
		"another namespace":          {v1alpha1.RevocationSpec{Namespaces: []string{"billing"}}, 0},
		"its kind":                   {v1alpha1.RevocationSpec{Kinds: []string{"ServiceToken"}}, 1},
		"the other kind":             {v1alpha1.RevocationSpec{Kinds: []string{"APIKey"}}, 0},
		"its labels as they are":     {v1alpha1.RevocationSpec{Selector: labelled("b")}, 1},
		"its labels as were sealed":  {v1alpha1.RevocationSpec{Selector: labelled("a")}, 1},
		"other labels":               {v1alpha1.RevocationSpec{Selector: labelled("c")}, 0},
		"its kind in another's home": {v1alpha1.RevocationSpec{Kinds: []string{"ServiceToken"}, Namespaces: []string{"billing"}}, 0},
	} {
		t.Run(sentence, func(t *testing.T) {
			if got, err := x.Selected(&tc.spec); err != nil || got != tc.want {
				t.Errorf("%d, %v", got, err)
			}
		})
	}
	if _, err := x.Selected(&v1alpha1.RevocationSpec{Selector: labelled("a b")}); err == nil {
		t.Error("a label that is none selects something")
	}
}
