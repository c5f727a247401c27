package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// buildVersion is the version given at build time, else the one the Go tool
// recorded.
func (a *app) buildVersion() string {
	if a.version != "" {
		return a.version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

type versionOutput struct {
	Version    string `json:"version"`
	Commit     string `json:"commit,omitempty"`
	APIVersion string `json:"apiVersion"`
	Go         string `json:"goVersion"`
	Platform   string `json:"platform"`
}

func (a *app) versionCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this command",
		Long:  "Print the version of this command, and of the API it speaks. What the cluster runs is told by 'mintmark doctor'.",
		Example: `
			mintmark version
			mintmark version -o json`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := plainFormat(output); err != nil {
				return err
			}
			v := versionOutput{
				Version: a.buildVersion(), APIVersion: v1alpha1.GroupVersion.String(),
				Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
			}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Commit = s.Value
					}
				}
			}
			if output == "" {
				fmt.Fprintf(a.Out, "mintmark %s (%s, %s, %s)\n", v.Version, v.APIVersion, v.Go, v.Platform)
				return nil
			}
			return a.printPlain(v, output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "Output format: json or yaml.")
	return c
}

// plainFormat checks --output where what is printed is no Kubernetes object; empty is
// text for people.
func plainFormat(format string) error {
	switch format {
	case "", "json", "yaml":
		return nil
	}
	return usageError("unknown output format %q: json or yaml", format)
}

// printPlain prints what is no Kubernetes object, as YAML or JSON.
func (a *app) printPlain(v any, format string) error {
	if format != "yaml" {
		return writeJSON(a.Out, v)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	// YAML refuses some control characters where they are not escaped.
	if data, err = yaml.JSONToYAML(safeJSON(data)); err != nil {
		return err
	}
	_, err = a.Out.Write(data)
	return err
}
