package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// scope is where a command looks, by kubectl's flags.
type scope struct {
	selector      string
	allNamespaces bool
}

func (s *scope) add(f *pflag.FlagSet) {
	f.StringVarP(&s.selector, "selector", "l", "", "Label selector, such as team=payments,tier!=test.")
	f.BoolVarP(&s.allNamespaces, "all-namespaces", "A", false, "Look in every namespace.")
}

func (s *scope) check() error {
	if _, err := labels.Parse(s.selector); err != nil {
		return usageError("--selector %q is no label selector: %w", s.selector, err)
	}
	return nil
}

// query is for both kinds.
func (s *scope) query(c *cluster) query {
	q := query{kinds: kinds, namespace: c.namespace, selector: s.selector}
	if s.allNamespaces {
		q.namespace = ""
	}
	return q
}

// selection is how rotate and revoke are told what to act on.
type selection struct {
	scope
	ids         []string
	identifiers []string
	all         bool
	allAdmin    bool
	yes         bool
}

func (s *selection) add(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&s.ids, "id", nil, "UIDs, as they stand in audit logs and in the sub claim of tokens.")
	f.StringArrayVar(&s.identifiers, "identifier", nil, "Names, or public prefixes of values (mk4Tq9Zx, sk_live_0a1b).")
	s.scope.add(f)
	f.BoolVar(&s.all, "all", false, "Every credential of the namespace.")
	f.BoolVar(&s.allAdmin, "all-admin", false, "Every admin credential.")
	f.BoolVarP(&s.yes, "yes", "y", false, "Do not ask.")
}

// open tells whether the selection is one that may catch more than what is
// named.
func (s *selection) open() bool { return s.selector != "" || s.all || s.allAdmin }

func (s *selection) check(args []string) error {
	ways := 0
	for _, used := range []bool{len(s.ids) > 0, len(s.identifiers) > 0, s.open()} {
		if used {
			ways++
		}
	}
	named := len(args) > 1 || len(args) == 1 && strings.Contains(args[0], "/")
	switch {
	case ways > 1:
		return usageError("select in one way: by name, --id, --identifier, or by --selector, --all and --all-admin")
	case named && ways > 0:
		return usageError("select by name or by flags, not by both")
	case !named && ways == 0:
		return usageError("say which: KIND NAME, KIND/NAME, --id UID, --identifier NAME-OR-PREFIX, -l SELECTOR, --all or --all-admin")
	}
	return s.scope.check()
}

// resolve reads the credentials selected. Each thing named must be there.
func (s *selection) resolve(ctx context.Context, c *cluster, args []string) ([]v1alpha1.Credential, error) {
	refs, err := parseRefs(args, c.namespace)
	if err != nil {
		return nil, err
	}
	if len(refs) > 0 {
		found := make([]v1alpha1.Credential, len(refs))
		for i, r := range refs {
			if found[i], err = c.get(ctx, r); err != nil {
				return nil, err
			}
		}
		return found, nil
	}
	q := s.query(c)
	if len(args) == 1 { // a kind without names narrows what the flags select
		k, err := parseKind(args[0])
		if err != nil {
			return nil, err
		}
		q.kinds = []*kind{k}
	}
	if len(s.ids) > 0 && !c.namespaceSet {
		q.namespace = ""
	}
	listed, err := c.credentials(ctx, q)
	if err != nil {
		return nil, err
	}
	switch {
	case len(s.ids) > 0:
		return pick(listed, s.ids, "id", q, func(o v1alpha1.Credential, id string) bool { return string(o.GetUID()) == id })
	case len(s.identifiers) > 0:
		return pick(listed, s.identifiers, "identifier", q, identifies)
	}
	var found []v1alpha1.Credential
	for _, o := range listed {
		if !s.allAdmin || o.CredentialSpec().Admin {
			found = append(found, o)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("nothing is selected: no such service token or API key %s", q.where())
	}
	return found, nil
}

// identifies: a name, NAMESPACE/NAME, or the public prefix of any version.
func identifies(o v1alpha1.Credential, identifier string) bool {
	if identifier == o.GetName() || identifier == o.GetNamespace()+"/"+o.GetName() {
		return true
	}
	for _, v := range o.CredentialStatus().Versions {
		if v.Prefix != "" && v.Prefix == identifier {
			return true
		}
	}
	return false
}

// pick finds exactly one credential for each thing named: an identifier that
// fits two would hit the wrong one.
func pick(listed []v1alpha1.Credential, wanted []string, flag string, q query, fits func(v1alpha1.Credential, string) bool) ([]v1alpha1.Credential, error) {
	var found []v1alpha1.Credential
	seen := map[ref]bool{}
	for _, w := range wanted {
		var match []v1alpha1.Credential
		for _, o := range listed {
			if fits(o, w) {
				match = append(match, o)
			}
		}
		switch len(match) {
		case 0:
			hint := "look in every namespace with -A"
			if q.namespace == "" {
				hint = "see what there is with 'mintmark list -A'"
			}
			return nil, fmt.Errorf("--%s %s: no such service token or API key %s: %s", flag, publicPart(w), q.where(), hint)
		case 1:
			if r := refOf(match[0]); !seen[r] {
				seen[r] = true
				found = append(found, match[0])
			}
		default:
			var names []string
			for _, o := range match {
				names = append(names, refOf(o).String())
			}
			return nil, fmt.Errorf("--%s %s fits %d: %s. Say which by KIND/NAME and -n", flag, publicPart(w), len(match), strings.Join(names, ", "))
		}
	}
	return found, nil
}

// longestShown is what is repeated of an argument that may be a value.
const longestShown = 8

// publicPart quotes what may stand in an error: whoever puts a whole value in
// the place of a name or a prefix should not find it in a log.
func publicPart(s string) string {
	lead := strings.LastIndexByte(s, '_') + 1
	switch {
	case strings.HasPrefix(s, "sk_") && lead <= len("sk_")+17:
		lead += 4
	case looksSecret(s):
		lead = longestShown
	default:
		return fmt.Sprintf("%q", s)
	}
	if len(s) <= lead {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprintf("%q", s[:lead]+"…")
}

// isValue tells whether a text is the value of a credential in one of our formats.
func isValue(s string) bool {
	token, err := credential.Parse(s)
	return err == nil && !token.External()
}

// looksSecret: no name has both so many characters and capitals among them.
func looksSecret(s string) bool { return len(s) >= 20 && strings.ToLower(s) != s }
