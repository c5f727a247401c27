package authz_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mintmark-dev/mintmark/internal/authz"
)

func TestSetAllows(t *testing.T) {
	set := authz.NewSet([]string{"deploy:write", "", "api:*", "api:*", "logs:read:*", "health"})
	for sentence, test := range map[string]struct {
		permission string
		want       bool
	}{
		"a permission it has":                    {"deploy:write", true},
		"a plain name it has":                    {"health", true},
		"a permission under a wildcard":          {"api:read", true},
		"a permission deep under a wildcard":     {"logs:read:today:debug", true},
		"the wildcard itself":                    {"api:*", true},
		"a permission it does not have":          {"deploy:read", false},
		"the resource of a wildcard":             {"api", false},
		"a wildcard over a permission it has":    {"deploy:*", false},
		"the star":                               {"*", false},
		"the empty permission":                   {"", false},
		"a wildcard's prefix and nothing behind": {"api:", false},
	} {
		t.Run(sentence, func(t *testing.T) {
			if got := set.Allows(test.permission); got != test.want {
				t.Errorf("Allows(%q) = %v", test.permission, got)
			}
		})
	}
}

func TestSetStringsAreSortedAndUnique(t *testing.T) {
	input := []string{"b:*", "*", "b", "a:b", "b:*", "", "*"}
	if diff := cmp.Diff([]string{"*", "a:b", "b", "b:*"}, authz.NewSet(input).Strings()); diff != "" {
		t.Errorf("Strings (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"b:*", "*", "b", "a:b", "b:*", "", "*"}, input); diff != "" {
		t.Errorf("NewSet changed what it was given (-want +got):\n%s", diff)
	}
}

func TestTheZeroSetAllowsNothing(t *testing.T) {
	var zero authz.Set
	if zero.Allows("a") || zero.Overlaps("*") || !zero.Empty() || len(zero.Strings()) != 0 {
		t.Error("the zero Set holds something")
	}
	for _, held := range []string{"a", "a:*", "*"} {
		if authz.NewSet([]string{held}).Empty() {
			t.Errorf("a set of %q is said to be empty", held)
		}
	}
}

func TestSetDoesNotAllocateToAnswer(t *testing.T) {
	set := authz.NewSet([]string{"deploy:write", "api:*", "logs:read:*", "health"})
	ceiling := authz.NewCeiling(rule([]string{"*"}, []string{"mintmark:*", "deploy:prod"}))
	hostile := strings.Repeat("a:", 4096)
	if n := testing.AllocsPerRun(100, func() {
		_ = set.Allows("deploy:write") && set.Allows("logs:read:today") && !set.Allows("logs:write") && !set.Allows(hostile)
		_ = ceiling.AllowsUse("deploy:write") && !ceiling.AllowsUse("mintmark:admin")
	}); n != 0 {
		t.Errorf("%v allocations for an answer", n)
	}
}

func TestSetIsTheUnionOfItsPatterns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries, asked := patterns.Draw(t, "entries"), pattern.Draw(t, "asked")
		set := authz.NewSet(entries)
		if got, want := set.Allows(asked), coveredByAny(entries, asked); got != want {
			t.Fatalf("%q allows %q: %v, by its entries: %v", entries, asked, got, want)
		}
		overlap := slices.ContainsFunc(entries, func(e string) bool { return authz.Overlaps(e, asked) })
		if got := set.Overlaps(asked); got != overlap {
			t.Fatalf("%q overlaps %q: %v, by its entries: %v", entries, asked, got, overlap)
		}
		if diff := cmp.Diff(set.Strings(), authz.NewSet(set.Strings()).Strings()); diff != "" {
			t.Fatalf("a set made of its own strings differs:\n%s", diff)
		}
	})
}

func FuzzSet(f *testing.F) {
	f.Add("deploy:*,api:read", "deploy:write")
	f.Add("*", "")
	f.Add("a:!:*,a:*", "a:b")
	f.Add(":*,::*", ":::")
	f.Fuzz(func(t *testing.T, list, asked string) {
		entries := strings.Split(list, ",")
		if got, want := authz.NewSet(entries).Allows(asked), coveredByAny(entries, asked); got != want {
			t.Fatalf("%q allows %q: %v, by its entries: %v", entries, asked, got, want)
		}
		for _, wider := range authz.Covering(asked) {
			if !authz.Covers(wider, asked) {
				t.Fatalf("%q is said to cover %q", wider, asked)
			}
		}
	})
}

func BenchmarkSetAllows(b *testing.B) {
	set := authz.NewSet([]string{"deploy:write", "deploy:read", "api:*", "logs:read:*", "health"})
	b.ReportAllocs()
	for b.Loop() {
		if !set.Allows("logs:read:today") {
			b.Fatal("refused")
		}
	}
}

func coveredByAny(entries []string, asked string) bool {
	return slices.ContainsFunc(entries, func(e string) bool { return authz.Covers(e, asked) })
}
