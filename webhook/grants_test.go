package webhook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

func TestWhatHandsACredentialOutAnew(t *testing.T) {
	const (
		a = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
		b = "b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2"
	)
	at := func(year int) *metav1.Time {
		when := metav1.NewTime(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC))
		return &when
	}
	digests := func(d ...string) *v1alpha1.External { return &v1alpha1.External{SHA256: d} }
	networks := func(n ...v1alpha1.CIDR) v1alpha1.CredentialSpec { return v1alpha1.CredentialSpec{AllowedCIDRs: n} }
	audiences := func(a ...string) v1alpha1.CredentialSpec {
		return v1alpha1.CredentialSpec{JWT: &v1alpha1.JWT{Audiences: a}}
	}
	secret := func(policy v1alpha1.ConflictPolicy) v1alpha1.CredentialSpec {
		return v1alpha1.CredentialSpec{Secret: &v1alpha1.SecretTarget{Name: "ci", ConflictPolicy: policy}}
	}
	class := &v1alpha1.CredentialClassSpec{Defaults: v1alpha1.ClassDefaults{JWT: v1alpha1.JWTDefaults{Audiences: []string{"internal"}}}}
	for sentence, test := range map[string]struct {
		before, updated v1alpha1.CredentialSpec
		because         string
	}{
		"nothing changes":                     {},
		"a digest is added":                   {v1alpha1.CredentialSpec{External: digests(a)}, v1alpha1.CredentialSpec{External: digests(a, b)}, "new holder"},
		"a digest is replaced":                {v1alpha1.CredentialSpec{External: digests(a)}, v1alpha1.CredentialSpec{External: digests(b)}, "new holder"},
		"a digest is taken away":              {v1alpha1.CredentialSpec{External: digests(a, b)}, v1alpha1.CredentialSpec{External: digests(b)}, ""},
		"the digests change places":           {v1alpha1.CredentialSpec{External: digests(a, b)}, v1alpha1.CredentialSpec{External: digests(b, a)}, ""},
		"the Secret's own name is written":    {v1alpha1.CredentialSpec{}, secret(v1alpha1.ConflictRefuse), ""},
		"a Secret may now be adopted":         {secret(v1alpha1.ConflictRefuse), secret(v1alpha1.ConflictAdopt), "made elsewhere"},
		"a Secret may no longer be adopted":   {secret(v1alpha1.ConflictAdopt), secret(v1alpha1.ConflictRefuse), ""},
		"the end is later":                    {v1alpha1.CredentialSpec{ExpiresAt: at(2030)}, v1alpha1.CredentialSpec{ExpiresAt: at(2031)}, "later"},
		"the end is taken away":               {v1alpha1.CredentialSpec{ExpiresAt: at(2030)}, v1alpha1.CredentialSpec{}, "later"},
		"the end is sooner":                   {v1alpha1.CredentialSpec{ExpiresAt: at(2030)}, v1alpha1.CredentialSpec{ExpiresAt: at(2029)}, ""},
		"there is an end now":                 {v1alpha1.CredentialSpec{}, v1alpha1.CredentialSpec{ExpiresAt: at(2029)}, ""},
		"a network is added":                  {networks("10.0.0.0/8"), networks("10.0.0.0/8", "192.168.0.0/16"), "wider"},
		"a network grows":                     {networks("10.1.0.0/16"), networks("10.0.0.0/8"), "wider"},
		"a network shrinks":                   {networks("10.0.0.0/8", "::/0"), networks("10.1.0.0/16", "2001:db8::/32"), ""},
		"networks are named":                  {networks(), networks("10.0.0.0/8"), ""},
		"networks are left out":               {networks("10.0.0.0/8"), networks(), "wider"},
		"another family of addresses":         {networks("0.0.0.0/0"), networks("::/0"), "wider"},
		"an audience is added":                {audiences("x"), audiences("x", "y"), "audience"},
		"an audience is taken away":           {audiences("x", "y"), audiences("y"), ""},
		"the class's audience instead":        {audiences("x"), audiences(), "audience"},
		"the class's audience is written out": {audiences(), audiences("internal"), ""},
		"attributes change": {v1alpha1.CredentialSpec{Attributes: map[string]v1alpha1.MetadataValue{"a": "b"}},
			v1alpha1.CredentialSpec{Attributes: map[string]v1alpha1.MetadataValue{"a": "c"}}, "attributes"},
		"attributes that restrict are taken away": {v1alpha1.CredentialSpec{Attributes: map[string]v1alpha1.MetadataValue{"a": "b"}}, v1alpha1.CredentialSpec{}, "attributes"},
		"free-form metadata":                      {v1alpha1.CredentialSpec{}, v1alpha1.CredentialSpec{Metadata: map[string]v1alpha1.MetadataValue{"a": "c"}}, ""},
		"a longer ttl":                            {v1alpha1.CredentialSpec{TTL: "1d"}, v1alpha1.CredentialSpec{TTL: "30d"}, ""},
		"a revocation":                            {v1alpha1.CredentialSpec{}, v1alpha1.CredentialSpec{Revoked: &v1alpha1.Revoked{}}, ""},
		"a revocation taken back":                 {v1alpha1.CredentialSpec{Revoked: &v1alpha1.Revoked{}}, v1alpha1.CredentialSpec{}, "revoked"},
		"a revocation made partial": {v1alpha1.CredentialSpec{Revoked: &v1alpha1.Revoked{}},
			v1alpha1.CredentialSpec{Revoked: &v1alpha1.Revoked{Versions: []int64{1}}}, "revoked"},
		"a partial revocation taken back": {v1alpha1.CredentialSpec{Revoked: &v1alpha1.Revoked{Versions: []int64{1}}}, v1alpha1.CredentialSpec{}, ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			got := handedOutAnew(credentialOf(test.before), credentialOf(test.updated), class)
			if (len(got) == 1) != (test.because != "") || len(got) == 1 && !strings.Contains(got[0], test.because) {
				t.Errorf("because %q, want %q", got, test.because)
			}
		})
	}
}

func TestWhenACredentialIsRevoked(t *testing.T) {
	whole := &v1alpha1.Revoked{Reason: "x"}
	versions := func(states ...v1alpha1.VersionState) (all []v1alpha1.CredentialVersion) {
		for _, state := range states {
			all = append(all, v1alpha1.CredentialVersion{State: state})
		}
		return all
	}
	for sentence, test := range map[string]struct {
		spec   *v1alpha1.Revoked
		status v1alpha1.CredentialStatus
		want   bool
	}{
		"it was never revoked":                     {nil, v1alpha1.CredentialStatus{ObservedGeneration: 2, Versions: versions(v1alpha1.VersionActive)}, false},
		"the controller has not seen it yet":       {whole, v1alpha1.CredentialStatus{ObservedGeneration: 1, Versions: versions(v1alpha1.VersionActive)}, true},
		"the controller has accounted for it":      {whole, v1alpha1.CredentialStatus{ObservedGeneration: 2, Versions: versions(v1alpha1.VersionRevoked)}, true},
		"it has been revived since":                {whole, v1alpha1.CredentialStatus{ObservedGeneration: 2, Versions: versions(v1alpha1.VersionActive, v1alpha1.VersionRevoked)}, false},
		"one version of it was revoked":            {&v1alpha1.Revoked{Versions: []int64{1}}, v1alpha1.CredentialStatus{ObservedGeneration: 2}, false},
		"a Revocation took it":                     {nil, v1alpha1.CredentialStatus{ObservedGeneration: 2, Revocation: &v1alpha1.RevocationStatus{}, Versions: versions(v1alpha1.VersionRevoked)}, true},
		"a Revocation took it and it was replaced": {nil, v1alpha1.CredentialStatus{ObservedGeneration: 2, Revocation: &v1alpha1.RevocationStatus{}, Versions: versions(v1alpha1.VersionPending)}, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			c := credentialOf(v1alpha1.CredentialSpec{Revoked: test.spec})
			c.Generation, c.Status = 2, test.status
			if got := revoked(c); got != test.want {
				t.Errorf("revoked = %v", got)
			}
		})
	}
}

func TestClassHandover(t *testing.T) {
	external := v1alpha1.CredentialClassSpec{
		Rules:          []v1alpha1.ClassRule{{External: true, Permissions: []v1alpha1.Permission{"a"}}},
		ExternalFormat: &v1alpha1.ExternalFormat{Pattern: "x{64}", MinLength: 64},
	}
	for sentence, test := range map[string]struct {
		change func(*v1alpha1.CredentialClassSpec)
		want   []string
	}{
		"nothing changes":                             {func(*v1alpha1.CredentialClassSpec) {}, nil},
		"no selector as an empty one":                 {func(s *v1alpha1.CredentialClassSpec) { s.Rules[0].NamespaceSelector = &metav1.LabelSelector{} }, nil},
		"another shape of what is declared elsewhere": {func(s *v1alpha1.CredentialClassSpec) { s.ExternalFormat.Pattern = ".*" }, []string{"spec.externalFormat"}},
		"a shape that nothing has":                    {func(s *v1alpha1.CredentialClassSpec) { s.Rules[0].External = false; s.ExternalFormat.Pattern = ".*" }, nil},
		"an exception that nothing overlaps":          {func(s *v1alpha1.CredentialClassSpec) { s.Rules[0].Except = []v1alpha1.Permission{"b"} }, nil},
		"a limit where there was none":                {func(s *v1alpha1.CredentialClassSpec) { s.Rules[0].MaxTTL = "1d" }, nil},
	} {
		t.Run(sentence, func(t *testing.T) {
			updated := external.DeepCopy()
			test.change(updated)
			if diff := cmp.Diff(test.want, whats(classHandover(&external, updated).demands)); diff != "" {
				t.Errorf("demands (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever way a spec is reached, what it holds was there at first or has been
// asked for.
func TestNoSeriesOfChangesHandsOutWhatWasNotAskedFor(t *testing.T) {
	specs := rapid.Custom(func(t *rapid.T) v1alpha1.CredentialSpec {
		var s v1alpha1.CredentialSpec
		for _, p := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"*", "a", "a:*", "a:b", "a:b:*", "a:b:c", "b"}), rapid.ID[string]).Draw(t, "permissions") {
			s.Permissions = append(s.Permissions, v1alpha1.Permission(p))
		}
		s.Roles = rapid.SliceOfDistinct(rapid.SampledFrom([]string{"x", "y"}), rapid.ID[string]).Draw(t, "roles")
		s.Admin = rapid.Bool().Draw(t, "admin")
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		chain := rapid.SliceOfN(specs, 2, 5).Draw(t, "chain")
		class := &v1alpha1.CredentialClassSpec{}
		asked := map[string]bool{}
		for i := 1; i < len(chain); i++ {
			h := credentialHandover(credentialOf(chain[i-1]), credentialOf(chain[i]), class)
			afresh := whats(credentialHandover(nil, credentialOf(chain[i]), class).demands)
			for _, what := range whats(h.demands) {
				asked[what] = true
				if !slices.Contains(afresh, what) {
					t.Fatalf("%s is asked for in an update, and would not be on creation", what)
				}
			}
		}
		first, last := chain[0], chain[len(chain)-1]
		for _, p := range last.Permissions {
			known := slices.ContainsFunc(first.Permissions, func(q v1alpha1.Permission) bool { return authz.Covers(string(q), string(p)) })
			for what := range asked {
				var pattern string
				if n, _ := fmt.Sscanf(what, "spec.permissions %q", &pattern); n == 1 && authz.Covers(pattern, string(p)) {
					known = true
				}
			}
			if !known {
				t.Fatalf("%q was neither there nor asked for: %v", p, chain)
			}
		}
		if last.Admin && !first.Admin && !asked["spec.admin"] {
			t.Fatalf("admin was not asked for")
		}
	})
}

func TestAskingIsCheapWhereAllIsAllowed(t *testing.T) {
	spec := v1alpha1.CredentialSpec{CredentialClassName: "default"}
	for i := range 256 {
		spec.Permissions = append(spec.Permissions, v1alpha1.Permission(fmt.Sprintf("r%d:a:b", i%16)+fmt.Sprint(i)))
	}
	h := credentialHandover(nil, credentialOf(spec), &v1alpha1.CredentialClassSpec{})
	unnamed := &reviews{allow: func(a authorizationv1.ResourceAttributes) bool {
		return a.Namespace == "payments" && (a.Name == "" || a.Verb == "use")
	}}
	if refused, err := (&reviewer{api: unnamed}).refused(t.Context(), alice, h.demands); err != nil || len(refused) > 0 || len(unnamed.asked) != 2 {
		t.Errorf("%d reviews for permissions and class, refused %v, %v", len(unnamed.asked), whats(refused), err)
	}
	star := &reviews{allow: func(a authorizationv1.ResourceAttributes) bool { return a.Name == "*" || a.Verb == "use" }}
	if refused, err := (&reviewer{api: star}).refused(t.Context(), alice, h.demands); err != nil || len(refused) > 0 {
		t.Errorf("refused %v, %v", whats(refused), err)
	}
	if want := 1 + 1 + 256 + 16 + 16 + 1; len(star.asked) != want {
		t.Errorf("%d reviews, want %d: each question once", len(star.asked), want)
	}
	if star.most > concurrentReviews {
		t.Errorf("%d reviews at once", star.most)
	}
}

func TestReviewsTellWhoAsks(t *testing.T) {
	api := &reviews{allow: func(authorizationv1.ResourceAttributes) bool { return true }}
	if _, err := (&reviewer{api: api}).refused(t.Context(), alice, []demand{use("payments", "", "accessroles", "ops")}); err != nil {
		t.Fatal(err)
	}
	want := []authorizationv1.SubjectAccessReviewSpec{{
		User: "alice", UID: "7", Groups: []string{"dev"}, Extra: map[string]authorizationv1.ExtraValue{"scopes": {"x"}},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: "payments", Verb: "use", Group: "mintmark.dev", Version: "v1alpha1", Resource: "accessroles", Name: "ops",
		},
	}}
	if diff := cmp.Diff(want, api.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestRecordingTheRevokerRefusesNothing(t *testing.T) {
	for sentence, test := range map[string]struct {
		object string
		want   string
	}{
		"no annotations":      {`{"metadata":{}}`, `{"op":"add","path":"/metadata/annotations","value":{"mintmark.dev/revoked-by":"alice"}}`},
		"other annotations":   {`{"metadata":{"annotations":{"a":"b"}}}`, `{"op":"add","path":"/metadata/annotations/mintmark.dev~1revoked-by","value":"alice"}`},
		"the same revoker":    {`{"metadata":{"annotations":{"mintmark.dev/revoked-by":"alice"}}}`, ""},
		"what cannot be read": {`{"metadata":[]}`, ""},
		"nothing":             {``, ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			request := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{UserInfo: alice, Object: runtime.RawExtension{Raw: []byte(test.object)}}}
			response := recordRevoker(t.Context(), request)
			var patch []string
			for _, p := range response.Patches {
				patch = append(patch, p.Json())
			}
			if !response.Allowed || strings.Join(patch, "") != test.want {
				t.Errorf("allowed %v, patch %s", response.Allowed, patch)
			}
		})
	}
}

func TestNamesAreCutToWhatStatusHolds(t *testing.T) {
	long := strings.Repeat("ü", 300)
	request := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{UserInfo: authenticationv1.UserInfo{Username: "x" + long}}}
	if got := actorOf(request, nil, nil); len(got) > maxActor || len(got) < maxActor-1 || !utf8.ValidString(got) {
		t.Errorf("%d bytes, valid %v", len(got), utf8.ValidString(got))
	}
}

func TestAnErrorAmongTheReviewsAllowsNothing(t *testing.T) {
	broken := errors.New("connection refused")
	api := &reviews{allow: func(authorizationv1.ResourceAttributes) bool { return true }, fail: func(a authorizationv1.ResourceAttributes) error {
		if a.Name == "b" {
			return broken
		}
		return nil
	}}
	demands := []demand{use("", "", "accessroles", "a"), use("", "", "accessroles", "b"), use("", "", "accessroles", "c")}
	if refused, err := (&reviewer{api: api}).refused(t.Context(), alice, demands); !errors.Is(err, broken) || refused != nil {
		t.Errorf("refused %v, %v", whats(refused), err)
	}
}

func TestRefusalsStayReadable(t *testing.T) {
	var refused []demand
	for i := range 12 {
		refused = append(refused, grantPermission("payments", "spec.permissions", fmt.Sprintf("p%d", i)))
	}
	text := refusal("alice", nil, append(refused, patch("payments", "workload", "deployments", "one"), patch("payments", "every workload", "deployments", ""))).Error()
	for _, part := range []string{
		`user "alice" may not hand out spec.permissions "p0", `, " and 4 more: leave it out", "Role in namespace payments",
		`resourceNames: ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9" and 2 more], verbs: [grant]}`,
		"{apiGroups: [apps], resources: [deployments], verbs: [patch]}",
	} {
		if !strings.Contains(text, part) {
			t.Errorf("the refusal does not say %q:\n%s", part, text)
		}
	}
}

var alice = authenticationv1.UserInfo{
	Username: "alice", UID: "7", Groups: []string{"dev"}, Extra: map[string]authenticationv1.ExtraValue{"scopes": {"x"}},
}

func credentialOf(spec v1alpha1.CredentialSpec) *v1alpha1.ServiceToken {
	return &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "ci"}, Spec: spec}
}

func whats(demands []demand) (all []string) {
	for _, d := range demands {
		all = append(all, d.what)
	}
	return all
}

// reviews answers SubjectAccessReviews by a function: to count them, and to
// fail.
type reviews struct {
	authorizationclient.SubjectAccessReviewInterface
	allow func(authorizationv1.ResourceAttributes) bool
	fail  func(authorizationv1.ResourceAttributes) error

	lock          sync.Mutex
	asked         []authorizationv1.SubjectAccessReviewSpec
	running, most int
}

func (r *reviews) Create(_ context.Context, review *authorizationv1.SubjectAccessReview, _ metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error) {
	r.lock.Lock()
	r.asked = append(r.asked, review.Spec)
	r.running++
	r.most = max(r.most, r.running)
	r.lock.Unlock()
	defer func() {
		r.lock.Lock()
		r.running--
		r.lock.Unlock()
	}()
	if r.fail != nil {
		if err := r.fail(*review.Spec.ResourceAttributes); err != nil {
			return nil, err
		}
	}
	answer := review.DeepCopy()
	answer.Status.Allowed = r.allow(*review.Spec.ResourceAttributes)
	return answer, nil
}
