package cli_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// TestScripts runs testdata/script: what people type, and what they see. Each
// script has a namespace of its own, $NS, and is a cluster admin in it.
func TestScripts(t *testing.T) {
	system(t)
	testscript.Run(t, parameters(testscript.Params{Dir: "testdata/script"}))
}

// TestExclusiveScripts runs those that change what all others share, one after
// the other.
func TestExclusiveScripts(t *testing.T) {
	system(t)
	files, err := filepath.Glob("testdata/exclusive/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			testscript.Run(t, parameters(testscript.Params{Files: []string{file}}))
		})
	}
}

func parameters(p testscript.Params) testscript.Params {
	p.RequireExplicitExec = true
	p.Setup = setup
	p.Cmds = map[string]func(*testscript.TestScript, bool, []string){
		"kubectl":    kubectl,
		"capture":    capture,
		"eventually": eventually,
		"controller": controller,
		"server":     server,
		"field":      field,
		"later":      later,
		"digest":     digest,
		"envsubst":   envsubst,
	}
	return p
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

func setup(env *testscript.Env) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	name := filepath.Base(env.WorkDir)
	namespace := "cli-" + strings.Trim(notInNames.ReplaceAllString(strings.TrimPrefix(name, "script-"), "-"), "-")
	if err := running.namespace(ctx, namespace); err != nil {
		return err
	}
	config, err := clientcmd.LoadFromFile(running.plane.Kubeconfig())
	if err != nil {
		return err
	}
	for _, c := range config.Contexts {
		c.Namespace = namespace
	}
	config.Contexts["elsewhere"] = &clientcmdapi.Context{
		Cluster: config.Contexts[config.CurrentContext].Cluster, AuthInfo: config.Contexts[config.CurrentContext].AuthInfo, Namespace: "default",
	}
	kubeconfig := filepath.Join(env.WorkDir, "kubeconfig")
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		return err
	}
	env.Setenv("NS", namespace)
	env.Setenv("KUBECONFIG", kubeconfig)
	env.Setenv("MINTMARK_URL", "https://"+loopback(running.ports.server))
	env.Setenv("MINTMARK_CACERT", running.path("ca.crt"))
	env.Defer(func() {
		// All of it: the same script may run again in the same cluster (-count).
		cleanup := exec.Command(running.kubectl, "--kubeconfig", kubeconfig, "delete", "servicetokens,apikeys,secrets", "--all", "-n", namespace, "--timeout=30s")
		_ = cleanup.Run()
	})
	return nil
}

// kubectl runs the real one.
func kubectl(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(running.kubectl, args...)
	if (err != nil) != neg {
		ts.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
}

// capture NAME sets a variable to what the last command wrote to standard output.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: capture NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// field FILE NAME [VALUE] looks a top-level field up in a JSON file.
func field(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: field FILE NAME VALUE")
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(ts.ReadFile(args[0])), &object); err != nil {
		ts.Fatalf("%s: %v", args[0], err)
	}
	encoded, err := json.Marshal(object[args[1]])
	ts.Check(err)
	if same := strings.Trim(string(encoded), `"`) == args[2]; same == neg {
		ts.Fatalf("%s of %s is %s", args[1], args[0], encoded)
	}
}

// eventually REGEXP COMMAND... runs a command until it writes what matches.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: eventually REGEXP COMMAND...")
	}
	re := regexp.MustCompile(args[0])
	deadline := time.Now().Add(30 * time.Second)
	name := args[1]
	if name == "kubectl" {
		name = running.kubectl
	}
	for {
		err := ts.Exec(name, args[2:]...)
		out := ts.ReadFile("stdout") + ts.ReadFile("stderr")
		if re.MatchString(out) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("after 30 s it is still not so (%v):\n%s", err, out)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// later NAME DURATION sets a variable to the time so much later, in RFC 3339.
func later(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: later NAME DURATION")
	}
	d, err := time.ParseDuration(args[1])
	ts.Check(err)
	ts.Setenv(args[0], time.Now().Add(d).UTC().Format(time.RFC3339))
}

// digest NAME FILE sets a variable to the SHA-256 of what a file has in its first line.
func digest(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: digest NAME FILE")
	}
	line, _, _ := strings.Cut(ts.ReadFile(args[1]), "\n")
	ts.Setenv(args[0], fmt.Sprintf("%x", sha256.Sum256([]byte(line))))
}

// envsubst FILE... puts the values of variables, in capitals, into files.
func envsubst(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: envsubst FILE...")
	}
	for _, name := range args {
		text := variable.ReplaceAllStringFunc(ts.ReadFile(name), func(v string) string { return ts.Getenv(v[1:]) })
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

var variable = regexp.MustCompile(`\$[A-Z][A-Z]+`)

// controller stop|start.
func controller(ts *testscript.TestScript, neg bool, args []string) {
	switch strings.Join(args, " ") {
	case "stop":
		running.controller.Stop(20 * time.Second)
	case "start":
		ts.Check(running.startController(context.Background()))
	default:
		ts.Fatalf("usage: controller stop|start")
	}
}

// server NAME KIND sets $NAME to the URL of a server that misbehaves.
func server(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: server NAME KIND")
	}
	var handler http.HandlerFunc
	switch args[1] {
	case "redirect": // to where a key must not follow
		handler = func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, running.serverURL()+r.URL.Path, http.StatusTemporaryRedirect)
		}
	case "html":
		handler = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>\x1b[31mhello</html>")) }
	case "unavailable":
		handler = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Request-Id", "r-1")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"title":"Service Unavailable","detail":"cold"}`))
		}
	case "endless":
		handler = func(w http.ResponseWriter, _ *http.Request) {
			for range 64 {
				_, _ = w.Write(make([]byte, 1<<16))
			}
		}
	default:
		ts.Fatalf("no such server: %s", args[1])
	}
	s := httptest.NewServer(handler)
	ts.Defer(s.Close)
	ts.Setenv(args[0], s.URL)
}

func (i *installation) serverURL() string { return "https://" + loopback(i.ports.server) }

func TestScriptsAreRun(t *testing.T) {
	for _, dir := range []string{"testdata/script", "testdata/exclusive"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if filepath.Ext(e.Name()) != ".txtar" {
				t.Errorf("%s/%s is not run: name it .txtar", dir, e.Name())
			}
		}
	}
}
