package authz

import "strings"

// Everything is the pattern that covers every permission.
const Everything = "*"

// wildcard ends every other pattern that is not a plain permission.
const wildcard = ":*"

// Covers tells whether whoever holds the pattern holds the permission, which may
// itself be a pattern: "*" covers all, "deploy:*" covers "deploy:write",
// "deploy:a:b", "deploy:a:*" and itself, but not "deploy"; any other pattern
// covers what equals it. The empty permission is never covered.
//
// The relation is transitive, so handing on what one holds widens nothing.
func Covers(pattern, permission string) bool {
	if permission == "" {
		return false
	}
	if pattern == permission || pattern == Everything {
		return true
	}
	prefix, ok := wildcardPrefix(pattern)
	return ok && len(permission) > len(prefix) && strings.HasPrefix(permission, prefix)
}

// Overlaps tells whether some permission is covered by both patterns. Wildcards
// stand at the end only, so two patterns overlap exactly when one covers the
// other.
func Overlaps(a, b string) bool { return Covers(a, b) || Covers(b, a) }

// Covering lists the wildcards that cover the permission, other than the
// permission itself, narrowest first: "a:b:*", "a:*" and "*" for "a:b:c".
func Covering(permission string) []string {
	if permission == "" || permission == Everything {
		return nil
	}
	var wider []string
	rest := strings.TrimSuffix(permission, wildcard)
	for end := strings.LastIndexByte(rest, ':'); end >= 0; end = strings.LastIndexByte(rest, ':') {
		rest = rest[:end]
		if Covers(rest+wildcard, permission) {
			wider = append(wider, rest+wildcard)
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

// wildcardPrefix is what the permissions under a wildcard begin with: "deploy:"
// for "deploy:*". ok is false for every other pattern, "*" included.
func wildcardPrefix(pattern string) (prefix string, ok bool) {
	if !strings.HasSuffix(pattern, wildcard) {
		return "", false
	}
	return pattern[:len(pattern)-1], true
}

// isWildcard tells whether the pattern stands for more than one permission.
func isWildcard(pattern string) bool {
	return pattern == Everything || strings.HasSuffix(pattern, wildcard)
}
