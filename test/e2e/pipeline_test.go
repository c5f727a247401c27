//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// audited gives the lines of every server's audit log that have all of these in them.
func audited(t *testing.T, texts ...string) (lines []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(running.dev(), "log", "*audit*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no audit log: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			all := true
			for _, text := range texts {
				all = all && strings.Contains(line, text)
			}
			if all {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

func TestAPipelineLogsInWithItsKeyAndSaysWhatItDoes(t *testing.T) {
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(root, "docs", "examples", "github-actions", "mintmark", "mintmark.sh")
	ns := namespace(t, "pipeline")
	// The class of the other tests does not allow audit_log.
	for _, manifest := range []string{serviceToken(ns, "ci", "deploy:write", "audit_log"), serviceToken(ns, "silent", "deploy:write")} {
		apply(t, strings.Replace(manifest, "credentialClassName: production", "credentialClassName: default", 1))
	}
	ready(t, ns, "servicetoken/ci")
	ready(t, ns, "servicetoken/silent")
	keys := t.TempDir() // what is revoked has no Secret any more
	for _, name := range []string{"ci", "silent"} {
		must(t, "kubectl -n "+ns+" get secret "+name+` -o jsonpath='{.data.token}' | base64 -d >`+filepath.Join(keys, name))
	}
	run := func(name, event string) (string, bool) {
		return shell(t, `export MINTMARK_KEY=$(cat `+filepath.Join(keys, name)+`) MINTMARK_EVENT=`+event+
			` MINTMARK_STATUS=success MINTMARK_ENVIRONMENT=staging MINTMARK_TIMEOUT=20; header=$(`+script+` event) && `+
			`curl -sS -o /dev/null -w 'deployed %{http_code}' --cacert "$MINTMARK_CACERT" -H "@$header" "$MINTMARK_URL/forward-auth?permission=deploy:write" && rm "$header"`)
	}
	if out, ok := run("ci", "e2e.deployed"); !ok || !strings.Contains(out, "deployed 200") || strings.Contains(out, value(t, ns, "ci", "token")) {
		t.Errorf("the pipeline ends with\n%s", out)
	}
	eventually(t, 10*time.Second, "the event is in the audit log", func() bool {
		return len(audited(t, `"type":"cicd"`, `"reason":"e2e.deployed"`, `"subject":"servicetoken:`+ns+`:ci"`, `"environment":"staging"`)) == 1
	})
	if out, ok := run("silent", "e2e.silent"); ok || !strings.Contains(out, "answers 403") {
		t.Errorf("one that may not post events ends with\n%s", out)
	}
	must(t, `kubectl -n `+ns+` patch servicetoken ci --type=merge -p '{"spec":{"revoked":{"reason":"pipeline is gone"}}}'`)
	eventually(t, bound, "the revoked key is refused", func() bool {
		out, ok := run("ci", "e2e.revoked")
		return !ok && strings.Contains(out, "answers 401")
	})
	if lines := audited(t, "e2e.revoked"); len(lines) > 0 {
		t.Errorf("a revoked key has posted %v", lines)
	}
	// Who changed what may be done.
	must(t, `kubectl create -f - <<'M'
apiVersion: mintmark.dev/v1alpha1
kind: AccessRole
metadata: {name: `+ns+`}
spec: {permissions: ["deploy:read"]}
M
kubectl delete accessrole `+ns)
	eventually(t, 10*time.Second, "the role is in the audit log", func() bool {
		return len(audited(t, `"type":"configuration"`, `"subject":"accessrole:`+ns+`"`, `"reason":"Created"`, `"actor":"`)) > 0 &&
			len(audited(t, `"type":"configuration"`, `"subject":"accessrole:`+ns+`"`, `"reason":"Deleted"`)) > 0
	})
}
