package authn

import (
	"crypto/rand"
	"runtime"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// TestTheBrakeHoldsBeforeTheWalk stops the clock in the middle of SetRevocation:
// the Revocation holds for credentials it has not come to yet.
func TestTheBrakeHoldsBeforeTheWalk(t *testing.T) {
	pepper, err := credential.NewPepper("p1", make([]byte, credential.PepperLen))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := credential.Format{Kind: v1alpha1.KindAPIKey}.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest, now := pepper.Digest(tok.Inner()), time.Unix(1, 0)
	x := New(Config{Peppers: credential.Peppers{pepper}})
	if err := x.SetClass("default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{}}}); err != nil {
		t.Fatal(err)
	}
	x.Apply(Live{UID: "u", Kind: v1alpha1.KindAPIKey, Namespace: "n", Name: "n"}, &credential.Record{
		UID: "u", Kind: v1alpha1.KindAPIKey, Namespace: "n", Name: "n", Epoch: 1, Class: "default", Settled: []string{"settled"}, SettledBefore: 1000,
		Versions: []credential.SealedVersion{{Number: 1, Digest: digest[:], Pepper: "p1", State: v1alpha1.VersionActive}},
	})
	for uid, test := range map[string]struct {
		spec    v1alpha1.RevocationSpec
		created int64
		want    Reason
	}{
		"new":                           {v1alpha1.RevocationSpec{All: true}, 1000, ReasonRevoked},
		"settled":                       {v1alpha1.RevocationSpec{All: true}, 1000, ReasonAccepted},
		"older than what is remembered": {v1alpha1.RevocationSpec{All: true}, 999, ReasonAccepted},
		"of an age nobody knows":        {v1alpha1.RevocationSpec{All: true}, 0, ReasonRevoked},
		"other":                         {v1alpha1.RevocationSpec{Namespaces: []string{"other"}}, 1000, ReasonAccepted},
	} {
		object := &v1alpha1.Revocation{Spec: test.spec}
		object.CreationTimestamp = metav1.Unix(test.created, 0)
		r, err := newRevocation(object)
		if err != nil {
			t.Fatal(err)
		}
		x.brake.Store(&brake{uid, r})
		if got := x.Verify(tok, Request{}, now).Reason; got != test.want {
			t.Errorf("%s: the value is %s", uid, got)
		}
		if got := x.VerifyUse("u", 1, Request{}, now).Reason; got != test.want {
			t.Errorf("%s: its use is %s", uid, got)
		}
	}
}

// TestPoolForgets what nobody holds any more.
func TestPoolForgets(t *testing.T) {
	var p pool[int, [1 << 10]byte]
	kept := p.get(0, func() *[1 << 10]byte { return new([1 << 10]byte) })
	for i := range 100 * poolSweepMin {
		p.get(i+1, func() *[1 << 10]byte { return new([1 << 10]byte) })
		if i%poolSweepMin == 0 {
			runtime.GC()
		}
	}
	if len(p.held) > 4*poolSweepMin {
		t.Errorf("%d are held, of which one is in use", len(p.held))
	}
	if p.get(0, func() *[1 << 10]byte { return nil }) != kept {
		t.Error("what is in use was forgotten")
	}
}
