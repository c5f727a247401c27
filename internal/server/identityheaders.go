package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// IdentityHeaders are the names of the headers that tell a backend who calls. An empty
// one stands for the default.
type IdentityHeaders struct {
	ID          string // default X-User-ID
	Email       string // default X-User-Email
	Roles       string // default X-User-Roles
	Permissions string // default X-User-Permissions
}

func (h IdentityHeaders) withDefaults() IdentityHeaders {
	return IdentityHeaders{
		ID: or(h.ID, "X-User-ID"), Email: or(h.Email, "X-User-Email"), Roles: or(h.Roles, "X-User-Roles"),
		Permissions: or(h.Permissions, "X-User-Permissions"),
	}
}

func or(value, fallback string) string {
	if value != "" {
		return value
	}
	return fallback
}

// reserved are headers that mean something else to us, to gateways or to HTTP.
var reserved = []string{
	"authorization", "connection", "contentlength", "contenttype", "cookie", "forwarded", "host", "te", "trailer", "transferencoding", "upgrade",
	"wwwauthenticate", "xapikey", "xmintmarkrequire", "xrequestid",
}

// Check tells what is wrong with the names.
func (h IdentityHeaders) Check() error {
	h = h.withDefaults()
	var seen []string
	for _, name := range []string{h.ID, h.Email, h.Roles, h.Permissions} {
		plain := plainName(name)
		switch {
		case !httpguts.ValidHeaderFieldName(name) || strings.ContainsAny(name, "_."):
			return fmt.Errorf("--identity-headers: %q is no name for a header: use letters, digits and -", name)
		case slices.Contains(reserved, plain) || strings.HasPrefix(plain, "xforwarded"):
			return fmt.Errorf("--identity-headers: %s has another meaning: choose another name", name)
		case slices.Contains(seen, plain):
			return fmt.Errorf("--identity-headers: %s differs from another one in case and punctuation alone, which backends may not tell apart", name)
		}
		seen = append(seen, plain)
	}
	return nil
}

// identityHeaders are the names, prepared for use: id, e-mail, roles, permissions.
type identityHeaders struct {
	canonical [4]string // for net/http
	lower     [4]string // for HTTP/2 and gRPC
	plain     [4]string // without punctuation, see plainName
}

func (h IdentityHeaders) prepare() (out identityHeaders) {
	h = h.withDefaults()
	for i, name := range []string{h.ID, h.Email, h.Roles, h.Permissions} {
		out.canonical[i], out.lower[i], out.plain[i] = http.CanonicalHeaderKey(name), strings.ToLower(name), plainName(name)
	}
	return out
}

// set sets the identity headers. All of them are always set: a gateway that copies them
// overwrites what the client sent.
func (i *identityHeaders) set(h http.Header, subject string, may mandate) {
	values := []string{subject, may.email, may.roles, may.permissions}
	for at, name := range i.canonical {
		h[name] = values[at : at+1 : at+1]
	}
}

// plainName is what is left of a header's name to a backend that ignores case and cannot
// tell one punctuation mark from another: lower-case letters and digits.
func plainName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r + ('a' - 'A')
		}
		return -1
	}, name)
}
