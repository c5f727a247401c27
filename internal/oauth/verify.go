package oauth

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// InvalidError says why a token is refused. Compare with errors.Is and the values
// below. The texts hold nothing of the token.
type InvalidError struct {
	// Code is stable, and fit for a metric's label. It is for operators; callers
	// see no more than RFC 6750's invalid_token.
	Code string
	text string
}

// Error implements error.
func (e *InvalidError) Error() string { return "token refused: " + e.text }

// Why a token is refused.
var (
	ErrMalformed      = &InvalidError{"Malformed", "it is not a JWT in the form issued here"}
	ErrUnknownKey     = &InvalidError{"UnknownKey", "no key of ours has its kid"}
	ErrAlgorithm      = &InvalidError{"Algorithm", "its alg is not that of the key"}
	ErrType           = &InvalidError{"Type", "its typ is not at+jwt"}
	ErrSignature      = &InvalidError{"Signature", "its signature does not hold"}
	ErrWrongIssuer    = &InvalidError{"Issuer", "its iss is not this issuer"}
	ErrWrongAudience  = &InvalidError{"Audience", "it is not for the audience required"}
	ErrExpired        = &InvalidError{"Expired", "it has expired"}
	ErrNotYetValid    = &InvalidError{"NotYetValid", "it is not valid yet, or was issued in the future"}
	ErrImplausible    = &InvalidError{"Implausible", "its times are not ones that are issued here"}
	ErrUnchecked      = &InvalidError{"Unchecked", "its signature was not checked, for whoever presents it has presented too many bad ones"}
	ErrBusy           = &InvalidError{"Busy", "its signature was not checked, for too many others wait for that"}
	ErrRevoked        = &InvalidError{"Revoked", "it was revoked before its time"}
	errNotAnObject    = errors.New("not one JSON object without duplicates")
	errUnexpectedType = errors.New("a value of another type")
)

// Expect is what a caller requires of a token beyond being good.
type Expect struct {
	// Audience that must be among the token's; empty requires none.
	Audience string
	// MayCheck is asked before the signature of a token that was not verified before is
	// checked; false refuses the token as ErrUnchecked. It is not asked of HS256, which
	// costs no more than to ask. Nil: any may be.
	MayCheck func() bool
}

// Verify checks a token issued here: form, key, signature, issuer, times within
// Leeway, what the caller expects, and that the token was not revoked. Every error is
// an [InvalidError]. The claims share memory with those of other calls and must not be
// changed.
//
// The work is bounded by MaxTokenLen, which is looked at first. The form is
// stricter than RFC 7515 and RFC 7519 demand: three segments in canonical
// base64url; a header of alg, kid and typ and nothing else, so that nothing in
// it (crit, jwk, jku, x5u, zip) can steer the verification; names exactly as they
// are written, none twice; numbers that are integers.
//
// The kid alone decides which key verifies, and the key how: there is one algorithm
// to each. Of a token that was verified before only the signature and the form are not
// looked at again, and that only while its key is one of the issuer's.
func (i *Issuer) Verify(token string, now time.Time, expect Expect) (Claims, error) {
	claims, err := i.authentic(token, now, expect.MayCheck)
	if err != nil {
		return Claims{}, err
	}
	if err := i.checkClaims(claims, now, expect); err != nil {
		return Claims{}, err
	}
	return claims, nil
}

// authentic gives what a token says that was signed here.
func (i *Issuer) authentic(token string, now time.Time, mayCheck func() bool) (Claims, error) {
	if len(token) > MaxTokenLen {
		return Claims{}, ErrMalformed
	}
	sum := sumOf(token)
	if known := i.seen.load(sum); known != nil && i.keys().ByID(known.KeyID) != nil {
		return *known, nil
	}
	header, payload, signature, err := split(token)
	if err != nil {
		return Claims{}, ErrMalformed
	}
	h, err := decodeHeader(header)
	if err != nil {
		return Claims{}, err
	}
	var claims Claims
	if pepper, isolated := strings.CutPrefix(h.kid, isolatedPrefix); isolated {
		// What was signed says which secret it was signed with.
		if claims, err = decodeClaims(payload); err != nil {
			return Claims{}, ErrMalformed
		}
		if err := i.checkIsolated(h, pepper, claims, now, signedPart(token), signature); err != nil {
			return Claims{}, err
		}
	} else {
		if err := i.checkPublished(h, signedPart(token), signature, mayCheck); err != nil {
			return Claims{}, err
		}
		if claims, err = decodeClaims(payload); err != nil {
			return Claims{}, ErrMalformed
		}
	}
	claims.KeyID, claims.Algorithm = h.kid, h.alg
	if h.alg != HS256 {
		i.seen.store(sum, &claims)
	}
	return claims, nil
}

// sumOf takes no memory for a token of the usual length.
func sumOf(token string) [sha256.Size]byte {
	var usual [1024]byte
	if len(token) > len(usual) {
		return sha256.Sum256([]byte(token))
	}
	return sha256.Sum256(usual[:copy(usual[:], token)])
}

func signedPart(token string) string { return token[:strings.LastIndexByte(token, '.')] }

// segmentChars are the characters of base64url. The decoder alone would skip
// line ends.
const segmentChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// split takes the compact serialisation apart (RFC 7515, section 3.1), without
// allocating for what has another number of segments.
func split(token string) (header, payload, signature []byte, err error) {
	if len(token) > MaxTokenLen || strings.Count(token, ".") != 2 {
		return nil, nil, nil, errNotAnObject
	}
	var segments [3][]byte
	for i, text := range strings.Split(token, ".") {
		if text == "" || strings.Trim(text, segmentChars) != "" {
			return nil, nil, nil, errNotAnObject
		}
		if segments[i], err = base64.RawURLEncoding.Strict().DecodeString(text); err != nil {
			return nil, nil, nil, err
		}
	}
	return segments[0], segments[1], segments[2], nil
}

// header is what the header of a token may hold, and must.
type header struct{ alg, kid, typ string }

func decodeHeader(data []byte) (h header, err error) {
	members, err := decodeObject(data)
	if err != nil {
		return header{}, ErrMalformed
	}
	for name, raw := range members {
		var into *string
		switch name {
		case "alg":
			into = &h.alg
		case "kid":
			into = &h.kid
		case "typ":
			into = &h.typ
		default:
			return header{}, ErrMalformed
		}
		if *into, err = decodeString(raw); err != nil {
			return header{}, ErrMalformed
		}
	}
	return h, nil
}

// holdTo holds the header to what the key is for.
func (h header) holdTo(algorithm string) error {
	switch {
	case h.alg != algorithm:
		return ErrAlgorithm
	case h.typ != tokenType:
		return ErrType
	}
	return nil
}

func (i *Issuer) checkClaims(c Claims, now time.Time, expect Expect) error {
	switch {
	case c.Issuer != i.issuer:
		return ErrWrongIssuer
	case !c.Expires.After(c.IssuedAt) || c.Expires.Sub(c.IssuedAt) > MaxTTL || c.NotBefore.After(c.Expires):
		return ErrImplausible
	case !now.Before(c.Expires.Add(Leeway)):
		return ErrExpired
	case now.Add(Leeway).Before(c.NotBefore) || now.Add(Leeway).Before(c.IssuedAt):
		return ErrNotYetValid
	case expect.Audience != "" && !slices.Contains(c.Audience, expect.Audience):
		return ErrWrongAudience
	case i.denied(c.Session):
		return ErrRevoked
	}
	return nil
}

// decodeClaims reads the claims issued here, each of which must be there but for
// scope, roles, auth_time and sid. Others are let be: a newer server may issue them.
func decodeClaims(payload []byte) (Claims, error) {
	members, err := decodeObject(payload)
	if err != nil {
		return Claims{}, err
	}
	d := claimsDecoder{members: members}
	c := Claims{
		Issuer: d.text("iss"), Subject: d.text("sub"), ClientID: d.text("client_id"), Audience: d.audience(), ID: d.text("jti"),
		IssuedAt: d.time("iat"), NotBefore: d.time("nbf"), Expires: d.time("exp"), Admin: d.flag(claimAdmin),
		CredentialUID: d.text(claimUID), Version: d.integer(claimVersion),
	}
	// Servers before there was renewal issue tokens without it.
	c.AuthTime = c.IssuedAt
	if _, ok := members["auth_time"]; ok {
		c.AuthTime = d.time("auth_time")
	}
	c.Session = c.ID
	if _, ok := members["sid"]; ok {
		c.Session = d.text("sid")
	}
	if _, ok := members["scope"]; ok {
		c.Permissions = strings.Split(d.text("scope"), " ")
	}
	if _, ok := members[claimRoles]; ok {
		c.Roles = d.list(claimRoles)
	}
	if _, ok := members[claimForeign]; ok {
		c.Foreign = d.foreign()
	}
	return c, d.err
}

// claimsDecoder keeps the first error.
type claimsDecoder struct {
	members map[string]json.RawMessage
	err     error
}

func (d *claimsDecoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *claimsDecoder) text(name string) string {
	s, err := decodeString(d.members[name])
	if err != nil || s == "" {
		d.fail(errUnexpectedType)
	}
	return s
}

// lastTime is the end of the year 9999: later than any time issued, and early
// enough that no arithmetic overflows.
const lastTime = 253402300799

func (d *claimsDecoder) integer(name string) int64 {
	n, err := strconv.ParseInt(string(d.members[name]), 10, 64)
	if err != nil || n <= 0 {
		d.fail(errUnexpectedType)
	}
	return n
}

func (d *claimsDecoder) time(name string) time.Time {
	n := d.integer(name)
	if n > lastTime {
		d.fail(errUnexpectedType)
	}
	return time.Unix(n, 0).UTC()
}

func (d *claimsDecoder) flag(name string) bool {
	switch string(d.members[name]) {
	case "true":
		return true
	case "false":
	default:
		d.fail(errUnexpectedType)
	}
	return false
}

func (d *claimsDecoder) list(name string) []string {
	var raw []json.RawMessage
	if err := json.Unmarshal(d.members[name], &raw); err != nil || len(raw) == 0 {
		d.fail(errUnexpectedType)
		return nil
	}
	items := make([]string, len(raw))
	for i := range raw {
		var err error
		if items[i], err = decodeString(raw[i]); err != nil || items[i] == "" {
			d.fail(errUnexpectedType)
		}
	}
	return items
}

// audience is a string or a list of them (RFC 7519, section 4.1.3).
func (d *claimsDecoder) audience() []string {
	if raw := d.members["aud"]; len(raw) > 0 && raw[0] == '"' {
		return []string{d.text("aud")}
	}
	return d.list("aud")
}

// decodeObject reads one JSON object, its names exactly as they are written and
// none twice, with nothing after it. encoding/json would match names in any case
// and let the last of two win. The values share memory with data.
func decodeObject(data []byte) (map[string]json.RawMessage, error) {
	// Whatever is looked at below is well-formed.
	if !utf8.Valid(data) || !json.Valid(data) {
		return nil, errNotAnObject
	}
	rest := bytes.Trim(data, jsonSpace)
	if rest[0] != '{' {
		return nil, errNotAnObject
	}
	members := make(map[string]json.RawMessage, claimsExpected)
	for rest = bytes.TrimLeft(rest[1:], jsonSpace); rest[0] != '}'; rest = bytes.TrimLeft(rest, jsonSpace) {
		end := valueEnd(rest)
		name, err := decodeString(rest[:end])
		if err != nil {
			return nil, err
		}
		if _, twice := members[name]; twice {
			return nil, errNotAnObject
		}
		rest = bytes.TrimLeft(rest[end:], jsonSpace)
		rest = bytes.TrimLeft(rest[1:], jsonSpace) // the colon
		end = valueEnd(rest)
		members[name] = json.RawMessage(rest[:end])
		if rest = bytes.TrimLeft(rest[end:], jsonSpace); rest[0] == ',' {
			rest = bytes.TrimLeft(rest[1:], jsonSpace)
		}
	}
	return members, nil
}

const (
	// jsonSpace is what RFC 8259, section 2, allows between tokens.
	jsonSpace = " \t\r\n"
	// claimsExpected is about how many members there are.
	claimsExpected = 18
)

// valueEnd is the length of the value that begins here, in JSON that is valid.
func valueEnd(data []byte) int {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			for i++; data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i // a number or a word ended before
			}
			continue
		default:
			continue
		}
		switch {
		case depth == 0:
			return i + 1
		case depth < 0:
			return i
		}
	}
	return len(data)
}

// decodeString reads a string, and neither null nor nothing as one.
func decodeString(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", errUnexpectedType
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), nil
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err
}
