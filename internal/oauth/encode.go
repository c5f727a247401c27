package oauth

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"

	"github.com/mintmark-dev/mintmark/internal/jsontext"
)

// encode writes the header and the claims as they are signed (RFC 7515, section 5.1). It
// writes JSON by itself, for the general way would cost as much again as a third of the
// signature; decodeClaims is its counterpart, and a test holds the two together.
func (c *Claims) encode() []byte {
	object := make([]byte, 0, 768)
	object = append(object, `{"alg":`...)
	object = jsontext.AppendString(object, c.Algorithm)
	object = append(object, `,"kid":`...)
	object = jsontext.AppendString(object, c.KeyID)
	object = append(object, `,"typ":"`+tokenType+`"}`...)
	signed := make([]byte, 0, 1280)
	signed = base64.RawURLEncoding.AppendEncode(signed, object)
	signed = append(signed, '.')
	return base64.RawURLEncoding.AppendEncode(signed, c.appendJSON(object[:0]))
}

// appendJSON writes the claims as a JSON object.
func (c *Claims) appendJSON(b []byte) []byte {
	b = append(b, '{')
	b = jsontext.AppendString(append(b, `"iss":`...), c.Issuer)
	b = jsontext.AppendString(append(b, `,"sub":`...), c.Subject)
	b = jsontext.AppendStrings(append(b, `,"aud":`...), c.Audience)
	b = appendTime(append(b, `,"exp":`...), c.Expires)
	b = appendTime(append(b, `,"nbf":`...), c.NotBefore)
	b = appendTime(append(b, `,"iat":`...), c.IssuedAt)
	b = appendTime(append(b, `,"auth_time":`...), c.AuthTime)
	b = jsontext.AppendString(append(b, `,"jti":`...), c.ID)
	if c.Session != c.ID {
		b = jsontext.AppendString(append(b, `,"sid":`...), c.Session)
	}
	b = jsontext.AppendString(append(b, `,"client_id":`...), c.ClientID)
	// RFC 9068, section 2.2.3: a scope that is empty is not there.
	if len(c.Permissions) > 0 {
		b = jsontext.AppendString(append(b, `,"scope":`...), c.Scope())
	}
	if len(c.Roles) > 0 {
		b = jsontext.AppendStrings(append(b, `,"`+claimRoles+`":`...), c.Roles)
	}
	b = strconv.AppendBool(append(b, `,"`+claimAdmin+`":`...), c.Admin)
	b = jsontext.AppendString(append(b, `,"`+claimUID+`":`...), c.CredentialUID)
	b = strconv.AppendInt(append(b, `,"`+claimVersion+`":`...), c.Version, 10)
	if c.Foreign != nil {
		b = appendForeign(append(b, `,"`+claimForeign+`":`...), c.Foreign)
	}
	return append(b, '}')
}

// appendForeign takes the general way: such a token has cost the check of another one.
func appendForeign(b []byte, f *Foreign) []byte {
	text, err := json.Marshal(f)
	if err != nil {
		panic(err) // strings
	}
	return append(b, text...)
}

func appendTime(b []byte, t time.Time) []byte { return strconv.AppendInt(b, t.Unix(), 10) }
