package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// maxManifest bounds a file of policies or cases.
const maxManifest = 4 << 20

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy (check | test) FILE...",
		Short: "Check and test AccessPolicies before they are applied",
		Long: "Check and test AccessPolicies before they are applied. Neither needs a cluster: the policies are compiled and asked\n" +
			"as the server does it.",
		Example: `
			mintmark policy check office-hours.yaml
			mintmark policy test office-hours.test.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usageError("unknown command %s\nSee '%s --help'", publicPart(args[0]), cmd.CommandPath())
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(a.policyCheckCommand(), a.policyTestCommand())
	return c
}

func (a *app) policyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE...",
		Short: "Compile the AccessPolicies of files of manifests",
		Long: "Compile the AccessPolicies of files of manifests, and say what is wrong with them and what may surprise. - is standard\n" +
			"input. Exit code: 0 where all of them compile, 1 otherwise.",
		Example: `
			mintmark policy check office-hours.yaml
			cat policies/*.yaml | mintmark policy check -`,
		Args: someFiles,
		RunE: func(cmd *cobra.Command, args []string) error { return a.checkPolicies(cmd.Context(), args) },
	}
}

func (a *app) policyTestCommand() *cobra.Command {
	verbose := false
	c := &cobra.Command{
		Use:   "test FILE... [flags]",
		Short: "Ask AccessPolicies the cases of a table",
		Long: `Ask AccessPolicies the cases of a table, and compare the answers. A table is a file such as

  policies:
  - file: office-hours.yaml           # beside the table; or name: and spec: in place
  given:                              # what every case begins with
    environment: {now: "2026-11-23T09:00:00Z"}
  cases:
  - name: on a Monday morning
    expect: allow
  - name: on a Sunday
    input: {environment: {now: "2026-11-22T09:00:00Z"}}
    expect: deny
    policy: office-hours              # which has to be the one that decides
    rule: weekdays
    dryRun: []                        # the dry runs that would have refused

Input has subject, resource, request and environment, with the fields that expressions see. Exit code: 0 where every
answer is as expected, 1 otherwise.`,
		Example: `
			mintmark policy test office-hours.test.yaml
			mintmark policy test --verbose policies/*.test.yaml`,
		Args: someFiles,
		RunE: func(cmd *cobra.Command, args []string) error { return a.testPolicies(cmd.Context(), args, verbose) },
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Name every case, not only those that fail.")
	return c
}

func someFiles(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return nil
	}
	return usageError("name a file\nSee '%s --help'", cmd.CommandPath())
}

func (a *app) checkPolicies(ctx context.Context, files []string) error {
	out, broken := terminal{a.Out}, 0
	for _, name := range files {
		data, err := a.readManifest(ctx, name)
		if err != nil {
			return err
		}
		manifests, err := readPolicies(fileName(name), data)
		if err != nil {
			return err
		}
		for _, m := range manifests {
			if errs := policy.Validate(&m.Spec); len(errs) > 0 {
				broken++
				for _, err := range errs {
					a.note("AccessPolicy %s: %s", m.Name, err.Error())
				}
				continue
			}
			for _, warning := range policy.Warnings(&m.Spec) {
				a.note("warning: AccessPolicy %s: %s", m.Name, warning)
			}
			enforcement := m.Spec.Enforcement
			if enforcement == "" {
				enforcement = v1alpha1.PolicyEnforce
			}
			fmt.Fprintf(out, "AccessPolicy %s compiles (%s, %s)\n", m.Name, m.Spec.Effect, enforcement)
		}
	}
	if broken > 0 {
		return &exitError{code: 1}
	}
	return nil
}

func (a *app) testPolicies(ctx context.Context, files []string, verbose bool) error {
	out, cases, failed := terminal{a.Out}, 0, 0
	for _, name := range files {
		data, err := a.readManifest(ctx, name)
		if err != nil {
			return err
		}
		beside := func(file string) ([]byte, error) {
			if !filepath.IsAbs(file) && name != "-" {
				file = filepath.Join(filepath.Dir(name), file)
			}
			return a.readManifest(ctx, file)
		}
		title := fileName(name)
		table, set, err := readTable(title, data, beside)
		if err != nil {
			return err
		}
		for i, c := range table.Cases {
			result, err := table.run(set, c)
			if err != nil {
				return fmt.Errorf("%s: cases[%d] %s: %w", title, i, c.Name, err)
			}
			cases++
			if len(result.Diff) > 0 {
				failed++
				fmt.Fprintf(out, "FAIL %s: %s\n%s%s", title, c.Name, indented(result.Diff, "  "), indented(result.Why, "    "))
			} else if verbose {
				fmt.Fprintf(out, "ok   %s: %s\n", title, c.Name)
			}
		}
	}
	if failed > 0 {
		return &exitError{code: 1, err: fmt.Errorf("%d of %d cases failed", failed, cases)}
	}
	fmt.Fprintf(out, "%d cases, all as expected\n", cases)
	return nil
}

// readManifest reads a file of policies or cases; - is standard input.
func (a *app) readManifest(ctx context.Context, name string) ([]byte, error) {
	if name != "-" {
		return readFile(name, maxManifest)
	}
	data, err := interruptible(ctx, func() ([]byte, error) { return readAllLimited(a.In, maxManifest) })
	if err != nil {
		return nil, fmt.Errorf("reading standard input: %w", err)
	}
	return data, nil
}

func newLineReader(data []byte) *bufio.Reader {
	return bufio.NewReader(io.Reader(bytes.NewReader(data)))
}
