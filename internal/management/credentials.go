package management

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// Credential is what callers are told of a credential. The value is not among it.
type Credential struct {
	ID          string            `json:"id" doc:"UID of the object: the credential's id in every API."`
	Kind        string            `json:"kind" enum:"APIKey,ServiceToken"`
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	Class       string            `json:"class" doc:"CredentialClass it is of."`
	State       string            `json:"state" enum:"Pending,Active,Revoked,Expired" doc:"Pending: not made yet, or not known to every server."`
	Description string            `json:"description,omitempty"`
	Owner       string            `json:"owner,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Permissions []string          `json:"permissions,omitempty"`
	Roles       []string          `json:"roles,omitempty"`
	Admin       bool              `json:"is_admin"`
	External    bool              `json:"external" doc:"It is declared by the SHA-256 of its value, as those made over REST are; otherwise its value is in a Secret."`
	Version     int64             `json:"version,omitempty" doc:"Number of the current version."`
	Prefix      string            `json:"prefix,omitempty" doc:"Public part of its value, where that is known."`
	Created     time.Time         `json:"created_at"`
	Expires     *time.Time        `json:"expires_at,omitempty" doc:"Absent: never."`
	Rotates     *time.Time        `json:"rotates_at,omitempty" doc:"When its next version is due; absent: no time is set."`
	LastUsed    string            `json:"last_used,omitempty" doc:"Day of the last use known, 2006-01-02."`
	Revoked     *Revoked          `json:"revoked,omitempty"`
}

// Revoked tells of the revocation of a whole credential.
type Revoked struct {
	Reason string `json:"reason"`
	Actor  string `json:"actor,omitempty"`
}

// States of a credential.
const (
	statePending = "Pending"
	stateActive  = "Active"
	stateRevoked = "Revoked"
	stateExpired = "Expired"
)

// describe is what callers are told of it.
func describe(o v1alpha1.Credential, now time.Time) Credential {
	spec, status := o.CredentialSpec(), o.CredentialStatus()
	c := Credential{
		ID: string(o.GetUID()), Kind: string(o.CredentialKind()), Namespace: o.GetNamespace(), Name: o.GetName(), Class: spec.CredentialClassName,
		Description: spec.Description, Owner: spec.Owner, Labels: o.GetLabels(), Metadata: plainMap(spec.Metadata), Permissions: authz.Strings(spec.Permissions),
		Roles: spec.Roles, Admin: spec.Admin, External: spec.External != nil, Version: status.CurrentVersion, Created: o.GetCreationTimestamp().UTC(),
		Expires: expiry(spec, status), Rotates: parseTime(status.NextRotation), LastUsed: status.LastUsed, Revoked: revocationOf(o),
	}
	for _, v := range status.Versions {
		if v.Version == status.CurrentVersion {
			c.Prefix = v.Prefix
		}
	}
	live := slices.ContainsFunc(status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.State.Live() })
	switch {
	case c.Revoked != nil:
		c.State = stateRevoked
	case c.Expires != nil && !now.Before(*c.Expires):
		c.State = stateExpired
	case live:
		c.State = stateActive
	case slices.ContainsFunc(status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.State == v1alpha1.VersionExpired }):
		c.State = stateExpired
	default:
		c.State = statePending
	}
	return c
}

// over tells whether a credential has been revoked as a whole, and nothing accepted has been
// made since. Where status does not yet answer to the spec, the spec counts.
func over(o v1alpha1.Credential) bool {
	spec, status := o.CredentialSpec(), o.CredentialStatus()
	through := int64(0)
	if status.Revocation != nil {
		through = status.Revocation.ThroughVersion
	}
	live := slices.ContainsFunc(status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.State.Live() && v.Version > through })
	if spec.Revoked != nil && len(spec.Revoked.Versions) == 0 {
		return !live || status.ObservedGeneration < o.GetGeneration()
	}
	return status.Revocation != nil && !live
}

// revocationOf tells of the revocation of the whole credential that is in force.
func revocationOf(o v1alpha1.Credential) *Revoked {
	if !over(o) {
		return nil
	}
	spec, status := o.CredentialSpec(), o.CredentialStatus()
	if r := status.Revocation; r != nil && (spec.Revoked == nil || status.ObservedGeneration >= o.GetGeneration()) {
		return &Revoked{Reason: r.Reason, Actor: r.Actor}
	}
	return &Revoked{Reason: spec.Revoked.Reason, Actor: o.GetAnnotations()[v1alpha1.AnnotationRevokedBy]}
}

// expiry is the earlier of the ends of the credential and of its current version.
func expiry(spec *v1alpha1.CredentialSpec, status *v1alpha1.CredentialStatus) *time.Time {
	ends := parseTime(status.Expires)
	if spec.ExpiresAt != nil {
		if whole := spec.ExpiresAt.UTC(); ends == nil || whole.Before(*ends) {
			return &whole
		}
	}
	return ends
}

func parseTime(text string) *time.Time {
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil // "Never", or not known yet
	}
	at = at.UTC()
	return &at
}

func plainMap(m map[string]v1alpha1.MetadataValue) map[string]string {
	if len(m) == 0 {
		return nil
	}
	plain := make(map[string]string, len(m))
	for key, value := range m {
		plain[key] = string(value)
	}
	return plain
}

// ListInput narrows and pages the list of credentials.
type ListInput struct {
	Kind      string   `query:"kind" enum:"APIKey,ServiceToken" doc:"Kind of credential. Default: that of the path."`
	Namespace string   `query:"namespace" maxLength:"63" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" doc:"Namespace they are in."`
	Name      string   `query:"name" maxLength:"253" pattern:"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$" doc:"Name, exactly."`
	Class     string   `query:"class" maxLength:"253" pattern:"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$" doc:"CredentialClass."`
	Owner     string   `query:"owner" maxLength:"253" doc:"Owner, exactly."`
	State     string   `query:"state" enum:"Pending,Active,Revoked,Expired" doc:"State."`
	Label     []string `query:"label,explode" maxItems:"16" doc:"Label as key=value. Repeated: all of them."`
	Metadata  []string `query:"metadata,explode" maxItems:"16" doc:"Metadata as key=value. Repeated: all of them."`
	PageInput
}

// PageInput asks for a part of a list.
type PageInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"How many at most."`
	Cursor string `query:"cursor" maxLength:"4096" doc:"The field next of the page before."`
}

// ListOutput is a page of credentials.
type ListOutput struct {
	Link string `header:"Link" doc:"The next page, as rel=\"next\"; absent on the last."`
	Body CredentialList
}

// CredentialList is a page of credentials.
type CredentialList struct {
	Items []Credential `json:"items" nullable:"false"`
	Next  string       `json:"next,omitempty" doc:"Cursor of the next page; absent on the last. A page may have fewer items than were asked for, and not be the last."`
}

// listCredentials lists what the caller may see.
func listCredentials(a *API, o huma.Operation, p Path) {
	handle(a, o, func(ctx context.Context, c *Caller, in *ListInput) (*ListOutput, error) {
		if in.Kind == "" {
			in.Kind = string(p.Kind)
		}
		ask := a.list
		if a.inventoried(in) {
			ask = a.inventory
		}
		page, err := ask(ctx, c, in)
		if err != nil {
			return nil, err
		}
		return &ListOutput{Link: nextLink(p.Path, in.query(), page.Next), Body: *page}, nil
	})
}

// list is a page as the API server has it now.
func (a *API) list(ctx context.Context, c *Caller, in *ListInput) (*CredentialList, error) {
	selector, metadata, err := in.selectors()
	if err != nil {
		return nil, err
	}
	page := &CredentialList{Items: []Credential{}}
	namespace := in.Namespace
	if !c.Administrator {
		if c.Namespace == "" || namespace != "" && namespace != c.Namespace {
			return page, nil // as where there is nothing
		}
		namespace = c.Namespace
	}
	options := metav1.ListOptions{Limit: int64(in.Limit), LabelSelector: selector}
	if in.Name != "" {
		options.FieldSelector = "metadata.name=" + in.Name
	}
	if options.Continue, err = readCursor(in.Cursor); err != nil {
		return nil, err
	}
	items, next, err := a.cluster.list(ctx, v1alpha1.Kind(in.Kind), namespace, options)
	if err != nil {
		return nil, a.listError(c, err)
	}
	now := a.config.Now()
	for _, o := range items {
		d := describe(o, now)
		if in.matches(&d, metadata) {
			page.Items = append(page.Items, d)
		}
	}
	if next != "" {
		page.Next = base64.RawURLEncoding.EncodeToString([]byte(next))
	}
	return page, nil
}

func (a *API) listError(c *Caller, err error) error {
	switch {
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		return problem(http.StatusBadRequest, "query.cursor: the list that it is of is no longer kept. Begin again without cursor.")
	case apierrors.IsBadRequest(err):
		return problem(http.StatusBadRequest, "query.cursor: not one that a page before this has given, or not with the same filters.")
	}
	return a.clusterError(c, "listing credentials", err)
}

// clusterError is the answer where the API server could not be asked.
func (a *API) clusterError(c *Caller, doing string, err error) *Problem {
	a.config.Log.Error("management: "+doing+" failed", "error", err.Error(), "request_id", c.RequestID, "caller", c.Subject)
	return errUnavailable
}

// matches tells whether it is among what was asked for, as far as the API server cannot
// select it.
func (in *ListInput) matches(c *Credential, metadata map[string]string) bool {
	if in.Class != "" && c.Class != in.Class || in.Owner != "" && c.Owner != in.Owner || in.State != "" && c.State != in.State {
		return false
	}
	for key, value := range metadata {
		if have, ok := c.Metadata[key]; !ok || have != value {
			return false
		}
	}
	return true
}

// selectors reads the labels as the API server takes them, and the metadata.
func (in *ListInput) selectors() (labelSelector string, metadata map[string]string, err error) {
	wanted, err := pairs("label", in.Label)
	if err != nil {
		return "", nil, err
	}
	selector, err := labels.ValidatedSelectorFromSet(wanted)
	if err != nil {
		return "", nil, problem(http.StatusUnprocessableEntity, "query.label: not the name and the value of a label: write label=team=payments.")
	}
	metadata, err = pairs("metadata", in.Metadata)
	return selector.String(), metadata, err
}

// pairs reads key=value.
func pairs(parameter string, given []string) (map[string]string, error) {
	if len(given) == 0 {
		return nil, nil
	}
	all := make(map[string]string, len(given))
	for _, text := range given {
		key, value, ok := strings.Cut(text, "=")
		if _, twice := all[key]; !ok || key == "" || twice {
			return nil, problem(http.StatusUnprocessableEntity, fmt.Sprintf("query.%s: write %s=key=value, each key once.", parameter, parameter))
		}
		all[key] = value
	}
	return all, nil
}

func readCursor(text string) (string, error) {
	token, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return "", problem(http.StatusBadRequest, "query.cursor: not one that a page before this has given.")
	}
	return string(token), nil
}

// query is the filters as they were asked for, for the link to the next page.
func (in *ListInput) query() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{
		"kind": in.Kind, "namespace": in.Namespace, "name": in.Name, "class": in.Class, "owner": in.Owner, "state": in.State,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for _, l := range in.Label {
		q.Add("label", l)
	}
	for _, m := range in.Metadata {
		q.Add("metadata", m)
	}
	q.Set("limit", strconv.Itoa(in.Limit))
	return q
}

// nextLink is the header Link (RFC 8288) to the next page; empty where there is none.
func nextLink(path string, q url.Values, next string) string {
	if next == "" {
		return ""
	}
	q.Set("cursor", next)
	return "<" + path + "?" + q.Encode() + `>; rel="next"`
}

// IDInput names a credential.
type IDInput struct {
	ID string `path:"id" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9-]+$" doc:"UID of the credential's object."`
}

// GetInput asks for a credential.
type GetInput struct {
	IDInput
	IfNoneMatch string `header:"If-None-Match" maxLength:"256" doc:"ETag of what the caller has."`
}

// CredentialOutput is a credential.
type CredentialOutput struct {
	ETag string `header:"ETag" doc:"Names this state of it, for If-Match."`
	Body Credential
}

// getCredential shows one.
func getCredential(a *API, o huma.Operation, _ Path) {
	handle(a, o, func(ctx context.Context, c *Caller, in *GetInput) (*CredentialOutput, error) {
		object, err := a.find(ctx, c, in.ID)
		if err != nil {
			return nil, err
		}
		out := &CredentialOutput{ETag: etag(object), Body: describe(object, a.config.Now())}
		if in.IfNoneMatch != "" && anyETag(in.IfNoneMatch, out.ETag) {
			return nil, huma.ErrorWithHeaders(&Problem{Status: http.StatusNotModified}, http.Header{"Etag": {out.ETag}})
		}
		return out, nil
	})
}

// find reads the credential of an id as it is now. Of one in another namespace it says
// what it says of one that does not exist.
func (a *API) find(ctx context.Context, c *Caller, id string) (v1alpha1.Credential, error) {
	known, ok := a.config.Index.Find(id)
	if !ok || !c.sees(known.Namespace) {
		return nil, errNotFound
	}
	o, err := a.cluster.get(ctx, known.Kind, known.Namespace, known.Name)
	switch {
	case apierrors.IsNotFound(err) || err == nil && string(o.GetUID()) != id:
		return nil, errNotFound
	case err != nil:
		return nil, a.clusterError(c, "reading a credential", err)
	}
	c.about(o)
	return o, nil
}

// about notes which credential the operation is about.
func (c *Caller) about(o v1alpha1.Credential) {
	if c.Report == nil {
		return
	}
	kind := o.CredentialKind()
	c.Report.Class = o.CredentialSpec().CredentialClassName
	c.Report.About = &authn.Identity{
		UID: string(o.GetUID()), Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(),
		Subject: strings.ToLower(string(kind)) + ":" + o.GetNamespace() + ":" + o.GetName(),
	}
}

// etag names the state of an object (RFC 9110, section 8.8.3).
func etag(o v1alpha1.Credential) string { return `"` + o.GetResourceVersion() + `"` }

// anyETag tells whether a list of entity tags, or *, has the tag. A weak one matches as
// its strong one does, as is right for If-None-Match (RFC 9110, section 13.1.2).
func anyETag(header, tag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		if one = strings.TrimSpace(one); one == "*" || strings.TrimPrefix(one, "W/") == tag {
			return true
		}
	}
	return false
}
