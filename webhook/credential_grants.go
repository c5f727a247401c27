package webhook

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

// credentialHandover is what a change of a credential hands out; old is nil
// where it is created.
func credentialHandover(old, updated v1alpha1.Credential, class *v1alpha1.CredentialClassSpec) handover {
	var (
		namespace = updated.GetNamespace()
		spec      = updated.CredentialSpec()
		before    = &v1alpha1.CredentialSpec{}
		h         handover
	)
	if old != nil {
		before = old.CredentialSpec()
		h.because = handedOutAnew(old, updated, class)
	}
	restarts := restartDemands(namespace, before.Restart, spec.Restart)
	if len(h.because) > 0 {
		before = &v1alpha1.CredentialSpec{}
	}
	h.demands = append(grantDemands(namespace, before, spec), restarts...)
	return h
}

// grantDemands are those for what the credential may do. That an admin
// credential held every permission before is left aside: where its class did not
// allow admin, it held none.
func grantDemands(namespace string, before, spec *v1alpha1.CredentialSpec) []demand {
	var demands []demand
	if spec.Admin && !before.Admin {
		demands = append(demands, grantName(namespace, "spec.admin", grantAdmin))
	}
	for _, permission := range authz.Added(authz.Strings(before.Permissions), authz.Strings(spec.Permissions)) {
		demands = append(demands, grantPermission(namespace, "spec.permissions", permission))
	}
	for _, role := range spec.Roles {
		if !slices.Contains(before.Roles, role) {
			demands = append(demands, use(namespace, fmt.Sprintf("spec.roles %q", role), "accessroles", role))
		}
	}
	if class := spec.CredentialClassName; class != before.CredentialClassName {
		demands = append(demands, use(namespace, fmt.Sprintf("spec.credentialClassName %q", class), "credentialclasses", class))
	}
	return demands
}

// workloadResources are the resources of the kinds that can be restarted.
var workloadResources = map[string]string{"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}

func restartDemands(namespace string, before, updated *v1alpha1.Restart) []demand {
	if updated == nil {
		return nil
	}
	if before == nil {
		before = &v1alpha1.Restart{}
	}
	var demands []demand
	for _, w := range updated.Workloads {
		if !slices.Contains(before.Workloads, w) {
			what := fmt.Sprintf("spec.restart.workloads %s %q", w.Kind, w.Name)
			demands = append(demands, patch(namespace, what, workloadResources[w.Kind], w.Name))
		}
	}
	if updated.Selector != nil && !equality.Semantic.DeepEqual(updated.Selector, before.Selector) {
		for _, kind := range slices.Sorted(maps.Keys(workloadResources)) {
			demands = append(demands, patch(namespace, "spec.restart.selector over every "+kind, workloadResources[kind], ""))
		}
	}
	if updated.Consumers && !before.Consumers {
		for _, kind := range slices.Sorted(maps.Keys(workloadResources)) {
			demands = append(demands, patch(namespace, "spec.restart.consumers over every "+kind, workloadResources[kind], ""))
		}
	}
	return demands
}

// handedOutAnew says why a change that may name no permission gives what the
// credential holds to somebody new, for longer, or in more places.
func handedOutAnew(old, updated v1alpha1.Credential, class *v1alpha1.CredentialClassSpec) []string {
	before, spec := old.CredentialSpec(), updated.CredentialSpec()
	var because []string
	for _, c := range []struct {
		is  bool
		why string
	}{
		{newDigest(before.External, spec.External), "spec.external.sha256 has a new value, and with it a new holder"},
		{adopts(spec) && !adopts(before), "spec.secret.conflictPolicy takes over a value made elsewhere"},
		{laterEnd(before, spec), "spec.expiresAt is later than before"},
		{widerNetworks(before.AllowedCIDRs, spec.AllowedCIDRs), "spec.allowedCIDRs is wider than before"},
		{newAudience(before, spec, class), "spec.jwt.audiences has a new audience"},
		{!equality.Semantic.DeepEqual(before.Attributes, spec.Attributes), "spec.attributes, which policies go by, is changed"},
		{revoked(old) && forgives(before, spec), "spec.revoked no longer ends the credential"},
		{revoked(old) && revives(old, updated), "the request brings back a revoked credential"},
	} {
		if c.is {
			because = append(because, c.why)
		}
	}
	return because
}

func newDigest(before, updated *v1alpha1.External) bool {
	if updated == nil {
		return false
	}
	return before == nil || slices.ContainsFunc(updated.SHA256, func(d string) bool { return !slices.Contains(before.SHA256, d) })
}

func adopts(spec *v1alpha1.CredentialSpec) bool {
	return spec.Secret != nil && spec.Secret.ConflictPolicy == v1alpha1.ConflictAdopt
}

func laterEnd(before, updated *v1alpha1.CredentialSpec) bool {
	if before.ExpiresAt == nil {
		return false
	}
	return updated.ExpiresAt == nil || updated.ExpiresAt.After(before.ExpiresAt.Time)
}

// widerNetworks tells whether an address may be let in that was not before. No
// networks at all let every address in.
func widerNetworks(before, updated []v1alpha1.CIDR) bool {
	if len(before) == 0 {
		return false
	}
	return len(updated) == 0 || slices.ContainsFunc(updated, func(inner v1alpha1.CIDR) bool {
		return !slices.ContainsFunc(before, func(outer v1alpha1.CIDR) bool { return within(inner, outer) })
	})
}

func within(inner, outer v1alpha1.CIDR) bool {
	if inner == outer {
		return true
	}
	in, inErr := netip.ParsePrefix(string(inner))
	out, outErr := netip.ParsePrefix(string(outer))
	return inErr == nil && outErr == nil && in.Bits() >= out.Bits() && out.Contains(in.Addr())
}

func newAudience(before, updated *v1alpha1.CredentialSpec, class *v1alpha1.CredentialClassSpec) bool {
	had := lifecycle.Effective(before, class).JWT.Audiences
	return slices.ContainsFunc(lifecycle.Effective(updated, class).JWT.Audiences, func(a string) bool { return !slices.Contains(had, a) })
}

// endedWhole tells whether spec.revoked ends the credential and not some of its
// versions.
func endedWhole(r *v1alpha1.Revoked) bool { return r != nil && len(r.Versions) == 0 }

// revoked tells whether a credential has been revoked as a whole and nothing
// accepted has been made since. Where status does not yet answer to the spec,
// the spec counts.
func revoked(c v1alpha1.Credential) bool {
	spec, status := c.CredentialSpec(), c.CredentialStatus()
	live := slices.ContainsFunc(status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.State.Live() })
	if endedWhole(spec.Revoked) {
		return !live || status.ObservedGeneration < c.GetGeneration()
	}
	return status.Revocation != nil && !live
}

// forgives tells whether a change takes a revocation of the whole credential
// back.
func forgives(before, updated *v1alpha1.CredentialSpec) bool {
	return endedWhole(before.Revoked) && !endedWhole(updated.Revoked)
}

// revives tells whether the change asks for a version anew: after a revocation
// that is what brings the credential back.
func revives(old, updated v1alpha1.Credential) bool {
	return newRequest(old, updated, v1alpha1.AnnotationRotateRequestedAt) || newRequest(old, updated, v1alpha1.AnnotationRollbackRequestedAt)
}

// onlyRevokes tells whether a change of the spec does nothing but revoke, and
// takes no revocation back. It is not hindered by anything.
func onlyRevokes(before, updated *v1alpha1.CredentialSpec) bool {
	if updated.Revoked == nil || forgives(before, updated) {
		return false
	}
	if before.Revoked != nil && !endedWhole(updated.Revoked) &&
		slices.ContainsFunc(before.Revoked.Versions, func(v int64) bool { return !slices.Contains(updated.Revoked.Versions, v) }) {
		return false
	}
	a, b := *before, *updated
	a.Revoked, b.Revoked = nil, nil
	return equality.Semantic.DeepEqual(a, b)
}

// newRequest tells whether the annotation asks for something it did not ask for
// before.
func newRequest(old, updated v1alpha1.Credential, annotation string) bool {
	value := updated.GetAnnotations()[annotation]
	return value != "" && (old == nil || old.GetAnnotations()[annotation] != value)
}
