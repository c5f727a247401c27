package authn

import (
	"cmp"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// Live is what is read from the object itself, beside its record: who it is, and
// the fields that narrow what the record grants. None of it is trusted to widen
// anything.
type Live struct {
	UID       string
	Kind      v1alpha1.Kind
	Namespace string
	Name      string
	// Created decides between two credentials of one digest.
	Created time.Time
	Labels  map[string]string
	// Deleting: the object has a deletion timestamp.
	Deleting bool
	// ClassName must be the record's, or empty.
	ClassName   string
	Permissions []string
	Roles       []string
	Admin       bool
	CIDRs       []string
	// Attributes are spec.attributes. Of those sealed the ones that are equal here
	// are in force.
	Attributes map[string]string
	// Rate is spec.rateLimit; nil leaves the record's.
	Rate *Rate
	// ExpiresAt ends the whole credential; zero is never.
	ExpiresAt time.Time
	// Revoked is spec.revoked.
	Revoked *v1alpha1.Revoked
	// External is spec.external: the inner hashes the owner declares, in hex.
	// Nil where the value is minted.
	External []string
	// JWTTTL and JWTAudiences are spec.jwt; zero and empty leave the record's.
	JWTTTL       time.Duration
	JWTAudiences []string
}

// LiveOf reads what narrows from an object. It shares the object's slices and
// maps; the index copies what it keeps.
func LiveOf(c v1alpha1.Credential) Live {
	spec := c.CredentialSpec()
	live := Live{
		UID: string(c.GetUID()), Kind: c.CredentialKind(), Namespace: c.GetNamespace(), Name: c.GetName(),
		Created: c.GetCreationTimestamp().Time, Labels: c.GetLabels(), Deleting: c.GetDeletionTimestamp() != nil,
		ClassName: spec.CredentialClassName, Permissions: authz.Strings(spec.Permissions), Roles: spec.Roles, Admin: spec.Admin,
		Revoked: spec.Revoked,
	}
	for _, cidr := range spec.AllowedCIDRs {
		live.CIDRs = append(live.CIDRs, string(cidr))
	}
	if len(spec.Attributes) > 0 {
		live.Attributes = make(map[string]string, len(spec.Attributes))
	}
	for key, value := range spec.Attributes {
		live.Attributes[key] = string(value)
	}
	if l := spec.RateLimit; l != nil {
		live.Rate = &Rate{Requests: l.Requests, Per: l.Per.Or(time.Second), Burst: cmp.Or(l.Burst, l.Requests)}
	}
	if spec.ExpiresAt != nil {
		live.ExpiresAt = spec.ExpiresAt.Time
	}
	if spec.External != nil {
		// Declared but empty is not the same as minted: nothing matches it.
		live.External = append([]string{}, spec.External.SHA256...)
	}
	if spec.JWT != nil {
		live.JWTTTL, live.JWTAudiences = spec.JWT.TTL.Or(0), spec.JWT.Audiences
	}
	return live
}
