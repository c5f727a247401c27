package authn

import (
	"fmt"
	"maps"
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
	attributes  map[string]string
	rate        *Rate
}

// patterns are what this side allows directly. An admin is allowed everything,
// where the ceiling allows admins.
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
	attributes                           map[string]string
	rate                                 *Rate
}

func sealedDraft(r *credential.Record) draft {
	d := draft{
		permissions: r.Permissions, roles: r.Roles, cidrs: r.CIDRs, audiences: r.JWT.Audiences, admin: r.Admin,
		ttl: time.Duration(r.JWT.TTLSeconds) * time.Second, algorithm: r.JWT.Algorithm,
		attributes: r.Attributes,
	}
	if r.Rate != nil {
		d.rate = &Rate{Requests: r.Rate.Requests, Per: time.Duration(r.Rate.PerMillis) * time.Millisecond, Burst: r.Rate.Burst}
	}
	return d
}

func liveDraft(l Live) draft {
	return draft{
		permissions: l.Permissions, roles: l.Roles, cidrs: l.CIDRs, audiences: l.JWTAudiences, admin: l.Admin, ttl: l.JWTTTL,
		attributes: l.Attributes, rate: l.Rate,
	}
}

// key is the draft in one string, such that different drafts differ. Order and
// duplicates mean nothing in any of the lists.
func (d draft) key() string {
	var b strings.Builder
	write := func(list []string) {
		b.WriteString(strconv.Itoa(len(list)))
		for _, item := range list {
			b.WriteByte(' ')
			b.WriteString(strconv.Itoa(len(item)))
			b.WriteByte(':')
			b.WriteString(item)
		}
		b.WriteByte('\n')
	}
	for _, list := range [][]string{d.permissions, d.roles, d.cidrs, d.audiences} {
		write(canonical(list))
	}
	write([]string{d.algorithm})
	write(pairs(d.attributes))
	if d.rate != nil {
		fmt.Fprint(&b, d.rate.Requests, d.rate.Per.Nanoseconds(), d.rate.Burst, "\n")
	}
	b.WriteString(strconv.FormatBool(d.admin))
	b.WriteString(d.ttl.String())
	return b.String()
}

func (d draft) compile() *terms {
	t := &terms{
		permissions: authz.NewSet(cloneStrings(d.permissions)), roles: cloneStrings(canonical(d.roles)), admin: d.admin,
		networks:   newNetworks(d.cidrs),
		jwt:        JWT{TTL: d.ttl, Audiences: cloneStrings(d.audiences), Algorithm: strings.Clone(d.algorithm)},
		attributes: cloneMap(d.attributes),
	}
	if d.rate != nil {
		rate := *d.rate
		t.rate = &rate
	}
	return t
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

func cloneMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[intern(k)] = intern(v)
	}
	return out
}

// pairs are the keys and values of a map, in order.
func pairs(m map[string]string) []string {
	out := make([]string, 0, 2*len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k, m[k])
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

// all gives every value that is held.
func (p *pool[K, V]) all(yield func(*V) bool) {
	for _, held := range p.held {
		if v := held.Value(); v != nil && !yield(v) {
			return
		}
	}
}

// forget makes values anew that are asked for again. Who holds one keeps it.
func (p *pool[K, V]) forget(which func(*V) bool) {
	for key, held := range p.held {
		if v := held.Value(); v != nil && which(v) {
			delete(p.held, key)
		}
	}
}

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
