package management

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// RotateRequest asks for a new value.
type RotateRequest struct {
	Reason    string `json:"reason,omitempty" maxLength:"1024" doc:"Why, for the record."`
	Immediate bool   `json:"immediate,omitempty" doc:"Refuse the previous value at once, as where it has leaked. Only for credentials made over REST."`
}

// ConditionInput makes a change depend on nobody else having made one.
type ConditionInput struct {
	IfMatch string `header:"If-Match" maxLength:"256" doc:"ETag of the state that the caller has seen. Where it is another one by now, nothing is changed and the answer is 412."`
}

// RotateInput asks for a new value.
type RotateInput struct {
	IDInput
	ConditionInput
	IdempotencyInput
	Body *RotateRequest
}

// rotateCredential gives a credential a new value.
func rotateCredential(a *API, o huma.Operation, p Path) {
	if o.Responses == nil {
		o.Responses = map[string]*huma.Response{}
	}
	o.Responses["202"] = &huma.Response{
		Description: "The credential is delivered by a Secret. A new value has been asked for, and will be in the Secret; it is not in this answer.",
		Content: map[string]*huma.MediaType{
			"application/json": {Schema: a.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Issued](), true, "Issued")},
		},
	}
	handle(a, o, func(ctx context.Context, c *Caller, in *RotateInput) (*IssuedOutput, error) {
		ask := RotateRequest{}
		if in.Body != nil {
			ask = *in.Body
		}
		once, err := in.once(c, "rotate "+in.ID, ask)
		if err != nil {
			return nil, a.failed(c, "reading a request", err)
		}
		out, err := a.rotate(ctx, c, &change{id: in.ID, ifMatch: in.IfMatch, once: once}, &ask)
		if err != nil {
			return nil, err
		}
		out.Location = p.Path[:strings.Index(p.Path, "/{id}")] + "/" + out.Body.ID
		return out, nil
	})
}

// change is what is common to requests that change a credential.
type change struct {
	id      string
	ifMatch string
	once    *once
}

// maxTries is how often a change is tried that others get in the way of.
const maxTries = 8

// carryOut reads the credential, checks the condition, and has a patch made and applied.
// Where somebody else was faster it begins again, unless the caller wanted to be told.
func (a *API) carryOut(ctx context.Context, c *Caller, ch *change, doing string, make func(o v1alpha1.Credential) (map[string]any, error),
	did func(o v1alpha1.Credential) bool,
) (v1alpha1.Credential, error) {
	for try := 1; ; try++ {
		o, err := a.find(ctx, c, ch.id)
		if err != nil {
			return nil, err
		}
		if err := ch.once.check(o.GetAnnotations()); err != nil {
			return nil, err
		}
		if ch.once.marks(o.GetAnnotations()) {
			return o, errReplayed
		}
		if ch.ifMatch != "" && !strongMatch(ch.ifMatch, etag(o)) {
			return nil, errChanged
		}
		if !a.enabled(o.GetNamespace()) {
			return nil, errNotEnabled
		}
		patch, err := make(o)
		if err != nil || patch == nil {
			return o, err
		}
		a.sign(c, ch, o, patch)
		patched, err := a.cluster.patch(ctx, o, patch)
		switch {
		case err == nil && string(patched.GetUID()) == ch.id:
			return patched, nil
		case err == nil, apierrors.IsNotFound(err):
			return nil, errNotFound
		case apierrors.IsConflict(err) && ch.ifMatch != "":
			return nil, errChanged
		case apierrors.IsConflict(err) && try < maxTries:
			continue
		case !refusesForGood(err):
			// The answer may have been lost and not the write.
			if there, lookErr := a.find(ctx, c, ch.id); lookErr == nil && did(there) {
				return there, nil
			}
		}
		return nil, a.refusal(c, doing, err)
	}
}

// sign says in the patch of which state of the object it is, for whom, and by which request.
func (a *API) sign(c *Caller, ch *change, o v1alpha1.Credential, patch map[string]any) {
	meta, ok := patch["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		patch["metadata"] = meta
	}
	annotations, ok := meta["annotations"].(map[string]any)
	if !ok {
		annotations = map[string]any{}
		meta["annotations"] = annotations
	}
	// With its UID and resourceVersion: it is this object that is changed, in the state
	// that was looked at, or none.
	meta["uid"], meta["resourceVersion"] = string(o.GetUID()), o.GetResourceVersion()
	annotations[v1alpha1.AnnotationOnBehalfOf] = c.behalf()
	if ch.once != nil {
		marks := map[string]string{}
		ch.once.mark(marks)
		for key, value := range marks {
			annotations[key] = value
		}
	}
}

// errReplayed: the change has been made before, by this very request.
var errReplayed = problem(http.StatusOK, "")

var errChanged = problem(http.StatusPreconditionFailed, "It has been changed since the state that If-Match names. Look at it, and decide anew.")

// strongMatch tells whether a list of entity tags, or *, has the tag, for If-Match: a weak
// one matches nothing (RFC 9110, section 13.1.1).
func strongMatch(header, tag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		if one = strings.TrimSpace(one); one == "*" || one == tag {
			return true
		}
	}
	return false
}

func (a *API) rotate(ctx context.Context, c *Caller, ch *change, ask *RotateRequest) (*IssuedOutput, error) {
	var value credential.Token
	external := false
	o, err := a.carryOut(ctx, c, ch, "rotating a credential", func(o v1alpha1.Credential) (map[string]any, error) {
		if err := a.mayRotate(c, o, ask); err != nil {
			return nil, err
		}
		if external = o.CredentialSpec().External != nil; !external {
			return a.askForRotation(o, ask), nil
		}
		if value.Reveal() == "" {
			var err error
			if value, err = a.mint(ctx, c, o.CredentialKind()); err != nil {
				return nil, err
			}
		}
		return declareNew(o, value, ask), nil
	}, func(o v1alpha1.Credential) bool { return external && declares(o, value) })
	switch {
	case errors.Is(err, errReplayed):
		c.report("Replayed")
		out := a.replayed(o)
		if o.CredentialSpec().External == nil {
			out.Status = http.StatusAccepted
		}
		return out, nil
	case err != nil:
		return nil, err
	}
	c.report("Rotated")
	c.note("reason", ask.Reason)
	a.config.Log.Info("management: a rotation was asked for", "kind", o.CredentialKind(), "namespace", o.GetNamespace(), "name", o.GetName(),
		"uid", o.GetUID(), "caller", c.Subject, "request_id", c.RequestID)
	if !external {
		return &IssuedOutput{Status: http.StatusAccepted, ETag: etag(o), Body: Issued{Credential: describe(o, a.config.Now())}}, nil
	}
	return a.issued(ctx, http.StatusOK, o, value), nil
}

// mayRotate: whoever gets a new value gets what it is good for, so the caller has to hold
// that already. Nothing that is over is brought back.
func (a *API) mayRotate(c *Caller, o v1alpha1.Credential, ask *RotateRequest) error {
	spec := o.CredentialSpec()
	switch {
	case over(o):
		return problem(http.StatusConflict, "It is revoked, and is not brought back over REST: make a new one.")
	case spec.ExpiresAt != nil && !a.config.Now().Before(spec.ExpiresAt.Time):
		return problem(http.StatusConflict, "It has expired as a whole (expires_at): make a new one.")
	case o.GetDeletionTimestamp() != nil:
		return problem(http.StatusConflict, "It is being deleted.")
	}
	if spec.External == nil {
		switch {
		case spec.Admin && !c.Administrator:
			return problem(http.StatusForbidden, "An administrator's credential is rotated by administrators alone.")
		case ask.Immediate:
			return problem(http.StatusConflict, "immediate: its value is in a Secret, and who uses it reads the new one there. Revoke it, or set spec.rotation.retire in its object.")
		}
		return nil
	}
	if spec.CredentialClassName != a.config.Class {
		return problem(http.StatusConflict, "Its holder keeps the value and has declared its SHA-256: the holder makes a new value, and declares that one's.")
	}
	return c.mayHandOut(spec.Admin, authz.Strings(spec.Permissions), spec.Roles, plainMap(spec.Attributes))
}

// declareNew declares the new value, and goes on declaring the current one for its overlap.
func declareNew(o v1alpha1.Credential, value credential.Token, ask *RotateRequest) map[string]any {
	declared := []string{digestOf(value)}
	if !ask.Immediate {
		declared = append(declared, o.CredentialSpec().External.SHA256[0])
	}
	patch := map[string]any{"spec": map[string]any{"external": map[string]any{"sha256": declared}}}
	patch["metadata"] = map[string]any{"annotations": map[string]any{
		v1alpha1.AnnotationReason: reasonOrNone(ask.Reason), v1alpha1.AnnotationPrefix: prefixOf(value),
	}}
	return patch
}

// reasonOrNone takes the reason of an earlier request away where there is none.
func reasonOrNone(reason string) any {
	if reason == "" {
		return nil
	}
	return reason
}

// askForRotation pulls the lever that people and Git pull: an annotation with a time, later
// than the last one that was carried out or asked for.
func (a *API) askForRotation(o v1alpha1.Credential, ask *RotateRequest) map[string]any {
	at := a.config.Now().UTC().Truncate(time.Second)
	earlier := []time.Time{}
	if h := o.CredentialStatus().Handled; h != nil && h.Rotate != nil {
		earlier = append(earlier, h.Rotate.Time)
	}
	if asked, err := time.Parse(time.RFC3339, o.GetAnnotations()[v1alpha1.AnnotationRotateRequestedAt]); err == nil {
		earlier = append(earlier, asked)
	}
	if len(earlier) > 0 {
		if latest := slices.MaxFunc(earlier, time.Time.Compare).UTC(); !at.After(latest) {
			at = latest.Truncate(time.Millisecond).Add(time.Millisecond)
		}
	}
	return map[string]any{"metadata": map[string]any{"annotations": map[string]any{
		v1alpha1.AnnotationRotateRequestedAt: at.Format(time.RFC3339Nano), v1alpha1.AnnotationReason: reasonOrNone(ask.Reason),
	}}}
}

// RevokeRequest ends a credential, or some of its versions.
type RevokeRequest struct {
	Reason   string  `json:"reason,omitempty" maxLength:"1024" doc:"Why, for the record."`
	Versions []int64 `json:"versions,omitempty" nullable:"false" maxItems:"64" doc:"Numbers of the versions to end. Default: the whole credential."`
}

// RevokeInput ends a credential.
type RevokeInput struct {
	IDInput
	ConditionInput
	Body *RevokeRequest
}

// DeleteInput ends a credential.
type DeleteInput struct {
	IDInput
	ConditionInput
	Reason string `query:"reason" maxLength:"1024" doc:"Why, for the record."`
}

// revokeCredential ends one.
func revokeCredential(a *API, o huma.Operation, _ Path) {
	handle(a, o, func(ctx context.Context, c *Caller, in *RevokeInput) (*CredentialOutput, error) {
		ask := RevokeRequest{}
		if in.Body != nil {
			ask = *in.Body
		}
		return a.revoke(ctx, c, &change{id: in.ID, ifMatch: in.IfMatch}, &ask)
	})
}

// deleteCredential ends one, in the words of the other family. Its object stays, and tells
// of it.
func deleteCredential(a *API, o huma.Operation, _ Path) {
	handle(a, o, func(ctx context.Context, c *Caller, in *DeleteInput) (*CredentialOutput, error) {
		return a.revoke(ctx, c, &change{id: in.ID, ifMatch: in.IfMatch}, &RevokeRequest{Reason: in.Reason})
	})
}

func (a *API) revoke(ctx context.Context, c *Caller, ch *change, ask *RevokeRequest) (*CredentialOutput, error) {
	for _, version := range ask.Versions {
		if version < 1 {
			return nil, problem(http.StatusUnprocessableEntity, "body.versions: versions are numbered from 1.")
		}
	}
	o, err := a.carryOut(ctx, c, ch, "revoking a credential", func(o v1alpha1.Credential) (map[string]any, error) {
		if o.CredentialSpec().Admin && !c.Administrator {
			return nil, problem(http.StatusForbidden, "An administrator's credential is revoked by administrators alone.")
		}
		if latest := latestVersion(o); slices.ContainsFunc(ask.Versions, func(v int64) bool { return v > latest }) {
			return nil, problem(http.StatusUnprocessableEntity, fmt.Sprintf("body.versions: there is no such version: the latest is %d.", latest))
		}
		return a.revokeIt(o, ask), nil
	}, func(o v1alpha1.Credential) bool { return a.revokeIt(o, ask) == nil })
	if err != nil {
		return nil, err
	}
	c.report("Revoked")
	c.note("reason", ask.Reason)
	a.config.Log.Info("management: a credential was revoked", "kind", o.CredentialKind(), "namespace", o.GetNamespace(), "name", o.GetName(),
		"uid", o.GetUID(), "caller", c.Subject, "request_id", c.RequestID)
	return &CredentialOutput{ETag: etag(o), Body: describe(o, a.config.Now())}, nil
}

// latestVersion is the number of the version made last; 0 where there is none.
func latestVersion(o v1alpha1.Credential) int64 {
	latest := o.CredentialStatus().CurrentVersion
	for _, v := range o.CredentialStatus().Versions {
		latest = max(latest, v.Version)
	}
	return latest
}

// noReason is the reason of a revocation for which none was given: the object wants one.
const noReason = "revoked over REST, no reason given"

// revokeIt is the patch; nil where it is revoked already.
func (a *API) revokeIt(o v1alpha1.Credential, ask *RevokeRequest) map[string]any {
	before := o.CredentialSpec().Revoked
	revoked := map[string]any{
		"reason": cmp.Or(ask.Reason, noReason),
		// Revoked once more after it was brought back: the time tells the two apart.
		"requestedAt": metav1.NewMicroTime(a.config.Now().UTC()),
		"versions":    nil,
	}
	if len(ask.Versions) == 0 {
		if over(o) {
			return nil
		}
		return map[string]any{"spec": map[string]any{"revoked": revoked}}
	}
	if before != nil && len(before.Versions) == 0 && over(o) {
		return nil // all of it is
	}
	versions := slices.Clone(ask.Versions)
	if before != nil {
		versions = append(versions, before.Versions...)
	}
	slices.Sort(versions)
	versions = slices.Compact(versions)
	if before != nil && slices.Equal(versions, slices.Sorted(slices.Values(before.Versions))) {
		return nil
	}
	revoked["versions"] = versions
	return map[string]any{"spec": map[string]any{"revoked": revoked}}
}

// note adds a detail to the report.
func (c *Caller) note(name, text string) {
	if c.Report != nil {
		c.Report.note(name, text)
	}
}
