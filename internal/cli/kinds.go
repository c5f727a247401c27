package cli

import (
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// kind is one of the two kinds of credential, by all its names.
type kind struct {
	name     v1alpha1.Kind
	resource string
	singular string
	short    string
	object   func() v1alpha1.Credential
	list     func() client.ObjectList
}

var kinds = []*kind{
	{
		name: v1alpha1.KindServiceToken, resource: "servicetokens", singular: "servicetoken", short: "stok",
		object: func() v1alpha1.Credential { return new(v1alpha1.ServiceToken) },
		list:   func() client.ObjectList { return new(v1alpha1.ServiceTokenList) },
	},
	{
		name: v1alpha1.KindAPIKey, resource: "apikeys", singular: "apikey", short: "akey",
		object: func() v1alpha1.Credential { return new(v1alpha1.APIKey) },
		list:   func() client.ObjectList { return new(v1alpha1.APIKeyList) },
	},
}

func kindOf(o v1alpha1.Credential) *kind {
	for _, k := range kinds {
		if k.name == o.CredentialKind() {
			return k
		}
	}
	panic("a kind of credential the command does not know: " + string(o.CredentialKind()))
}

// parseKind reads a kind in any of the ways kubectl would: its kind, plural,
// singular or short name, with or without the group.
func parseKind(s string) (*kind, error) {
	name, group, grouped := strings.Cut(strings.ToLower(s), ".")
	if !grouped || group == v1alpha1.GroupVersion.Group {
		for _, k := range kinds {
			if name == k.resource || name == k.singular || name == k.short {
				return k, nil
			}
		}
	}
	return nil, usageError("%s is no kind of credential: say servicetoken (stok) or apikey (akey)", publicPart(s))
}

// ref names a credential.
type ref struct {
	kind      *kind
	namespace string
	name      string
}

func refOf(o v1alpha1.Credential) ref { return ref{kindOf(o), o.GetNamespace(), o.GetName()} }

func (r ref) String() string { return fmt.Sprintf("%s %s/%s", r.kind.name, r.namespace, r.name) }

// slashed is the credential as one argument, as kubectl's -o name has it.
func (r ref) slashed() string { return r.kind.singular + "/" + r.name }

func (r ref) kubectlArgs() string {
	return fmt.Sprintf("%s %s -n %s", r.kind.singular, r.name, r.namespace)
}

// parseRefs reads what kubectl reads: KIND NAME..., or KIND/NAME....
func parseRefs(args []string, namespace string) ([]ref, error) {
	if len(args) == 0 {
		return nil, nil
	}
	if !strings.Contains(args[0], "/") {
		k, err := parseKind(args[0])
		if err != nil {
			return nil, err
		}
		refs := make([]ref, 0, len(args)-1)
		for _, name := range args[1:] {
			if name == "" || strings.Contains(name, "/") {
				return nil, usageError("%s is no name: write %s NAME..., or KIND/NAME throughout", publicPart(name), k.singular)
			}
			refs = append(refs, ref{k, namespace, name})
		}
		return refs, nil
	}
	refs := make([]ref, 0, len(args))
	for _, arg := range args {
		kindName, name, ok := strings.Cut(arg, "/")
		if !ok || name == "" || strings.Contains(name, "/") {
			return nil, usageError("%s does not name a credential: write KIND/NAME, such as servicetoken/ci-deploy", publicPart(arg))
		}
		k, err := parseKind(kindName)
		if err != nil {
			return nil, err
		}
		if r := (ref{k, namespace, name}); !slices.Contains(refs, r) {
			refs = append(refs, r)
		}
	}
	return refs, nil
}

// oneRef reads the arguments of a command that works on a single credential.
func oneRef(args []string, namespace string) (ref, error) {
	refs, err := parseRefs(args, namespace)
	if err != nil {
		return ref{}, err
	}
	if len(refs) != 1 {
		return ref{}, usageError("name one credential: servicetoken NAME, or apikey NAME")
	}
	return refs[0], nil
}
