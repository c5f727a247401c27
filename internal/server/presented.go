package server

import (
	"net/http"
	"strings"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

// presented is what a request carries to prove who it is from. It never comes from the
// URL, where logs would keep it.
type presented struct {
	key credential.Token // an opaque credential, unless jwt is set
	jwt string           // a JWT in compact serialisation; do not log
}

// presentation says what was found.
type presentation uint8

const (
	// presentedNone: no header that could carry a credential.
	presentedNone presentation = iota
	// presentedBad: something that can be no credential, or two things at once.
	presentedBad
	presentedKey
	presentedJWT
)

// carried are the headers that can hold a credential, every line of them.
type carried struct {
	keys, authorizations []string
	// assertions are those of the assertionHeader, where they are to be believed.
	assertions []string
	// token is a credential by itself, that somebody else was shown; the others are empty
	// then.
	token string
}

func carriedBy(h http.Header) carried {
	return carried{keys: h["X-Api-Key"], authorizations: h["Authorization"]}
}

// readPresented takes the credential out of the headers: X-API-Key with a key, or
// Authorization with the scheme Bearer (RFC 6750, section 2.1) and a key or a JWT. Two
// of them are good only if they say the same, and no header may come twice: a gateway
// and a backend could each look at another one.
func readPresented(c carried) (presented, presentation) {
	if c.token != "" {
		return readCredential(c.token, true)
	}
	keys, auths := c.keys, c.authorizations
	if len(keys) == 0 && len(auths) == 0 {
		return readAssertion(c.assertions)
	}
	if len(keys) > 1 || len(auths) > 1 {
		return presented{}, presentedBad
	}
	var text string
	if len(auths) == 1 {
		var ok bool
		if text, ok = bearer(auths[0]); !ok {
			return presented{}, presentedBad
		}
	}
	if len(keys) == 1 {
		if len(auths) == 1 && keys[0] != text {
			return presented{}, presentedBad
		}
		text = keys[0]
	}
	return readCredential(text, len(keys) == 0)
}

// readCredential takes what was presented for a JWT, where it may be one, or a key.
func readCredential(text string, mayBeJWT bool) (presented, presentation) {
	// A comma is how a proxy joins two headers into one. It is in none of our formats,
	// nor in RFC 6750's.
	if text == "" || strings.IndexByte(text, ',') >= 0 {
		return presented{}, presentedBad
	}
	if mayBeJWT && strings.Count(text, ".") == 2 {
		return presented{jwt: text}, presentedJWT
	}
	key, err := credential.Parse(text)
	if err != nil {
		return presented{}, presentedBad
	}
	return presented{key: key}, presentedKey
}

// bearer gives what follows the scheme Bearer. The scheme's case does not matter (RFC
// 9110, section 11.1).
func bearer(authorization string) (string, bool) {
	const scheme = "bearer"
	if len(authorization) <= len(scheme) || !strings.EqualFold(authorization[:len(scheme)], scheme) || authorization[len(scheme)] != ' ' {
		return "", false
	}
	return strings.TrimLeft(authorization[len(scheme):], " "), true
}
