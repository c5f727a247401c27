package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/client-go/util/jsonpath"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// pageSize of list requests: a cluster with many credentials is read in pieces.
const pageSize = 500

// query says which credentials to list.
type query struct {
	kinds     []*kind
	namespace string // empty: all
	selector  string
}

// where describes the query for messages.
func (q query) where() string {
	if q.namespace == "" {
		return "in any namespace"
	}
	return "in namespace " + q.namespace
}

// row is a credential with the cells the API server prints for it.
type row struct {
	object *unstructured.Unstructured
	cells  []any
}

// credential decodes the row's object.
func (r row) credential() (v1alpha1.Credential, error) {
	k, err := parseKind(r.object.GetKind())
	if err != nil {
		return nil, err
	}
	o := k.object()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(r.object.Object, o); err != nil {
		return nil, fmt.Errorf("%s %s/%s cannot be read by this version of the command: %w", k.name, r.object.GetNamespace(), r.object.GetName(), err)
	}
	return o, nil
}

// list asks the API server for tables, so that the columns are those kubectl
// shows, and each row's object with it.
func (c *cluster) list(ctx context.Context, q query) (columns []metav1.TableColumnDefinition, rows []row, err error) {
	raw, err := c.raw()
	if err != nil {
		return nil, nil, err
	}
	for _, k := range q.kinds {
		options := metav1.ListOptions{LabelSelector: q.selector, Limit: pageSize}
		for {
			result := raw.Get().NamespaceIfScoped(q.namespace, q.namespace != "").Resource(k.resource).
				SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").
				VersionedParams(&options, metav1.ParameterCodec).Param("includeObject", string(metav1.IncludeObject)).Do(ctx)
			if err := result.Error(); err != nil {
				return nil, nil, explain(err, "listing", k.resource+" "+q.where())
			}
			data, err := result.Raw()
			if err != nil {
				return nil, nil, err
			}
			var table metav1.Table
			if err := json.Unmarshal(data, &table); err != nil || table.Kind != "Table" {
				return nil, nil, fmt.Errorf("listing %s %s: the API server sent no table (%s): %w", k.resource, q.where(), table.Kind, err)
			}
			if len(table.ColumnDefinitions) > 0 {
				columns = table.ColumnDefinitions
			}
			for _, r := range table.Rows {
				object := new(unstructured.Unstructured)
				if err := json.Unmarshal(r.Object.Raw, &object.Object); err != nil {
					return nil, nil, fmt.Errorf("listing %s %s: %w", k.resource, q.where(), err)
				}
				rows = append(rows, row{object, r.Cells})
			}
			if options.Continue = table.Continue; options.Continue == "" {
				break
			}
		}
	}
	return columns, rows, nil
}

// credentials lists and decodes.
func (c *cluster) credentials(ctx context.Context, q query) ([]v1alpha1.Credential, error) {
	_, rows, err := c.list(ctx, q)
	if err != nil {
		return nil, err
	}
	sortRows(rows)
	found := make([]v1alpha1.Credential, len(rows))
	for i, r := range rows {
		if found[i], err = r.credential(); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// sortRows orders by namespace, name and kind.
func sortRows(rows []row) {
	slices.SortStableFunc(rows, func(a, b row) int {
		return strings.Compare(rowKey(a), rowKey(b))
	})
}

func rowKey(r row) string {
	return r.object.GetNamespace() + "\x00" + r.object.GetName() + "\x00" + r.object.GetKind()
}

type listOptions struct {
	*app
	scope
	print      *genericclioptions.PrintFlags
	sortBy     string
	noHeaders  bool
	showLabels bool
}

func (a *app) listCommand() *cobra.Command {
	o := &listOptions{app: a, print: genericclioptions.NewPrintFlags("")}
	c := &cobra.Command{
		Use:     "list [servicetokens|apikeys] [flags]",
		Aliases: []string{"ls"},
		Short:   "List service tokens and API keys",
		Long: "List service tokens and API keys together, with the columns kubectl shows.\n\n" +
			"No value is shown, and none can be: only the Secret has it.",
		Example: `
			# Both kinds in the current namespace
			mintmark list

			# The service tokens of every namespace, the first to expire on top
			mintmark list servicetokens -A --sort-by expires

			# The names of what the team owns
			mintmark list -A -l team=payments -o name

			# Everything that is not Ready
			mintmark list -A -o jsonpath='{range .items[?(@.status.conditions[0].status!="True")]}{.metadata.name}{"\n"}{end}'`,
		Args:              atMost(1),
		ValidArgsFunction: a.completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			selected := kinds
			if len(args) == 1 {
				k, err := parseKind(args[0])
				if err != nil {
					return err
				}
				selected = []*kind{k}
			}
			return o.run(cmd.Context(), selected)
		},
	}
	o.print.AddFlags(c)
	c.Flag("output").Usage = "Output format. One of: (" + strings.Join(append(o.print.AllowedFormats(), "wide"), ", ") + ")."
	o.scope.add(c.Flags())
	c.Flags().StringVar(&o.sortBy, "sort-by", "", "Sort by "+sortNames()+", or by a JSONPath such as {.spec.owner}.")
	c.Flags().BoolVar(&o.noHeaders, "no-headers", false, "Leave the header line out.")
	c.Flags().BoolVar(&o.showLabels, "show-labels", false, "Show the labels as the last column.")
	return c
}

func (o *listOptions) run(ctx context.Context, selected []*kind) error {
	wide := *o.print.OutputFormat == "wide"
	asTable := *o.print.OutputFormat == "" && *o.print.TemplatePrinterFlags.TemplateArgument == "" || wide
	if err := o.check(); err != nil {
		return err
	}
	var printer printers.ResourcePrinter
	if !asTable {
		var err error
		if printer, err = printerFor(o.print, "none"); err != nil {
			return err
		}
	}
	c, err := o.cluster()
	if err != nil {
		return err
	}
	q := o.query(c)
	q.kinds = selected
	columns, rows, err := c.list(ctx, q)
	if err != nil {
		return err
	}
	sortRows(rows)
	if err := sortBy(rows, o.sortBy); err != nil {
		return err
	}
	if !asTable {
		return printer.PrintObj(listOf(rows), o.Out)
	}
	if len(rows) == 0 {
		o.note("No service tokens or API keys found %s.", q.where())
		return nil
	}
	return printTable(columns, rows, printers.PrintOptions{
		NoHeaders: o.noHeaders, WithNamespace: o.allNamespaces, Wide: wide, ShowLabels: o.showLabels,
	}, len(selected) > 1, o.IOStreams.Out)
}

// listOf makes what kubectl makes of objects of several kinds: a List.
func listOf(rows []row) *unstructured.UnstructuredList {
	list := &unstructured.UnstructuredList{Object: map[string]any{
		"apiVersion": "v1", "kind": "List", "metadata": map[string]any{"resourceVersion": ""},
	}}
	for _, r := range rows {
		list.Items = append(list.Items, *r.object)
	}
	return list
}

// sortFields are the short names of what people sort by.
var sortFields = []struct{ name, path string }{
	{"name", "{.metadata.name}"},
	{"kind", "{.kind}"},
	{"age", "{.metadata.creationTimestamp}"},
	{"expires", "{.status.expires}"},
	{"next-rotation", "{.status.nextRotation}"},
	{"last-used", "{.status.lastUsed}"},
	{"version", "{.status.currentVersion}"},
	{"class", "{.spec.credentialClassName}"},
}

func sortNames() string {
	names := make([]string, len(sortFields))
	for i, f := range sortFields {
		names[i] = f.name
	}
	return strings.Join(names, ", ")
}

// sortBy sorts by a field, those without it last.
func sortBy(rows []row, by string) error {
	if by == "" {
		return nil
	}
	path := by
	for _, f := range sortFields {
		if by == f.name {
			path = f.path
		}
	}
	if !strings.HasPrefix(path, "{") {
		if !strings.HasPrefix(path, ".") {
			return usageError("--sort-by %q: sort by %s, or by a JSONPath such as {.spec.owner}", by, sortNames())
		}
		path = "{" + path + "}"
	}
	parser := jsonpath.New("sort-by").AllowMissingKeys(true)
	if err := parser.Parse(path); err != nil {
		return usageError("--sort-by %q: %w", by, err)
	}
	keys := make(map[*unstructured.Unstructured]any, len(rows))
	for _, r := range rows {
		results, err := parser.FindResults(r.object.Object)
		if err != nil {
			return usageError("--sort-by %q: %w", by, err)
		}
		if len(results) > 0 && len(results[0]) > 0 {
			keys[r.object] = results[0][0].Interface()
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return compareValues(keys[a.object], keys[b.object]) })
	return nil
}

// compareValues orders numbers by size and everything else by its text. RFC
// 3339 times in UTC order as text does; "Never" comes after them, and nothing
// last.
func compareValues(a, b any) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	x, xIsNumber := number(a)
	y, yIsNumber := number(b)
	if xIsNumber && yIsNumber {
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	}
	return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int64:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}
