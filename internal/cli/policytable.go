package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// policyTable is a file of test cases for AccessPolicies.
type policyTable struct {
	// Policies the cases are about, all together.
	Policies []tablePolicy `json:"policies"`
	// Given is the input that every case begins with.
	Given map[string]any `json:"given,omitempty"`
	Cases []tableCase    `json:"cases"`
}

// tablePolicy is a file with AccessPolicies, beside the table, or one in place.
type tablePolicy struct {
	File string                     `json:"file,omitempty"`
	Name string                     `json:"name,omitempty"`
	Spec *v1alpha1.AccessPolicySpec `json:"spec,omitempty"`
}

// tableCase is one question and the answer there should be.
type tableCase struct {
	Name  string         `json:"name"`
	Input map[string]any `json:"input,omitempty"`
	// Expect: allow or deny.
	Expect string `json:"expect"`
	// Policy and Rule that should decide; not compared where empty.
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"`
	// DryRun are the dry runs that should have refused; not compared where absent.
	DryRun *[]string `json:"dryRun,omitempty"`
}

const (
	expectAllow = "allow"
	expectDeny  = "deny"
)

// tableResult is what came of one case.
type tableResult struct {
	Case tableCase
	// Diff has lines for what differs, with - for what was expected and + for what
	// is. Empty: nothing.
	Diff []string
	// Why explains the policies that had a say, where something differs.
	Why []string
}

// readPolicies reads the AccessPolicies of a file of manifests. Anything else in
// it is refused: it may be a policy whose kind is misspelt.
func readPolicies(name string, data []byte) ([]*v1alpha1.AccessPolicy, error) {
	var all []*v1alpha1.AccessPolicy
	documents := yaml.NewYAMLReader(newLineReader(data))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(bytes.TrimSpace(withoutComments(document))) == 0 {
			continue
		}
		for _, manifest := range itemsOf(document) {
			p, err := readPolicy(manifest)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no AccessPolicy", name)
	}
	return all, nil
}

// itemsOf are the manifests in a list, as kubectl prints several, and else the one there is.
func itemsOf(document []byte) [][]byte {
	var list struct {
		metav1.TypeMeta `json:",inline"`
		Items           []json.RawMessage `json:"items"`
	}
	if sigsyaml.Unmarshal(document, &list) != nil || list.Kind != "List" && list.Kind != "AccessPolicyList" {
		return [][]byte{document}
	}
	items := make([][]byte, len(list.Items))
	for i := range list.Items {
		items[i] = list.Items[i]
	}
	return items
}

func readPolicy(manifest []byte) (*v1alpha1.AccessPolicy, error) {
	p := new(v1alpha1.AccessPolicy)
	if err := sigsyaml.UnmarshalStrict(manifest, p); err != nil {
		return nil, fmt.Errorf("not an AccessPolicy: %w", err)
	}
	if p.Kind != "AccessPolicy" || p.APIVersion != v1alpha1.GroupVersion.String() {
		return nil, fmt.Errorf("apiVersion %q, kind %q is not an AccessPolicy of %s", p.APIVersion, p.Kind, v1alpha1.GroupVersion)
	}
	if p.Name == "" {
		return nil, errors.New("an AccessPolicy has no metadata.name")
	}
	return p, nil
}

func withoutComments(document []byte) []byte {
	var kept [][]byte
	for line := range bytes.SplitSeq(document, []byte("\n")) {
		if text := bytes.TrimSpace(line); !bytes.HasPrefix(text, []byte("#")) && !bytes.Equal(text, []byte("---")) {
			kept = append(kept, line)
		}
	}
	return bytes.Join(kept, []byte("\n"))
}

// readTable reads a table; file reads the files that it names.
func readTable(name string, data []byte, file func(string) ([]byte, error)) (*policyTable, *policy.Set, error) {
	table := new(policyTable)
	if err := sigsyaml.UnmarshalStrict(data, table); err != nil {
		return nil, nil, fmt.Errorf("%s: not a table of cases: %w", name, err)
	}
	if len(table.Cases) == 0 {
		return nil, nil, fmt.Errorf("%s: cases: there is none", name)
	}
	manifests, err := table.manifests(name, file)
	if err != nil {
		return nil, nil, err
	}
	var compiled []*policy.Compiled
	for _, m := range manifests {
		if slices.ContainsFunc(compiled, func(c *policy.Compiled) bool { return c.Name == m.Name }) {
			return nil, nil, fmt.Errorf("%s: there are two AccessPolicies %s", name, m.Name)
		}
		c, err := policy.Compile(m.Name, &m.Spec)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: AccessPolicy %s: %w", name, m.Name, err)
		}
		compiled = append(compiled, c)
	}
	return table, policy.NewSet(compiled), nil
}

func (t *policyTable) manifests(name string, file func(string) ([]byte, error)) ([]*v1alpha1.AccessPolicy, error) {
	var all []*v1alpha1.AccessPolicy
	for i, p := range t.Policies {
		switch {
		case p.File != "" && p.Spec == nil && p.Name == "":
			data, err := file(p.File)
			if err != nil {
				return nil, fmt.Errorf("%s: policies[%d]: %w", name, i, err)
			}
			read, err := readPolicies(p.File, data)
			if err != nil {
				return nil, fmt.Errorf("%s: policies[%d]: %w", name, i, err)
			}
			all = append(all, read...)
		case p.File == "" && p.Spec != nil && p.Name != "":
			m := &v1alpha1.AccessPolicy{Spec: *p.Spec}
			m.Name = p.Name
			all = append(all, m)
		default:
			return nil, fmt.Errorf("%s: policies[%d]: give file, or name and spec", name, i)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: policies: there is none", name)
	}
	return all, nil
}

// run asks the policies about one case.
func (t *policyTable) run(set *policy.Set, c tableCase) (tableResult, error) {
	result := tableResult{Case: c}
	if c.Name == "" {
		return result, errors.New("has no name")
	}
	if c.Expect != expectAllow && c.Expect != expectDeny {
		return result, fmt.Errorf("expect: %q is neither %s nor %s", c.Expect, expectAllow, expectDeny)
	}
	in, err := inputOf(t.Given, c.Input)
	if err != nil {
		return result, err
	}
	d := set.Decide(in)
	want, got := expectation{c.Expect == expectAllow, c.Policy, c.Rule}, expectation{d.Allowed, d.Policy, d.Rule}
	if want.policy == "" {
		got.policy = ""
	}
	if want.rule == "" {
		got.rule = ""
	}
	if want != got {
		result.Diff = append(result.Diff, "- "+want.String(), "+ "+expectation{d.Allowed, d.Policy, d.Rule}.String()+" ("+d.Code+")")
	}
	if dry := dryRuns(d); c.DryRun != nil && !slices.Equal(slices.Sorted(slices.Values(*c.DryRun)), dry) {
		result.Diff = append(result.Diff, "- dry runs that would refuse: "+list(*c.DryRun), "+ dry runs that would refuse: "+list(dry))
	}
	if len(result.Diff) > 0 {
		result.Why = why(set.Explain(in))
	}
	return result, nil
}

type expectation struct {
	allowed      bool
	policy, rule string
}

func (a expectation) String() string {
	text := expectDeny
	if a.allowed {
		text = expectAllow
	}
	if a.policy != "" {
		text += ", policy " + a.policy
	}
	if a.rule != "" {
		text += ", rule " + a.rule
	}
	return text
}

func dryRuns(d policy.Decision) []string {
	var names []string
	for _, f := range d.Findings {
		if f.DryRun {
			names = append(names, f.Policy)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// why tells how the policies stand to an input, a line for each expression that
// matters.
func why(explanations []policy.Explanation) []string {
	var lines []string
	for _, x := range explanations {
		lines = append(lines, fmt.Sprintf("%s (%s): %s", x.Policy, nature(x), standing(x)))
		for _, r := range x.Conditions {
			lines = append(lines, "  condition "+resultLine(r))
		}
		if !x.HasSay {
			continue
		}
		for _, r := range x.Rules {
			lines = append(lines, "  rule "+resultLine(r))
		}
	}
	return lines
}

func nature(x policy.Explanation) string {
	text := "Allow"
	if x.Deny {
		text = "Deny"
	}
	if x.DryRun {
		text += ", dry run"
	}
	return text
}

func standing(x policy.Explanation) string {
	switch {
	case !x.HasSay:
		return "has no say"
	case x.Refuses && x.Deny:
		return "refuses"
	case x.Refuses:
		return "no rule allows it"
	case x.Deny:
		return "does not refuse"
	default:
		return "allows"
	}
}

func resultLine(r policy.Result) string {
	value := fmt.Sprint(r.True)
	if r.Error != "" {
		value = "error: " + r.Error
	}
	return fmt.Sprintf("%s: %s [%s]", r.Name, value, oneLine(r.Expression))
}

// inputOf lays input over what is given, field by field.
func inputOf(given, input map[string]any) (*policy.Input, error) {
	data, err := json.Marshal(merged(given, input))
	if err != nil {
		return nil, err
	}
	in := new(policy.Input)
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(in); err != nil {
		return nil, fmt.Errorf("input: %w", err)
	}
	return in, nil
}

// merged is a JSON merge patch (RFC 7396): null takes a field away.
func merged(under, over map[string]any) map[string]any {
	out := maps.Clone(under)
	if out == nil {
		out = map[string]any{}
	}
	for key, value := range over {
		inner, isMap := value.(map[string]any)
		beneath, wasMap := out[key].(map[string]any)
		switch {
		case value == nil:
			delete(out, key)
		case isMap && wasMap:
			out[key] = merged(beneath, inner)
		default:
			out[key] = value
		}
	}
	return out
}

func indented(lines []string, by string) string {
	var text strings.Builder
	for _, line := range lines {
		text.WriteString(by + line + "\n")
	}
	return text.String()
}
