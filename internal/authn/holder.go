package authn

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unique"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// holder is one credential as the index holds it. It does not change once
// published: every write makes another one of it.
type holder struct {
	*Identity
	live   wanted
	sealed *sealed // nil until there is a record
	marks  marks

	// What follows from the above and the rest of the index.
	awaiting bool // a class or a namespace it depends on has not been seen
	grant    *Grant
	entries  []*entry // one for each version with a digest of its own
}

// wanted is what is kept of the live object.
type wanted struct {
	deleting bool
	class    string
	labels   *labelSet
	terms    *terms
	expires  int64 // Unix seconds; 0 is never
	external []credential.Inner
	declared bool // spec.external is there
	// revoked is the digest of a spec.revoked of the whole credential; empty
	// where there is none.
	revoked         string
	revokedVersions []int64
}

// sealed is what is kept of the record.
type sealed struct {
	epoch           int64
	class           string
	labels          *labelSet
	terms           *terms
	external        bool
	versions        []version // ascending
	revokedThrough  int64
	revokedVersions []int64
	revokedSpec     string
	settled         []string
}

// version is one sealed version.
type version struct {
	number  int64
	digest  credential.Digest
	pepper  string
	prefix  string
	state   v1alpha1.VersionState
	expires int64 // Unix seconds; 0 is never
	usage   *usage
}

// marks are revocations that this process has seen and no record accounts for
// yet. They stay when what made them is taken away.
type marks struct {
	// revocations are the UIDs of Revocations that took the credential.
	revocations []string
	// through: versions up to this number are revoked.
	through  int64
	versions []int64
	// latest is the highest version number any record has known of.
	latest int64
}

// entry is what the table of digests holds: one version, with everything that
// does not depend on the request worked out.
type entry struct {
	principal Principal
	digest    credential.Digest
	usage     *usage
	notAfter  int64  // Unix seconds; 0 is never
	refusal   Reason // ReasonAccepted where nothing stands against it
}

// labelSet is a set of labels, shared by all that carry the same.
type labelSet struct{ labels map[string]string }

func intern(s string) string { return unique.Make(s).Value() }

// class is the class that must allow the credential.
func (h *holder) class() string {
	if h.sealed != nil {
		return h.sealed.class
	}
	return h.live.class
}

func (x *Index) wanted(live Live) wanted {
	w := wanted{
		deleting: live.Deleting, class: intern(live.ClassName), labels: x.labels(live.Labels), declared: live.External != nil,
		revoked: credential.RevokedDigest(live.Revoked),
	}
	draft := liveDraft(live)
	w.terms = x.terms.get(draft.key(), draft.compile)
	if !live.ExpiresAt.IsZero() {
		// Zero seconds would read as never.
		w.expires = max(live.ExpiresAt.Unix(), 1)
	}
	for _, text := range live.External {
		if inner, err := credential.ParseInner(text); err == nil {
			w.external = append(w.external, inner)
		}
	}
	if live.Revoked != nil {
		w.revokedVersions = slices.Sorted(slices.Values(live.Revoked.Versions))
	}
	return w
}

// seal keeps what is needed of a record, and the counters of the versions that
// were there before.
func (x *Index) seal(r *credential.Record, before *sealed) *sealed {
	s := &sealed{
		epoch: r.Epoch, class: intern(r.Class), labels: x.labels(r.Labels), external: r.External, revokedThrough: r.RevokedThrough,
		revokedVersions: slices.Clone(r.RevokedVersions), revokedSpec: strings.Clone(r.RevokedSpec), settled: cloneStrings(r.Settled),
	}
	draft := sealedDraft(r)
	s.terms = x.terms.get(draft.key(), draft.compile)
	s.versions = make([]version, 0, len(r.Versions))
	for _, v := range r.Versions {
		if len(v.Digest) != len(credential.Digest{}) || v.Number <= 0 {
			continue // sealed, and yet no version of ours: nothing can match it
		}
		kept := version{
			number: v.Number, digest: credential.Digest(v.Digest), pepper: intern(v.Pepper), prefix: strings.Clone(v.Prefix),
			state: v1alpha1.VersionState(intern(string(v.State))), expires: v.Expires,
		}
		if old := before.version(v.Number); old != nil && old.digest == kept.digest {
			kept.usage = old.usage
		} else {
			kept.usage = new(usage)
		}
		s.versions = append(s.versions, kept)
	}
	slices.SortFunc(s.versions, func(a, b version) int { return int(min(max(a.number-b.number, -1), 1)) })
	return s
}

func (s *sealed) version(number int64) *version {
	if s == nil {
		return nil
	}
	for i := range s.versions {
		if s.versions[i].number == number {
			return &s.versions[i]
		}
	}
	return nil
}

// latest is the highest version number the record knows of.
func (s *sealed) latest() int64 {
	if s == nil {
		return 0
	}
	latest := s.revokedThrough
	for i := range s.versions {
		latest = max(latest, s.versions[i].number)
	}
	return latest
}

func (x *Index) labels(labels map[string]string) *labelSet {
	if len(labels) == 0 {
		return nil
	}
	keys := make([]string, 0, 2*len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		keys = append(keys, k, labels[k])
	}
	return x.labelSets.get(strings.Join(keys, "\x00"), func() *labelSet {
		kept := make(map[string]string, len(labels))
		for k, v := range labels {
			kept[intern(k)] = intern(v)
		}
		return &labelSet{kept}
	})
}

// The marks, from what is newly known. Each rule here makes a revocation outlive
// what declared it; none is needed once a record accounts for it.

// carry keeps what the live object said before and has stopped saying.
func (h *holder) carry(before *holder) {
	h.marks = before.marks
	if was := before.live.revoked; was != "" && was != h.live.revoked && !h.sealed.accountsForSpec(was) {
		h.marks.through = max(h.marks.through, before.marks.latest)
	}
	h.marks.versions = slices.Clone(before.marks.versions)
	for _, number := range before.live.revokedVersions {
		// A number that no version has yet could fill the memory, and must not
		// hit the version that comes to have it.
		if number <= before.marks.latest && !h.revokedOneByOne(number) {
			h.marks.versions = append(h.marks.versions, number)
		}
	}
	h.marks.versions = slices.DeleteFunc(h.marks.versions, func(number int64) bool {
		return h.sealed != nil && slices.Contains(h.sealed.revokedVersions, number)
	})
}

func (s *sealed) accountsForSpec(digest string) bool { return s != nil && s.revokedSpec == digest }

func (s *sealed) accountsFor(revocation string) bool {
	return s != nil && slices.Contains(s.settled, revocation)
}

func (h *holder) revokedOneByOne(number int64) bool {
	return slices.Contains(h.live.revokedVersions, number) || slices.Contains(h.marks.versions, number) ||
		h.sealed != nil && slices.Contains(h.sealed.revokedVersions, number)
}

// take marks the credential with the Revocations that select it, and unmarks
// those the record accounts for.
func (h *holder) take(revocations map[string]*revocation) {
	var taken []string
	for _, uid := range h.marks.revocations {
		if !h.sealed.accountsFor(uid) {
			taken = append(taken, uid)
		}
	}
	for uid, r := range revocations {
		if !slices.Contains(taken, uid) && r.takes(uid, h) {
			taken = append(taken, uid)
		}
	}
	h.marks.revocations = taken
}

// revoked tells whether a version is revoked, of whatever state.
func (h *holder) revoked(number int64) bool {
	switch {
	case len(h.marks.revocations) > 0:
		return true
	case h.live.revoked != "" && !h.sealed.accountsForSpec(h.live.revoked):
		return true
	case number <= h.sealed.revokedThrough || number <= h.marks.through:
		return true
	}
	if v := h.sealed.version(number); v != nil && v.state == v1alpha1.VersionRevoked {
		return true
	}
	return h.revokedOneByOne(number)
}

// standing is what stands against the credential as a whole, but for its
// revocation.
func (h *holder) standing() Reason {
	switch {
	case h.live.deleting:
		return ReasonDeleted
	case h.live.class != "" && h.live.class != h.sealed.class:
		return ReasonClass
	case h.grant.ceiling == nil:
		return ReasonClass
	case h.isExternal() && !h.grant.ceiling.external:
		return ReasonClass
	}
	return ReasonAccepted
}

func (h *holder) isExternal() bool { return h.sealed.external || h.live.declared }

// work works out the entries.
func (h *holder) work(peppers credential.Peppers) {
	h.entries = make([]*entry, 0, len(h.sealed.versions))
	standing := h.standing()
	for i := range h.sealed.versions {
		v := &h.sealed.versions[i]
		// Of two versions of one digest the first keeps it: a revoked value is
		// not good again for being declared again.
		if slices.ContainsFunc(h.entries, func(e *entry) bool { return e.digest == v.digest }) {
			continue
		}
		e := &entry{digest: v.digest, usage: v.usage, notAfter: earlier(v.expires, h.live.expires), refusal: standing}
		switch {
		case h.live.deleting:
		case h.revoked(v.number):
			e.refusal = ReasonRevoked
		case standing != ReasonAccepted:
		case !v.state.Live():
			e.refusal = ReasonRetired
		case h.isExternal() && !h.declares(v, peppers):
			e.refusal = ReasonUndeclared
		}
		e.principal = h.principal(v.number, v.prefix, e.notAfter)
		h.entries = append(h.entries, e)
	}
}

func (h *holder) principal(number int64, prefix string, notAfter int64) Principal {
	p := Principal{Identity: h.Identity, Version: number, Prefix: prefix, Grant: h.grant}
	if notAfter != 0 {
		p.Expires = time.Unix(notAfter, 0).UTC()
	}
	return p
}

// declares tells whether the live object still declares the inner hash behind a
// version's digest.
func (h *holder) declares(v *version, peppers credential.Peppers) bool {
	pepper := peppers.ByID(v.pepper)
	if pepper == nil {
		return false
	}
	return slices.ContainsFunc(h.live.external, func(in credential.Inner) bool { return pepper.Digest(in) == v.digest })
}

func (h *holder) entry(number int64) *entry {
	for _, e := range h.entries {
		if e.principal.Version == number {
			return e
		}
	}
	return nil
}

// earlier is the earlier of two times in Unix seconds, where 0 is never.
func earlier(a, b int64) int64 {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	}
	return min(a, b)
}

// usage counts the uses of one version. The counters outlive changes of the
// credential for as long as the version is sealed.
type usage struct {
	uses atomic.Int64
	last atomic.Int64 // Unix seconds
	// reported and changed belong to Index.UsageSince.
	reported int64
	changed  uint64
}

func (u *usage) count(now int64) {
	u.uses.Add(1)
	// Most uses fall into the second of the one before: reading keeps the cache
	// line shared between cores.
	if u.last.Load() < now {
		u.last.Store(now)
	}
}
