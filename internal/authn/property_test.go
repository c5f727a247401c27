package authn_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// world draws clusters in which everything that can coincide does: few values,
// names and labels, and many objects that share them.
type world struct {
	peppers     credential.Peppers
	tokens      []credential.Token
	permissions []string
}

func newWorld(t testing.TB) *world {
	w := &world{
		peppers:     credential.Peppers{pepper(t, "p1"), pepper(t, "p2")},
		permissions: []string{"*", "a:*", "a:b", "a:b:*", "a:b:c", "d", "d:*", "mintmark:x"},
	}
	for range 4 {
		w.tokens = append(w.tokens, mint(t, v1alpha1.KindServiceToken))
	}
	w.tokens = append(w.tokens, mint(t, v1alpha1.KindAPIKey), parse(t, "ghp_abcdefghijklmnopqrstuvwxyz0123456789"))
	return w
}

var (
	kinds      = []v1alpha1.Kind{v1alpha1.KindServiceToken, v1alpha1.KindAPIKey}
	classNames = []string{"c1", "c2"}
	roleNames  = []string{"r1", "r2"}
	addresses  = []netip.Addr{{}, netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("2001:db8::1")}
)

func some[T any](rt *rapid.T, name string, from []T, most int) []T {
	return rapid.SliceOfN(rapid.SampledFrom(from), 0, most).Draw(rt, name)
}

func one[T any](rt *rapid.T, name string, from ...T) T { return rapid.SampledFrom(from).Draw(rt, name) }

func labels(rt *rapid.T, name string) map[string]string {
	return one(rt, name, nil, map[string]string{"app": "x"}, map[string]string{"app": "y"})
}

func (w *world) class(rt *rapid.T) *v1alpha1.CredentialClassSpec {
	spec := &v1alpha1.CredentialClassSpec{}
	for range rapid.IntRange(0, 2).Draw(rt, "rules") {
		r := v1alpha1.ClassRule{
			Admin: rapid.Bool().Draw(rt, "admin allowed"), External: rapid.Bool().Draw(rt, "external allowed"),
			NamespaceSelector: one(rt, "namespaces", nil, selector("app", "x")),
		}
		for _, p := range some(rt, "ceiling", w.permissions, 3) {
			r.Permissions = append(r.Permissions, v1alpha1.Permission(p))
		}
		for _, p := range some(rt, "except", w.permissions[1:], 1) {
			r.Except = append(r.Except, v1alpha1.Permission(p))
		}
		spec.Rules = append(spec.Rules, r)
	}
	spec.ExternalFormat = one(rt, "format", nil, &v1alpha1.ExternalFormat{Pattern: "ghp_.*"}, &v1alpha1.ExternalFormat{Pattern: "xoxb.*"})
	return spec
}

// state is one state of a credential: what the watch hands over at once.
type state struct {
	live authn.Live
	rec  *credential.Record
}

func (w *world) states(rt *rapid.T, i, most int) []state {
	base := authn.Live{
		UID: fmt.Sprintf("uid-%d", i), Kind: one(rt, "kind", kinds...), Namespace: one(rt, "namespace", "n1", "n2"), Name: fmt.Sprintf("cred-%d", i),
		Created: epoch.Add(time.Duration(rapid.IntRange(-2, 0).Draw(rt, "age")) * time.Second), Labels: labels(rt, "live labels"),
	}
	sealedLabels, external, class := labels(rt, "sealed labels"), rapid.IntRange(0, 3).Draw(rt, "external") == 0, one(rt, "class", classNames...)
	epochs := int64(1)
	return rapid.Custom(func(rt *rapid.T) []state {
		states := make([]state, rapid.IntRange(1, most).Draw(rt, "states"))
		for i := range states {
			live := base
			w.drawLive(rt, &live, class, external)
			states[i].live = live
			if rapid.IntRange(0, 5).Draw(rt, "without a record") == 0 {
				continue
			}
			epochs += int64(rapid.IntRange(-1, 2).Draw(rt, "epochs"))
			states[i].rec = w.record(rt, live, epochs, class, external, sealedLabels)
		}
		return states
	}).Draw(rt, "history")
}

func (w *world) drawLive(rt *rapid.T, live *authn.Live, class string, external bool) {
	live.ClassName = one(rt, "live class", class, class, class, "", "c2")
	live.Permissions, live.Admin = some(rt, "wanted", w.permissions, 3), rapid.IntRange(0, 4).Draw(rt, "wants admin") == 0
	live.Roles = some(rt, "roles wanted", roleNames, 2)
	live.CIDRs = one(rt, "live networks", nil, nil, []string{"10.0.0.0/8"})
	live.ExpiresAt = one(rt, "live expiry", time.Time{}, time.Time{}, epoch, epoch.Add(time.Hour))
	live.Deleting = rapid.IntRange(0, 9).Draw(rt, "deleting") == 0
	live.Revoked = one(rt, "revoked", nil, nil, nil, &v1alpha1.Revoked{Reason: "leak"}, &v1alpha1.Revoked{Reason: "again"},
		&v1alpha1.Revoked{Reason: "leak", Versions: []int64{1}}, &v1alpha1.Revoked{Reason: "leak", Versions: []int64{2, 3}})
	if external {
		live.External = []string{}
		for _, tok := range some(rt, "declared", w.tokens, 2) {
			live.External = append(live.External, declared(tok))
		}
	}
}

func (w *world) record(rt *rapid.T, live authn.Live, number int64, class string, external bool, sealedLabels map[string]string) *credential.Record {
	rec := &credential.Record{
		UID: live.UID, Kind: live.Kind, Namespace: live.Namespace, Name: live.Name, Epoch: number, Class: class, Labels: sealedLabels, External: external,
		Permissions: some(rt, "sealed", w.permissions, 3), Admin: rapid.IntRange(0, 4).Draw(rt, "sealed admin") == 0, Roles: some(rt, "roles sealed", roleNames, 2),
		CIDRs: one(rt, "sealed networks", nil, nil, []string{"2001:db8::/32", "10.0.0.0/8"}), RevokedThrough: int64(rapid.IntRange(0, 1).Draw(rt, "revoked through")),
		RevokedVersions: some(rt, "revoked versions", []int64{1, 2, 3}, 1), Settled: some(rt, "settled", []string{"r1", "r2"}, 2),
		RevokedSpec: one(rt, "revoked spec", "", "", credential.RevokedDigest(&v1alpha1.Revoked{Reason: "leak"})),
	}
	if rapid.IntRange(0, 9).Draw(rt, "foreign") == 0 {
		rec.UID = "somebody else's"
	}
	for v := range int64(3) {
		if rapid.Bool().Draw(rt, "has version") {
			sealed := sealedVersion(v+1, one(rt, "value", w.tokens...), one(rt, "pepper", w.peppers...),
				one(rt, "state", v1alpha1.VersionActive, v1alpha1.VersionPending, v1alpha1.VersionSuperseded, v1alpha1.VersionRetired))
			sealed.Expires = one(rt, "expiry", 0, 0, epoch.Unix(), epoch.Unix()+1)
			rec.Versions = append(rec.Versions, sealed)
		}
	}
	return rec
}

func (w *world) revocation(rt *rapid.T, uid string) *v1alpha1.Revocation {
	return revocation(uid, one(rt, "revocation", v1alpha1.RevocationSpec{All: true}, v1alpha1.RevocationSpec{Kinds: []string{"APIKey"}},
		v1alpha1.RevocationSpec{Namespaces: []string{"n1"}}, v1alpha1.RevocationSpec{Selector: selector("app", "x")},
		v1alpha1.RevocationSpec{Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpDoesNotExist}}}}))
}

// answer is a verdict without what tests cannot compare.
type answer struct {
	Question    string
	OK          bool
	Reason      string
	Subject     string
	Version     int64
	Permissions []string
	Roles       []string
	Allowed     []string
}

func (w *world) answers(x *authn.Index, credentials int) []answer {
	var all []answer
	add := func(question string, v authn.Verdict) {
		a := answer{Question: question, OK: v.OK, Reason: v.Reason.Code()}
		p := v.Principal
		if p == nil {
			p = v.Refused
		}
		if p != nil {
			a.Subject, a.Version, a.Permissions, a.Roles = p.Subject, p.Version, p.Permissions, p.Roles
			for _, permission := range w.permissions {
				if p.Allows(permission) {
					a.Allowed = append(a.Allowed, permission)
				}
			}
		}
		all = append(all, a)
	}
	for _, ip := range addresses {
		for i, tok := range w.tokens {
			add(fmt.Sprintf("value %d from %v", i, ip), x.Verify(tok, authn.Request{IP: ip}, epoch))
		}
		for i := range credentials {
			for version := range int64(5) {
				add(fmt.Sprintf("use of %d/%d from %v", i, version, ip), x.VerifyUse(fmt.Sprintf("uid-%d", i), version, authn.Request{IP: ip}, epoch))
			}
		}
	}
	return all
}

// TestAnyOrderGivesTheSameIndex: whatever the order between objects, and however
// often the state of one is handed in, the index ends the same.
func TestAnyOrderGivesTheSameIndex(t *testing.T) {
	w := newWorld(t)
	rapid.Check(t, func(rt *rapid.T) {
		type event func(*authn.Index)
		var streams [][]event
		for _, name := range classNames {
			var stream []event
			for range rapid.IntRange(0, 2).Draw(rt, "class changes") {
				spec := w.class(rt)
				stream = append(stream, func(x *authn.Index) { _ = x.SetClass(name, spec) })
			}
			if rapid.IntRange(0, 4).Draw(rt, "class deleted") == 0 {
				stream = append(stream, func(x *authn.Index) { x.DeleteClass(name) })
			}
			streams = append(streams, stream)
		}
		for _, name := range []string{"n1", "n2"} {
			var stream []event
			for range rapid.IntRange(0, 2).Draw(rt, "namespace changes") {
				l := labels(rt, "namespace labels")
				stream = append(stream, func(x *authn.Index) { x.SetNamespace(name, l) })
			}
			if rapid.IntRange(0, 4).Draw(rt, "namespace deleted") == 0 {
				stream = append(stream, func(x *authn.Index) { x.DeleteNamespace(name) })
			}
			streams = append(streams, stream)
		}
		for _, name := range roleNames {
			var stream []event
			for range rapid.IntRange(0, 2).Draw(rt, "role changes") {
				permissions := some(rt, "role", w.permissions, 2)
				stream = append(stream, func(x *authn.Index) { x.SetRole(name, permissions) })
			}
			if rapid.IntRange(0, 4).Draw(rt, "role deleted") == 0 {
				stream = append(stream, func(x *authn.Index) { x.DeleteRole(name) })
			}
			streams = append(streams, stream)
		}
		for i := range rapid.IntRange(0, 2).Draw(rt, "revocations") {
			r := w.revocation(rt, fmt.Sprintf("r%d", i+1))
			streams = append(streams, []event{func(x *authn.Index) { _ = x.SetRevocation(r) }})
		}
		n := rapid.IntRange(1, 4).Draw(rt, "credentials")
		for i := range n {
			var stream []event
			for _, s := range w.states(rt, i, 4) {
				stream = append(stream, func(x *authn.Index) { x.Apply(s.live, s.rec) })
			}
			if rapid.IntRange(0, 4).Draw(rt, "deleted") == 0 {
				stream = append(stream, func(x *authn.Index) { x.Delete(fmt.Sprintf("uid-%d", i)) })
			}
			streams = append(streams, stream)
		}

		one := authn.New(authn.Config{Peppers: w.peppers})
		for _, stream := range streams {
			for _, e := range stream {
				e(one)
			}
		}
		other := authn.New(authn.Config{Peppers: w.peppers})
		next := make([]int, len(streams))
		for {
			var left []int
			for i := range streams {
				if next[i] < len(streams[i]) {
					left = append(left, i)
				}
			}
			if len(left) == 0 {
				break
			}
			i := rapid.SampledFrom(left).Draw(rt, "next stream")
			for range rapid.IntRange(1, 2).Draw(rt, "times") {
				streams[i][next[i]](other)
			}
			next[i]++
		}
		if diff := cmp.Diff(w.answers(one, n), w.answers(other, n)); diff != "" {
			rt.Fatal(diff)
		}
		if a, b := one.Stats(), other.Stats(); a != b {
			rt.Fatalf("%+v and %+v", a, b)
		}
	})
}

// TestTheIndexAnswersAsTheRulesSay compares it with the rules written down one
// after the other, slowly, over the objects themselves.
func TestTheIndexAnswersAsTheRulesSay(t *testing.T) {
	w := newWorld(t)
	rapid.Check(t, func(rt *rapid.T) {
		m := model{world: w, classes: map[string]*v1alpha1.CredentialClassSpec{}, namespaces: map[string]map[string]string{}, roles: map[string][]string{}}
		x := authn.New(authn.Config{Peppers: w.peppers})
		for _, name := range classNames {
			m.classes[name] = w.class(rt)
			_ = x.SetClass(name, m.classes[name])
		}
		for _, name := range []string{"n1", "n2"} {
			m.namespaces[name] = labels(rt, "namespace labels")
			x.SetNamespace(name, m.namespaces[name])
		}
		for _, name := range some(rt, "roles there are", roleNames, 2) {
			m.roles[name] = some(rt, "role", w.permissions, 2)
			x.SetRole(name, m.roles[name])
		}
		if rapid.IntRange(0, 2).Draw(rt, "revocations") == 0 {
			m.revocation = w.revocation(rt, "r1")
			_ = x.SetRevocation(m.revocation)
		}
		for i := range rapid.IntRange(1, 4).Draw(rt, "credentials") {
			s := w.states(rt, i, 1)[0]
			x.Apply(s.live, s.rec)
			if s.rec != nil && s.rec.UID == s.live.UID {
				m.credentials = append(m.credentials, s)
			}
		}
		for _, ip := range addresses {
			for i, tok := range w.tokens {
				got := x.Verify(tok, authn.Request{IP: ip}, epoch)
				m.check(rt, fmt.Sprintf("value %d from %v", i, ip), tok, ip, got)
			}
		}
	})
}

// model is the rules, written for reading.
type model struct {
	*world
	classes     map[string]*v1alpha1.CredentialClassSpec
	namespaces  map[string]map[string]string
	roles       map[string][]string
	revocation  *v1alpha1.Revocation
	credentials []state
}

func (m model) check(rt *rapid.T, question string, tok credential.Token, ip netip.Addr, got authn.Verdict) {
	// The same value may be held under either pepper: each is a digest of its own.
	var good []state
	var versions []credential.SealedVersion
	for _, p := range m.peppers {
		if s, v, ok := m.owner(tok, p); ok && m.accepts(s, v, tok, ip) {
			good, versions = append(good, s), append(versions, v)
		}
	}
	if got.OK != (len(good) > 0) {
		rt.Fatalf("%s: %+v, and the rules say %v", question, got, len(good) > 0)
	}
	if !got.OK {
		return
	}
	i := slices.IndexFunc(good, func(s state) bool { return s.live.UID == got.Principal.UID })
	if i < 0 || versions[i].Number != got.Principal.Version {
		rt.Fatalf("%s: it is %s version %d, and the rules say %v", question, got.Principal.UID, got.Principal.Version, good)
	}
	m.checkPermissions(rt, question, good[i], got.Principal)
}

// olderClaim: what was minted before what is declared, then the older one.
func olderClaim(a, b authn.Live) bool {
	if declared := a.External != nil; declared != (b.External != nil) {
		return !declared
	}
	return a.Created.Before(b.Created) || a.Created.Equal(b.Created) && a.UID < b.UID
}

func (m model) owner(tok credential.Token, p *credential.Pepper) (owner state, version credential.SealedVersion, ok bool) {
	digest := p.Digest(tok.Inner())
	for _, s := range m.credentials {
		for _, v := range s.rec.Versions {
			if credential.Digest(v.Digest) != digest {
				continue
			}
			if !ok || olderClaim(s.live, owner.live) {
				owner, version, ok = s, v, true
			}
			break // of one credential the lowest number
		}
	}
	return owner, version, ok
}

func (m model) rule(s state) *v1alpha1.ClassRule {
	rule, err := authz.SelectRule(m.classes[s.rec.Class], m.namespaces[s.live.Namespace])
	if err != nil {
		return nil
	}
	return rule
}

func (m model) accepts(s state, v credential.SealedVersion, tok credential.Token, ip netip.Addr) bool {
	rule := m.rule(s)
	if rule == nil || s.live.Deleting || s.live.ClassName != "" && s.live.ClassName != s.rec.Class || !v.State.Live() {
		return false
	}
	if v.Expires != 0 && v.Expires <= epoch.Unix() || !s.live.ExpiresAt.IsZero() && !s.live.ExpiresAt.After(epoch) {
		return false
	}
	if m.revokes(s, v.Number) {
		return false
	}
	if s.rec.External && (!rule.External || !slices.Contains(s.live.External, declared(tok))) {
		return false
	}
	if tok.External() {
		if f := m.classes[s.rec.Class].ExternalFormat; f == nil || f.Pattern != "ghp_.*" {
			return false
		}
	}
	for _, cidrs := range [][]string{s.rec.CIDRs, s.live.CIDRs} {
		within := func(cidr string) bool { return netip.MustParsePrefix(cidr).Contains(ip) }
		if len(cidrs) > 0 && !slices.ContainsFunc(cidrs, within) {
			return false
		}
	}
	return true
}

func (m model) revokes(s state, number int64) bool {
	if r := s.live.Revoked; r != nil {
		if len(r.Versions) == 0 && credential.RevokedDigest(r) != s.rec.RevokedSpec || slices.Contains(r.Versions, number) {
			return true
		}
	}
	if number <= s.rec.RevokedThrough || slices.Contains(s.rec.RevokedVersions, number) {
		return true
	}
	if m.revocation == nil || slices.Contains(s.rec.Settled, string(m.revocation.UID)) {
		return false
	}
	spec := m.revocation.Spec
	matches := func(labels map[string]string) bool {
		if spec.Selector == nil {
			return true
		}
		_, has := labels["app"]
		if spec.Selector.MatchLabels == nil {
			return !has
		}
		return labels["app"] == spec.Selector.MatchLabels["app"]
	}
	return spec.All || (spec.Kinds == nil || slices.Contains(spec.Kinds, string(s.live.Kind))) &&
		(spec.Namespaces == nil || slices.Contains(spec.Namespaces, s.live.Namespace)) && (matches(s.live.Labels) || matches(s.rec.Labels))
}

func (m model) checkPermissions(rt *rapid.T, question string, s state, p *authn.Principal) {
	rule := m.rule(s)
	covers := func(patterns []string, permission string) bool {
		return slices.ContainsFunc(patterns, func(pattern string) bool { return authz.Covers(pattern, permission) })
	}
	side := func(admin bool, patterns []string, permission string) bool {
		if admin {
			return rule.Admin
		}
		return covers(patterns, permission)
	}
	if want := s.rec.Admin && s.live.Admin && rule.Admin; p.Admin != want {
		rt.Fatalf("%s: admin %v", question, p.Admin)
	}
	for _, permission := range []string{"a", "a:b", "a:x", "a:b:c", "a:b:x", "d", "d:x", "e", "mintmark:x"} {
		ceiling := covers(authz.Strings(rule.Permissions), permission) && !covers(authz.Strings(rule.Except), permission)
		direct := side(s.rec.Admin, s.rec.Permissions, permission) && side(s.live.Admin, s.live.Permissions, permission)
		byRole := slices.ContainsFunc(roleNames, func(role string) bool {
			return slices.Contains(s.rec.Roles, role) && slices.Contains(s.live.Roles, role) && covers(m.roles[role], permission)
		})
		want := p.Admin || (direct || byRole) && ceiling
		if got := p.Allows(permission); got != want {
			rt.Fatalf("%s: allows %s: %v", question, permission, got)
		}
		if covers(p.Permissions, permission) && !want {
			rt.Fatalf("%s: %v is listed and %s is not allowed", question, p.Permissions, permission)
		}
		if len(rule.Except) == 0 && want && !covers(p.Permissions, permission) {
			rt.Fatalf("%s: %s is allowed and not listed in %v", question, permission, p.Permissions)
		}
	}
}
