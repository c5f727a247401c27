package webhook

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
)

// concurrentReviews bounds the SubjectAccessReviews of one request in flight.
const concurrentReviews = 8

// reviewer asks the API server what somebody may do. It may be used by any
// number of requests at once.
type reviewer struct {
	api authorizationclient.SubjectAccessReviewInterface
}

// refused are the demands the author may not make, in their order. An error
// means that it could not be found out.
func (r *reviewer) refused(ctx context.Context, author authenticationv1.UserInfo, demands []demand) ([]demand, error) {
	allowed := make([]bool, len(demands))
	asked := answers{ask: func(access authorizationv1.ResourceAttributes) (bool, error) { return r.allowed(ctx, author, access) }}
	var group errgroup.Group
	group.SetLimit(concurrentReviews)
	for i, d := range demands {
		group.Go(func() (err error) {
			allowed[i], err = asked.any(d.anyOf)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var refused []demand
	for i, d := range demands {
		if !allowed[i] {
			refused = append(refused, d)
		}
	}
	return refused, nil
}

// allowed asks one question.
func (r *reviewer) allowed(ctx context.Context, author authenticationv1.UserInfo, access authorizationv1.ResourceAttributes) (bool, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		ResourceAttributes: &access,
		User:               author.Username,
		Groups:             author.Groups,
		UID:                author.UID,
	}}
	if len(author.Extra) > 0 {
		review.Spec.Extra = make(map[string]authorizationv1.ExtraValue, len(author.Extra))
		for key, values := range author.Extra {
			review.Spec.Extra[key] = authorizationv1.ExtraValue(values)
		}
	}
	answer, err := r.api.Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask whether %q may %s %s.%s: %w", author.Username, access.Verb, access.Resource, access.Group, err)
	}
	return answer.Status.Allowed && !answer.Status.Denied, nil
}

// answers remembers the answers within one request: many demands share their
// first question, and it is asked once.
type answers struct {
	ask  func(authorizationv1.ResourceAttributes) (bool, error)
	lock sync.Mutex
	once map[authorizationv1.ResourceAttributes]func() (bool, error)
}

// any tells whether one of the accesses is allowed; it asks no further than
// that.
func (a *answers) any(accesses []authorizationv1.ResourceAttributes) (bool, error) {
	for _, access := range accesses {
		if ok, err := a.answer(access)(); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func (a *answers) answer(access authorizationv1.ResourceAttributes) func() (bool, error) {
	a.lock.Lock()
	defer a.lock.Unlock()
	if a.once == nil {
		a.once = map[authorizationv1.ResourceAttributes]func() (bool, error){}
	}
	if a.once[access] == nil {
		a.once[access] = sync.OnceValues(func() (bool, error) { return a.ask(access) })
	}
	return a.once[access]
}
