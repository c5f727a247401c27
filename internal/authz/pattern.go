package authz

import (
	"strings"

	"github.com/mintmark-dev/mintmark/api/permission"
)

// Everything is the pattern that covers every permission.
const Everything = permission.Everything

// Covers tells whether whoever holds the pattern holds the permission, as
// [permission.Covers] has it: services decide by the same rule.
func Covers(pattern, wanted string) bool { return permission.Covers(pattern, wanted) }

// Overlaps tells whether some permission is covered by both patterns. Wildcards
// stand at the end only, so two patterns overlap exactly when one covers the
// other.
func Overlaps(a, b string) bool { return Covers(a, b) || Covers(b, a) }

// Covering lists the wildcards that cover the permission, other than the
// permission itself, narrowest first: "a:b:*", "a:*" and "*" for "a:b:c".
func Covering(wanted string) []string {
	if wanted == "" || wanted == Everything {
		return nil
	}
	var wider []string
	rest := strings.TrimSuffix(wanted, permission.Wildcard)
	for end := strings.LastIndexByte(rest, ':'); end >= 0; end = strings.LastIndexByte(rest, ':') {
		rest = rest[:end]
		if Covers(rest+permission.Wildcard, wanted) {
			wider = append(wider, rest+permission.Wildcard)
		}
	}
	return append(wider, Everything)
}

// Added lists the entries of updated that no entry of old covers, each once and
// in updated's order: what a change hands out beyond what was there.
func Added(old, updated []string) []string {
	var added []string
	held, seen := NewSet(old), make(map[string]bool, len(updated))
	for _, pattern := range updated {
		if !seen[pattern] && !held.Allows(pattern) {
			added = append(added, pattern)
		}
		seen[pattern] = true
	}
	return added
}

func wildcardPrefix(pattern string) (prefix string, ok bool) { return permission.Prefix(pattern) }

// isWildcard tells whether the pattern stands for more than one permission.
func isWildcard(pattern string) bool {
	return pattern == Everything || strings.HasSuffix(pattern, permission.Wildcard)
}
