package main

import (
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

func TestMain(m *testing.M) { controlplane.Main(m) }

func TestSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		env     map[string]string
		args    []string
		check   func(settings) bool
		because string
	}{
		"the server's port is 8443 unless said otherwise": {check: func(s settings) bool { return s.port == 8443 && s.servers == 1 }},
		"the environment chooses": {
			env:   map[string]string{"MINTMARK_PORT": "0", "MINTMARK_SERVERS": "3", "MINTMARK_DEV_DIR": "/tmp/elsewhere"},
			check: func(s settings) bool { return s.port == 0 && s.servers == 3 && s.dir == "/tmp/elsewhere" },
		},
		"a flag wins over the environment": {
			env: map[string]string{"MINTMARK_PORT": "9000"}, args: []string{"--port=9001"},
			check: func(s settings) bool { return s.port == 9001 },
		},
		"a port that is no number is named":  {env: map[string]string{"MINTMARK_PORT": "http"}, because: `MINTMARK_PORT="http"`},
		"a port that is too high is named":   {env: map[string]string{"MINTMARK_API_PORT": "70000"}, because: `MINTMARK_API_PORT="70000"`},
		"a number of servers has its limits": {args: []string{"--servers=10"}, because: "run 1 to 9 (MINTMARK_SERVERS)"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, unset := range []string{"MINTMARK_PORT", "MINTMARK_API_PORT", "MINTMARK_SERVERS", "MINTMARK_DEV_DIR"} {
				t.Setenv(unset, tc.env[unset])
			}
			s, err := parseSettings(tc.args, io.Discard)
			switch {
			case tc.because == "" && err != nil:
				t.Fatal(err)
			case tc.because == "" && !tc.check(s):
				t.Errorf("settings: %+v", s)
			case tc.because != "" && (err == nil || !strings.Contains(err.Error(), tc.because)):
				t.Errorf("the error does not say %q: %v", tc.because, err)
			}
		})
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	var told strings.Builder
	if code := run([]string{"-help"}, io.Discard, &told); code != 0 || !strings.Contains(told.String(), "MINTMARK_PORT") {
		t.Errorf("exit code %d:\n%s", code, &told)
	}
	if code := run([]string{"-servers=10"}, io.Discard, io.Discard); code != 2 {
		t.Errorf("a number of servers that there cannot be: exit code %d", code)
	}
}

func TestPortsAreAllDifferentAndOneInUseIsNamed(t *testing.T) {
	p, err := choosePorts(settings{servers: 3})
	if err != nil {
		t.Fatal(err)
	}
	chosen := map[int]bool{p.webhook: true, p.health: true, p.metrics: true}
	for _, s := range p.servers {
		chosen[s.public], chosen[s.internal], chosen[s.metrics] = true, true, true
	}
	if len(chosen) != 12 || chosen[0] {
		t.Errorf("12 ports are wanted: %v", chosen)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	port := taken.Addr().(*net.TCPAddr).Port
	_, err = choosePorts(settings{port: port, servers: 1})
	if want := "port " + strconv.Itoa(port) + " of 127.0.0.1 is in use"; err == nil || !strings.Contains(err.Error(), want) ||
		!strings.Contains(err.Error(), "MINTMARK_PORT") {
		t.Errorf("the error does not say %q and the remedy: %v", want, err)
	}
}

func TestWhatIsQuotedIsOneWordOfTheShell(t *testing.T) {
	for _, text := range []string{"plain", "with space", "it's", "$HOME `id` \"\\"} {
		out, err := exec.CommandContext(t.Context(), "bash", "-c", "printf %s "+quote(text)).Output()
		if err != nil || string(out) != text {
			t.Errorf("%q becomes %q (%v)", text, out, err)
		}
	}
}

func TestAnIdentityIsTheServiceAccountAndItsTokensAreRenewed(t *testing.T) {
	id := identity{account: "mintmark-controller", dir: t.TempDir(), plane: controlplane.ForTest(t), internal: true}
	if err := id.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	whoami := func() string {
		cfg, err := clientcmd.BuildConfigFromFlags("", id.kubeconfig())
		if err != nil {
			t.Fatal(err)
		}
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		review, err := client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := review.Status.UserInfo.Username; got != "system:serviceaccount:mintmark-system:mintmark-controller" {
			t.Errorf("the API server takes it for %q", got)
		}
		token, err := os.ReadFile(id.token())
		if err != nil {
			t.Fatal(err)
		}
		return string(token)
	}
	first := whoami()
	// The time of issue, in seconds, is all that differs between two tokens.
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(100 * time.Millisecond) {
		if err := id.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if whoami() != first {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a refresh leaves the same token")
		}
	}
	internal, err := os.ReadFile(id.internalToken())
	if err != nil || len(internal) == 0 || string(internal) == first {
		t.Errorf("the token for the servers is missing, or the API server's: %v", err)
	}
	for _, file := range []string{id.kubeconfig(), id.token(), id.internalToken()} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s can be read by others: %v", file, err)
		}
	}
}
