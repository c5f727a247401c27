package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

func microTime(s string) *metav1.MicroTime {
	m := metav1.NewMicroTime(at(s))
	return &m
}

func TestRequestTimesGoForward(t *testing.T) {
	const now = "2026-11-22T07:00:05.7Z"
	for _, c := range []struct {
		name       string
		handled    string
		annotation string
		want       string
	}{
		{"the API server's time, to the second", "", "", "2026-11-22T07:00:05Z"},
		{"past what was handled", "2026-11-22T06:00:00Z", "2026-11-22T06:00:00Z", "2026-11-22T07:00:05Z"},
		{"later than a request handled in the same second", "2026-11-22T07:00:05Z", "2026-11-22T07:00:05Z", "2026-11-22T07:00:05.001Z"},
		{"later than one handled a moment ago", "2026-11-22T07:00:05.3Z", "", "2026-11-22T07:00:05.301Z"},
		{"later than one of another tool, with microseconds", "2026-11-22T07:00:05.300001Z", "", "2026-11-22T07:00:05.301Z"},
		{"later than one that lies ahead", "2026-11-22T07:10:00Z", "", "2026-11-22T07:10:00.001Z"},
		{"later than one not handled yet", "", "2026-11-22T07:00:05.5+00:00", "2026-11-22T07:00:05.501Z"},
		{"as if an annotation that is no time were not there", "", "yesterday", "2026-11-22T07:00:05Z"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &v1alpha1.ServiceToken{}
			if c.annotation != "" {
				o.Annotations = map[string]string{v1alpha1.AnnotationRotateRequestedAt: c.annotation}
			}
			if c.handled != "" {
				o.Status.Handled = &v1alpha1.HandledRequests{Rotate: microTime(c.handled)}
			}
			got := rotateLever.nextTime(o, at(now))
			if got.Format(time.RFC3339Nano) != c.want {
				t.Errorf("got %s, want %s", got.Format(time.RFC3339Nano), c.want)
			}
			if !got.After(rotateLever.handledAt(o)) || !got.After(rotateLever.requestedAt(o)) {
				t.Error("it would not act")
			}
		})
	}
}

func TestPendingRequests(t *testing.T) {
	handled := &v1alpha1.HandledRequests{Rotate: microTime("2026-11-22T07:00:00Z")}
	for _, c := range []struct {
		name       string
		annotation string
		handled    *v1alpha1.HandledRequests
		want       bool
	}{
		{"no request", "", handled, false},
		{"carried out", "2026-11-22T07:00:00Z", handled, false},
		{"an older value put back", "2026-11-22T06:00:00Z", handled, false},
		{"not carried out yet", "2026-11-22T07:00:00.000001Z", handled, true},
		{"the first request", "2026-11-22T07:00:00Z", &v1alpha1.HandledRequests{}, true},
		{"what a new credential carries is its baseline", "2026-11-22T07:00:00Z", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationRotateRequestedAt: c.annotation}}}
			o.Status.Handled = c.handled
			if got := rotateLever.pending(o); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestLiveVersions(t *testing.T) {
	versions := []v1alpha1.CredentialVersion{
		{Version: 3, State: v1alpha1.VersionActive}, {Version: 2, State: v1alpha1.VersionSuperseded}, {Version: 1, State: v1alpha1.VersionRetired},
	}
	whole := &v1alpha1.Revoked{Reason: "r"}
	for _, c := range []struct {
		name       string
		revoked    *v1alpha1.Revoked
		revocation *v1alpha1.RevocationStatus
		live       int
		isRevoked  bool
	}{
		{"nothing is revoked", nil, nil, 2, false},
		{"one version is", &v1alpha1.Revoked{Versions: []int64{2}, Reason: "r"}, nil, 2, false},
		{"revoked a moment ago", whole, nil, 0, true},
		{"revoked, and accounted for", whole, &v1alpha1.RevocationStatus{ThroughVersion: 3}, 0, true},
		{"revoked by a Revocation", nil, &v1alpha1.RevocationStatus{ThroughVersion: 3}, 0, true},
		{"revived since", whole, &v1alpha1.RevocationStatus{ThroughVersion: 2}, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &v1alpha1.ServiceToken{Spec: v1alpha1.CredentialSpec{Revoked: c.revoked}}
			o.Status.Versions, o.Status.Revocation = versions, c.revocation
			if got := len(liveVersions(o)); got != c.live {
				t.Errorf("%d live, want %d", got, c.live)
			}
			if got := isRevoked(o); got != c.isRevoked {
				t.Errorf("isRevoked: %v", got)
			}
		})
	}
}

func TestServerClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := newServerClock()
		local := time.Now().UTC()
		if now, ok := clock.now(); ok || !now.Equal(local.Truncate(time.Second)) {
			t.Errorf("before any answer it is %s, %v", now, ok)
		}
		for _, c := range []struct {
			name   string
			header string
			took   time.Duration
			ahead  time.Duration
		}{
			{"the same time", local.Format(http.TimeFormat), 0, 0},
			{"no Date", "", 0, 0},
			{"an hour ahead", local.Add(time.Hour).Format(http.TimeFormat), 0, time.Hour},
			{"an hour behind", local.Add(-time.Hour).Format(http.TimeFormat), 0, -time.Hour + time.Second},
			{"a slow answer explains a difference", local.Add(3 * time.Second).Format(http.TimeFormat), 5 * time.Second, 0},
		} {
			transport := clock.wrap(roundTripper(func(*http.Request) (*http.Response, error) {
				time.Sleep(c.took)
				header := http.Header{}
				if c.header != "" {
					header.Set("Date", c.header)
				}
				return &http.Response{Header: header}, nil
			}))
			if _, err := transport.RoundTrip(nil); err != nil {
				t.Fatal(err)
			}
			if got := clock.ahead(); got != c.ahead {
				t.Errorf("%s: ahead %s, want %s", c.name, got, c.ahead)
			}
		}
		before, _ := clock.now()
		time.Sleep(90 * time.Second)
		after, ok := clock.now()
		if !ok || after.Sub(before) != 90*time.Second {
			t.Errorf("90 s later it is %s later", after.Sub(before))
		}
		failing := clock.wrap(roundTripper(func(*http.Request) (*http.Response, error) { return nil, io.EOF }))
		if _, err := failing.RoundTrip(nil); !errors.Is(err, io.EOF) {
			t.Errorf("the error was swallowed: %v", err)
		}
	})
}

func TestPublicPart(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"a name", "ci-deploy", `"ci-deploy"`},
		{"a prefix", "sk_live_0a1b", `"sk_live_0a1b"`},
		{"the prefix of an API key", "mk4Tq9Zx", `"mk4Tq9Zx"`},
		{"a whole service token", "sk_live_" + strings.Repeat("0123", 16), `"sk_live_0123…"`},
		{"a whole service token without environment", "sk_" + strings.Repeat("0123", 16), `"sk_0123…"`},
		{"a whole API key", "mk4Tq9Zx." + strings.Repeat("A", 49), `"mk4Tq9Zx…"`},
		{"half of one", "mk4Tq9Zx." + strings.Repeat("A", 20), `"mk4Tq9Zx…"`},
		{"a whole API key without its end", "mk4Tq9Zx." + strings.Repeat("A", 45), `"mk4Tq9Zx…"`},
		{"a secret of some other kind", "ghp_" + strings.Repeat("Ab3", 12), `"ghp_Ab3A…"`},
		{"a JWT", "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln", `"eyJhbGci…"`},
		{"a control character", "a\x1b[31m", `"a\x1b[31m"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := publicPart(c.in); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestCompareValues(t *testing.T) {
	for _, c := range []struct {
		a, b any
		want int
	}{
		{int64(9), int64(10), -1},
		{int64(10), 9.5, 1},
		{int64(1), 1.0, 0},
		{"2026-01-01T00:00:00Z", "Never", -1},
		{"b", "a", 1},
		{nil, "a", 1},
		{"a", nil, -1},
		{nil, nil, 0},
		{true, false, 1},
	} {
		if got := compareValues(c.a, c.b); got != c.want {
			t.Errorf("compareValues(%v, %v) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestExplain(t *testing.T) {
	resource := schema.GroupResource{Group: "mintmark.dev", Resource: "servicetokens"}
	served := apierrors.NewGenericServerResponse(404, "get", schema.GroupResource{}, "", "", 0, true)
	for _, c := range []struct {
		name string
		err  error
		want string
		not  string
	}{
		{"a missing object", apierrors.NewNotFound(resource, "x"), "it does not exist", "install"},
		{"a missing resource", served, "install Mintmark, or see what is missing with 'mintmark doctor'", "does not exist"},
		{"RBAC", apierrors.NewForbidden(resource, "x", errors.New(`User "u" cannot get resource`)), "kubectl create rolebinding", ""},
		{"admission", apierrors.NewForbidden(resource, "x", errors.New("you may not hand this out")), "you may not hand this out", "rolebinding"},
		{"a login that lapsed", apierrors.NewUnauthorized("no"), "log in again", ""},
		{"a server that is gone", errors.New("connection refused"), "the API server cannot be reached: ", "install"},
		{"anything else", apierrors.NewInternalError(errors.New("etcd")), "etcd", "reached"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := explain(fmt.Errorf("wrapped: %w", c.err), "reading", "ServiceToken a/b")
			if !strings.HasPrefix(err.Error(), "reading ServiceToken a/b: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q", err)
			}
			if c.not != "" && strings.Contains(err.Error(), c.not) {
				t.Errorf("got %q, which talks of %q", err, c.not)
			}
			if !errors.Is(err, c.err) {
				t.Error("the cause is lost")
			}
		})
	}
	if explain(nil, "", "") != nil || !errors.Is(explain(context.Canceled, "", ""), context.Canceled) {
		t.Error("nil and an interruption are nothing to explain")
	}
}

// What doctor compares is what is in the repository: the types and their CRDs.
func TestSchemasMatchTheTypes(t *testing.T) {
	for _, r := range crdTypes {
		data, err := os.ReadFile(filepath.Join("..", "..", "config", "crd", "bases", "mintmark.dev_"+r.plural+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(data, &crd); err != nil {
			t.Fatal(err)
		}
		if missing, unknown := compareSchema(r.object, crd.Spec.Versions[0].Schema); len(missing)+len(unknown) > 0 {
			t.Errorf("%s: missing %v, unknown %v", r.plural, missing, unknown)
		}
	}
	if missing, _ := compareSchema(crdTypes[0].object, nil); !cmp.Equal(missing, []string{"schema"}) {
		t.Errorf("without a schema %v is missing", missing)
	}
	empty := &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{}}
	if missing, _ := compareSchema(crdTypes[0].object, empty); !cmp.Equal(missing, []string{"spec", "status"}) {
		t.Errorf("of an empty schema %v is missing", missing)
	}
	bare := &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
		Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": {}, "status": {}},
	}}
	if missing, _ := compareSchema(crdTypes[0].object, bare); len(missing) != maxFields+1 || missing[maxFields] != "..." {
		t.Errorf("many missing fields are told as %v", missing)
	}
}

func TestReasonsHaveALimit(t *testing.T) {
	long := strings.Repeat("x", maxReason+1)
	for _, args := range [][]string{
		{"rotate", "stok/a", "--reason", long}, {"revoke", "stok/a", "--reason", long},
		{"rollback", "stok/a", "--reason", long}, {"discard", "stok/a", "--reason", long},
	} {
		var stderr strings.Builder
		code := Run(t.Context(), Config{Streams: genericiooptions.IOStreams{In: strings.NewReader(""), Out: io.Discard, ErrOut: &stderr}}, args)
		if code != exitUsage || !strings.Contains(stderr.String(), "--reason has 1025 bytes: at most 1024 are kept") {
			t.Errorf("%s: exit %d, %s", args[0], code, &stderr)
		}
	}
}

func TestNothingThatPeopleWriteCommandsTheTerminal(t *testing.T) {
	o := &v1alpha1.ServiceToken{}
	o.Name, o.Namespace = "ci", "payments"
	o.Spec.Description, o.Spec.Owner = "red \x1b[31m \u009b31m turned \u202e hidden \u200b", "amy\rbob"
	var out, errOut strings.Builder
	if err := describe(&out, o, at("2026-11-22T07:00:00Z")); err != nil {
		t.Fatal(err)
	}
	a := newApp(Config{Streams: genericiooptions.IOStreams{Out: io.Discard, ErrOut: &errOut}})
	if err := printSelected([]v1alpha1.Credential{o}, a.ErrOut); err != nil {
		t.Fatal(err)
	}
	a.note("%s", o.Spec.Description)
	for _, text := range []string{out.String(), errOut.String()} {
		if strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) || !strings.Contains(text, `turned \u202e`) {
			t.Errorf("it writes %q", text)
		}
	}
}

// Wrong usage is told by exit code 2, and repeats no key that stands where a name should.
func TestTooManyArgumentsAreWrongUsage(t *testing.T) {
	key := "sk_" + strings.Repeat("0123", 16)
	for _, args := range [][]string{
		{"list", "stok", key}, {"create", "stok", "a", key}, {"logs", "stok", "a", key}, {"analytics", "stok", "a", key}, {"doctor", key}, {"help", key},
	} {
		var stderr strings.Builder
		code := Run(t.Context(), Config{Streams: genericiooptions.IOStreams{In: strings.NewReader(""), Out: io.Discard, ErrOut: &stderr}}, args)
		if code != exitUsage || !strings.Contains(stderr.String(), `"sk_0123…"`) || strings.Contains(stderr.String(), key) {
			t.Errorf("%s: exit %d, %s", args[0], code, &stderr)
		}
	}
}

func TestWhatPeopleWrite(t *testing.T) {
	if got, want := words([]string{"a:b, c", "d\te\n", ","}), []string{"a:b", "c", "d", "e"}; !cmp.Equal(got, want) {
		t.Errorf("words: %v", got)
	}
	got, err := pairs("label", []string{"a=b, c=d", "e=f=g", "h="})
	if want := map[string]string{"a": "b", "c": "d", "e": "f=g", "h": ""}; err != nil || !cmp.Equal(got, want) {
		t.Errorf("pairs: %v, %v", got, err)
	}
	for in, want := range map[string]string{
		"2027-01-31":                "2027-01-31T23:59:59Z",
		"2027-01-31T18:00:00+02:00": "2027-01-31T16:00:00Z",
		"2027-01-31T18:00:00.9Z":    "2027-01-31T18:00:00Z",
	} {
		if got, err := parseTime("expires-at", in); err != nil || got.Format(time.RFC3339Nano) != want {
			t.Errorf("%s is read as %s, %v", in, got, err)
		}
	}
	if got := shorten("a description that goes on and on", 14); got != "a description…" {
		t.Errorf("shortened to %q", got)
	}
}

// apiServer is a Kubernetes API for faults a real one does not make on demand.
func apiServer(t *testing.T, handler http.HandlerFunc) (app *app, stdout, stderr *strings.Builder) {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	stdout, stderr = new(strings.Builder), new(strings.Builder)
	app = newApp(Config{
		Streams: genericiooptions.IOStreams{In: strings.NewReader(""), Out: stdout, ErrOut: stderr},
		Getenv:  func(string) string { return "" },
	})
	*app.kube.KubeConfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(*app.kube.KubeConfig, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	*app.kube.APIServer = s.URL
	return app, stdout, stderr
}

func writeObject(w http.ResponseWriter, code int, o any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(o)
}

// Two people pull a lever at the same moment: the second starts again from what
// the first wrote, so that its time is the later one.
func TestLeverStartsAgainOnConflict(t *testing.T) {
	stored := &v1alpha1.ServiceToken{
		TypeMeta:   metav1.TypeMeta{APIVersion: "mintmark.dev/v1alpha1", Kind: "ServiceToken"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "c", UID: "u", ResourceVersion: "2"},
	}
	theirs := time.Now().UTC().Truncate(time.Second).Add(2 * time.Second)
	stored.Annotations = map[string]string{v1alpha1.AnnotationRotateRequestedAt: theirs.Format(time.RFC3339)}
	var patches []map[string]any
	app, _, _ := apiServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			writeObject(w, 200, stored)
			return
		}
		var patch map[string]any
		if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
			t.Error(err)
		}
		patches = append(patches, patch["metadata"].(map[string]any))
		if len(patches) == 1 {
			writeObject(w, 409, apierrors.NewConflict(schema.GroupResource{Resource: "servicetokens"}, "c", errors.New("changed")).Status())
			return
		}
		writeObject(w, 200, stored)
	})
	c, err := app.cluster()
	if err != nil {
		t.Fatal(err)
	}
	read := stored.DeepCopy()
	read.ResourceVersion, read.Annotations = "1", nil
	_, when, err := rotateLever.pull(t.Context(), c, read, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(patches) != 2 || patches[0]["resourceVersion"] != "1" || patches[1]["resourceVersion"] != "2" {
		t.Fatalf("patches: %v", patches)
	}
	if !when.After(theirs) {
		t.Errorf("the time %s is not later than theirs, %s", when, theirs)
	}
	if reason, ok := patches[1]["annotations"].(map[string]any)[v1alpha1.AnnotationReason]; !ok || reason != nil {
		t.Error("a former reason is not taken away")
	}
	// Made again under its name, it is another credential.
	patches, stored.UID = nil, "another"
	if _, _, err := rotateLever.pull(t.Context(), c, read, ""); err == nil || !strings.Contains(err.Error(), "was deleted and made again") {
		t.Errorf("error: %v", err)
	}
}

// A credential that was created is waited for, and its value printed, also where the API
// server is restarted in between.
func TestWaitingOutlastsAnAPIServerThatIsAwayForAMoment(t *testing.T) {
	stored := &v1alpha1.ServiceToken{
		TypeMeta:   metav1.TypeMeta{APIVersion: "mintmark.dev/v1alpha1", Kind: "ServiceToken"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "c", UID: "u", Generation: 1},
	}
	stored.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", ObservedGeneration: 1}}
	answers := []int{500, 503, 200}
	app, _, stderr := apiServer(t, func(w http.ResponseWriter, _ *http.Request) {
		code := answers[0]
		if answers = answers[1:]; code != 200 {
			writeObject(w, code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Message: "starting", Code: int32(code)})
			return
		}
		writeObject(w, code, stored)
	})
	c, err := app.cluster()
	if err != nil {
		t.Fatal(err)
	}
	ready, err := c.awaitReady(t.Context(), stored, time.Minute, app)
	if err != nil || ready.GetUID() != "u" {
		t.Fatalf("%v, %v", ready, err)
	}
	if !strings.Contains(stderr.String(), "reading ServiceToken n/c: ") || !strings.Contains(stderr.String(), "trying again") {
		t.Errorf("it does not tell what is the matter:\n%s", stderr)
	}
}

func TestDoctorOnAnOldClusterWithAnotherClock(t *testing.T) {
	for _, c := range []struct {
		name string
		skew time.Duration
		want string
	}{
		{"ahead", -time.Hour, "! clock        this machine's clock is 1h0m0s ahead of the API server's"},
		{"behind", time.Hour, "! clock        this machine's clock is 1h0m0s behind the API server's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			app, stdout, _ := apiServer(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Date", time.Now().Add(c.skew).UTC().Format(http.TimeFormat))
				if r.URL.Path == "/version" {
					writeObject(w, 200, map[string]string{"gitVersion": "v1.20.3-eks", "major": "1", "minor": "20"})
					return
				}
				http.NotFound(w, r)
			})
			o := &doctorOptions{app: app, systemNamespace: DefaultNamespace}
			err := o.run(t.Context())
			var exit *exitError
			if !errors.As(err, &exit) || exit.code != 1 {
				t.Errorf("ended with %v", err)
			}
			for _, want := range []string{
				"is v1.20.3-eks: too old", "→ Mintmark needs Kubernetes 1.30.0 or later", c.want,
				"✗ resources    CustomResourceDefinition servicetokens.mintmark.dev does not exist", "Not sound: ",
			} {
				// The skew is told to the second.
				got := strings.NewReplacer("59m59s", "1h0m0s", "1h0m1s", "1h0m0s").Replace(stdout.String())
				if !strings.Contains(got, want) {
					t.Errorf("doctor does not say %q:\n%s", want, stdout)
				}
			}
		})
	}
}

// The guide names every command and every flag of its own.
func TestGuideIsComplete(t *testing.T) {
	guide := ""
	for _, page := range []string{"cli.md", "import.md"} {
		data, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		guide += string(data)
	}
	for _, c := range New(Config{}).Commands() {
		if c.GroupID != "" {
			checkGuide(t, guide, c)
		}
	}
}

func checkGuide(t *testing.T, guide string, c *cobra.Command) {
	t.Helper()
	name := strings.TrimPrefix(c.CommandPath(), "mintmark ")
	if !strings.Contains(guide, "mintmark "+name) {
		t.Errorf("the guide does not tell of mintmark %s", name)
	}
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" && !strings.Contains(guide, "--"+f.Name) {
			t.Errorf("the guide does not tell of mintmark %s --%s", name, f.Name)
		}
	})
	for _, sub := range c.Commands() {
		checkGuide(t, guide, sub)
	}
}

// Every command explains itself, with examples that run: their flags exist.
func TestHelp(t *testing.T) {
	for _, c := range New(Config{}).Commands() {
		if c.GroupID == "" {
			continue
		}
		checkHelp(t, c)
		for _, sub := range c.Commands() {
			checkHelp(t, sub)
		}
	}
}

func checkHelp(t *testing.T, c *cobra.Command) {
	t.Helper()
	if c.Short == "" || c.Long == "" || c.Example == "" {
		t.Errorf("%s lacks a text or an example", c.CommandPath())
	}
	for _, line := range strings.Split(c.Example, "\n") {
		checkExample(t, c, line)
	}
}

func checkExample(t *testing.T, c *cobra.Command, line string) {
	t.Helper()
	_, rest, ok := strings.Cut(line, c.CommandPath()+" ")
	if !ok || strings.HasPrefix(strings.TrimSpace(line), "#") {
		return
	}
	for _, word := range strings.Fields(rest) {
		if word == "|" || word == ">" {
			return
		}
		name, _, _ := strings.Cut(strings.TrimRight(word, ")"), "=")
		if long, ok := strings.CutPrefix(name, "--"); ok && c.Flag(long) == nil {
			t.Errorf("an example of mintmark %s uses --%s, which is not there", c.Name(), long)
		}
	}
}
