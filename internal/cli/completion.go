package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
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
