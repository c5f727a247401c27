package audit

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text is text from outside that is safe to store and to print: valid UTF-8 on one line
// without control characters, of bounded length, and without anything that has the shape
// of a credential. [Clean] makes it.
type Text string

// Clean makes text of what came from outside. Control characters and what else would
// break a line or hide in it are escaped as Go does ("\n", "\u202e"), what is not UTF-8
// becomes U+FFFD, and the whole is cut after limit bytes, with "…" at the end. What could
// be one of our credentials, or a JWT, is masked: its public part stays.
func Clean(s string, limit int) Text {
	// What is cut off anyway is not looked at. Masking goes before cutting, so that
	// half a credential is masked as well.
	if most := limit + maxSecret; len(s) > most {
		s = s[:most]
	}
	if plain(s) && !longWord(s) {
		return Text(cut(s, limit)) // the usual case, which costs no memory
	}
	return Text(cut(escape(mask(s)), limit))
}

const (
	// minSecret is the length from which on a run of characters may be a secret: the
	// random part of an API key is the shortest, the hexadecimal digits of a service
	// token have 64.
	minSecret = 24
	maxSecret = 4096
	masked    = "[masked]"
)

// plain tells whether nothing has to be escaped.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func escape(s string) string {
	if plain(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == utf8.RuneError || unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			const hex = "0123456789abcdef"
			b.WriteString(`\u`)
			for shift := 28; shift >= 0; shift -= 4 {
				if digit := r >> shift & 15; shift < 16 || digit != 0 || r>>shift != 0 {
					b.WriteByte(hex[digit])
				}
			}
		}
	}
	return b.String()
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	const mark = "…"
	end := max(limit-len(mark), 0)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}

// mask replaces the secret part of what may be a credential.
func mask(s string) string {
	var b strings.Builder
	for s != "" {
		from := strings.IndexFunc(s, inSecret)
		if from < 0 {
			b.WriteString(s)
			break
		}
		b.WriteString(s[:from])
		s = s[from:]
		end := strings.IndexFunc(s, func(r rune) bool { return !inSecret(r) })
		if end < 0 {
			end = len(s)
		}
		b.WriteString(maskWord(s[:end]))
		s = s[end:]
	}
	return b.String()
}

// longWord tells whether there is a run of characters that may hold a secret. The text
// is plain.
func longWord(s string) bool {
	run := 0
	for i := range len(s) {
		if !inSecret(rune(s[i])) {
			run = 0
		} else if run++; run >= minSecret {
			return true
		}
	}
	return false
}

// inSecret: the characters that our formats, hexadecimal and base64url consist of.
func inSecret(r rune) bool {
	return '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r == '_' || r == '-' || r == '.'
}

// maskWord looks at each dotted part of a run of such characters. A path or a user agent has
// no part as long and as mixed as a secret.
func maskWord(word string) string {
	if len(word) < minSecret {
		return word
	}
	parts := strings.Split(word, ".")
	for i, part := range parts {
		if secret(part) {
			keep := 0
			if at := strings.LastIndexByte(part, '_'); at >= 0 && at <= 24 && strings.HasPrefix(part, "sk_") {
				keep = at + 1
			}
			parts[i] = part[:keep] + masked
		}
	}
	return strings.Join(parts, ".")
}

// secret tells whether a part may be one: long, and not like words.
func secret(part string) bool {
	if len(part) < minSecret {
		return false
	}
	var digits, letters, longest, run int
	for i := range len(part) {
		switch c := part[i]; {
		case '0' <= c && c <= '9':
			digits++
			run = 0
		case c == '-' || c == '_':
			run = 0
		default:
			letters++
			run++
			longest = max(longest, run)
		}
	}
	// UUIDs and timestamps are ids, and short; words have no digits between them.
	if len(part) == 36 && strings.Count(part, "-") == 4 {
		return false
	}
	return len(part) >= 40 || digits*8 >= letters && letters > 0 || longest >= minSecret
}
