package policy

import (
	"net/netip"
	"time"
)

// Input is what a decision is about. Expressions see it as the variables
// subject, resource, request and environment, with the fields named as here but
// for a lower-case first letter (id, ownerDepartment, userAgent, ip).
//
// In JSON the fields have the same names, and times are as in RFC 3339.
//
// Fields said to be optional are absent where they are empty, and reading one
// that is absent is an error; the others are always there, if empty.
type Input struct {
	Subject     Subject     `json:"subject,omitzero"`
	Resource    Resource    `json:"resource,omitzero"`
	Request     Request     `json:"request,omitzero"`
	Environment Environment `json:"environment,omitzero"`
}

// Subject is who asks.
type Subject struct {
	// ID names the subject, such as "servicetoken:payments:ci-deploy".
	ID string `json:"id,omitzero"`
	// Kind is ServiceToken or APIKey, and empty for the JWT of another issuer.
	Kind      string `json:"kind,omitzero"`
	Namespace string `json:"namespace,omitzero"`
	Name      string `json:"name,omitzero"`
	// Class is the CredentialClass.
	Class string `json:"class,omitzero"`
	// Version of the credential's value.
	Version int64 `json:"version,omitzero"`
	// Issuer of the JWT presented; empty where a key is.
	Issuer string `json:"issuer,omitzero"`
	// Method by which the subject was authenticated: "key" or "jwt".
	Method string `json:"method,omitzero"`
	// Roles and Permissions in force. Of an admin the one permission "*".
	Roles       []string `json:"roles,omitzero"`
	Permissions []string `json:"permissions,omitzero"`
	Admin       bool     `json:"admin,omitzero"`
	// Attributes that the credential carries and its class allows.
	Attributes map[string]string `json:"attributes,omitzero"`
	// Email is optional.
	Email string `json:"email,omitzero"`
}

// Resource is what is asked for, as far as the one who asks for the decision
// says. A gateway says nothing of it.
type Resource struct {
	Type string `json:"type,omitzero"`
	// The rest but Attributes is optional.
	ID              string            `json:"id,omitzero"`
	Owner           string            `json:"owner,omitzero"`
	OwnerDepartment string            `json:"ownerDepartment,omitzero"`
	Classification  string            `json:"classification,omitzero"`
	Created         time.Time         `json:"created,omitzero"`
	Attributes      map[string]string `json:"attributes,omitzero"`
}

// Request is how it is asked for.
type Request struct {
	Method string `json:"method,omitzero"`
	Scheme string `json:"scheme,omitzero"`
	Host   string `json:"host,omitzero"`
	// Path without the query, decoded.
	Path string `json:"path,omitzero"`
	// Action is what a service says is to be done; empty behind a gateway.
	Action string `json:"action,omitzero"`
	// Permissions and Audiences that the route needs.
	Permissions []string `json:"permissions,omitzero"`
	Audiences   []string `json:"audiences,omitzero"`
	UserAgent   string   `json:"userAgent,omitzero"`
	// Headers by lower-case name: those that an operator chose, or none.
	Headers map[string]string `json:"headers,omitzero"`
}

// Environment is when and from where it is asked for.
type Environment struct {
	// Now is the time of the decision.
	Now time.Time `json:"now,omitzero"`
	// IP of the client, as far as it can be trusted. Optional.
	IP netip.Addr `json:"ip,omitzero"`
	// Device is optional.
	Device string `json:"device,omitzero"`
}
