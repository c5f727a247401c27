// Package permission says which permissions a pattern covers. The server decides by it,
// and services that check a JWT's scope by themselves have to decide alike.
//
// A permission is a name such as "orders:read"; a pattern is a permission or a wildcard
// over permissions, "orders:*" or "*".
package permission

import "strings"

// Everything is the pattern that covers every permission.
const Everything = "*"

// Wildcard ends every other pattern that is not a plain permission.
const Wildcard = ":*"

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
	prefix, ok := Prefix(pattern)
	return ok && len(permission) > len(prefix) && strings.HasPrefix(permission, prefix)
}

// Prefix is what the permissions under a wildcard begin with: "deploy:" for
// "deploy:*". ok is false for every other pattern, "*" included.
func Prefix(pattern string) (prefix string, ok bool) {
	if !strings.HasSuffix(pattern, Wildcard) {
		return "", false
	}
	return pattern[:len(pattern)-1], true
}

// Any tells whether one of the patterns covers the permission.
func Any(patterns []string, permission string) bool {
	for _, pattern := range patterns {
		if Covers(pattern, permission) {
			return true
		}
	}
	return false
}
