package authz_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mintmark-dev/mintmark/internal/authz"
)

func TestCovers(t *testing.T) {
	for sentence, test := range map[string]struct {
		pattern, permission string
		want                bool
	}{
		"the star covers a permission":                           {"*", "deploy:write", true},
		"the star covers a wildcard":                             {"*", "deploy:*", true},
		"the star covers itself":                                 {"*", "*", true},
		"a wildcard covers an action":                            {"deploy:*", "deploy:write", true},
		"a wildcard covers what lies deeper":                     {"deploy:*", "deploy:a:b", true},
		"a wildcard covers a narrower wildcard":                  {"deploy:*", "deploy:a:*", true},
		"a wildcard covers itself":                               {"deploy:*", "deploy:*", true},
		"a wildcard does not cover the bare resource":            {"deploy:*", "deploy", false},
		"a wildcard does not cover the resource with a colon":    {"deploy:*", "deploy:", false},
		"a wildcard does not cover a resource that begins alike": {"deploy:*", "deployment:write", false},
		"a wildcard does not cover a wider wildcard":             {"deploy:a:*", "deploy:*", false},
		"a wildcard does not cover the star":                     {"deploy:*", "*", false},
		"a permission covers itself":                             {"deploy:write", "deploy:write", true},
		"a permission covers no other":                           {"deploy:write", "deploy:read", false},
		"a permission does not cover what it begins":             {"deploy:write", "deploy:write:all", false},
		"case counts":                             {"Deploy:*", "deploy:write", false},
		"a star inside is no wildcard":            {"dep*", "deploy", false},
		"nothing covers the empty permission":     {"*", "", false},
		"the empty pattern covers nothing":        {"", "deploy", false},
		"the empty pattern does not cover itself": {"", "", false},
	} {
		t.Run(sentence, func(t *testing.T) {
			if got := authz.Covers(test.pattern, test.permission); got != test.want {
				t.Errorf("Covers(%q, %q) = %v", test.pattern, test.permission, got)
			}
		})
	}
}

func TestOverlaps(t *testing.T) {
	for sentence, test := range map[string]struct {
		a, b string
		want bool
	}{
		"a wildcard and a permission under it":      {"deploy:*", "deploy:write", true},
		"a wildcard and a wildcard under it":        {"deploy:*", "deploy:a:*", true},
		"the star and anything":                     {"*", "deploy:a:*", true},
		"a permission and itself":                   {"deploy", "deploy", true},
		"two permissions have nothing in common":    {"deploy:read", "deploy:write", false},
		"two resources have nothing in common":      {"deploy:*", "api:*", false},
		"a resource and its wildcard are different": {"deploy", "deploy:*", false},
		"the empty pattern overlaps nothing":        {"", "*", false},
	} {
		t.Run(sentence, func(t *testing.T) {
			if got := authz.Overlaps(test.a, test.b); got != test.want {
				t.Errorf("Overlaps(%q, %q) = %v", test.a, test.b, got)
			}
			if got := authz.Overlaps(test.b, test.a); got != test.want {
				t.Errorf("Overlaps(%q, %q) = %v, the other way round it is %v", test.b, test.a, got, test.want)
			}
		})
	}
}

func TestCovering(t *testing.T) {
	for sentence, test := range map[string]struct {
		permission string
		want       []string
	}{
		"a deep permission has a wildcard for each level": {"a:b:c", []string{"a:b:*", "a:*", "*"}},
		"a plain name has the star":                       {"deploy", []string{"*"}},
		"a wildcard does not list itself":                 {"a:b:*", []string{"a:*", "*"}},
		"a wildcard of one level has the star":            {"deploy:*", []string{"*"}},
		"the star has none":                               {"*", nil},
		"the empty permission has none":                   {"", nil},
	} {
		t.Run(sentence, func(t *testing.T) {
			if diff := cmp.Diff(test.want, authz.Covering(test.permission)); diff != "" {
				t.Errorf("Covering(%q) (-want +got):\n%s", test.permission, diff)
			}
		})
	}
}

func TestAdded(t *testing.T) {
	for sentence, test := range map[string]struct {
		old, updated, want []string
	}{
		"everything is added to nothing":          {nil, []string{"b", "a"}, []string{"b", "a"}},
		"what was there is not added":             {[]string{"a", "b"}, []string{"b", "a"}, nil},
		"what a wildcard covered is not added":    {[]string{"deploy:*"}, []string{"deploy:write", "deploy:a:*"}, nil},
		"a wildcard over what was there is added": {[]string{"deploy:write"}, []string{"deploy:*", "deploy:write"}, []string{"deploy:*"}},
		"what is taken away adds nothing":         {[]string{"a", "b"}, []string{"a"}, nil},
		"what is written twice is added once":     {nil, []string{"a", "a"}, []string{"a"}},
		"the empty string is never held":          {[]string{""}, []string{""}, []string{""}},
	} {
		t.Run(sentence, func(t *testing.T) {
			if diff := cmp.Diff(test.want, authz.Added(test.old, test.updated)); diff != "" {
				t.Errorf("Added (-want +got):\n%s", diff)
			}
		})
	}
}

// segments are few, so that patterns drawn at random meet each other.
var (
	segment = rapid.SampledFrom([]string{"a", "b", "ab", "A", "_x", "read-all", "v1.2"})
	name    = rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(segment, 1, 4).Draw(t, "segments"), ":")
	})
	wildcard = rapid.Map(name, func(s string) string { return s + ":*" })
	pattern  = rapid.OneOf(name, name, wildcard, rapid.Just("*"), rapid.StringMatching(`[ab:*!]{0,5}`))
	patterns = rapid.SliceOfN(pattern, 0, 8)
)

func TestCoversIsAPartialOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := pattern.Draw(t, "a"), pattern.Draw(t, "b"), pattern.Draw(t, "c")
		if a != "" && !authz.Covers(a, a) {
			t.Fatalf("%q does not cover itself", a)
		}
		if authz.Covers(a, b) && authz.Covers(b, c) && !authz.Covers(a, c) {
			t.Fatalf("%q covers %q, which covers %q, but not that", a, b, c)
		}
		if a != b && authz.Covers(a, b) && authz.Covers(b, a) {
			t.Fatalf("%q and %q cover each other", a, b)
		}
	})
}

func TestPatternsOverlapWhenAPermissionIsUnderBoth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, permission := pattern.Draw(t, "a"), pattern.Draw(t, "b"), name.Draw(t, "permission")
		if authz.Covers(a, permission) && authz.Covers(b, permission) && !authz.Overlaps(a, b) {
			t.Fatalf("%q is under %q and %q, which do not overlap", permission, a, b)
		}
		if !authz.Overlaps(a, b) {
			return
		}
		narrower := a
		if authz.Covers(a, b) {
			narrower = b
		}
		witness := strings.TrimSuffix(narrower, "*") + "witness"
		if !strings.HasSuffix(narrower, ":*") && narrower != "*" {
			witness = narrower
		}
		if !authz.Covers(a, witness) || !authz.Covers(b, witness) {
			t.Fatalf("%q and %q overlap, but %q is not under both", a, b, witness)
		}
	})
}

func TestCoveringIsEveryWildcardThatCovers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		permission, other := rapid.OneOf(name, wildcard).Draw(t, "permission"), wildcard.Draw(t, "other")
		wider := authz.Covering(permission)
		for i, w := range wider {
			if w == permission || !authz.Covers(w, permission) {
				t.Fatalf("%q is listed and does not cover %q", w, permission)
			}
			if i > 0 && !authz.Covers(w, wider[i-1]) {
				t.Fatalf("%q comes after %q and is not wider", w, wider[i-1])
			}
		}
		if other != permission && authz.Covers(other, permission) && !slices.Contains(wider, other) {
			t.Fatalf("%q covers %q and is not in %v", other, permission, wider)
		}
	})
}

func TestAddedIsWhatTheOldDidNotCover(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, updated := patterns.Draw(t, "old"), patterns.Draw(t, "updated")
		added := authz.Added(old, updated)
		for _, entry := range updated {
			covered := slices.ContainsFunc(old, func(o string) bool { return authz.Covers(o, entry) })
			if covered == slices.Contains(added, entry) {
				t.Fatalf("%q: covered before is %v, added is %v", entry, covered, added)
			}
		}
		if again := authz.Added(append(slices.Clone(old), slices.DeleteFunc(added, func(s string) bool { return s == "" })...),
			slices.DeleteFunc(slices.Clone(updated), func(s string) bool { return s == "" })); len(again) > 0 {
			t.Fatalf("%v is added to what has it already", again)
		}
	})
}
