package authn

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"weak"

	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// terms is what one side, the record or the live object, says a credential may
// do. Credentials that say the same share one.
type terms struct {
	permissions authz.Set
	roles       []string
	admin       bool
	networks    networks
	jwt         JWT
}

// covers tells whether this side allows the permission. An admin covers every
// one, where the ceiling allows admins.
func (t *terms) covers(permission string, adminAllowed bool) bool {
	if t.admin {
		return adminAllowed
	}
	return t.permissions.Allows(permission)
}

func (t *terms) patterns(adminAllowed bool) authz.Set {
	switch {
	case t.admin && adminAllowed:
		return authz.NewSet([]string{authz.Everything})
	case t.admin:
		return authz.Set{}
	}
	return t.permissions
}

// draft is what terms are made from.
type draft struct {
	permissions, roles, cidrs, audiences []string
	admin                                bool
	ttl                                  time.Duration
	algorithm                            string
}

func sealedDraft(r *credential.Record) draft {
	return draft{
		permissions: r.Permissions, roles: r.Roles, cidrs: r.CIDRs, audiences: r.JWT.Audiences, admin: r.Admin,
		ttl: time.Duration(r.JWT.TTLSeconds) * time.Second, algorithm: r.JWT.Algorithm,
	}
}

func liveDraft(l Live) draft {
	return draft{permissions: l.Permissions, roles: l.Roles, cidrs: l.CIDRs, audiences: l.JWTAudiences, admin: l.Admin, ttl: l.JWTTTL}
}

// key is the draft in one string, such that different drafts differ. Order and
// duplicates mean nothing in any of the lists.
func (d draft) key() string {
	var b strings.Builder
	for _, list := range [][]string{d.permissions, d.roles, d.cidrs, d.audiences, {d.algorithm}} {
		b.WriteString(strconv.Itoa(len(list)))
		for _, item := range canonical(list) {
			b.WriteByte(' ')
			b.WriteString(strconv.Itoa(len(item)))
			b.WriteByte(':')
			b.WriteString(item)
		}
		b.WriteByte('\n')
	}
	b.WriteString(strconv.FormatBool(d.admin))
	b.WriteString(d.ttl.String())
	return b.String()
}

func (d draft) compile() *terms {
	return &terms{
		permissions: authz.NewSet(cloneStrings(d.permissions)), roles: cloneStrings(canonical(d.roles)), admin: d.admin,
		networks: newNetworks(d.cidrs),
		jwt:      JWT{TTL: d.ttl, Audiences: cloneStrings(d.audiences), Algorithm: strings.Clone(d.algorithm)},
	}
}

func canonical(list []string) []string {
	if len(list) < 2 {
		return list
	}
	return slices.Compact(slices.Sorted(slices.Values(list)))
}

// cloneStrings keeps the index from holding on to the buffer an object was
// decoded from.
func cloneStrings(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.Clone(s)
	}
	return out
}

// networks a credential may be used from.
type networks struct {
	limited  bool
	prefixes []netip.Prefix
}

// newNetworks leaves out what does not parse. Such a list still limits: one that
// holds nothing readable allows no address at all.
func newNetworks(cidrs []string) networks {
	n := networks{limited: len(cidrs) > 0}
	for _, cidr := range cidrs {
		if p, err := netip.ParsePrefix(cidr); err == nil {
			n.prefixes = append(n.prefixes, p.Masked())
		}
	}
	return n
}

// allow tells whether the address may be used from. An IPv4 address in IPv6 form
// counts as the IPv4 address; zones do not count.
func (n *networks) allow(ip netip.Addr) bool {
	if !n.limited {
		return true
	}
	ip = ip.Unmap().WithZone("")
	for i := range n.prefixes {
		if n.prefixes[i].Contains(ip) {
			return true
		}
	}
	return false
}

// pool keeps one of each of the values that many credentials have in common, for
// as long as any of them holds it.
type pool[K comparable, V any] struct {
	held    map[K]weak.Pointer[V]
	sweepAt int
}

const poolSweepMin = 64

func (p *pool[K, V]) get(key K, compile func() *V) *V {
	if v := p.held[key].Value(); v != nil {
		return v
	}
	if p.held == nil {
		p.held, p.sweepAt = make(map[K]weak.Pointer[V]), poolSweepMin
	}
	// Sweeping whenever the pool has doubled costs each insertion a constant.
	if len(p.held) >= p.sweepAt {
		for k, v := range p.held {
			if v.Value() == nil {
				delete(p.held, k)
			}
		}
		p.sweepAt = max(poolSweepMin, 2*len(p.held))
	}
	v := compile()
	p.held[key] = weak.Make(v)
	return v
}
