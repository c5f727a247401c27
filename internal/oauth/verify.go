package oauth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mintmark-dev/mintmark/internal/keyring"
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
	errNotAnObject    = errors.New("not one JSON object without duplicates")
	errUnexpectedType = errors.New("a value of another type")
)

// Expect is what a caller requires of a token beyond being good.
type Expect struct {
	// Audience that must be among the token's; empty requires none.
	Audience string
}

// Verify checks a token issued here: form, key, signature, issuer, times within
// Leeway, and what the caller expects. Every error is an [InvalidError].
//
// The work is bounded by MaxTokenLen, which is looked at first. The form is
// stricter than RFC 7515 and RFC 7519 demand: three segments in canonical
// base64url; a header of alg, kid and typ and nothing else, so that nothing in
// it (crit, jwk, jku, x5u, zip) can steer the verification; names exactly as they
// are written, none twice; numbers that are integers.
func (i *Issuer) Verify(token string, now time.Time, expect Expect) (Claims, error) {
	header, payload, signature, err := split(token)
	if err != nil {
		return Claims{}, ErrMalformed
	}
	key, err := i.checkHeader(header)
	if err != nil {
		return Claims{}, err
	}
	if err := checkSignature(key, token[:strings.LastIndexByte(token, '.')], signature); err != nil {
		return Claims{}, err
	}
	claims, err := decodeClaims(payload)
	if err != nil {
		return Claims{}, ErrMalformed
	}
	if err := i.checkClaims(claims, now, expect); err != nil {
		return Claims{}, err
	}
	claims.KeyID = key.ID
	return claims, nil
}

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

// checkHeader finds the key, and holds the header to what the key is for.
func (i *Issuer) checkHeader(header []byte) (*keyring.SigningKey, error) {
	members, err := decodeObject(header)
	if err != nil {
		return nil, ErrMalformed
	}
	var alg, kid, typ string
	for name, raw := range members {
		var into *string
		switch name {
		case "alg":
			into = &alg
		case "kid":
			into = &kid
		case "typ":
			into = &typ
		default:
			return nil, ErrMalformed
		}
		if *into, err = decodeString(raw); err != nil {
			return nil, ErrMalformed
		}
	}
	keys := i.keys()
	if keys == nil || kid == "" {
		return nil, ErrUnknownKey
	}
	key := keys.ByID(kid)
	switch {
	case key == nil:
		return nil, ErrUnknownKey
	case alg != key.Algorithm || alg != keyring.ES256:
		return nil, ErrAlgorithm
	case typ != tokenType:
		return nil, ErrType
	}
	return key, nil
}

// checkSignature takes r and s of 32 bytes each (RFC 7518, section 3.4), and
// nothing in DER.
func checkSignature(key *keyring.SigningKey, signed string, signature []byte) error {
	public, ok := key.Key.Public().(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return ErrAlgorithm
	}
	if err := jwt.SigningMethodES256.Verify(signed, signature, public); err != nil {
		return ErrSignature
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
	}
	return nil
}

// decodeClaims reads the claims issued here, each of which must be there but for
// scope and roles. Others are let be: a newer server may issue them.
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
	if _, ok := members["scope"]; ok {
		c.Permissions = strings.Split(d.text("scope"), " ")
	}
	if _, ok := members[claimRoles]; ok {
		c.Roles = d.list(claimRoles)
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
// and let the last of two win.
func decodeObject(data []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(data) {
		return nil, errNotAnObject
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if first, err := decoder.Token(); err != nil || first != json.Delim('{') {
		return nil, errNotAnObject
	}
	members := make(map[string]json.RawMessage)
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		text, ok := name.(string)
		if _, twice := members[text]; !ok || twice {
			return nil, errNotAnObject
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, err
		}
		members[text] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errNotAnObject
	}
	return members, nil
}

// decodeString reads a string, and neither null nor nothing as one.
func decodeString(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", errUnexpectedType
	}
	var s string
	return s, json.Unmarshal(raw, &s)
}
