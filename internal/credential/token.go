package credential

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strings"
	"unsafe"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Sizes of the formats, in characters.
const (
	secretBytes = 32 // of a service token: 256 bits

	tokenRandomLen   = 2 * secretBytes
	tokenChecksumLen = 8

	// APIKeyPrefixLen is the length of an API key's public part.
	APIKeyPrefixLen   = 8
	apiKeyLead        = "mk" // so that a scanner has something to look for
	apiKeyRandomLen   = 43   // 43 * log2(62) = 256.03 bits
	apiKeyChecksumLen = 6    // 62^6 > 2^32
	apiKeyLen         = APIKeyPrefixLen + 1 + apiKeyRandomLen + apiKeyChecksumLen

	// MaxLen is the longest value looked at, of any format.
	MaxLen = 512
	// MinExternalLen is the shortest value of another system that is looked at.
	MinExternalLen = 20

	maxEnvironmentLen = 16
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// ErrMalformed is what Parse returns for anything that cannot be a credential.
// It says nothing more, for its text may reach the caller.
var ErrMalformed = errors.New("malformed credential")

// Token is the plaintext of a credential. It does not print: every formatter,
// encoder and logger sees its public prefix alone. Reveal is the one way out.
//
// The text is kept by its first byte and length, for fmt and slog call no
// method of what they find in an unexported field of somebody else's struct:
// a string they would print, of a pointer they print the address.
type Token struct {
	_      [0]func() // not comparable: == would compare places in memory
	first  *byte
	length int
	format shape
}

func newToken(text string, format shape) Token {
	return Token{first: unsafe.StringData(text), length: len(text), format: format}
}

func (t Token) text() string { return unsafe.String(t.first, t.length) }

type shape uint8

const (
	shapeNone shape = iota
	shapeServiceToken
	shapeAPIKey
	shapeExternal
)

// Reveal gives the plaintext, for the Secret it goes into or the person who
// asked for it. Everything else works on digests.
func (t Token) Reveal() string { return t.text() }

// External tells whether the value has neither of our own formats, so that
// only a credential declared by its SHA-256 can match it.
func (t Token) External() bool { return t.format == shapeExternal }

// Prefix is the part of the value that may be shown: the first 8 characters of
// an API key; of a service token the lead and the first 4 random digits, which
// leaves 240 bits; of any other value nothing.
func (t Token) Prefix() string {
	switch t.format {
	case shapeAPIKey:
		return t.text()[:APIKeyPrefixLen]
	case shapeServiceToken:
		return t.text()[:strings.LastIndexByte(t.text(), '_')+1+shownDigits]
	default:
		return ""
	}
}

// String implements fmt.Stringer without giving the value away.
func (t Token) String() string { return "[redacted " + t.Prefix() + "]" }

// GoString implements fmt.GoStringer without giving the value away.
func (t Token) GoString() string { return t.String() }

// Format implements fmt.Formatter, so that no verb reaches the field behind it.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// MarshalText implements encoding.TextMarshaler without giving the value away.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// LogValue implements slog.LogValuer without giving the value away.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Format says how values are made: by kind and, for service tokens, by the
// class's environment and whether a checksum is appended.
type Format struct {
	Kind        v1alpha1.Kind
	Environment string
	Checksum    bool
}

// Mint makes a new value from a cryptographically secure source of randomness,
// normally crypto/rand.Reader. The only errors are the source's.
func (f Format) Mint(random io.Reader) (Token, error) {
	if f.Kind == v1alpha1.KindAPIKey {
		return mintAPIKey(random)
	}
	var secret [secretBytes]byte
	if _, err := io.ReadFull(random, secret[:]); err != nil {
		return Token{}, fmt.Errorf("reading randomness: %w", err)
	}
	var b strings.Builder
	b.Grow(len("sk_") + maxEnvironmentLen + 1 + tokenRandomLen + tokenChecksumLen)
	b.WriteString("sk_")
	if f.Environment != "" {
		b.WriteString(f.Environment)
		b.WriteByte('_')
	}
	b.WriteString(hex.EncodeToString(secret[:]))
	if f.Checksum {
		b.WriteString(hexChecksum(b.String()))
	}
	return newToken(b.String(), shapeServiceToken), nil
}

func mintAPIKey(random io.Reader) (Token, error) {
	var text [apiKeyLen]byte
	copy(text[:], apiKeyLead)
	if err := fillBase62(random, text[len(apiKeyLead):APIKeyPrefixLen]); err != nil {
		return Token{}, err
	}
	text[APIKeyPrefixLen] = '.'
	body := text[:APIKeyPrefixLen+1+apiKeyRandomLen]
	if err := fillBase62(random, body[APIKeyPrefixLen+1:]); err != nil {
		return Token{}, err
	}
	checksum := base62Checksum(string(body))
	copy(text[len(body):], checksum[:])
	return newToken(string(text[:]), shapeAPIKey), nil
}

// fillBase62 fills dst with characters each of which is equally likely: bytes
// from 248 (4 * 62) on are drawn again, for taking them modulo 62 would favour
// the first characters.
func fillBase62(random io.Reader, dst []byte) error {
	var pool [64]byte
	for len(dst) > 0 {
		if _, err := io.ReadFull(random, pool[:]); err != nil {
			return fmt.Errorf("reading randomness: %w", err)
		}
		for _, b := range pool {
			if b >= 4*62 {
				continue
			}
			dst[0] = base62[b%62]
			if dst = dst[1:]; len(dst) == 0 {
				break
			}
		}
	}
	return nil
}

// Parse recognises a presented value, and refuses with ErrMalformed whatever
// can be no credential, before anything is hashed. Leading and trailing space,
// line ends and NUL are garbage like any other: trimming is the client's task.
//
// A value with the lead and the length of one of our own formats must be one,
// checksum included. Any other printable value of a sane length is External:
// other systems' tokens begin with sk_ too, and may be declared by their
// SHA-256. Parse does not allocate.
func Parse(presented string) (Token, error) {
	if len(presented) < MinExternalLen || len(presented) > MaxLen {
		return Token{}, ErrMalformed
	}
	if len(presented) == apiKeyLen && presented[:len(apiKeyLead)] == apiKeyLead && presented[APIKeyPrefixLen] == '.' {
		return parseAPIKey(presented)
	}
	if random, ok := tokenRandom(presented); ok {
		return parseServiceToken(presented, random)
	}
	for i := range len(presented) {
		if c := presented[i]; c <= ' ' || c > '~' {
			return Token{}, ErrMalformed
		}
	}
	return newToken(presented, shapeExternal), nil
}

// tokenRandom gives what follows the lead, sk_ or sk_ENVIRONMENT_, where there
// is such a lead and the rest has one of the two lengths.
func tokenRandom(s string) (string, bool) {
	rest, ok := strings.CutPrefix(s, "sk_")
	if !ok {
		return "", false
	}
	if i := strings.LastIndexByte(rest, '_'); i >= 0 {
		if !validEnvironment(rest[:i]) {
			return "", false
		}
		rest = rest[i+1:]
	}
	return rest, len(rest) == tokenRandomLen || len(rest) == tokenRandomLen+tokenChecksumLen
}

func validEnvironment(s string) bool {
	if s == "" || len(s) > maxEnvironmentLen || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func parseServiceToken(s, random string) (Token, error) {
	for i := range len(random) {
		if c := random[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return Token{}, ErrMalformed
		}
	}
	if len(random) == tokenRandomLen+tokenChecksumLen {
		body := s[:len(s)-tokenChecksumLen]
		if checksumHex(crc32.ChecksumIEEE(unsafeBytes(body))) != [tokenChecksumLen]byte([]byte(s[len(body):])) {
			return Token{}, ErrMalformed
		}
	}
	return newToken(s, shapeServiceToken), nil
}

func parseAPIKey(s string) (Token, error) {
	for i := range len(s) {
		if i != APIKeyPrefixLen && !isBase62(s[i]) {
			return Token{}, ErrMalformed
		}
	}
	body := s[:apiKeyLen-apiKeyChecksumLen]
	if base62Checksum(body) != [apiKeyChecksumLen]byte([]byte(s[len(body):])) {
		return Token{}, ErrMalformed
	}
	return newToken(s, shapeAPIKey), nil
}

func isBase62(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// The checksums are public functions of the value: they tell a typing error
// from a key, and a key from a random string, without asking anybody. They
// prove nothing.
func base62Checksum(body string) [apiKeyChecksumLen]byte {
	sum := crc32.ChecksumIEEE(unsafeBytes(body))
	var out [apiKeyChecksumLen]byte
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = base62[sum%62]
		sum /= 62
	}
	return out
}

func hexChecksum(body string) string {
	out := checksumHex(crc32.ChecksumIEEE(unsafeBytes(body)))
	return string(out[:])
}

func checksumHex(sum uint32) [tokenChecksumLen]byte {
	var raw [4]byte
	raw[0], raw[1], raw[2], raw[3] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	var out [tokenChecksumLen]byte
	hex.Encode(out[:], raw[:])
	return out
}

// Inner is the inner hash of a value: SHA-256 of its text. A credential can be
// declared by it alone.
type Inner [sha256.Size]byte

// Inner hashes the value.
func (t Token) Inner() Inner { return sha256.Sum256(unsafeBytes(t.text())) }

// ParseInner reads an inner hash as it is declared: 64 lowercase hexadecimal
// digits. The error does not repeat what was given: it may be the value itself,
// put in the place of its hash.
func ParseInner(s string) (Inner, error) {
	var in Inner
	if len(s) != hex.EncodedLen(len(in)) || strings.ToLower(s) != s {
		return in, errNoInner
	}
	if _, err := hex.Decode(in[:], []byte(s)); err != nil {
		return Inner{}, errNoInner
	}
	return in, nil
}

var errNoInner = errors.New("not a SHA-256 in 64 lowercase hexadecimal digits")

// Kind is the kind of credential whose format the value has; empty for a value
// of another system.
func (t Token) Kind() v1alpha1.Kind {
	switch t.format {
	case shapeServiceToken:
		return v1alpha1.KindServiceToken
	case shapeAPIKey:
		return v1alpha1.KindAPIKey
	default:
		return ""
	}
}
