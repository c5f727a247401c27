package federation

import (
	"encoding/base64"
	"errors"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	strictjson "sigs.k8s.io/json"
)

// Limits of the tokens.
const (
	// MaxTokenLen is the longest token looked at, in bytes. Most servers take no
	// longer header line.
	MaxTokenLen = 16 << 10
	// Leeway is by how much the clock of an issuer may differ from ours.
	Leeway = 30 * time.Second
	// maxKeyIDLen is the longest kid, and maxAudiences the most of aud, looked at.
	maxKeyIDLen  = 512
	maxAudiences = 64
	maxDepth     = 32
)

// RefusedError says why a token is refused. Compare with errors.Is and the values below.
// Neither the code nor the texts hold anything of the token but names of claims.
type RefusedError struct {
	// Code is stable, and fit for a metric's label. It is for operators; callers
	// learn no more than that the token is refused.
	Code string
	text string
	// cause is more, for operators.
	cause error
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.cause != nil {
		return "token refused: " + e.text + ": " + e.cause.Error()
	}
	return "token refused: " + e.text
}

// Is tells errors of one code to be the same.
func (e *RefusedError) Is(target error) bool {
	other, ok := target.(*RefusedError)
	return ok && other.Code == e.Code
}

// because adds what operators should know.
func (e *RefusedError) because(cause error) error {
	return &RefusedError{Code: e.Code, text: e.text, cause: cause}
}

// Why a token is refused.
var (
	ErrMalformed     = &RefusedError{Code: "Malformed", text: "it is not a signed JWT in compact form, or its JSON is not of one meaning"}
	ErrUnknownIssuer = &RefusedError{Code: "UnknownIssuer", text: "no TrustedIssuer has its iss"}
	ErrAudience      = &RefusedError{Code: "Audience", text: "it is for none of the audiences of the TrustedIssuer"}
	ErrAlgorithm     = &RefusedError{Code: "Algorithm", text: "its alg is none of the TrustedIssuer's"}
	ErrType          = &RefusedError{Code: "Type", text: "by its typ it is something else than a proof of who somebody is"}
	ErrExpired       = &RefusedError{Code: "Expired", text: "it has expired"}
	ErrNotYetValid   = &RefusedError{Code: "NotYetValid", text: "it is not valid yet, or was issued in the future"}
	ErrTooOld        = &RefusedError{Code: "TooOld", text: "it was issued longer ago than spec.maxTokenAge, or does not say when"}
	ErrNoKeys        = &RefusedError{Code: "NoKeys", text: "there are no keys of its issuer, or none that are fresh enough"}
	ErrUnknownKey    = &RefusedError{Code: "UnknownKey", text: "its issuer has no key of its kid that goes with its alg"}
	ErrSignature     = &RefusedError{Code: "Signature", text: "its signature does not hold"}
	ErrValidation    = &RefusedError{Code: "Validation", text: "a validation"}
	ErrMapping       = &RefusedError{Code: "Mapping", text: "the mapping"}
	ErrNotDirect     = &RefusedError{Code: "NotDirect", text: "the TrustedIssuer does not say directUse: exchange it for a token of ours first"}
)

var errShape = errors.New("not of the form looked for")

// token is a JWT taken apart. Nothing of it has been verified.
type token struct {
	alg, kid string
	claims   map[string]any
	issuer   string
	audience []string

	signed    string
	signature []byte
}

// segmentChars are the characters of base64url. The decoder alone would skip line ends.
const segmentChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// parse takes the compact serialisation apart (RFC 7515, section 3.1). Its work is
// bounded by MaxTokenLen, which is looked at first. Names that come twice anywhere, in
// header or claims, make the token malformed, for which of them counts is a matter of
// the parser.
func parse(text string) (*token, error) {
	if len(text) > MaxTokenLen || strings.Count(text, ".") != 2 {
		return nil, ErrMalformed
	}
	var segments [3][]byte
	for i, segment := range strings.Split(text, ".") {
		if segment == "" || strings.Trim(segment, segmentChars) != "" {
			return nil, ErrMalformed
		}
		var err error
		if segments[i], err = base64.RawURLEncoding.Strict().DecodeString(segment); err != nil {
			return nil, ErrMalformed
		}
	}
	t := &token{signed: text[:strings.LastIndexByte(text, '.')], signature: segments[2]}
	if err := t.readHeader(segments[0]); err != nil {
		return nil, err
	}
	var err error
	if t.claims, err = decodeObject(segments[1]); err != nil {
		return nil, ErrMalformed
	}
	if t.issuer, err = stringOf(t.claims, "iss"); err != nil || t.issuer == "" {
		return nil, ErrMalformed
	}
	if t.audience, err = audienceOf(t.claims["aud"]); err != nil {
		return nil, ErrMalformed
	}
	return t, nil
}

// readHeader reads what is of use in the header. Where it says by jwk, jku or x5u how to
// verify the token it is not listened to; what it says is critical is not understood
// here (RFC 7515, section 4.1.11).
func (t *token) readHeader(data []byte) error {
	header, err := decodeObject(data)
	if err != nil {
		return ErrMalformed
	}
	for _, name := range [...]string{"crit", "b64", "zip", "enc"} {
		if _, ok := header[name]; ok {
			return ErrMalformed
		}
	}
	typ := ""
	for name, into := range map[string]*string{"alg": &t.alg, "kid": &t.kid, "typ": &typ} {
		if *into, err = stringOf(header, name); err != nil {
			return ErrMalformed
		}
	}
	if len(t.kid) > maxKeyIDLen {
		return ErrMalformed
	}
	// RFC 8725, section 3.11: logout+jwt, secevent+jwt and their like say that they
	// are no proof of identity. A plain JWT and an access token are.
	typ = strings.TrimPrefix(strings.ToLower(typ), "application/")
	if strings.HasSuffix(typ, "+jwt") && typ != "at+jwt" {
		return ErrType
	}
	return nil
}

// decodeObject reads one JSON object in which no name comes twice, numbers that are
// integers as int64.
func decodeObject(data []byte) (map[string]any, error) {
	if !utf8.Valid(data) || depth(data) > maxDepth {
		return nil, errShape
	}
	var object map[string]any
	strict, err := strictjson.UnmarshalStrict(data, &object)
	switch {
	case err != nil:
		return nil, err
	case len(strict) > 0 || object == nil:
		return nil, errShape
	}
	return object, nil
}

// depth is how deep the brackets of a JSON text are nested at most. Brackets in strings
// do not count.
func depth(data []byte) (deepest int) {
	open, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			open++
			deepest = max(deepest, open)
		case c == '}' || c == ']':
			open--
		}
	}
	return deepest
}

// stringOf is a member that is a string, or absent.
func stringOf(object map[string]any, name string) (string, error) {
	value, ok := object[name]
	if !ok {
		return "", nil
	}
	s, ok := value.(string)
	if !ok {
		return "", errShape
	}
	return s, nil
}

// audienceOf reads aud, a string or a list of them (RFC 7519, section 4.1.3).
func audienceOf(value any) ([]string, error) {
	switch aud := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{aud}, nil
	case []any:
		if len(aud) > maxAudiences {
			return nil, errShape
		}
		list := make([]string, len(aud))
		for i := range aud {
			var ok bool
			if list[i], ok = aud[i].(string); !ok {
				return nil, errShape
			}
		}
		return list, nil
	}
	return nil, errShape
}

// lastTime is the end of the year 9999: early enough that no arithmetic overflows.
const lastTime = 253402300799

// time reads a NumericDate (RFC 7519, section 2), which may have a fraction.
func (t *token) time(name string) (at time.Time, given bool, err error) {
	switch n := t.claims[name].(type) {
	case nil:
		_, null := t.claims[name]
		if null {
			return at, false, errShape
		}
		return at, false, nil
	case int64:
		if n < 0 || n > lastTime {
			return at, false, errShape
		}
		return time.Unix(n, 0).UTC(), true, nil
	case float64:
		if !(n >= 0 && n <= lastTime) {
			return at, false, errShape
		}
		return time.Unix(int64(math.Floor(n)), 0).UTC(), true, nil
	}
	return at, false, errShape
}

// checkTimes holds a token to the times it carries, and gives its end. One without an
// end is no good here.
func (t *token) checkTimes(now time.Time, maxAge time.Duration) (expires time.Time, err error) {
	expires, given, err := t.time("exp")
	if err != nil || !given {
		return expires, ErrMalformed
	}
	notBefore, hasNotBefore, err := t.time("nbf")
	if err != nil {
		return expires, ErrMalformed
	}
	issued, hasIssued, err := t.time("iat")
	switch {
	case err != nil:
		return expires, ErrMalformed
	case !now.Before(expires.Add(Leeway)):
		return expires, ErrExpired
	case hasNotBefore && now.Add(Leeway).Before(notBefore), hasIssued && now.Add(Leeway).Before(issued):
		return expires, ErrNotYetValid
	case maxAge > 0 && (!hasIssued || now.Sub(issued) > maxAge+Leeway):
		return expires, ErrTooOld
	}
	return expires, nil
}

// isFor tells whether the token names one of the audiences.
func (t *token) isFor(audiences []string) bool {
	return slices.ContainsFunc(t.audience, func(a string) bool { return slices.Contains(audiences, a) })
}
