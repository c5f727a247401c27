package server

import (
	"time"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// isolated derives the secrets of credentials whose JWTs are signed with HS256.
type isolated struct {
	peppers func() credential.Peppers
	index   *authn.Index
}

// Current implements oauth.Secrets.
func (s *isolated) Current(uid string, version int64) (id string, secret []byte, ok bool) {
	pepper := s.peppers().Current()
	if pepper == nil {
		return "", nil, false
	}
	return pepper.ID(), pepper.JWTSecret(uid, version), true
}

// Agreed implements oauth.Secrets. Only a credential that is sealed to be signed for
// so has a secret: what a pepper is good for in other hands ends there.
func (s *isolated) Agreed(id, uid string, version int64, now time.Time) (secret []byte, ok bool) {
	pepper := s.peppers().ByID(id)
	if pepper == nil {
		return nil, false
	}
	// Who it is, whether or not it is let in: that comes later, from where the request
	// is from.
	verdict := s.index.VerifyUse(uid, version, authn.Request{}, now)
	whose := verdict.Principal
	if whose == nil {
		whose = verdict.Refused
	}
	if whose == nil || whose.JWT.Algorithm != oauth.HS256 {
		return nil, false
	}
	return pepper.JWTSecret(uid, version), true
}
