package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"

	"github.com/mintmark-dev/mintmark/internal/internalapi"
	"github.com/mintmark-dev/mintmark/internal/server/listwatch"
)

// blindSink does nothing.
type blindSink struct{}

func (blindSink) BeginList()            {}
func (blindSink) EndList()              {}
func (blindSink) Put(runtime.Object)    {}
func (blindSink) Delete(runtime.Object) {}

func TestOnlyListsBegunUnderTheLeaseCount(t *testing.T) {
	loop := listwatch.New(listwatch.Config{Name: "things", Sink: blindSink{}, Source: listwatch.Source{
		List: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			return &metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, nil
		},
		Watch: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, apierrors.NewBadRequest("there are no streaming lists here")
			}
			return watch.NewFake(), nil
		},
	}})
	p := &presence{id: "one", log: new(journal).logger()}
	r := &readiness{presence: p, keys: new(keys), freshness: newFreshness(time.Now()), maxStaleness: time.Minute}
	r.loops.Store(&[]*listwatch.Loop{loop})
	p.succeeded(time.Now(), time.Now(), false)
	if err := r.checkListed(time.Now()); err == nil {
		t.Error("nothing is listed, and that counts")
	}
	go func() { _ = loop.Run(t.Context()) }()
	<-loop.Synced()
	if err := r.checkListed(time.Now()); err != nil {
		t.Errorf("listed under the Lease: %v", err)
	}
	p.succeeded(time.Now(), time.Now(), true) // the Lease was gone in between
	if err := r.checkListed(time.Now()); err == nil || !strings.Contains(err.Error(), "things") {
		t.Errorf("listed before the Lease was regained: %v", err)
	}
	loop.Relist()
	eventually(t, soon, "a list under the new tenure", func() bool { return r.checkListed(time.Now()) == nil })
	if err := r.checkListed(time.Now().Add(holdFor)); err == nil {
		t.Error("without the Lease it counts as listed")
	}
}

func TestAServerThatDeniesStillIsNotReady(t *testing.T) {
	now := time.Now()
	r := &readiness{freshness: newFreshness(now), maxStaleness: time.Minute}
	r.loops.Store(&[]*listwatch.Loop{})
	r.freshness.listed(now)
	r.until.Store(now.Add(time.Minute).UnixNano())
	if err := r.checkFresh(now); !errors.Is(err, errCold) {
		t.Errorf("not everything is listed: %v", err)
	}
	r.warm.Store(true)
	if err := r.checkFresh(now); err != nil {
		t.Errorf("listed just now: %v", err)
	}
	r.until.Store(now.Add(-time.Millisecond).UnixNano()) // not moved on yet, after a time of staleness
	if err := r.checkFresh(now); !errors.Is(err, errStale) {
		t.Errorf("what is known is new, and denied all the same: %v", err)
	}
}

// reviewer answers every TokenReview alike.
type reviewer struct {
	authenticationclient.TokenReviewInterface
	status authenticationv1.TokenReviewStatus
	err    error
	asked  int
}

func (f *reviewer) Create(_ context.Context, r *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	f.asked++
	r.Status = f.status
	return r, f.err
}

func TestACallerIsWhoTheAPIServerSaysForThisAudience(t *testing.T) {
	const controller = "system:serviceaccount:mintmark-system:mintmark-controller"
	said := func(authenticated bool, user string, audiences ...string) authenticationv1.TokenReviewStatus {
		return authenticationv1.TokenReviewStatus{Authenticated: authenticated, User: authenticationv1.UserInfo{Username: user}, Audiences: audiences}
	}
	for name, c := range map[string]struct {
		status authenticationv1.TokenReviewStatus
		err    error
		want   int // 0: let in
		asked  int // in two calls
	}{
		"the controller": {said(true, controller, internalapi.Audience), nil, 0, 1},
		"an authenticator that knows no audience": {said(true, controller), nil, 401, 2},
		"another audience":                        {said(true, controller, "https://kubernetes.default.svc"), nil, 401, 2},
		"another account":                         {said(true, controller+"x", internalapi.Audience), nil, 401, 2},
		"nobody":                                  {said(false, controller, internalapi.Audience), nil, 401, 2},
		"no answer":                               {said(true, controller, internalapi.Audience), errors.New("timeout"), 503, 2},
	} {
		reviews := &reviewer{status: c.status, err: c.err}
		callers := newCallers(reviews, "mintmark-system", newMetricsOfItsOwn(), new(journal).logger())
		for range 2 {
			r := &http.Request{Header: http.Header{"Authorization": {"Bearer a.b.c"}}}
			got := 0
			if p := callers.check(r.WithContext(t.Context())); p != nil {
				got = p.Status
			}
			if got != c.want {
				t.Errorf("%s: %d, want %d", name, got, c.want)
			}
		}
		if reviews.asked != c.asked {
			t.Errorf("%s: asked %d times for two calls, want %d", name, reviews.asked, c.asked)
		}
	}
}
