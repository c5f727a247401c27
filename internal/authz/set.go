package authz

import (
	"slices"
	"strings"
)

// Set is a set of patterns, compiled for look-up. The zero Set allows nothing.
//
// It is two sorted runs in one slice rather than a map, for an index holds one
// for each of its credentials and most have a handful of entries.
type Set struct {
	// patterns are the plain permissions, sorted, and after them, from the index
	// wildcards on, the wildcards but "*", sorted by their prefix.
	patterns  []string
	wildcards int
	// longest is the length of the longest wildcard's prefix: where a look-up
	// may stop, however long the permission asked for.
	longest    int
	everything bool
}

// NewSet compiles the patterns. Empty ones and duplicates are left out; the
// slice is not kept.
func NewSet(patterns []string) Set {
	var s Set
	var plain, wild []string
	for _, pattern := range patterns {
		prefix, ok := wildcardPrefix(pattern)
		switch {
		case pattern == Everything:
			s.everything = true
		case ok:
			wild = append(wild, pattern)
			s.longest = max(s.longest, len(prefix))
		case pattern != "":
			plain = append(plain, pattern)
		}
	}
	slices.Sort(plain)
	slices.SortFunc(wild, func(a, b string) int { return comparePrefix(a, b[:len(b)-1]) })
	plain, wild = slices.Compact(plain), slices.Compact(wild)
	s.wildcards = len(plain)
	s.patterns = slices.Clip(append(plain, wild...))
	return s
}

// Allows tells whether some pattern of the set covers the permission (see
// [Covers]). It does not allocate, and its cost depends on the set and not on
// the length of what is asked.
func (s Set) Allows(permission string) bool {
	if permission == "" {
		return false
	}
	if s.everything {
		return true
	}
	if _, found := slices.BinarySearch(s.patterns[:s.wildcards], permission); found {
		return true
	}
	wild := s.patterns[s.wildcards:]
	if len(wild) == 0 {
		return false
	}
	for end := 0; end < len(permission)-1 && end < s.longest; end++ {
		if permission[end] != ':' {
			continue
		}
		if _, found := slices.BinarySearchFunc(wild, permission[:end+1], comparePrefix); found {
			return true
		}
	}
	return false
}

// Overlaps tells whether some permission is covered by the pattern and by the
// set.
func (s Set) Overlaps(pattern string) bool {
	if s.Allows(pattern) {
		return true
	}
	if !isWildcard(pattern) {
		return false
	}
	return slices.ContainsFunc(s.patterns, func(entry string) bool { return Covers(pattern, entry) })
}

// Strings are the patterns of the set, sorted and each once.
func (s Set) Strings() []string {
	all := slices.Clone(s.patterns)
	if s.everything {
		all = append(all, Everything)
	}
	slices.Sort(all)
	return all
}

// Empty tells whether the set allows nothing.
func (s Set) Empty() bool { return !s.everything && len(s.patterns) == 0 }

// comparePrefix orders a wildcard against what another begins with.
func comparePrefix(entry, prefix string) int {
	return strings.Compare(entry[:len(entry)-1], prefix)
}
