//go:build scale

package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	freeport "github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// scale is how many credentials there are: MINTMARK_SCALE, or 100,000.
func scale(t testing.TB) int {
	text := os.Getenv("MINTMARK_SCALE")
	if text == "" {
		return 100_000
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("MINTMARK_SCALE=%s: give a number", text)
	}
	return n
}

// stored is the i-th credential, as the API server keeps one in etcd that was applied by
// kubectl and minted by the controller: 4 KB, of which the index needs a tenth.
func (in *installation) stored(i int, now metav1.Time) (key string, object []byte) {
	in.t.Helper()
	ns, name, uid := fmt.Sprintf("team-%03d", i%1000), fmt.Sprintf("service-%06d", i), fmt.Sprintf("5ca1ab1e-0000-4000-8000-%012d", i)
	inner := sha256.Sum256([]byte(name))
	digest := in.pepper.Digest(inner)
	labels := map[string]string{"app.kubernetes.io/name": fmt.Sprintf("app-%d", i%500), "app.kubernetes.io/managed-by": "Helm"}
	permissions := []v1alpha1.Permission{"api:read", "deploy:*", v1alpha1.Permission(fmt.Sprintf("team:%d", i%50))}
	rec := &credential.Record{
		UID: uid, Kind: v1alpha1.KindServiceToken, Namespace: ns, Name: name, Epoch: 3, Class: in.class, Labels: labels,
		Permissions: []string{string(permissions[0]), string(permissions[1]), string(permissions[2])},
		JWT:         credential.RecordJWT{TTLSeconds: 900, Algorithm: "ES256"},
		Versions: []credential.SealedVersion{{
			Number: 1, Digest: digest[:], Pepper: in.pepper.ID(), Prefix: "sk_" + fmt.Sprintf("%04x", i&0xffff), State: v1alpha1.VersionActive,
			Created: now.Unix(), Activated: now.Unix(), Expires: now.Add(180 * 24 * time.Hour).Unix(),
		}},
	}
	record, seal, err := rec.Seal(in.pepper)
	if err != nil {
		in.t.Fatal(err)
	}
	fields := func(text string) *metav1.FieldsV1 { return metav1.NewFieldsV1(text) }
	token := &v1alpha1.ServiceToken{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "ServiceToken"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: ns, UID: types.UID(uid), Generation: 1, CreationTimestamp: now, Labels: labels,
			Annotations: map[string]string{"kubectl.kubernetes.io/last-applied-configuration": fmt.Sprintf(
				`{"apiVersion":"mintmark.dev/v1alpha1","kind":"ServiceToken","metadata":{"annotations":{},"labels":{"app.kubernetes.io/name":"app-%d"},"name":%q,"namespace":%q},"spec":{"credentialClassName":%q,"permissions":["api:read","deploy:*"]}}`,
				i%500, name, ns, in.class)},
			ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: "kubectl-client-side-apply", Operation: "Update", APIVersion: "mintmark.dev/v1alpha1", Time: &now, FieldsType: "FieldsV1", FieldsV1: fields(
					`{"f:metadata":{"f:annotations":{".":{},"f:kubectl.kubernetes.io/last-applied-configuration":{}},"f:labels":{".":{},"f:app.kubernetes.io/name":{}}},"f:spec":{".":{},"f:credentialClassName":{},"f:permissions":{},"f:rotation":{},"f:secret":{}}}`)},
				{Manager: "mintmark-controller", Operation: "Update", APIVersion: "mintmark.dev/v1alpha1", Time: &now, FieldsType: "FieldsV1", Subresource: "status", FieldsV1: fields(
					`{"f:status":{".":{},"f:conditions":{".":{},"k:{\"type\":\"Propagated\"}":{".":{},"f:lastTransitionTime":{},"f:message":{},"f:reason":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Ready\"}":{".":{},"f:lastTransitionTime":{},"f:message":{},"f:reason":{},"f:status":{},"f:type":{}},"k:{\"type\":\"SecretDelivered\"}":{".":{},"f:lastTransitionTime":{},"f:message":{},"f:reason":{},"f:status":{},"f:type":{}}},"f:currentVersion":{},"f:epoch":{},"f:observedGeneration":{},"f:record":{},"f:seal":{},"f:versions":{}}}`)},
			},
		},
		Spec: v1alpha1.CredentialSpec{CredentialClassName: in.class, Permissions: permissions},
		Status: v1alpha1.CredentialStatus{Record: record, Seal: seal, Epoch: 3, ObservedGeneration: 1, Conditions: []metav1.Condition{
			{Type: "Ready", Status: "True", Reason: "Ready", Message: "version 1 is in the Secret and every server accepts it", LastTransitionTime: now, ObservedGeneration: 1},
			{Type: "SecretDelivered", Status: "True", Reason: "Delivered", Message: "the Secret holds version 1", LastTransitionTime: now, ObservedGeneration: 1},
			{Type: "Propagated", Status: "True", Reason: "Propagated", Message: "every server accepts every live version", LastTransitionTime: now, ObservedGeneration: 1},
		}},
	}
	object, err = json.Marshal(token)
	if err != nil {
		in.t.Fatal(err)
	}
	return "/registry/mintmark.dev/servicetokens/" + ns + "/" + name, object
}

// store writes n credentials straight into etcd, a hundred in a transaction: through the
// API server it would take longer than everything measured.
func (in *installation) store(n int) {
	in.t.Helper()
	url, config, err := in.plane.Etcd()
	if err != nil {
		in.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	type put struct {
		Key   []byte `json:"key"`
		Value []byte `json:"value"`
	}
	type operation struct {
		Put put `json:"request_put"`
	}
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	for first := 0; first < n; first += 100 {
		var txn struct {
			Success []operation `json:"success"`
		}
		for i := first; i < min(first+100, n); i++ {
			key, object := in.stored(i, now)
			txn.Success = append(txn.Success, operation{put{[]byte(key), object}})
		}
		body, err := json.Marshal(txn)
		if err != nil {
			in.t.Fatal(err)
		}
		resp, err := client.Post(url+"/v3/kv/txn", "application/json", bytes.NewReader(body))
		if err != nil {
			in.t.Fatal(err)
		}
		answer, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			in.t.Fatalf("etcd: %s %s %v", resp.Status, answer, err)
		}
	}
}

// listed lists every credential as a typed client does, and tells how long it took.
func (in *installation) listed(n int) time.Duration {
	in.t.Helper()
	c, err := newClients(in.config)
	if err != nil {
		in.t.Fatal(err)
	}
	began, list := time.Now(), new(v1alpha1.ServiceTokenList)
	if err := c.mintmark.rest.Get().Resource("servicetokens").Do(in.t.Context()).Into(list); err != nil {
		in.t.Fatal(err)
	}
	took := time.Since(began)
	if len(list.Items) < n {
		in.t.Fatalf("%d of %d are listed", len(list.Items), n)
	}
	return took
}

// awaitCache waits until the API server has read from etcd what was written there.
func (in *installation) awaitCache(n int) {
	in.t.Helper()
	c, err := newClients(in.config)
	if err != nil {
		in.t.Fatal(err)
	}
	eventually(in.t, 10*time.Minute, "the API server has everything in its cache", func() bool {
		count, next := 0, ""
		for {
			page, err := c.mintmark.slimSource(v1alpha1.KindServiceToken, "servicetokens", "").List(in.t.Context(), metav1.ListOptions{Limit: 5000, Continue: next, ResourceVersion: "0"})
			if err != nil {
				return false
			}
			list := page.(*slimList)
			if count, next = count+len(list.Items), list.Continue; next == "" {
				return count >= n
			}
		}
	})
}

// process is the server as it is installed, on its own.
type process struct {
	pid         int
	index, open time.Duration // from its start until the index was complete, and until it was ready
	resident    int           // bytes, then
	stop        func()
}

// startProcess runs the server's binary until it is ready.
func (in *installation) startProcess(binary string) *process {
	in.t.Helper()
	port := func() string {
		address, err := freeport.FreeAddress()
		if err != nil {
			in.t.Fatal(err)
		}
		return address
	}
	kubeconfig := filepath.Join(in.t.TempDir(), "kubeconfig")
	if err := in.plane.WriteKubeconfig(kubeconfig, in.config); err != nil {
		in.t.Fatal(err)
	}
	internal, probes := port(), port()
	cmd := exec.Command(binary, "--kubeconfig="+kubeconfig, "--namespace="+in.namespace, "--bind-address="+port(), "--internal-bind-address="+internal,
		"--internal-advertise-url=https://"+internal, "--metrics-bind-address="+probes, "--grpc-bind-address="+port(), "--id=scale", "--shutdown-delay=0s")
	var log journal
	cmd.Stdout, cmd.Stderr = &log, &log
	began := time.Now()
	if err := cmd.Start(); err != nil {
		in.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	p := &process{pid: cmd.Process.Pid, stop: func() { _ = cmd.Process.Signal(os.Interrupt); <-ended }}
	eventually(in.t, 5*time.Minute, "the server is ready", func() bool {
		select {
		case <-ended:
			in.t.Fatalf("the server has ended:\n%s", &log)
		default:
		}
		resp, err := http.Get("http://" + probes + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	p.open, p.resident = time.Since(began), in.memory(p.pid, "VmRSS")
	took := regexp.MustCompile(`"everything has been listed".*"took":"([^"]+)"`).FindStringSubmatch(log.String())
	if took == nil {
		in.t.Fatalf("the log does not tell how long the index took:\n%s", &log)
	}
	var err error
	if p.index, err = time.ParseDuration(took[1]); err != nil {
		in.t.Fatal(err)
	}
	return p
}

// memory of a process, in bytes, as the kernel counts it.
func (in *installation) memory(pid int, what string) int {
	in.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		in.t.Fatal(err)
	}
	found := regexp.MustCompile(what + `:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		in.t.Fatalf("no %s in %s", what, status)
	}
	kilobytes, err := strconv.Atoi(string(found[1]))
	if err != nil {
		in.t.Fatal(err)
	}
	return kilobytes << 10
}

// TestAServerStartsAsFastAsItsObjectsAreListed, and in little memory: with 100,000
// credentials in at most 1.3 times what a typed client takes to list them, in the same
// run, and in 150 MB.
func TestAServerStartsAsFastAsItsObjectsAreListed(t *testing.T) {
	const most, mostMemory = 1.3, 150 << 20
	in, n := newInstallation(t), scale(t)
	in.store(n)
	binary := filepath.Join(t.TempDir(), "mintmark-server")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/mintmark-dev/mintmark/cmd/server").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	in.awaitCache(n)
	runtime.GC()
	before := in.listed(n)
	runtime.GC()
	p := in.startProcess(binary)
	defer p.stop()
	after := in.listed(n)
	floor := (before + after) / 2
	ratio := p.index.Seconds() / floor.Seconds()
	t.Logf("%d credentials: a bare typed list takes %s and %s; the index was complete after %s (%.2f times), the server ready after %s with %d MB resident, %d MB at most",
		n, before, after, p.index, ratio, p.open, p.resident>>20, in.memory(p.pid, "VmHWM")>>20)
	if ratio > most {
		t.Errorf("the index takes %.2f times as long as a bare list, at most %.1f is allowed", ratio, most)
	}
	if p.resident > mostMemory && n <= 100_000 {
		t.Errorf("%d MB resident, at most %d are allowed", p.resident>>20, mostMemory>>20)
	}
}
