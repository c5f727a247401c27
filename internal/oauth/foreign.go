package oauth

import (
	"encoding/json"
	"errors"
)

// claimForeign holds what a token says of a holder whom no credential here tells of.
const claimForeign = "mintmark.dev/foreign"

// Foreign is in a token that was issued for one of another issuer. Its CredentialUID is
// the UID of the TrustedIssuer then, and its Version what that decided by.
//
// The token has to say all of it, for no server keeps anything of the holder.
type Foreign struct {
	// TrustedIssuer is its name.
	TrustedIssuer string `json:"issuer"`
	// Permissions the holder has otherwise than by a role.
	Permissions []string `json:"permissions,omitempty"`
	// Roles the holder has, for what they hold to be looked up when the token is used.
	Roles      []string          `json:"roles,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Email      string            `json:"email,omitempty"`
}

// ErrForeign refuses to renew a token that another issuer's was exchanged for: it must
// not outlive that one.
var ErrForeign = errors.New("the token was issued for one of another issuer: exchange a fresh one of those instead of renewing it")

// foreign reads the claim, with no more and no less in it than is issued here.
func (d *claimsDecoder) foreign() *Foreign {
	members, err := decodeObject(d.members[claimForeign])
	if err != nil {
		d.fail(errUnexpectedType)
		return nil
	}
	f := new(Foreign)
	for name, raw := range members {
		into, known := map[string]any{
			"issuer": &f.TrustedIssuer, "permissions": &f.Permissions, "roles": &f.Roles, "attributes": &f.Attributes, "email": &f.Email,
		}[name]
		if !known || json.Unmarshal(raw, into) != nil {
			d.fail(errUnexpectedType)
		}
	}
	if f.TrustedIssuer == "" {
		d.fail(errUnexpectedType)
	}
	return f
}
