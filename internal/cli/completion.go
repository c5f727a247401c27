package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// completeKinds offers the kinds as the first argument.
func (a *app) completeKinds(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, k := range kinds {
		out = append(out, k.singular)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeRefs offers the kinds, then the names there are.
func (a *app) completeRefs(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	kindName, _, slashed := strings.Cut(typed, "/")
	if len(args) == 0 && !slashed {
		return a.completeKinds(cmd, args, typed)
	}
	if !slashed {
		kindName = args[0]
	}
	k, err := parseKind(kindName)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.cluster()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
	defer cancel()
	_, rows, err := c.list(ctx, query{kinds: []*kind{k}, namespace: c.namespace})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, r := range rows {
		name := r.object.GetName()
		if slashed {
			name = kindName + "/" + name
		}
		out = append(out, name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeObjects offers the names of cluster-scoped objects for a flag.
func (a *app) completeObjects(c *cobra.Command, flag string, list func() client.ObjectList) {
	complete := func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		k, err := a.cluster()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
		defer cancel()
		found := list()
		if err := k.List(ctx, found); err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		_ = meta.EachListItem(found, func(o runtime.Object) error {
			if named, ok := o.(client.Object); ok {
				names = append(names, named.GetName())
			}
			return nil
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	if err := c.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err) // there is no such flag: found by any test
	}
}

func classList() client.ObjectList { return new(v1alpha1.CredentialClassList) }

func namespaceList() client.ObjectList { return new(corev1.NamespaceList) }

// fixed completes a flag that takes one of a few words.
func fixed[T ~string](c *cobra.Command, flag string, values []T) {
	var words []string
	for _, v := range values {
		words = append(words, string(v))
	}
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag: found by any test
	}
}
