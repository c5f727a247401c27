package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// variable is an environment variable that a program reads.
type variable struct{ Name, Readers, Meaning string }

// known are all of them.
var known = []variable{
	{"COLUMNS", "`mintmark`", "width of the terminal, where it cannot be asked"},
	{"GOGC", "controller", "how much garbage may lie about, in percent of what is in use; unless it is set, 100 within 155 MiB, and a third where more is in use"},
	{"GOGC", "server", "the same; unless it is set, 100 or as much more as makes 16 MiB, at most 400; 150 beyond 192 MiB in use"},
	{"GOMEMLIMIT", "both, by the Go runtime", "memory to stay below; the chart sets it to the limit of the container"},
	{"KUBECONFIG", "all, `mintmark`", "kubeconfig file, outside a pod"},
	{"LANG", "`mintmark`", "as LC_CTYPE, where that is not set"},
	{"LC_ALL", "`mintmark`", "as LC_CTYPE, and before it"},
	{"LC_CTYPE", "`mintmark`", "charts are drawn in ASCII where the locale is not UTF-8"},
	{"MINTMARK_CACERT", "`mintmark`", "authority of the server's certificate: a file"},
	{"MINTMARK_DATABASE_URL", "server", "`--database-url`, without showing it in the list of processes"},
	{"MINTMARK_KEY", "`mintmark`", "the key to present to the server"},
	{"MINTMARK_URL", "`mintmark`", "URL of the server"},
	{"NO_COLOR", "`mintmark`", "set: no colours at a terminal either"},
	{"POD_IP", "server", "address at which the controllers reach its internal listener"},
	{"POD_NAME", "both", "name of this replica: the holder of a Lease, `--id`"},
	{"POD_NAMESPACE", "both", "`--namespace`"},
	{"TERM", "`mintmark`", "dumb: no colours"},
}

// outside are read by libraries, not by this code.
var outside = []string{"GOMEMLIMIT", "KUBECONFIG"}

var read = []*regexp.Regexp{
	regexp.MustCompile(`(?i:getenv|lookupenv|\benv)\("([A-Z][A-Z0-9_]+)"\)`),
	regexp.MustCompile(`\benv[A-Z]\w*\s*=\s*"([A-Z][A-Z0-9_]+)"`),
}

// environment gives the variables, after a look at whether the sources read exactly these.
func environment() ([]variable, error) {
	found := map[string]string{}
	for _, dir := range []string{"cmd", "controllers", "internal", "webhook"} {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, pattern := range read {
				for _, m := range pattern.FindAllSubmatch(source, -1) {
					found[string(m[1])] = path
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	for name, path := range found {
		if !slices.ContainsFunc(known, func(v variable) bool { return v.Name == name }) {
			return nil, fmt.Errorf("%s reads $%s, which hack/settings/environment.go does not explain", path, name)
		}
	}
	for _, v := range known {
		if found[v.Name] == "" && !slices.Contains(outside, v.Name) {
			return nil, fmt.Errorf("hack/settings/environment.go explains $%s, which nothing reads", v.Name)
		}
	}
	return known, nil
}
