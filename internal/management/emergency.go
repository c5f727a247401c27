package management

import (
	"context"
	"encoding/hex"
	"io"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// EmergencyRequest pulls the emergency brake.
type EmergencyRequest struct {
	Reason     string            `json:"reason" minLength:"1" maxLength:"1024" doc:"Why, for the record."`
	All        bool              `json:"all,omitempty" doc:"Every credential that the caller may revoke: of the cluster for administrators, otherwise of the caller's namespace."`
	Kinds      []string          `json:"kinds,omitempty" nullable:"false" enum:"APIKey,ServiceToken" maxItems:"2" doc:"Kinds of credential."`
	Namespaces []string          `json:"namespaces,omitempty" nullable:"false" maxItems:"256" doc:"Namespaces they are in."`
	Labels     map[string]string `json:"labels,omitempty" doc:"Labels that they all have, with these values."`
	Replace    string            `json:"replace,omitempty" enum:"Never,Immediately" doc:"Whether those delivered by a Secret get a new value at once. Default: Never."`
}

// EmergencyInput pulls the emergency brake.
type EmergencyInput struct {
	IdempotencyInput
	Body EmergencyRequest
}

// EmergencyOutput tells what was done.
type EmergencyOutput struct {
	Status int
	Body   Emergency
}

// Emergency is a Revocation.
type Emergency struct {
	ID       string    `json:"id" doc:"UID of the Revocation."`
	Name     string    `json:"name" doc:"Name of the Revocation."`
	Created  time.Time `json:"created_at"`
	Matched  int       `json:"matched" doc:"Credentials that it takes, among those that this server knows."`
	Replayed bool      `json:"replayed,omitempty" doc:"A request with this Idempotency-Key has been carried out before."`
}

// emergencyRevoke makes a Revocation, which every server obeys as soon as it sees it.
func emergencyRevoke(a *API, o huma.Operation, _ Path) {
	o.Responses = a.alsoOK(o.Responses, "A request with this Idempotency-Key has been carried out before.", reflect.TypeFor[Emergency]())
	handle(a, o, func(ctx context.Context, c *Caller, in *EmergencyInput) (*EmergencyOutput, error) {
		spec, err := in.Body.spec(c)
		if err != nil {
			return nil, err
		}
		if len(a.config.Namespaces) == 0 {
			return nil, problem(http.StatusForbidden, "Management over REST is not enabled: use mintmark emergency-revoke, or apply a Revocation with kubectl.")
		}
		once, err := in.once(c, "emergency-revoke", spec)
		if err != nil {
			return nil, a.failed(c, "reading a request", err)
		}
		return a.pullBrake(ctx, c, spec, once)
	})
}

// spec is the Revocation's. That of somebody who is no administrator takes nothing outside
// its own namespace.
func (e *EmergencyRequest) spec(c *Caller) (*v1alpha1.RevocationSpec, error) {
	s := &v1alpha1.RevocationSpec{Reason: e.Reason, All: e.All, Kinds: e.Kinds, Namespaces: e.Namespaces, Replace: e.Replace}
	if len(e.Labels) > 0 {
		s.Selector = &metav1.LabelSelector{MatchLabels: e.Labels}
	}
	narrowed := len(e.Kinds)+len(e.Namespaces)+len(e.Labels) > 0
	switch {
	case !e.All && !narrowed:
		return nil, problem(http.StatusUnprocessableEntity, "body: say what to revoke: kinds, namespaces or labels, or all: true.")
	case e.All && narrowed:
		return nil, problem(http.StatusUnprocessableEntity, "body: all: true is for everything: leave out kinds, namespaces and labels, or all.")
	}
	if s.Replace == "" {
		s.Replace = "Never"
	}
	if c.Administrator {
		return s, nil
	}
	if c.Namespace == "" || slices.ContainsFunc(e.Namespaces, func(ns string) bool { return ns != c.Namespace }) {
		return nil, problem(http.StatusForbidden, "namespaces: the caller's own is the only one that it may revoke in.")
	}
	s.All, s.Namespaces = false, []string{c.Namespace}
	return s, nil
}

func (a *API) pullBrake(ctx context.Context, c *Caller, spec *v1alpha1.RevocationSpec, once *once) (*EmergencyOutput, error) {
	matched, err := a.config.Index.Selected(spec)
	if err != nil {
		return nil, problem(http.StatusUnprocessableEntity, "body.labels: not names and values of labels.")
	}
	var random [nameBytes]byte
	if _, err := io.ReadFull(a.config.Random, random[:]); err != nil {
		return nil, a.failed(c, "making up a name", err)
	}
	name := namePrefix + hex.EncodeToString(random[:])
	annotations := map[string]string{v1alpha1.AnnotationOnBehalfOf: c.behalf()}
	if once != nil {
		name = namePrefix + once.key[:2*nameBytes]
		once.mark(annotations)
	}
	made, err := a.cluster.createRevocation(ctx, &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}, Spec: *spec})
	status := http.StatusCreated
	if err != nil && (apierrors.IsAlreadyExists(err) || !refusesForGood(err)) {
		there, lookErr := a.cluster.revocation(ctx, name)
		switch {
		case lookErr != nil:
			return nil, a.refusal(c, "making a Revocation", err)
		case !equality.Semantic.DeepEqual(there.Spec, *spec):
			return nil, problem(http.StatusUnprocessableEntity,
				"header.Idempotency-Key: it has been used for another request. Take a new key for each request that is not the same.")
		}
		made, err = there, nil
		if there.Annotations[v1alpha1.AnnotationOnBehalfOf] != c.behalf() {
			status = http.StatusOK
		}
	}
	if err != nil {
		return nil, a.refusal(c, "making a Revocation", err)
	}
	c.report("EmergencyRevoked")
	c.note("revocation", made.Name)
	c.note("reason", spec.Reason)
	a.config.Log.Warn("management: emergency revocation", "revocation", made.Name, "uid", made.UID, "matched", matched, "caller", c.Subject,
		"request_id", c.RequestID)
	return &EmergencyOutput{Status: status, Body: Emergency{
		ID: string(made.UID), Name: made.Name, Created: made.CreationTimestamp.UTC(), Matched: matched, Replayed: status == http.StatusOK,
	}}, nil
}
