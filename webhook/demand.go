package webhook

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// demand is one thing a change hands out.
type demand struct {
	// what it is, as the author reads it: `spec.permissions "deploy:write"`.
	what string
	// anyOf are the accesses of which one suffices, asked in this order.
	anyOf []authorizationv1.ResourceAttributes
	// remedy is the access to have allowed where none of them is.
	remedy authorizationv1.ResourceAttributes
}

// handover is what a change hands out.
type handover struct {
	demands []demand
	// because says why everything is asked for and not what is new alone; empty
	// where it is not.
	because []string
}

// Names by which things that are no permission are granted.
const (
	grantAdmin    = "admin"
	grantExternal = "external"
	grantAdoption = "adoption"
)

// grantPermission demands that the author may hand out a permission or wildcard.
func grantPermission(namespace, field, pattern string) demand {
	d := grantName(namespace, fmt.Sprintf("%s %q", field, pattern), pattern)
	for _, wider := range authz.Covering(pattern) {
		d.anyOf = append(d.anyOf, grant(namespace, wider))
	}
	return d
}

// grantName demands that the author may hand out what goes by exactly this name.
func grantName(namespace, what, name string) demand {
	return demand{
		what:   what,
		anyOf:  []authorizationv1.ResourceAttributes{grant(namespace, ""), grant(namespace, name)},
		remedy: grant(namespace, name),
	}
}

func grant(namespace, name string) authorizationv1.ResourceAttributes {
	return ours(namespace, "grant", "permissions", name)
}

// use demands that the author may use a class or role.
func use(namespace, what, resource, name string) demand {
	return single(what, ours(namespace, "use", resource, name))
}

// patch demands that the author may change workloads: one, or, without a name,
// all of the resource in the namespace.
func patch(namespace, what, resource, name string) demand {
	return single(what, authorizationv1.ResourceAttributes{
		Namespace: namespace, Verb: "patch", Group: "apps", Version: "v1", Resource: resource, Name: name,
	})
}

func single(what string, access authorizationv1.ResourceAttributes) demand {
	return demand{what: what, anyOf: []authorizationv1.ResourceAttributes{access}, remedy: access}
}

func ours(namespace, verb, resource, name string) authorizationv1.ResourceAttributes {
	return authorizationv1.ResourceAttributes{
		Namespace: namespace, Verb: verb, Group: v1alpha1.GroupVersion.Group, Version: v1alpha1.GroupVersion.Version, Resource: resource, Name: name,
	}
}

// namedInRefusal bounds how many things a refusal lists.
const namedInRefusal = 10

// refusal tells the author what may not be handed out and which RBAC rules would
// allow it.
func refusal(author string, because []string, refused []demand) error {
	var text strings.Builder
	if len(because) > 0 {
		fmt.Fprintf(&text, "%s: so everything is handed out anew, and ", strings.Join(because, "; "))
	}
	var whats []string
	for _, d := range refused {
		whats = append(whats, d.what)
	}
	fmt.Fprintf(&text, "user %q may not hand out %s: leave it out, or have an administrator bind a %s that has %s",
		author, enumerate(whats), roleFor(refused[0].remedy.Namespace), strings.Join(rules(refused), " and "))
	return errors.New(text.String())
}

func roleFor(namespace string) string {
	if namespace == "" {
		return "ClusterRole cluster-wide"
	}
	return "Role in namespace " + namespace
}

// rules are the RBAC rules that allow what was refused, as they are written in a
// Role.
func rules(refused []demand) []string {
	type kind struct{ verb, group, resource string }
	var kinds []kind
	names, all := map[kind][]string{}, map[kind]bool{}
	for _, d := range refused {
		k, name := kind{d.remedy.Verb, d.remedy.Group, d.remedy.Resource}, fmt.Sprintf("%q", d.remedy.Name)
		if !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
		if d.remedy.Name == "" {
			all[k] = true
		} else if !slices.Contains(names[k], name) {
			names[k] = append(names[k], name)
		}
	}
	var written []string
	for _, k := range kinds {
		only := ""
		if !all[k] {
			only = fmt.Sprintf(", resourceNames: [%s]", enumerate(names[k]))
		}
		written = append(written, fmt.Sprintf("{apiGroups: [%s], resources: [%s]%s, verbs: [%s]}", k.group, k.resource, only, k.verb))
	}
	return written
}

func enumerate(entries []string) string {
	if more := len(entries) - namedInRefusal; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(entries[:namedInRefusal], ", "), more)
	}
	return strings.Join(entries, ", ")
}
