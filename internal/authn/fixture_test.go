package authn_test

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

var epoch = time.Date(2026, 11, 22, 7, 0, 0, 0, time.UTC)

func pepper(t testing.TB, id string) *credential.Pepper {
	t.Helper()
	key := sha256.Sum256([]byte(id))
	p, err := credential.NewPepper(id, key[:])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mint(t testing.TB, kind v1alpha1.Kind) credential.Token {
	t.Helper()
	tok, err := credential.Format{Kind: kind}.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func parse(t testing.TB, value string) credential.Token {
	t.Helper()
	tok, err := credential.Parse(value)
	if err != nil {
		t.Fatalf("%q: %v", value, err)
	}
	return tok
}

func declared(tok credential.Token) string {
	in := tok.Inner()
	return hex.EncodeToString(in[:])
}

// fixture is a credential that is good: one version, two permissions, under a
// class that allows both. Tests spoil it.
type fixture struct {
	t       testing.TB
	pepper  *credential.Pepper
	peppers credential.Peppers
	tokens  map[int64]credential.Token // by version
	live    authn.Live
	rec     *credential.Record
	class   *v1alpha1.CredentialClassSpec // nil for none
	labels  map[string]string             // of the namespace; nil where it has not been seen
	req     authn.Request
	now     time.Time
	present credential.Token
	// setUpClass is the class's name where it is not the live object's.
	setUpClass string
}

func newFixture(t testing.TB) *fixture {
	f := &fixture{
		t: t, pepper: pepper(t, "p1"), tokens: make(map[int64]credential.Token), now: epoch, labels: map[string]string{"team": "a"},
		class: &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"*"}, Except: []v1alpha1.Permission{"mintmark:*"}}}},
	}
	f.peppers = credential.Peppers{f.pepper}
	f.live = authn.Live{
		UID: "uid-1", Kind: v1alpha1.KindServiceToken, Namespace: "payments", Name: "ci-deploy", Created: epoch.Add(-time.Hour),
		ClassName: "default", Permissions: []string{"api:read", "deploy:*"},
	}
	f.rec = f.record(1)
	f.addVersion(1, v1alpha1.VersionActive)
	f.present = f.tokens[1]
	return f
}

// record is the record that the controller would make of the live object.
func (f *fixture) record(epoch int64) *credential.Record {
	return &credential.Record{
		UID: f.live.UID, Kind: f.live.Kind, Namespace: f.live.Namespace, Name: f.live.Name, Epoch: epoch, Class: f.live.ClassName,
		Permissions: slices.Clone(f.live.Permissions), Roles: slices.Clone(f.live.Roles), Admin: f.live.Admin,
	}
}

func (f *fixture) addVersion(number int64, state v1alpha1.VersionState) credential.Token {
	tok, ok := f.tokens[number]
	if !ok {
		tok = mint(f.t, f.live.Kind)
		f.tokens[number] = tok
	}
	f.rec.Versions = append(f.rec.Versions, sealedVersion(number, tok, f.pepper, state))
	return tok
}

func sealedVersion(number int64, tok credential.Token, p *credential.Pepper, state v1alpha1.VersionState) credential.SealedVersion {
	digest := p.Digest(tok.Inner())
	return credential.SealedVersion{Number: number, Digest: digest[:], Pepper: p.ID(), Prefix: tok.Prefix(), State: state}
}

func (f *fixture) index() *authn.Index {
	x := authn.New(authn.Config{Peppers: f.peppers})
	f.setUp(x)
	x.Apply(f.live, f.rec)
	return x
}

func (f *fixture) setUp(x *authn.Index) {
	if f.class != nil {
		// Some tests are about classes that cannot be read.
		_ = x.SetClass(cmp.Or(f.setUpClass, f.live.ClassName), f.class)
	}
	if f.labels != nil {
		x.SetNamespace(f.live.Namespace, f.labels)
	}
}

func (f *fixture) verify(x *authn.Index) authn.Verdict { return x.Verify(f.present, f.req, f.now) }

func expectReason(t testing.TB, got authn.Verdict, want authn.Reason) {
	t.Helper()
	if got.Reason != want {
		t.Errorf("reason %s, want %s", got.Reason, want)
	}
	if got.OK != (want == authn.ReasonAccepted) || got.OK != (got.Principal != nil) || got.OK && got.Refused != nil {
		t.Errorf("a verdict at odds with itself: %+v", got)
	}
}

func revocation(uid string, spec v1alpha1.RevocationSpec) *v1alpha1.Revocation {
	return &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: "r-" + uid, UID: types.UID(uid)}, Spec: spec}
}

func settled(r *v1alpha1.Revocation) *v1alpha1.Revocation {
	r = r.DeepCopy()
	r.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionSettled, Status: metav1.ConditionTrue}}
	return r
}

// fill applies n good credentials to the index, spread over 100 namespaces, and
// returns a sample of their tokens.
func fill(t testing.TB, x *authn.Index, p *credential.Pepper, n int) []credential.Token {
	var sample []credential.Token
	every := max(n/200_000, 1)
	for i := range n {
		tok := mint(t, v1alpha1.KindServiceToken)
		c := filler(p, i, 0)
		c.rec.Versions[0] = sealedVersion(1, tok, p, v1alpha1.VersionActive)
		c.rec.Versions[0].Expires = fillExpires
		x.Apply(c.live, c.rec)
		if i%every == 0 {
			sample = append(sample, tok)
		}
	}
	return sample
}

var fillExpires = epoch.Add(180 * 24 * time.Hour).Unix()

// filler is the i-th of many good credentials, whose only version has a digest made of
// the value.
func filler(p *credential.Pepper, i int, value int64) state {
	live := authn.Live{
		UID: fmt.Sprintf("0b1f2c3d-0000-4000-8000-%012d", i), Kind: v1alpha1.KindServiceToken, Namespace: fmt.Sprintf("team-%02d", i%100),
		Name: fmt.Sprintf("service-%07d", i), Created: epoch, ClassName: "default", Labels: map[string]string{"app": fmt.Sprintf("app-%d", i%500)},
		Permissions: []string{"api:read", "deploy:*", fmt.Sprintf("team:%d", i%50)},
	}
	digest := p.Digest(credential.Inner{byte(value), byte(value >> 8), byte(value >> 16), byte(value >> 24)})
	return state{live, &credential.Record{
		UID: live.UID, Kind: live.Kind, Namespace: live.Namespace, Name: live.Name, Epoch: 1, Class: "default", Labels: live.Labels,
		Permissions: live.Permissions, JWT: credential.RecordJWT{TTLSeconds: 900, Algorithm: "ES256"},
		Versions: []credential.SealedVersion{{
			Number: 1, Digest: digest[:], Pepper: p.ID(), Prefix: "sk_live_" + fmt.Sprintf("%04x", i&0xffff), State: v1alpha1.VersionActive, Expires: fillExpires,
		}},
	}}
}

// heap is the memory in use once everything that can be freed has been.
func heap() uint64 {
	var m runtime.MemStats
	// What a weak pointer led to is freed in the cycle after.
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
