package server

import (
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mintmark-dev/mintmark/api/permission"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// need is what a route demands of a credential, and what it says of the resource behind
// it. It is written by operators, never by clients, and does not change once parsed.
type need struct {
	// permissions, all of which the credential must hold.
	permissions []string
	// audiences are lists of which the credential must be for one each.
	audiences [][]string
	// resource is what policies are told of it; nil: nothing.
	resource *policy.Resource
	// inHeader: the rest stands in the header X-Mintmark-Require.
	inHeader bool
	// limitedForbidden: who is over a limit is answered by 403 in place of 429.
	limitedForbidden bool
}

// audienceOf tells whether the credential is for this route. Without audiences a JWT
// must be for this issuer itself. A key is not made for an audience; it passes where a
// JWT for one of them could be had with it.
func (n *need) audienceOf(e *evaluation, issuer string) bool {
	if len(n.audiences) == 0 {
		return e.how == presentedKey || slices.Contains(e.claims.Audience, issuer)
	}
	have := e.claims.Audience
	if e.how == presentedKey {
		have = e.caller().JWT.Audiences
		if len(have) == 0 {
			have = []string{issuer}
		}
	}
	for _, wanted := range n.audiences {
		if !slices.ContainsFunc(wanted, func(a string) bool { return slices.Contains(have, a) }) {
			return false
		}
	}
	return true
}

// needs parses what gateways send, and keeps what it parsed: they send the same few.
type needs struct {
	known atomic.Pointer[map[string]*need]
	mu    sync.Mutex
}

const (
	maxKnownNeeds  = 1024
	maxRequired    = 64
	maxAudienceLen = 512
	maxAttributes  = 32
	// maxAttributeName and maxAttributeValue are in bytes.
	maxAttributeName  = 63
	maxAttributeValue = 512
)

// of is what the query demands.
func (n *needs) of(query string) (*need, *problem) {
	if hit := n.hit(query); hit != nil {
		return hit, nil
	}
	parsed, problem := parseNeed(query, false)
	if problem == nil {
		n.keep(query, parsed)
	}
	return parsed, problem
}

// with is what the query and the header X-Mintmark-Require demand, both of them: the
// header adds to the query and takes nothing away.
func (n *needs) with(query, header string) (*need, *problem) {
	key := query + "\x00" + header
	if hit := n.hit(key); hit != nil {
		return hit, nil
	}
	base, problem := n.of(query)
	if problem != nil {
		return nil, problem
	}
	more, problem := parseNeed(strings.ReplaceAll(header, ";", "&"), true)
	if problem != nil {
		return nil, problem
	}
	both := &need{permissions: slices.Concat(base.permissions, more.permissions), audiences: slices.Concat(base.audiences, more.audiences)}
	if both.resource = base.resource; both.resource == nil {
		both.resource = more.resource
	} else if more.resource != nil {
		return nil, badRequest("The resource is described in the query and in X-Mintmark-Require: do it in one of them.")
	}
	n.keep(key, both)
	return both, nil
}

func (n *needs) hit(key string) *need {
	if known := n.known.Load(); known != nil {
		return (*known)[key]
	}
	return nil
}

// keep copies the table, so that reading it takes no lock. A full table stays as it is:
// only callers who vary the query find it so.
func (n *needs) keep(key string, parsed *need) {
	n.mu.Lock()
	defer n.mu.Unlock()
	grown := map[string]*need{}
	if known := n.known.Load(); known != nil {
		if len(*known) >= maxKnownNeeds {
			return
		}
		for k, v := range *known {
			grown[k] = v
		}
	}
	grown[strings.Clone(key)] = parsed
	n.known.Store(&grown)
}

const (
	resourcePrefix = "resource."
	detailNeed     = "A value of permission is not a permission such as deploy:write, or a value of audience is empty or too long."
	detailResource = "A parameter of the resource is repeated, empty or longer than 512 bytes, or is none of resource.type, id, owner, " +
		"ownerDepartment, classification, created and attributes.NAME."
)

// parseNeed reads a query or, in the same form, a header.
func parseNeed(query string, header bool) (*need, *problem) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, badRequest("The query cannot be parsed: write it like ?permission=deploy:write&audience=https://api.example.com, percent-encoded.")
	}
	parsed := new(need)
	for name, given := range values {
		attribute, ofResource := strings.CutPrefix(name, resourcePrefix)
		switch {
		case name == "permission":
			parsed.permissions = given
		case name == "audience":
			parsed.audiences = [][]string{given}
		case name == "require" && !header && len(given) == 1 && given[0] == "header":
			parsed.inHeader = true
		case name == "limited" && !header && len(given) == 1 && (given[0] == "403" || given[0] == "429"):
			parsed.limitedForbidden = given[0] == "403"
		case ofResource && len(given) == 1:
			if problem := parsed.describe(attribute, given[0]); problem != nil {
				return nil, problem
			}
		case ofResource:
			return nil, badRequest(detailResource)
		default:
			return nil, badRequest("There is a parameter other than permission, audience, resource.NAME, require=header and limited=403.")
		}
	}
	if problem := parsed.check(); problem != nil {
		return nil, problem
	}
	return parsed, nil
}

// describe adds what is known of the resource by this name: one of those that expressions
// know, or attributes.NAME.
func (n *need) describe(name, value string) *problem {
	if value == "" || len(value) > maxAttributeValue {
		return badRequest(detailResource)
	}
	if n.resource == nil {
		n.resource = new(policy.Resource)
	}
	r := n.resource
	switch name {
	case "type":
		r.Type = value
	case "id":
		r.ID = value
	case "owner":
		r.Owner = value
	case "ownerDepartment":
		r.OwnerDepartment = value
	case "classification":
		r.Classification = value
	case "created":
		created, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return badRequest("resource.created is no time such as 2026-11-22T10:00:00Z.")
		}
		r.Created = created.UTC()
	default:
		attribute, ok := strings.CutPrefix(name, "attributes.")
		if !ok || !isAttribute(attribute) || len(r.Attributes) >= maxAttributes {
			return badRequest(detailResource)
		}
		if r.Attributes == nil {
			r.Attributes = make(map[string]string)
		}
		r.Attributes[attribute] = value
	}
	return nil
}

func (n *need) check() *problem {
	if len(n.permissions) > maxRequired || slices.ContainsFunc(n.audiences, func(a []string) bool { return len(a) > maxRequired }) {
		return badRequest("There are more than 64 values of permission or of audience.")
	}
	if slices.ContainsFunc(n.permissions, func(s string) bool { return !isPermission(s) }) {
		return badRequest(detailNeed)
	}
	for _, list := range n.audiences {
		if len(list) == 0 || slices.ContainsFunc(list, func(s string) bool { return s == "" || len(s) > maxAudienceLen }) {
			return badRequest(detailNeed)
		}
	}
	return nil
}

// isPermission: a plain permission as the API has it, at most 128 of [A-Za-z0-9_./:-]. A
// wildcard is a pattern, and nothing a request can need.
func isPermission(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("_./:-", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// isPattern: a permission, or a wildcard over permissions.
func isPattern(s string) bool {
	return s == authz.Everything || len(s) <= 128 && isPermission(strings.TrimSuffix(s, permission.Wildcard))
}

// isAttribute: a key of attributes, [A-Za-z0-9_.-] and at most 63 of them.
func isAttribute(s string) bool {
	if s == "" || len(s) > maxAttributeName {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-', c == '.':
		default:
			return false
		}
	}
	return true
}
