package management

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// CreateRequest asks for a credential.
type CreateRequest struct {
	Kind        string            `json:"kind,omitempty" enum:"APIKey,ServiceToken" doc:"Kind of credential. Default: that of the path."`
	Namespace   string            `json:"namespace,omitempty" maxLength:"63" pattern:"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$" doc:"Namespace of the object. Default: the caller's own; administrators name it where there is more than one."`
	Name        string            `json:"name,omitempty" maxLength:"253" pattern:"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$" doc:"Name of the object. Default: one is made up."`
	Description string            `json:"description,omitempty" maxLength:"1024" doc:"What it is for."`
	Owner       string            `json:"owner,omitempty" maxLength:"253" doc:"Person or team to ask about it."`
	Labels      map[string]string `json:"labels,omitempty" doc:"Labels of the object, as Kubernetes has them."`
	Metadata    map[string]string `json:"metadata,omitempty" doc:"Free-form facts to search by."`
	Permissions Names             `json:"permissions,omitempty" doc:"Permissions it is to hold. The caller holds them all itself."`
	Roles       Names             `json:"roles,omitempty" doc:"AccessRoles it is to hold. The caller holds them itself."`
	Attributes  map[string]string `json:"attributes,omitempty" doc:"Attributes, for policies. The caller has them itself, with these values."`
	Admin       bool              `json:"is_admin,omitempty" doc:"Refused where true: no administrator's credential is made over REST."`
	TTL         string            `json:"ttl,omitempty" maxLength:"32" pattern:"^(([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?|Never)$" doc:"How long each value lives, such as 90d or 12h. Default: the class's."`
	ExpiresAt   *time.Time        `json:"expires_at,omitempty" doc:"When the whole credential ends."`
	Overlap     string            `json:"overlap,omitempty" maxLength:"32" pattern:"^([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$" doc:"For how long the previous value is accepted after a rotation, such as 24h. Default: the class's."`
	Networks    []string          `json:"allowed_cidrs,omitempty" nullable:"false" maxItems:"64" doc:"Networks it may be used from, such as 10.0.0.0/8. Default: any."`
	RateLimit   *RateLimit        `json:"rate_limit,omitempty" doc:"How often it may be used. Default: any number."`
}

// RateLimit bounds how often a credential may be used.
type RateLimit struct {
	Requests int64  `json:"requests" minimum:"1" maximum:"1000000000" doc:"Requests in each period."`
	Per      string `json:"per,omitempty" maxLength:"32" pattern:"^([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$" doc:"The period. Default: 1s."`
	Burst    int64  `json:"burst,omitempty" minimum:"1" maximum:"1000000000" doc:"Requests at once. Default: requests."`
}

// Names are a list, or text with spaces between them, which is how permissions are written
// in a JWT.
type Names []string

// UnmarshalJSON implements json.Unmarshaler.
func (n *Names) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil {
		*n = strings.Fields(text)
		return nil
	}
	return json.Unmarshal(data, (*[]string)(n))
}

// Bounds of Names.
const (
	maxNames    = 256
	maxNameText = 253
)

// Schema implements huma.SchemaProvider.
func (Names) Schema(huma.Registry) *huma.Schema {
	least, most, length, text := 1, maxNames, maxNameText, maxNames*(maxNameText+1)
	return &huma.Schema{OneOf: []*huma.Schema{
		{Type: huma.TypeArray, MaxItems: &most, Items: &huma.Schema{Type: huma.TypeString, MinLength: &least, MaxLength: &length}},
		{Type: huma.TypeString, MaxLength: &text, Description: "With spaces between them."},
	}}
}

// CreateInput asks for a credential.
type CreateInput struct {
	IdempotencyInput
	Body CreateRequest
}

// Issued is a credential with its value, once.
type Issued struct {
	Credential
	Key   string `json:"key,omitempty" doc:"The value of an APIKey. It is shown in this answer and never again."`
	Token string `json:"token,omitempty" doc:"The value of a ServiceToken. It is shown in this answer and never again."`
	// Ready tells whether this server accepts the value already.
	Ready bool `json:"ready" doc:"This server accepts the value already. Otherwise the controller has not sealed it yet, or is not running."`
	// Replayed: this request has been carried out before.
	Replayed bool `json:"replayed,omitempty" doc:"A request with this Idempotency-Key has been carried out before. Its value was in that answer; who has lost it rotates."`
}

// IssuedOutput is the answer to what makes a value.
type IssuedOutput struct {
	Status   int
	Location string `header:"Location" doc:"Where the credential is."`
	ETag     string `header:"ETag" doc:"Names this state of it, for If-Match."`
	Body     Issued
}

// createCredential makes one that is declared by its SHA-256.
func createCredential(a *API, o huma.Operation, p Path) {
	o.Responses = a.alsoOK(o.Responses, "A request with this Idempotency-Key has been carried out before. The value is not in this answer.", reflect.TypeFor[Issued]())
	handle(a, o, func(ctx context.Context, c *Caller, in *CreateInput) (*IssuedOutput, error) {
		if in.Body.Kind == "" {
			in.Body.Kind = string(p.Kind)
		}
		out, err := a.create(ctx, c, in)
		if err != nil {
			return nil, err
		}
		out.Location = p.Path + "/" + out.Body.ID
		return out, nil
	})
}

// alsoOK documents that an operation can answer 200 beside what it usually does.
func (a *API) alsoOK(responses map[string]*huma.Response, description string, body reflect.Type) map[string]*huma.Response {
	if responses == nil {
		responses = map[string]*huma.Response{}
	}
	responses["200"] = &huma.Response{Description: description, Content: map[string]*huma.MediaType{
		"application/json": {Schema: a.huma.OpenAPI().Components.Schemas.Schema(body, true, body.Name())},
	}}
	return responses
}

func (a *API) create(ctx context.Context, c *Caller, in *CreateInput) (*IssuedOutput, error) {
	ask := &in.Body
	namespace, err := a.namespaceFor(c, ask.Namespace)
	if err != nil {
		return nil, err
	}
	ask.Namespace = namespace
	if err := c.mayHandOut(ask.Admin, ask.Permissions, ask.Roles, ask.Attributes); err != nil {
		return nil, err
	}
	if ask.ExpiresAt != nil && !a.config.Now().Before(*ask.ExpiresAt) {
		return nil, problem(http.StatusUnprocessableEntity, "body.expires_at: it has passed, so the credential would never be accepted.")
	}
	once, err := in.once(c, "create", ask)
	if err != nil {
		return nil, a.failed(c, "reading a request", err)
	}
	kind := v1alpha1.Kind(ask.Kind)
	value, err := a.mint(ctx, c, kind)
	if err != nil {
		return nil, err
	}
	object, err := a.newCredential(c, kind, ask, value, once)
	if err != nil {
		return nil, err
	}
	created, err := a.cluster.create(ctx, object)
	if err != nil && !refusesForGood(err) {
		// The answer may have been lost and not the write: then this is what is there.
		if there, lookErr := a.cluster.get(ctx, kind, namespace, object.GetName()); lookErr == nil && declares(there, value) {
			created, err = there, nil
		}
	}
	if apierrors.IsAlreadyExists(err) {
		return a.madeBefore(ctx, c, object, once)
	}
	if err != nil {
		return nil, a.refusal(c, "creating a credential", err)
	}
	c.about(created)
	c.report("Created")
	a.config.Log.Info("management: a credential was created", "kind", ask.Kind, "namespace", namespace, "name", created.GetName(),
		"uid", created.GetUID(), "caller", c.Subject, "request_id", c.RequestID)
	return a.issued(ctx, http.StatusCreated, created, value), nil
}

// namespaceFor is the namespace that a credential is to be made in.
func (a *API) namespaceFor(c *Caller, asked string) (string, error) {
	if asked == "" {
		asked = c.Namespace
		if c.Administrator {
			if asked = ""; len(a.config.Namespaces) == 1 && a.config.Namespaces[0] != anyNamespace {
				asked = a.config.Namespaces[0]
			}
		}
		if asked == "" && len(a.config.Namespaces) > 0 {
			return "", problem(http.StatusUnprocessableEntity, "body.namespace: say in which namespace the credential is to be made.")
		}
	}
	if !c.sees(asked) && asked != "" {
		return "", problem(http.StatusForbidden, "namespace: credentials are made in the caller's own namespace. Administrators alone can name another.")
	}
	if !a.enabled(asked) {
		return "", errNotEnabled
	}
	return asked, nil
}

var errNotEnabled = problem(http.StatusForbidden, "Credentials of this namespace are not managed over REST: have it named in --management-namespaces "+
	"(the chart's management.namespaces), or use kubectl, the command mintmark, or Git.")

// mayHandOut tells whether the caller holds all of it itself. Handing out less than one
// holds is the rule for everybody; admission has rules of its own for this server.
func (c *Caller) mayHandOut(admin bool, permissions, roles []string, attributes map[string]string) error {
	if admin {
		return problem(http.StatusForbidden, "is_admin: an administrator's credential is not made, and its value not changed, over REST. Use kubectl or the command mintmark.")
	}
	for _, p := range permissions {
		if !c.mayGrant(p) {
			return notHeld("permission", p)
		}
	}
	for _, r := range roles {
		if !c.hasRole(r) {
			return notHeld("role", r)
		}
	}
	for key, value := range attributes {
		if have, ok := c.Attributes[key]; !c.Administrator && (!ok || have != value) {
			return notHeld("attribute", key)
		}
	}
	return nil
}

func notHeld(what, name string) error {
	return problem(http.StatusForbidden, fmt.Sprintf("The credential presented does not hold the %s %s, so it cannot hand it out.", what, audit.Clean(name, maxShownName)))
}

// maxShownName bounds what of a name is repeated, in bytes.
const maxShownName = 128

// mint makes a value of the class's format.
func (a *API) mint(ctx context.Context, c *Caller, kind v1alpha1.Kind) (credential.Token, error) {
	class, err := a.cluster.class(ctx, a.config.Class)
	switch {
	case apierrors.IsNotFound(err):
		a.config.Log.Error("management: the CredentialClass of --management-class does not exist", "class", a.config.Class, "request_id", c.RequestID)
		return credential.Token{}, problem(http.StatusServiceUnavailable, "The CredentialClass that credentials made over REST are of does not exist: see the log of this server.")
	case err != nil:
		return credential.Token{}, a.clusterError(c, "reading a CredentialClass", err)
	}
	value, err := credential.Format{Kind: kind, Environment: class.Spec.Environment, Checksum: class.Spec.Checksum}.Mint(a.config.Random)
	if err != nil {
		return credential.Token{}, a.failed(c, "minting a value", err)
	}
	return value, nil
}

// newCredential is the object. Of the value it holds the SHA-256.
func (a *API) newCredential(c *Caller, kind v1alpha1.Kind, ask *CreateRequest, value credential.Token, once *once) (v1alpha1.Credential, error) {
	o := empty(kind)
	name := ask.Name
	if name == "" {
		var err error
		if name, err = a.madeUpName(once); err != nil {
			return nil, a.failed(c, "making up a name", err)
		}
	}
	o.SetNamespace(ask.Namespace)
	o.SetName(name)
	o.SetLabels(ask.Labels)
	annotations := map[string]string{v1alpha1.AnnotationOnBehalfOf: c.behalf(), v1alpha1.AnnotationPrefix: prefixOf(value)}
	once.mark(annotations)
	o.SetAnnotations(annotations)
	spec := o.CredentialSpec()
	*spec = v1alpha1.CredentialSpec{
		CredentialClassName: a.config.Class, Description: ask.Description, Owner: ask.Owner, Metadata: values(ask.Metadata),
		Permissions: typed[v1alpha1.Permission](ask.Permissions), Roles: ask.Roles, Attributes: values(ask.Attributes), TTL: v1alpha1.Duration(ask.TTL),
		AllowedCIDRs: typed[v1alpha1.CIDR](ask.Networks), External: &v1alpha1.External{SHA256: []string{digestOf(value)}},
		// Nobody takes the previous value out of the object: its time ends it.
		Rotation: &v1alpha1.Rotation{Retire: v1alpha1.RetireAfterOverlap, Overlap: v1alpha1.Duration(ask.Overlap)},
	}
	if ask.ExpiresAt != nil {
		ends := metav1.NewTime(ask.ExpiresAt.UTC())
		spec.ExpiresAt = &ends
	}
	if r := ask.RateLimit; r != nil {
		spec.RateLimit = &v1alpha1.RateLimit{Requests: r.Requests, Per: v1alpha1.Duration(r.Per), Burst: r.Burst}
	}
	return o, nil
}

// madeUpName is the same for the same Idempotency-Key, so that of two requests with it one
// finds that the other has made it, at whatever servers they are.
func (a *API) madeUpName(once *once) (string, error) {
	var random [nameBytes]byte
	if once == nil {
		if _, err := io.ReadFull(a.config.Random, random[:]); err != nil {
			return "", err
		}
		return namePrefix + hex.EncodeToString(random[:]), nil
	}
	return namePrefix + once.key[:2*nameBytes], nil
}

// Names that are made up: a prefix, and so many bytes in hex. They are too short to be taken
// for a secret in the audit log.
const (
	namePrefix = "rest-"
	nameBytes  = 8
)

// madeBefore is the answer where there is a credential of this name already: made by this
// very request, or not.
func (a *API) madeBefore(ctx context.Context, c *Caller, object v1alpha1.Credential, once *once) (*IssuedOutput, error) {
	there, err := a.cluster.get(ctx, object.CredentialKind(), object.GetNamespace(), object.GetName())
	if err != nil {
		return nil, a.clusterError(c, "reading a credential", err)
	}
	if err := once.check(there.GetAnnotations()); err != nil {
		return nil, err
	}
	if once == nil || !once.marks(there.GetAnnotations()) {
		return nil, problem(http.StatusConflict, "There is a credential of this kind and name already in the namespace. Choose another name, or rotate that one.")
	}
	c.about(there)
	c.report("Replayed")
	return a.replayed(there), nil
}

// replayed is the answer to a request that has been carried out before.
func (a *API) replayed(o v1alpha1.Credential) *IssuedOutput {
	return &IssuedOutput{Status: http.StatusOK, ETag: etag(o), Body: Issued{
		Credential: describe(o, a.config.Now()), Ready: a.accepts(o), Replayed: true,
	}}
}

// accepts tells whether this server knows the value that is declared first.
func (a *API) accepts(o v1alpha1.Credential) bool {
	spec := o.CredentialSpec()
	if spec.External == nil || len(spec.External.SHA256) == 0 {
		return false
	}
	inner, err := credential.ParseInner(spec.External.SHA256[0])
	return err == nil && a.config.Index.Holder(inner) == string(o.GetUID())
}

// acceptWithin is how long an answer waits for the value to be accepted here.
const acceptWithin = 2 * time.Second

// issued is the answer with the value, once it is accepted here or has had the time to be.
func (a *API) issued(ctx context.Context, status int, o v1alpha1.Credential, value credential.Token) *IssuedOutput {
	waiting, cancel := context.WithTimeout(ctx, acceptWithin)
	defer cancel()
	ready := a.awaitAccepted(waiting, string(o.GetUID()), value.Inner())
	if ready {
		// As the controller has left it, where it can be had: the version and its end.
		if now, err := a.cluster.get(ctx, o.CredentialKind(), o.GetNamespace(), o.GetName()); err == nil && now.GetUID() == o.GetUID() && declares(now, value) {
			o = now
		}
	}
	out := &IssuedOutput{Status: status, ETag: etag(o), Body: Issued{Credential: describe(o, a.config.Now()), Ready: ready}}
	if o.CredentialKind() == v1alpha1.KindAPIKey {
		out.Body.Key = value.Reveal()
	} else {
		out.Body.Token = value.Reveal()
	}
	return out
}

// awaitAccepted waits until this server accepts the value as the credential's.
func (a *API) awaitAccepted(ctx context.Context, uid string, inner credential.Inner) bool {
	for {
		changed := a.config.Index.Changed()
		if a.config.Index.Holder(inner) == uid {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func digestOf(value credential.Token) string {
	inner := value.Inner()
	return hex.EncodeToString(inner[:])
}

// prefixOf says, for the annotation, what of the value may be shown.
func prefixOf(value credential.Token) string { return value.Prefix() + " " + digestOf(value)[:8] }

// declares tells whether the value is the credential's current one.
func declares(o v1alpha1.Credential, value credential.Token) bool {
	external := o.CredentialSpec().External
	return external != nil && slices.Index(external.SHA256, digestOf(value)) == 0
}

func values(m map[string]string) map[string]v1alpha1.MetadataValue {
	if len(m) == 0 {
		return nil
	}
	typed := make(map[string]v1alpha1.MetadataValue, len(m))
	for key, value := range m {
		typed[key] = v1alpha1.MetadataValue(value)
	}
	return typed
}

func typed[T ~string](plain []string) []T {
	if len(plain) == 0 {
		return nil
	}
	all := make([]T, len(plain))
	for i, p := range plain {
		all[i] = T(p)
	}
	return all
}
