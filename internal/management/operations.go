package management

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
)

// Permissions of the operations. Administrators hold them all; the class for credentials
// that name none allows nobody any of mintmark:*.
const (
	PermissionRead            = "mintmark:credentials:read"
	PermissionWrite           = "mintmark:credentials:write"
	PermissionRevoke          = "mintmark:credentials:revoke"
	PermissionEmergencyRevoke = "mintmark:emergency-revoke"
	PermissionAuditRead       = "mintmark:audit:read"
	PermissionAnalyticsRead   = "mintmark:analytics:read"
	// PermissionAuditLog has the name that pipelines ask for it by.
	PermissionAuditLog = "audit_log"
)

// Operation is one thing that can be done over REST.
type Operation struct {
	// Name of it in metrics and logs, and in the audit log as the detail "operation".
	Name   string
	Method string
	// Paths it is at. They differ in the kind that they are about where nothing says
	// which; all else is the same.
	Paths      []Path
	Permission string
	// Event is what a request is recorded as.
	Event audit.Type
	// Status of the answer where all went well; 0: 200.
	Status int
	// Errors that it has beside those that any operation has.
	Errors []int
	// Conditional: an answer that the caller has already is 304.
	Conditional bool
	Summary     string
	// Description for the document, beside the summary.
	Description string

	bind func(a *API, o huma.Operation, p Path)
}

// Path is one place of an operation.
type Path struct {
	// ID of the operation at this path, in the OpenAPI document.
	ID   string
	Path string
	// Kind that it is about where the request does not say.
	Kind v1alpha1.Kind
}

// keysAndTokens are the two families of paths: that of API keys, and that of service
// tokens. Each can do both kinds.
func keysAndTokens(verb, suffix string) []Path {
	return []Path{
		{ID: verb + "Key", Path: "/api/auth/keys" + suffix, Kind: v1alpha1.KindAPIKey},
		{ID: verb + "Token", Path: "/api/v1/auth/tokens" + suffix, Kind: v1alpha1.KindServiceToken},
	}
}

func at(id, path string) []Path { return []Path{{ID: id, Path: path}} }

// Operations is the whole management API: what there is, where, for whom, and how it is
// recorded.
func Operations() []Operation {
	return []Operation{
		{Name: "credentials-list", Method: http.MethodGet, Paths: keysAndTokens("list", ""), Permission: PermissionRead, Event: audit.TypeManagement,
			Summary: "List credentials", bind: listCredentials},
		{Name: "credentials-get", Method: http.MethodGet, Paths: keysAndTokens("get", "/{id}"), Permission: PermissionRead, Event: audit.TypeManagement,
			Errors: []int{http.StatusNotFound}, Conditional: true, Summary: "Show a credential", bind: getCredential},
		{Name: "credentials-create", Method: http.MethodPost, Paths: keysAndTokens("create", ""), Permission: PermissionWrite, Event: audit.TypeManagement,
			Status: http.StatusCreated, Errors: []int{http.StatusNotFound, http.StatusConflict}, Summary: "Make a credential", Description: createDoc, bind: createCredential},
		{Name: "credentials-rotate", Method: http.MethodPost, Paths: keysAndTokens("rotate", "/{id}/rotate"), Permission: PermissionWrite, Event: audit.TypeManagement,
			Status: http.StatusOK, Errors: []int{http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed},
			Summary: "Give a credential a new value", Description: rotateDoc, bind: rotateCredential},
		{Name: "credentials-revoke", Method: http.MethodPost, Paths: keysAndTokens("revoke", "/{id}/revoke"), Permission: PermissionRevoke, Event: audit.TypeManagement,
			Errors: []int{http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed}, Summary: "Revoke a credential", Description: revokeDoc, bind: revokeCredential},
		{Name: "credentials-delete", Method: http.MethodDelete, Paths: at("deleteToken", "/api/v1/auth/tokens/{id}"), Permission: PermissionRevoke, Event: audit.TypeManagement,
			Errors: []int{http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed}, Summary: "Revoke a credential", Description: deleteDoc, bind: deleteCredential},
		{Name: "emergency-revoke", Method: http.MethodPost, Paths: at("emergencyRevoke", "/api/v1/auth/emergency-revoke"), Permission: PermissionEmergencyRevoke,
			Event: audit.TypeManagement, Status: http.StatusCreated, Errors: []int{http.StatusNotFound, http.StatusConflict},
			Summary: "Revoke many credentials at once", Description: emergencyDoc, bind: emergencyRevoke},

		{Name: "credential-analytics", Method: http.MethodGet, Paths: keysAndTokens("analyse", "/{id}/analytics"), Permission: PermissionAnalyticsRead,
			Event: audit.TypeManagementRead, Errors: []int{http.StatusNotFound}, Summary: "Show how a credential was used", bind: showCredentialAnalytics},
		{Name: "analytics", Method: http.MethodGet, Paths: at("showAnalytics", "/api/v1/analytics"), Permission: PermissionAnalyticsRead,
			Event: audit.TypeManagementRead, Summary: "Show what came of requests", bind: showAnalytics},
		{Name: "audit-events", Method: http.MethodGet, Paths: at("listEvents", "/api/v1/audit/events"), Permission: PermissionAuditRead,
			Event: audit.TypeManagementRead, Summary: "Search the audit log", Description: eventsDoc, bind: listEvents},
		{Name: "audit-chains", Method: http.MethodGet, Paths: at("listChains", "/api/v1/audit/chains"), Permission: PermissionAuditRead,
			Event: audit.TypeManagementRead, Summary: "List the chains of the audit log", Description: administratorsDoc, bind: listChains},
		{Name: "audit-batches", Method: http.MethodGet, Paths: at("listBatches", "/api/v1/audit/batches"), Permission: PermissionAuditRead,
			Event: audit.TypeManagementRead, Summary: "Read a chain of the audit log", Description: batchesDoc, bind: listBatches},
		{Name: "audit-verify", Method: http.MethodPost, Paths: at("verifyChains", "/api/v1/audit/verify"), Permission: PermissionAuditRead,
			Event: audit.TypeManagementRead, Errors: []int{http.StatusNotFound}, Summary: "Check the audit log", Description: verifyDoc, bind: verifyChains},
		{Name: "audit-cicd-event", Method: http.MethodPost, Paths: at("postCICDEvent", "/api/v1/audit/cicd-event"), Permission: PermissionAuditLog,
			Event: audit.TypeManagement, Status: http.StatusAccepted, Summary: "Note what a pipeline does", Description: cicdDoc, bind: cicdEvent},
	}
}

// What the document says of the operations that change something.
const (
	createDoc = "The credential is declared by the SHA-256 of its value, under the class that this server is set up with. The value is in this answer and " +
		"nowhere else. The caller holds everything that it hands out."
	rotateDoc = "Of a credential made over REST the new value is in this answer; the previous one is accepted for the overlap, or not at all where " +
		"immediate is true. One that is delivered by a Secret gets its new value there, and the answer is 202."
	revokeDoc    = "It is refused everywhere within a second. Its object stays, and tells of it."
	deleteDoc    = "The same as revoking it: its object stays, and tells of it."
	emergencyDoc = "Makes a Revocation, which every server obeys as soon as it sees it. Who is no administrator revokes in its own namespace alone."
)

// What the document says of the operations that read, and of the events of pipelines.
const (
	eventsDoc         = "Who is no administrator finds the events of its own namespace. A search has 10 seconds."
	administratorsDoc = "For administrators: chains are of all tenants together."
	batchesDoc        = "For administrators. Batches come as they are stored, so that whoever reads them can work out their digests."
	verifyDoc         = "For administrators. Works every digest out anew, a few seconds for each answer. It is this server that says what it finds: " +
		"`mintmark logs verify` checks without believing it."
	cicdDoc = "With an Idempotency-Key it is one event, however often it is sent. What has the shape of a credential is masked."
)

// commonErrors are those of any operation.
var commonErrors = []int{
	http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusUnprocessableEntity, http.StatusTooManyRequests,
	http.StatusInternalServerError, http.StatusServiceUnavailable,
}

// bodyErrors are those of any operation with a body.
var bodyErrors = []int{http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType}

// register binds every operation at every path.
func (a *API) register() {
	for _, op := range Operations() {
		for _, p := range op.Paths {
			o := op.document(p)
			o.Middlewares = huma.Middlewares{a.readQuery}
			op.bind(a, o, p)
		}
	}
}

// readQuery refuses a query that two readers can read in two ways, and what would otherwise
// be left out in silence: a filter that is left out widens what is found.
func (a *API) readQuery(ctx huma.Context, next func(huma.Context)) {
	u := ctx.URL()
	given, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		_ = huma.WriteErr(a.huma, ctx, http.StatusBadRequest, "query: not well-formed: write name=value with & between, and %XX for what has another meaning there.")
		return
	}
	for _, p := range ctx.Operation().Parameters {
		if p.In == "query" && p.Schema.Type != huma.TypeArray && len(given[p.Name]) > 1 {
			_ = huma.WriteErr(a.huma, ctx, http.StatusUnprocessableEntity, "query."+p.Name+": it is there more than once, and can be once.")
			return
		}
	}
	next(ctx)
}

// document is the operation as the OpenAPI document has it.
func (op *Operation) document(p Path) huma.Operation {
	errors := append([]int(nil), commonErrors...)
	if op.Method == http.MethodPost {
		errors = append(errors, bodyErrors...)
	}
	description := "Needs the permission `" + op.Permission + "`."
	if op.Description != "" {
		description = op.Description + "\n\n" + description
	}
	o := huma.Operation{
		OperationID: p.ID, Method: op.Method, Path: p.Path, Summary: op.Summary, Description: description, Tags: []string{tagOf(op.Name)},
		DefaultStatus: op.Status, MaxBodyBytes: MaxBody, Errors: append(errors, op.Errors...), RejectUnknownQueryParameters: true,
		Security: []map[string][]string{{"bearer": {}}, {"apiKey": {}}},
		Extensions: map[string]any{
			"x-mintmark-permission": op.Permission,
		},
	}
	if op.Conditional {
		o.Responses = map[string]*huma.Response{"304": {Description: "What the caller has is up to date."}}
	}
	return o
}

// tagOf groups operations in the document, by what comes before the hyphen.
func tagOf(name string) string {
	group, _, _ := strings.Cut(name, "-")
	return group
}
