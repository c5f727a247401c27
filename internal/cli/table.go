package cli

import (
	"fmt"
	"io"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// printerFor is the printer that --output and --dry-run ask for. It is made before
// anything is sent: a misspelt format is no reason to have created something.
func printerFor(flags *genericclioptions.PrintFlags, dryRun string) (printers.ResourcePrinter, error) {
	note, known := map[string]string{"none": "", "client": "%s (dry run)", "server": "%s (server dry run)"}[dryRun]
	if !known {
		return nil, usageError("--dry-run %q: none, client or server", dryRun)
	}
	if note != "" {
		if err := flags.Complete(note); err != nil {
			return nil, err
		}
	}
	printer, err := flags.ToPrinter()
	if err != nil {
		return nil, usageError("%w", err)
	}
	return printer, nil
}

func printObject(printer printers.ResourcePrinter, o runtime.Object, out io.Writer) error {
	u, err := toUnstructured(o)
	if err != nil {
		return err
	}
	return printer.PrintObj(u, out)
}

// printTable prints rows with the API server's own columns. With withKind, the
// second column says which kind each is.
func printTable(columns []metav1.TableColumnDefinition, rows []row, options printers.PrintOptions, withKind bool, out io.Writer) error {
	table := &metav1.Table{ColumnDefinitions: columns}
	if withKind {
		kindColumn := metav1.TableColumnDefinition{Name: "Kind", Type: "string"}
		table.ColumnDefinitions = append([]metav1.TableColumnDefinition{columns[0], kindColumn}, columns[1:]...)
	}
	for _, r := range rows {
		cells := r.cells
		if withKind {
			cells = append([]any{cells[0], r.object.GetKind()}, cells[1:]...)
		}
		table.Rows = append(table.Rows, metav1.TableRow{Cells: cells, Object: runtime.RawExtension{Object: r.object}})
	}
	return printers.NewTablePrinter(options).PrintObj(table, out)
}

// printSelected shows what a command is about to act on.
func printSelected(found []v1alpha1.Credential, out io.Writer) error {
	columns := []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string"}, {Name: "Kind", Type: "string"}, {Name: "Ready", Type: "string"}, {Name: "Version", Type: "string"},
		{Name: "Admin", Type: "string"}, {Name: "Last Used", Type: "string"}, {Name: "Owner", Type: "string"}, {Name: "Description", Type: "string"},
	}
	table := &metav1.Table{ColumnDefinitions: columns}
	for _, o := range found {
		ready := "Unknown"
		if cond := readyCondition(o); cond != nil {
			ready = string(cond.Status)
		}
		table.Rows = append(table.Rows, metav1.TableRow{
			Cells: []any{
				o.GetName(), string(o.CredentialKind()), ready, fmt.Sprint(o.CredentialStatus().CurrentVersion), yesNo(o.CredentialSpec().Admin),
				o.CredentialStatus().LastUsed, o.CredentialSpec().Owner, shorten(o.CredentialSpec().Description, 40),
			},
			Object: runtime.RawExtension{Object: &unstructured.Unstructured{Object: map[string]any{
				"metadata": map[string]any{"namespace": o.GetNamespace(), "name": o.GetName()},
			}}},
		})
	}
	return printers.NewTablePrinter(printers.PrintOptions{WithNamespace: true}).PrintObj(table, out)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func shorten(s string, limit int) string {
	if r := []rune(s); len(r) > limit {
		return strings.TrimSpace(string(r[:limit-1])) + "…"
	}
	return s
}
