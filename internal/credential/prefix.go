package credential

import "strings"

// IsPrefix tells whether the text can be what [Token.Prefix] gives for a value of one of
// our own formats. Whoever says what the prefix of a value is, without showing the value,
// is believed as far as this goes.
func IsPrefix(text string) bool {
	if rest, ok := strings.CutPrefix(text, "sk_"); ok {
		if i := strings.LastIndexByte(rest, '_'); i >= 0 {
			if !validEnvironment(rest[:i]) {
				return false
			}
			rest = rest[i+1:]
		}
		return len(rest) == shownDigits && strings.Trim(rest, "0123456789abcdef") == ""
	}
	if len(text) != APIKeyPrefixLen || !strings.HasPrefix(text, apiKeyLead) {
		return false
	}
	for i := range len(text) {
		if !isBase62(text[i]) {
			return false
		}
	}
	return true
}

// shownDigits is how many of a service token's random digits its prefix shows.
const shownDigits = 4
