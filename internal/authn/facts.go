package authn

import (
	"math"
	"slices"
	"strings"
	"unique"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// facts are what is known of one credential, laid open to be changed. A holder is the
// same, packed to be kept.
type facts struct {
	identity
	live     wanted
	sealed   *sealed // nil until there is a record
	revoked  revoked
	disputed bool
}

// identity is what never changes of a credential.
type identity struct {
	uid       string
	kind      v1alpha1.Kind
	namespace string
	name      string
	created   uint32
	declared  bool // by its SHA-256: spec.external never comes or goes
}

// wanted is what is kept of the live object.
type wanted struct {
	deleting bool
	class    string
	labels   map[string]string
	terms    *terms
	expires  int64 // Unix seconds; 0 is never
	external []credential.Inner
	declared bool // spec.external is there
}

// sealed is what is kept of the record.
type sealed struct {
	epoch         int64
	class         string
	labels        map[string]string
	terms         *terms
	external      bool
	versions      []version // ascending
	settled       []string
	settledBefore int64 // Unix seconds; see credential.Record
}

// version is one sealed version.
type version struct {
	number  int64
	digest  credential.Digest
	pepper  string
	prefix  string
	state   state
	expires int64 // Unix seconds; 0 is never
	use     *use
	text    string // of the entry; empty where it is still to be made
}

// revoked is everything that revokes versions, but for their own sealed state.
type revoked struct {
	// declared is the digest of a spec.revoked of the whole credential; empty where
	// there is none.
	declared         string
	declaredVersions []int64
	// As sealed.
	through  int64
	versions []int64
	spec     string
	marks    marks
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

// takes tells whether a version is revoked.
func (r *revoked) takes(number int64) bool {
	return len(r.marks.revocations) > 0 || r.declared != "" && r.declared != r.spec ||
		number <= r.through || number <= r.marks.through || r.takesOne(number)
}

func (r *revoked) takesOne(number int64) bool {
	return slices.Contains(r.declaredVersions, number) || slices.Contains(r.marks.versions, number) || slices.Contains(r.versions, number)
}

func (r *revoked) empty() bool {
	return r.declared == "" && r.declaredVersions == nil && r.through == 0 && r.versions == nil && r.spec == "" &&
		r.marks.revocations == nil && r.marks.through == 0 && r.marks.versions == nil && r.marks.latest == 0
}

func intern(s string) string { return unique.Make(s).Value() }

func identityOf(live Live) identity {
	return identity{
		uid: live.UID, kind: v1alpha1.Kind(intern(string(live.Kind))), namespace: intern(live.Namespace), name: live.Name,
		// Only which is the older matters.
		created: uint32(min(max(live.Created.Unix(), 0), math.MaxUint32)), declared: live.External != nil,
	}
}

func (x *Index) wanted(live Live) wanted {
	w := wanted{deleting: live.Deleting, class: intern(live.ClassName), labels: live.Labels, declared: live.External != nil}
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
	return w
}

// seal reads what is needed of a record. What was there before of its versions, the
// counters for one, goes on.
func (x *Index) seal(r *credential.Record, before *sealed) *sealed {
	s := &sealed{
		epoch: r.Epoch, class: intern(r.Class), labels: r.Labels, external: r.External,
		settled: cloneStrings(canonical(r.Settled)), settledBefore: r.SettledBefore,
	}
	draft := sealedDraft(r)
	s.terms = x.terms.get(draft.key(), draft.compile)
	s.versions = make([]version, 0, len(r.Versions))
	for _, v := range r.Versions {
		if len(v.Digest) != len(credential.Digest{}) || v.Number <= 0 {
			continue // sealed, and yet no version of ours: nothing can match it
		}
		kept := version{
			number: v.Number, digest: credential.Digest(v.Digest), pepper: intern(v.Pepper), state: stateOf(v.State), expires: v.Expires,
		}
		if len(v.Prefix) <= math.MaxUint8 {
			kept.prefix = v.Prefix
		}
		if old := before.version(v.Number); old != nil && old.digest == kept.digest {
			kept.use = old.use
			if old.prefix == kept.prefix {
				kept.text = old.text
			}
		} else {
			kept.use = new(use)
		}
		s.versions = append(s.versions, kept)
	}
	slices.SortStableFunc(s.versions, func(a, b version) int { return int(min(max(a.number-b.number, -1), 1)) })
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
func (f *facts) latest() int64 {
	latest := f.revoked.through
	if f.sealed != nil {
		for i := range f.sealed.versions {
			latest = max(latest, f.sealed.versions[i].number)
		}
	}
	return latest
}

// want takes in what the live object says. What it has stopped saying is kept
// where a revocation hangs on it: each rule here makes one outlive what declared
// it, and none is needed once a record accounts for it.
func (f *facts) want(w wanted, r *v1alpha1.Revoked) {
	before := f.revoked
	f.live, f.revoked.declared, f.revoked.declaredVersions = w, credential.RevokedDigest(r), nil
	if r != nil {
		f.revoked.declaredVersions = slices.Sorted(slices.Values(r.Versions))
	}
	marks := &f.revoked.marks
	if was := before.declared; was != "" && was != f.revoked.declared && was != f.revoked.spec {
		marks.through = max(marks.through, before.marks.latest)
	}
	marks.versions = slices.Clone(before.marks.versions)
	for _, number := range before.declaredVersions {
		// A number that no version has yet could fill the memory, and must not
		// hit the version that comes to have it.
		if number <= before.marks.latest && !f.revoked.takesOne(number) {
			marks.versions = append(marks.versions, number)
		}
	}
	marks.versions = slices.DeleteFunc(marks.versions, func(number int64) bool { return slices.Contains(f.revoked.versions, number) })
	if len(marks.versions) == 0 {
		marks.versions = nil
	}
}

// accept takes in a record.
func (f *facts) accept(s *sealed, r *credential.Record) {
	f.sealed = s
	f.revoked.through, f.revoked.versions, f.revoked.spec = r.RevokedThrough, nil, strings.Clone(r.RevokedSpec)
	if len(r.RevokedVersions) > 0 {
		f.revoked.versions = slices.Clone(r.RevokedVersions)
	}
}

// holds tells whether the record in force says what this one does.
func (f *facts) holds(s *sealed, r *credential.Record) bool {
	mine := f.sealed
	same := mine.epoch == s.epoch && mine.class == s.class && mine.terms == s.terms && mine.external == s.external &&
		mine.settledBefore == s.settledBefore && slices.Equal(mine.settled, s.settled) && slices.Equal(pairs(mine.labels), pairs(s.labels)) &&
		f.revoked.through == r.RevokedThrough && f.revoked.spec == r.RevokedSpec && slices.Equal(f.revoked.versions, r.RevokedVersions)
	return same && slices.EqualFunc(mine.versions, s.versions, func(a, b version) bool {
		return a.number == b.number && a.digest == b.digest && a.pepper == b.pepper && a.prefix == b.prefix && a.state == b.state && a.expires == b.expires
	})
}

func (x *Index) open(h *holder) *facts {
	c := h.cohort
	f := &facts{
		identity: identity{
			uid: h.uid(), kind: c.kind, namespace: c.namespace, name: h.name(), created: h.created, declared: h.entry.declared,
		},
		live: wanted{deleting: c.deleting, class: c.liveClass, labels: h.labels.live(), terms: c.liveTerms, declared: c.declared},
	}
	if h.more != nil {
		f.live.expires, f.live.external, f.revoked, f.disputed = h.more.expires, h.more.external, h.more.revoked, h.more.disputed
	}
	f.revoked.marks.latest = max(f.revoked.marks.latest, h.number)
	if c.terms == nil {
		return f
	}
	f.sealed = &sealed{
		epoch: h.epoch, class: c.class, labels: h.labels.sealed(), terms: c.terms, external: c.external, settled: c.settled, settledBefore: c.settledBefore,
	}
	for e, pepper := range h.counted {
		f.sealed.versions = append(f.sealed.versions, version{
			number: e.number, digest: e.digest, pepper: pepper, prefix: e.prefix(), state: e.state, expires: e.expires, use: e.use, text: e.text(),
		})
	}
	slices.SortStableFunc(f.sealed.versions, func(a, b version) int { return int(min(max(a.number-b.number, -1), 1)) })
	return f
}

// pack makes a holder of the facts.
func (x *Index) pack(f *facts) *holder {
	h := &holder{created: f.created, seen: x.relists}
	h.declared, h.entry.holder = f.identity.declared, h
	newest := f.newest()
	pepper := ""
	if newest != nil {
		pepper = newest.pepper
	}
	h.cohort, h.labels = x.cohortOf(f, pepper), x.labelsOf(f)
	x.take(h, &f.revoked.marks)
	rest := more{expires: f.live.expires, external: f.live.external, revoked: f.revoked, disputed: f.disputed}
	if f.sealed != nil {
		h.epoch = f.sealed.epoch
		for i := range f.sealed.versions {
			if v := &f.sealed.versions[i]; v == newest {
				x.packVersion(f, v, h, &h.entry)
			} else {
				o := &other{pepper: v.pepper, shadowed: f.shadowed(i)}
				x.packVersion(f, v, h, &o.entry)
				rest.others = append(rest.others, o)
			}
		}
	}
	if newest == nil {
		h.write(textOf(f.uid, f.kind, f.namespace, f.name, ""), len(f.uid), 0)
	}
	if rest.revoked.marks.latest <= h.number {
		rest.revoked.marks.latest = 0 // the newest version tells
	}
	if rest.expires != 0 || rest.external != nil || rest.others != nil || rest.disputed || !rest.revoked.empty() {
		h.more = &rest
	}
	return h
}

// newest is the highest version that has a digest of its own; nil where there is none.
func (f *facts) newest() *version {
	if f.sealed == nil {
		return nil
	}
	for i := len(f.sealed.versions) - 1; i >= 0; i-- {
		if !f.shadowed(i) {
			return &f.sealed.versions[i]
		}
	}
	return nil
}

// shadowed tells whether an earlier version has the digest of this one. It keeps it: a
// revoked value is not good again for being declared again.
func (f *facts) shadowed(i int) bool {
	return slices.ContainsFunc(f.sealed.versions[:i], func(v version) bool { return v.digest == f.sealed.versions[i].digest })
}

func (x *Index) packVersion(f *facts, v *version, h *holder, e *entry) {
	if v.text == "" {
		v.text = textOf(f.uid, f.kind, f.namespace, f.name, v.prefix)
	}
	e.digest, e.holder, e.use, e.number, e.expires = v.digest, h, v.use, v.number, v.expires
	e.state, e.refusal, e.declared = v.state, ReasonAccepted, f.identity.declared
	e.write(v.text, len(f.uid), len(v.prefix))
	switch {
	case v.state == stateRevoked || f.revoked.takes(v.number) || x.buried(v.digest):
		e.refusal = ReasonRevoked
	case v.state == stateEnded:
		e.refusal = ReasonRetired
	case (f.sealed.external || f.live.declared) && !f.declares(v, x.keys):
		e.refusal = ReasonUndeclared
	}
}

// declares tells whether the live object still declares the inner hash behind a
// version's digest.
func (f *facts) declares(v *version, peppers credential.Peppers) bool {
	pepper := peppers.ByID(v.pepper)
	if pepper == nil {
		return false
	}
	return slices.ContainsFunc(f.live.external, func(in credential.Inner) bool { return pepper.Digest(in) == v.digest })
}

// labels are the labels of a credential, as they are and as they were sealed. Those
// that carry the same share them.
type labels struct {
	now, then map[string]string
	// fingerprint of both together.
	fingerprint uint64
	same        bool // now and then
}

// may tells whether there can be all labels of a fingerprint among these.
func (l *labels) may(fingerprint uint64) bool {
	return fingerprint == 0 || l != nil && l.fingerprint&fingerprint == fingerprint
}

func (l *labels) live() map[string]string {
	if l == nil {
		return nil
	}
	return l.now
}

func (l *labels) sealed() map[string]string {
	if l == nil {
		return nil
	}
	return l.then
}

func (x *Index) labelsOf(f *facts) *labels {
	now, then := f.live.labels, map[string]string(nil)
	if f.sealed != nil {
		then = f.sealed.labels
	}
	if len(now) == 0 && len(then) == 0 {
		return nil
	}
	nowKey, thenKey := strings.Join(pairs(now), "\x00"), strings.Join(pairs(then), "\x00")
	return x.labels.get(nowKey+"\x01"+thenKey, func() *labels {
		l := &labels{now: cloneMap(now), same: nowKey == thenKey, fingerprint: credential.Fingerprint(now) | credential.Fingerprint(then)}
		if l.then = l.now; !l.same {
			l.then = cloneMap(then)
		}
		return l
	})
}
