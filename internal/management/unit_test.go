package management

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func TestTheConfigurationNamesWhatIsWrong(t *testing.T) {
	for sentence, tc := range map[string]struct {
		config Config
		says   string
	}{
		"nothing is managed":           {Config{}, ""},
		"a namespace and a class":      {Config{Namespaces: []string{"payments"}, Class: "mintmark-rest"}, ""},
		"all namespaces":               {Config{Namespaces: []string{"*"}, Class: "mintmark-rest"}, ""},
		"a namespace that is no name":  {Config{Namespaces: []string{"Pay ments"}, Class: "mintmark-rest"}, "--management-namespaces"},
		"a namespace without a class":  {Config{Namespaces: []string{"payments"}}, "--management-class"},
		"a class that is no name":      {Config{Namespaces: []string{"payments"}, Class: "Rest!"}, "--management-class"},
		"a class where it matters not": {Config{Class: "Rest!"}, ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			_, err := New(tc.config)
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("it says %v", err)
			}
		})
	}
}

// The table is what guards the operations: none is without a permission, and no two are at
// one place.
func TestTheTableIsWhole(t *testing.T) {
	places, ids := map[string]bool{}, map[string]bool{}
	for _, op := range Operations() {
		if op.Permission == "" || op.Event == "" || op.Name == "" || op.Summary == "" || op.bind == nil || len(op.Paths) == 0 {
			t.Errorf("%s %v is not whole", op.Method, op.Paths)
		}
		if op.Permission != PermissionAuditLog && !strings.HasPrefix(op.Permission, "mintmark:") {
			t.Errorf("%s needs %s, which any class allows", op.Name, op.Permission)
		}
		for _, p := range op.Paths {
			if place := op.Method + " " + p.Path; places[place] || ids[p.ID] {
				t.Errorf("%s (%s) is there twice", place, p.ID)
			}
			places[op.Method+" "+p.Path], ids[p.ID] = true, true
		}
	}
}

func TestWithoutACallerNobodyGetsIn(t *testing.T) {
	if _, err := callerOf(t.Context()); err != error(errUnauthenticated) {
		t.Errorf("no caller: %v", err)
	}
	for _, c := range []*Caller{nil, {}, {Principal: new(authn.Principal)}} {
		if _, err := callerOf(WithCaller(t.Context(), c)); err != error(errUnauthenticated) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// caller is one under a ceiling that allows everything but mintmark:*.
func caller(t *testing.T, permissions ...string) *Caller {
	t.Helper()
	pepper, err := credential.NewPepper("p1", []byte(strings.Repeat("k", 32)))
	if err != nil {
		t.Fatal(err)
	}
	token, err := credential.Format{Kind: v1alpha1.KindAPIKey}.Mint(strings.NewReader(strings.Repeat("abcdefghijklmnop", 64)))
	if err != nil {
		t.Fatal(err)
	}
	index := authn.New(authn.Config{Peppers: credential.Peppers{pepper}})
	if err := index.SetClass("default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"*"}}}}); err != nil {
		t.Fatal(err)
	}
	index.SetNamespace("payments", nil)
	digest := pepper.Digest(token.Inner())
	index.Apply(authn.Live{UID: "u", Kind: v1alpha1.KindAPIKey, Namespace: "payments", Name: "ops", ClassName: "default", Permissions: permissions}, &credential.Record{
		UID: "u", Kind: v1alpha1.KindAPIKey, Namespace: "payments", Name: "ops", Epoch: 1, Class: "default", Permissions: permissions,
		Versions: []credential.SealedVersion{{Number: 1, Digest: digest[:], Pepper: "p1", State: v1alpha1.VersionActive}},
	})
	verdict := index.Verify(token, authn.Request{}, noon)
	if !verdict.OK {
		t.Fatal(verdict.Reason)
	}
	return &Caller{Principal: verdict.Principal, RequestID: "r-1"}
}

func TestAJWTHandsOutNoMoreThanItSays(t *testing.T) {
	c := caller(t, "orders:*", "deploy:write")
	c.Roles = []string{"deployer"}
	scope := authz.NewSet([]string{"orders:read", "payments:*"})
	c.Scope = &scope
	for pattern, want := range map[string]bool{"orders:read": true, "orders:write": false, "orders:*": false, "deploy:write": false, "payments:read": false} {
		if err := c.mayHandOut(false, []string{pattern}, nil, nil); (err == nil) != want {
			t.Errorf("%s: %v", pattern, err)
		}
		if got := c.mayUse(pattern); got != want {
			t.Errorf("mayUse(%s) is %v", pattern, got)
		}
	}
	if c.mayHandOut(false, nil, []string{"deployer"}, nil) != nil || c.mayHandOut(false, nil, []string{"admin"}, nil) == nil {
		t.Error("roles are not those of the JWT")
	}
	if c.mayHandOut(true, nil, nil, nil) == nil || c.mayHandOut(false, nil, nil, map[string]string{"clearance": "secret"}) == nil {
		t.Error("it hands out what it has not")
	}
	if c.tenant().Setting() != "payments" || c.sees("billing") || c.sees("") || !c.sees("payments") {
		t.Error("it sees another tenant")
	}
	c.Administrator = true
	if !c.tenant().All() || !c.sees("billing") || c.mayHandOut(true, nil, nil, nil) == nil {
		t.Error("an administrator does not see everything, or makes another one")
	}
	foreign := &Caller{Principal: &authn.Principal{Identity: &authn.Identity{Subject: "issuer:x"}}}
	if foreign.tenant().Setting() != "" || foreign.sees("") || foreign.sees("payments") {
		t.Error("somebody of another issuer sees something")
	}
}

func TestStatesOfCredentials(t *testing.T) {
	version := func(number int64, state v1alpha1.VersionState) v1alpha1.CredentialVersion {
		return v1alpha1.CredentialVersion{Version: number, State: state, Prefix: "mk"}
	}
	past := metav1.NewTime(noon.Add(-time.Hour))
	whole := &v1alpha1.Revoked{Reason: "leaked"}
	for sentence, tc := range map[string]struct {
		object v1alpha1.APIKey
		want   string
		reason string
	}{
		"just made":            {v1alpha1.APIKey{}, statePending, ""},
		"with a version":       {v1alpha1.APIKey{Status: v1alpha1.CredentialStatus{Versions: []v1alpha1.CredentialVersion{version(1, v1alpha1.VersionActive)}}}, stateActive, ""},
		"past its end":         {v1alpha1.APIKey{Spec: v1alpha1.CredentialSpec{ExpiresAt: &past}, Status: v1alpha1.CredentialStatus{Versions: []v1alpha1.CredentialVersion{version(1, v1alpha1.VersionActive)}}}, stateExpired, ""},
		"version past its":     {v1alpha1.APIKey{Status: v1alpha1.CredentialStatus{Expires: "2026-11-22T11:00:00Z", Versions: []v1alpha1.CredentialVersion{version(1, v1alpha1.VersionActive)}}}, stateExpired, ""},
		"found expired":        {v1alpha1.APIKey{Status: v1alpha1.CredentialStatus{Versions: []v1alpha1.CredentialVersion{version(1, v1alpha1.VersionExpired)}}}, stateExpired, ""},
		"retired and no other": {v1alpha1.APIKey{Status: v1alpha1.CredentialStatus{Versions: []v1alpha1.CredentialVersion{version(1, v1alpha1.VersionRetired)}}}, statePending, ""},
		"revoked just now": {v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Spec: v1alpha1.CredentialSpec{Revoked: whole},
			Status: v1alpha1.CredentialStatus{ObservedGeneration: 1, Versions: []v1alpha1.CredentialVersion{version(1, v1alpha1.VersionActive)}}}, stateRevoked, "leaked"},
		"revoked and accounted for": {v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Spec: v1alpha1.CredentialSpec{Revoked: whole},
			Status: v1alpha1.CredentialStatus{ObservedGeneration: 2, Revocation: &v1alpha1.RevocationStatus{Reason: "leaked", ThroughVersion: 1}}}, stateRevoked, "leaked"},
		"revoked by a Revocation": {v1alpha1.APIKey{Status: v1alpha1.CredentialStatus{Revocation: &v1alpha1.RevocationStatus{Reason: "drill", ThroughVersion: 1},
			Versions: []v1alpha1.CredentialVersion{version(1, v1alpha1.VersionRevoked)}}}, stateRevoked, "drill"},
		"brought back": {v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Spec: v1alpha1.CredentialSpec{Revoked: whole}, Status: v1alpha1.CredentialStatus{ObservedGeneration: 2,
			Revocation: &v1alpha1.RevocationStatus{ThroughVersion: 1}, Versions: []v1alpha1.CredentialVersion{version(2, v1alpha1.VersionActive), version(1, v1alpha1.VersionRevoked)}}}, stateActive, ""},
		"one version revoked": {v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Spec: v1alpha1.CredentialSpec{Revoked: &v1alpha1.Revoked{Reason: "x", Versions: []int64{1}}},
			Status: v1alpha1.CredentialStatus{Versions: []v1alpha1.CredentialVersion{version(2, v1alpha1.VersionActive)}}}, stateActive, ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			got := describe(&tc.object, noon)
			if got.State != tc.want || (got.Revoked != nil) != (tc.reason != "") || got.Revoked != nil && got.Revoked.Reason != tc.reason {
				t.Errorf("it is %s, %+v", got.State, got.Revoked)
			}
		})
	}
}

func TestARotationIsAskedForLaterThanAnyBefore(t *testing.T) {
	a := &API{config: Config{Now: func() time.Time { return noon.Add(400 * time.Millisecond) }}}
	handled := metav1.NewMicroTime(noon.Add(time.Hour + 7*time.Microsecond))
	for sentence, tc := range map[string]struct {
		object v1alpha1.APIKey
		want   string
	}{
		"the first":         {v1alpha1.APIKey{}, "2026-11-22T12:00:00Z"},
		"after one handled": {v1alpha1.APIKey{Status: v1alpha1.CredentialStatus{Handled: &v1alpha1.HandledRequests{Rotate: &handled}}}, "2026-11-22T13:00:00.001Z"},
		"after one asked for in the same second": {v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
			v1alpha1.AnnotationRotateRequestedAt: "2026-11-22T12:00:00Z"}}}, "2026-11-22T12:00:00.001Z"},
		"after one that cannot be read": {v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationRotateRequestedAt: "soon"}}}, "2026-11-22T12:00:00Z"},
	} {
		t.Run(sentence, func(t *testing.T) {
			patch := a.askForRotation(&tc.object, &RotateRequest{})
			want := map[string]any{"metadata": map[string]any{"annotations": map[string]any{v1alpha1.AnnotationRotateRequestedAt: tc.want, v1alpha1.AnnotationReason: nil}}}
			if diff := cmp.Diff(want, patch); diff != "" {
				t.Errorf("the patch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEntityTags(t *testing.T) {
	for _, tc := range []struct {
		header       string
		weak, strong bool
	}{
		{`"7"`, true, true}, {`*`, true, true}, {`W/"7"`, true, false}, {`"6", "7"`, true, true}, {`"6"`, false, false}, {`7`, false, false}, {``, false, false}, {`"7`, false, false},
	} {
		if got := anyETag(tc.header, `"7"`); got != tc.weak {
			t.Errorf("anyETag(%s) is %v", tc.header, got)
		}
		if got := strongMatch(tc.header, `"7"`); got != tc.strong {
			t.Errorf("strongMatch(%s) is %v", tc.header, got)
		}
	}
}

func TestProblemsRepeatNoSecretAndNothingFromInside(t *testing.T) {
	secret := "sk_live_" + strings.Repeat("5eed", 16)
	for _, err := range []error{unmarshal([]byte(`{"a":`+secret+`}`), new(map[string]any)), unmarshal([]byte(`{"a":"`+secret+`"}`), new(struct{ A int })),
		unmarshal([]byte(`{"`+secret+`":1,"`+secret+`":2}`), new(map[string]any))} {
		if err == nil {
			t.Error("it was read")
		}
		if got := newError(http.StatusBadRequest, "validation failed", &huma.ErrorDetail{Location: "body", Message: err.Error(), Value: secret}); strings.Contains(got.Error(), "5eed5eed") {
			t.Errorf("it says %q", got)
		}
	}
	if got := newError(http.StatusInternalServerError, secret); got.Error() != errInternal.Detail {
		t.Errorf("it says %q", got)
	}
}

// What a caller sends by name and value is taken apart without a panic, and what is put
// together again is what was sent.
func FuzzPairs(f *testing.F) {
	for _, seed := range []string{"team=payments", "=", "a=", "=b", "a=b=c", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		all, err := pairs("label", []string{text})
		if err != nil {
			return
		}
		for key, value := range all {
			if key == "" || key+"="+value != text {
				t.Errorf("%q became %q=%q", text, key, value)
			}
		}
	})
}

func FuzzIdempotencyKey(f *testing.F) {
	for _, seed := range []string{"a", `"a"`, `"`, `""`, "a b"} {
		f.Add(seed, "create", "u")
	}
	f.Fuzz(func(t *testing.T, key, operation, uid string) {
		c := &Caller{Principal: &authn.Principal{Identity: &authn.Identity{UID: uid}}}
		one, err := (&IdempotencyInput{Key: key}).once(c, operation, "x")
		if err != nil || (one == nil) != (key == "" || key == `""`) {
			t.Fatal(one, err)
		}
		if one == nil {
			return
		}
		marks := map[string]string{}
		one.mark(marks)
		other, err := (&IdempotencyInput{Key: key}).once(c, operation, "y")
		if err != nil || !one.marks(marks) || one.check(marks) != nil || other.marks(marks) || other.check(marks) == nil {
			t.Errorf("%q: the same request is not known again, or another one is", key)
		}
		elsewhere, err := (&IdempotencyInput{Key: key}).once(c, operation+"!", "x")
		if err != nil || elsewhere.marks(marks) || elsewhere.check(marks) != nil {
			t.Errorf("%q: another operation's is taken for it", key)
		}
	})
}
