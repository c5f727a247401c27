package controllers

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

func TestAServiceTokenIsMintedInThreeWrites(t *testing.T) {
	c := newCluster(t)
	p := c.start(nil, nil)
	token := c.token("ci")
	c.ready(token)

	secret := c.secret("ci")
	value := string(secret.Data["token"])
	if parsed, err := credential.Parse(value); err != nil || !strings.HasPrefix(value, "sk_test_") || parsed.Kind() != v1alpha1.KindServiceToken {
		t.Errorf("the Secret does not carry a service token of the class's environment (%v)", err)
	}
	if string(secret.Data["version"]) != "1" || len(secret.Data) != 2 {
		t.Errorf("the Secret's keys are %v", keys(secret.Data))
	}
	if !metav1.IsControlledBy(secret, token) || secret.Type != corev1.SecretTypeOpaque {
		t.Errorf("the Secret is not an Opaque one of the token's: %+v", secret.ObjectMeta)
	}
	var changes []string
	for _, w := range p.writes.all() {
		if !strings.Contains(w, "/events") {
			changes = append(changes, w)
		}
	}
	want := []string{
		"PUT /apis/mintmark.dev/v1alpha1/namespaces/" + c.namespace + "/servicetokens/ci/status",
		"POST /api/v1/namespaces/" + c.namespace + "/secrets",
		"PUT /apis/mintmark.dev/v1alpha1/namespaces/" + c.namespace + "/servicetokens/ci/status",
	}
	if !slices.Equal(changes, want) {
		t.Errorf("a mint makes these writes:\n%s\nnot these:\n%s", strings.Join(changes, "\n"), strings.Join(want, "\n"))
	}
	if text := string(mustJSON(t, token)); strings.Contains(text, value) || strings.Contains(text, value[8:]) {
		t.Error("the value is in the object")
	}
}

func TestAnAPIKeyIsDeliveredUnderItsOwnKey(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	key := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "partner"}, Spec: v1alpha1.CredentialSpec{
		CredentialClassName: c.class, Permissions: []v1alpha1.Permission{"orders:read"},
		Secret: &v1alpha1.SecretTarget{Name: "partner-key", Template: &v1alpha1.SecretTemplate{
			Data:     map[string]v1alpha1.TemplateText{".netrc": "password {{ .token }}"},
			Metadata: &v1alpha1.TemplateMetadata{Labels: map[string]string{"team": "orders"}},
		}},
	}}
	if err := c.client.Create(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	c.ready(key)
	secret := c.secret("partner-key")
	value := string(secret.Data["api-key"])
	if parsed, err := credential.Parse(value); err != nil || parsed.Kind() != v1alpha1.KindAPIKey || parsed.Prefix() != key.Status.Versions[0].Prefix {
		t.Errorf("the Secret does not carry an API key with the prefix in status (%v)", err)
	}
	if got := string(secret.Data[".netrc"]); got != "password "+value {
		t.Error("the template was not rendered with the value")
	}
	if secret.Labels["team"] != "orders" {
		t.Error("the template's label is missing")
	}
}

func TestWhatATemplateNoLongerGivesIsTakenAway(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	metadata := &v1alpha1.TemplateMetadata{Labels: map[string]string{"team": "a", "tier": "b"}, Annotations: map[string]string{"note": "x"}}
	token := c.token("ci", func(s *v1alpha1.CredentialSpec) {
		s.Secret = &v1alpha1.SecretTarget{Template: &v1alpha1.SecretTemplate{Metadata: metadata}}
	})
	c.ready(token)
	secret := c.secret("ci")
	secret.Labels["mine"] = "kept"
	if err := c.client.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	c.read(token)
	token.Spec.Secret.Template.Metadata = &v1alpha1.TemplateMetadata{Labels: map[string]string{"tier": "c"}}
	if err := c.client.Update(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	c.eventually(secret, "the labels of the new template", func() bool { return secret.Labels["tier"] == "c" })
	_, team := secret.Labels["team"]
	_, note := secret.Annotations["note"]
	if team || note || secret.Labels["mine"] != "kept" || secret.Labels[v1alpha1.LabelManaged] != "true" {
		t.Errorf("labels %v, annotations %v", secret.Labels, keys(secret.Annotations))
	}
}

func TestARotationKeepsThePreviousValueUntilTheOverlapIsOver(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	token := c.token("ci", func(s *v1alpha1.CredentialSpec) {
		s.Rotation = &v1alpha1.Rotation{Overlap: "2s", Retire: v1alpha1.RetireAfterOverlap}
	})
	c.ready(token)
	first := string(c.secret("ci").Data["token"])
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "version 2", func() bool { return token.Status.CurrentVersion == 2 })
	secret := c.secret("ci")
	if string(secret.Data["token.previous"]) != first || string(secret.Data["version.previous"]) != "1" || string(secret.Data["version"]) != "2" {
		t.Errorf("the previous value is not in the Secret: %v", keys(secret.Data))
	}
	if second := string(secret.Data["token"]); second == first || second == "" {
		t.Error("the value is the same")
	}
	c.eventually(token, "version 1 retired", func() bool { return state(token, 1) == v1alpha1.VersionRetired })
	if secret := c.secret("ci"); len(secret.Data["token.previous"]) > 0 {
		t.Error("a retired value is still in the Secret")
	}
}

func TestARollbackSwapsTheValuesAndADiscardEndsTheOther(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	token := c.token("ci")
	c.ready(token)
	first := string(c.secret("ci").Data["token"])
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "version 2", func() bool { return token.Status.CurrentVersion == 2 })
	second := string(c.secret("ci").Data["token"])
	c.annotate(token, v1alpha1.AnnotationRollbackRequestedAt)
	c.eventually(token, "version 1 again", func() bool { return token.Status.CurrentVersion == 1 && state(token, 2) == v1alpha1.VersionSuperseded })
	secret := c.secret("ci")
	if string(secret.Data["token"]) != first || string(secret.Data["token.previous"]) != second || string(secret.Data["version"]) != "1" {
		t.Errorf("the values were not swapped: versions %s and %s", secret.Data["version"], secret.Data["version.previous"])
	}
	c.annotate(token, v1alpha1.AnnotationDiscardRequestedAt)
	c.eventually(token, "version 2 retired", func() bool { return state(token, 2) == v1alpha1.VersionRetired && ready(token) })
	if secret := c.secret("ci"); len(secret.Data["token.previous"]) > 0 || string(secret.Data["token"]) != first {
		t.Error("the discarded value is still in the Secret")
	}
}

func TestARestartedControllerWritesNothing(t *testing.T) {
	c := newCluster(t)
	first := c.start(nil, nil)
	token, key := c.token("ci"), c.token("other", func(s *v1alpha1.CredentialSpec) { s.AllowedCIDRs = []v1alpha1.CIDR{"10.0.0.0/8", "1.0.0.0/8"} })
	c.ready(token)
	c.ready(key)
	first.stop()
	w := &writes{}
	second := c.start(w, nil)
	third := c.token("third")
	c.ready(third) // by now the others have been looked at as well
	for _, what := range second.writes.all() {
		if !strings.Contains(what, "/third") && !strings.HasSuffix(what, "/secrets") && !strings.Contains(what, "/events") {
			t.Errorf("after a restart: %s", what)
		}
	}
	if token.Status.CurrentVersion != 1 {
		t.Error("it rotated")
	}
}

func TestASecretThatIsNotOursIsLeftAlone(t *testing.T) {
	c := newCluster(t)
	foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "ci"}, Data: map[string][]byte{"token": []byte("precious")}}
	if err := c.client.Create(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	c.start(nil, nil)
	token := c.token("ci")
	c.eventually(token, "SecretConflict", func() bool { return reason(token, v1alpha1.ConditionReady) == v1alpha1.ReasonSecretConflict })
	now := c.secret("ci")
	if now.ResourceVersion != foreign.ResourceVersion {
		t.Error("the Secret was written")
	}
}

func TestTwoCredentialsOfOneSecretHaveOneOwner(t *testing.T) {
	c := newCluster(t)
	p := c.start(nil, nil)
	first := c.token("first", func(s *v1alpha1.CredentialSpec) { s.Secret = &v1alpha1.SecretTarget{Name: "shared"} })
	c.ready(first)
	second := c.token("second", func(s *v1alpha1.CredentialSpec) { s.Secret = &v1alpha1.SecretTarget{Name: "shared"} })
	c.eventually(second, "SecretConflict", func() bool { return reason(second, v1alpha1.ConditionReady) == v1alpha1.ReasonSecretConflict })
	rv, n := c.secret("shared").ResourceVersion, len(p.writes.all())
	third := c.token("third")
	c.ready(third)
	if c.secret("shared").ResourceVersion != rv {
		t.Error("they fight over the Secret")
	}
	for _, w := range p.writes.all()[n:] {
		if strings.Contains(w, "/second") || strings.Contains(w, "/first") {
			t.Errorf("a write loop: %s", w)
		}
	}
}

func TestAnAdoptedSecretKeepsItsValue(t *testing.T) {
	c := newCluster(t)
	value, err := credential.Format{Kind: v1alpha1.KindServiceToken}.Mint(zeros{})
	if err != nil {
		t.Fatal(err)
	}
	foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "ci"}, Data: map[string][]byte{"token": []byte(value.Reveal())}}
	if err := c.client.Create(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	c.start(nil, nil)
	token := c.token("ci", func(s *v1alpha1.CredentialSpec) {
		s.Secret = &v1alpha1.SecretTarget{ConflictPolicy: v1alpha1.ConflictAdopt}
	})
	c.ready(token)
	secret := c.secret("ci")
	if string(secret.Data["token"]) != value.Reveal() || !metav1.IsControlledBy(secret, token) {
		t.Errorf("the Secret was not adopted with its value: %v", secret.ObjectMeta)
	}
}

func TestAValueSomebodyPutIntoTheSecretIsReplaced(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	token := c.token("ci")
	c.ready(token)
	secret := c.secret("ci")
	secret.Data["token"] = []byte("sk_test_" + strings.Repeat("0", 64))
	if err := c.client.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	c.eventually(token, "a new version", func() bool { return token.Status.CurrentVersion == 2 && ready(token) })
	if strings.Contains(string(c.secret("ci").Data["token"]), strings.Repeat("0", 64)) {
		t.Error("the planted value is still there")
	}
}

func TestWhatSomebodyWritesIntoStatusIsPutBack(t *testing.T) {
	for name, edit := range map[string]func(*v1alpha1.CredentialStatus){
		"a version with a digest of one's own": func(s *v1alpha1.CredentialStatus) {
			s.Versions = append(s.Versions, v1alpha1.CredentialVersion{
				Version: 7, State: v1alpha1.VersionActive, Digest: hex.EncodeToString(make([]byte, 32)), Pepper: "p1", Created: metav1.Now(),
			})
		},
		"another digest for the active version": func(s *v1alpha1.CredentialStatus) { s.Versions[0].Digest = hex.EncodeToString(make([]byte, 32)) },
		"another record":                        func(s *v1alpha1.CredentialStatus) { s.Record = append(s.Record, 1) },
		"no record":                             func(s *v1alpha1.CredentialStatus) { s.Record, s.Seal, s.Epoch = nil, "", 0 },
		"nothing":                               func(s *v1alpha1.CredentialStatus) { *s = v1alpha1.CredentialStatus{} },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.start(nil, nil)
			token := c.token("ci")
			c.ready(token)
			value, record, digest := string(c.secret("ci").Data["token"]), token.Status.Record, token.Status.Versions[0].Digest
			edit(&token.Status)
			if err := c.client.Status().Update(t.Context(), token); err != nil {
				t.Fatal(err)
			}
			c.eventually(token, "put back", func() bool {
				v := token.Status.Versions
				return ready(token) && string(token.Status.Record) == string(record) && len(v) > 0 && live(v) == 1 && v[len(v)-1].Digest == digest
			})
			if string(c.secret("ci").Data["token"]) != value {
				t.Error("the value was replaced")
			}
		})
	}
}

func TestTheStatusOfARevokedCredentialIsPutBack(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	token := c.token("ci")
	c.ready(token)
	c.revoke(token)
	token.Status = v1alpha1.CredentialStatus{}
	if err := c.client.Status().Update(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	c.eventually(token, "put back", func() bool {
		return reason(token, v1alpha1.ConditionReady) == v1alpha1.ReasonRevoked && len(token.Status.Record) > 0 && !token.Status.Revocation.At.IsZero()
	})
}

// Every change of status has the credential looked at again: what is told of a
// write that fails again and again must stay the same, or the attempts never
// pause.
func TestASecretThatCannotBeWrittenIsToldOnce(t *testing.T) {
	tooLong := &v1alpha1.TemplateMetadata{Annotations: map[string]string{"a": strings.Repeat("x", 256<<10)}}
	for name, test := range map[string]struct {
		template *v1alpha1.SecretTemplate
		fail     bool
		told     string
	}{
		"for the connection breaks":           {nil, true, "did not answer"},
		"for the API server does not take it": {&v1alpha1.SecretTemplate{Metadata: tooLong}, false, "metadata.annotations: Too long"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			var attempts atomic.Int64
			w := &writes{before: func(n int, what string) error {
				if !strings.HasSuffix(what, "/secrets") {
					return nil
				}
				attempts.Add(1)
				if test.fail {
					return fmt.Errorf("read tcp 127.0.0.1:%d: connection reset by peer", n)
				}
				return nil
			}}
			c.start(w, nil)
			token := c.token("ci", func(s *v1alpha1.CredentialSpec) { s.Secret = &v1alpha1.SecretTarget{Template: test.template} })
			waitFor(t, "a few attempts", func() bool { return attempts.Load() >= 6 })
			c.read(token)
			i := slices.IndexFunc(token.Status.Conditions, func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionSecretDelivered })
			if got := token.Status.Conditions[i]; got.Reason != v1alpha1.ReasonSecretNotWritten || !strings.Contains(got.Message, test.told) {
				t.Errorf("status tells %s: %s", got.Reason, got.Message)
			}
			written := 0
			for _, what := range w.all() {
				if strings.HasSuffix(what, "/status") {
					written++
				}
			}
			if written > 2 { // the commit, and what stands in the way
				t.Errorf("status was written %d times in %d attempts", written, attempts.Load())
			}
		})
	}
}

// The caches of credentials and of Secrets are filled apart from each other.
func TestACachedSecretThatStatusDoesNotExpectIsReadAgain(t *testing.T) {
	for name, test := range map[string]struct {
		status, secret int64
		doubtful       bool
	}{
		"as expected":                    {2, 2, false},
		"nothing delivered yet":          {0, 0, false},
		"of before a rotation, or newer": {2, 1, true},
		"of before a rollback, or newer": {1, 2, true},
		"gone":                           {1, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &scope{secret: &corev1.Secret{}, observed: lifecycle.Observed{
				Spec: &v1alpha1.CredentialSpec{}, Status: &v1alpha1.CredentialStatus{CurrentVersion: test.status}, Secret: lifecycle.Secret{Current: test.secret},
			}}
			if got := new(credentials).doubtful(s); got != test.doubtful {
				t.Errorf("doubtful: %t", got)
			}
		})
	}
}

func TestAnEndedValueIsNotAdoptedAgain(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	token := c.token("ci", func(s *v1alpha1.CredentialSpec) {
		s.Secret = &v1alpha1.SecretTarget{ConflictPolicy: v1alpha1.ConflictAdopt}
	})
	c.ready(token)
	leaked := c.secret("ci").Data["token"]
	c.revoke(token)
	planted := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "ci"}, Data: map[string][]byte{"token": leaked}}
	if err := c.client.Create(t.Context(), planted); err != nil {
		t.Fatal(err)
	}
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "version 2", func() bool { return ready(token) && token.Status.CurrentVersion == 2 })
	if string(c.secret("ci").Data["token"]) == string(leaked) {
		t.Error("the revoked value is accepted again")
	}
}

func TestTheSecretTellsOfEpochsThatAreLostAndCannotUseThemUp(t *testing.T) {
	for annotation, want := range map[string]int64{"9": 9 + lostEpochs, "5": 5, "3": 5, "": 5, "x": 5, "9223372036854775807": 5, "-1": 5} {
		s := &scope{secret: &corev1.Secret{}, observed: lifecycle.Observed{
			Status: &v1alpha1.CredentialStatus{Epoch: 4}, Secret: lifecycle.Secret{Ours: true},
		}}
		s.secret.Annotations = map[string]string{annotationEpoch: annotation}
		if got := s.epochFloor(&sealedRecord{epoch: 5}); got != want {
			t.Errorf("annotated %q the floor is %d, want %d", annotation, got, want)
		}
	}
}

// Only a key has been mislaid: what is sealed under it is not forged, and must
// not be replaced.
func TestALostPepperReplacesNothing(t *testing.T) {
	c := newCluster(t)
	first := c.start(nil, nil)
	token := c.token("ci")
	c.ready(token)
	value := string(c.secret("ci").Data["token"])
	other, err := credential.NewPepper("p2", slices.Repeat([]byte{2}, credential.PepperLen))
	if err != nil {
		t.Fatal(err)
	}
	first.keys.Set(credential.Peppers{other}, nil)
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	fresh := c.token("fresh") // by the time this one is Ready the other has been looked at
	c.ready(fresh)
	c.read(token)
	if token.Status.CurrentVersion != 1 || string(c.secret("ci").Data["token"]) != value {
		t.Errorf("it was replaced: %s", describe(token))
	}
	peppers, _ := c.peppers.Peppers()
	first.keys.Set(append(credential.Peppers{other}, peppers...), nil)
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "version 2 under the new pepper", func() bool {
		return ready(token) && token.Status.CurrentVersion == 2 && strings.HasPrefix(token.Status.Seal, "p2.")
	})
	if string(c.secret("ci").Data["token.previous"]) != value {
		t.Error("the value digested under the old pepper is not the previous one")
	}
}

func TestARevokedCredentialLosesItsSecretAndComesBackOnRequest(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	token := c.token("ci")
	c.ready(token)
	c.revoke(token)
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "version 2", func() bool { return ready(token) && token.Status.CurrentVersion == 2 })
}

func TestARevocationSettlesWhatItSelectsAndNothingElse(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	hit, spared := c.token("hit"), c.token("spared")
	before := hit.DeepCopy()
	hit.Labels = map[string]string{"app": c.namespace}
	if err := c.client.Patch(t.Context(), hit, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	c.ready(hit)
	c.ready(spared)
	// Relabelled just before: the sealed labels still select it.
	c.eventually(hit, "sealed labels", func() bool { return hit.Status.Epoch > 1 })
	// Who made it is who admission says, and nobody else's word.
	said := map[string]string{v1alpha1.AnnotationRevokedBy: "ann", v1alpha1.AnnotationRequestedBy: "root"}
	rv := &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: c.namespace, Annotations: said}, Spec: v1alpha1.RevocationSpec{
		Reason: "incident 7", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": c.namespace}},
	}}
	if err := c.client.Create(t.Context(), rv); err != nil {
		t.Fatal(err)
	}
	c.eventually(hit, "revoked", func() bool { return reason(hit, v1alpha1.ConditionReady) == v1alpha1.ReasonRevoked })
	if by := hit.Status.Revocation; by == nil || by.Actor != "ann" {
		t.Errorf("ann made the Revocation, and status says %+v", by)
	}
	c.eventually(rv, "settled", func() bool { return rv.Status.Matched == 1 && rv.Status.Settled == 1 })
	if err := c.client.Delete(t.Context(), rv); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the Revocation to go", func() bool {
		return apierrors.IsNotFound(c.client.Get(t.Context(), client.ObjectKeyFromObject(rv), rv))
	})
	c.read(hit)
	c.read(spared)
	if state(hit, 1) != v1alpha1.VersionRevoked || !ready(spared) {
		t.Errorf("after the deletion: %s; %s", describe(hit), describe(spared))
	}
}

func TestARevocationThatSelectsNothingSaysSo(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	rv := &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: c.namespace}, Spec: v1alpha1.RevocationSpec{
		Reason: "incident 7", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a b": "c"}},
	}}
	if err := c.client.Create(t.Context(), rv); err != nil {
		t.Fatal(err)
	}
	c.eventually(rv, "InvalidSpec", func() bool {
		return len(rv.Status.Conditions) == 1 && rv.Status.Conditions[0].Reason == v1alpha1.ReasonInvalidSpec &&
			strings.Contains(rv.Status.Conditions[0].Message, "NOTHING is revoked")
	})
	if err := c.client.Delete(t.Context(), rv); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it to go", func() bool {
		return apierrors.IsNotFound(c.client.Get(t.Context(), client.ObjectKeyFromObject(rv), rv))
	})
}

func TestACredentialDeclaredByItsDigest(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	inner := strings.Repeat("ab", 32)
	declare := func(s *v1alpha1.CredentialSpec) { s.External = &v1alpha1.External{SHA256: []string{inner}} }
	first := c.token("first", declare)
	c.ready(first)
	if first.Status.SecretName != "" || first.Status.CurrentVersion != 1 {
		t.Errorf("it has a Secret, or no version: %s", describe(first))
	}
	second := c.token("second", declare)
	// Of two made within a second the UID decides.
	winner, loser := first, second
	if claimantOf(v1alpha1.KindServiceToken, second).precedes(claimantOf(v1alpha1.KindServiceToken, first)) {
		winner, loser = second, first
	}
	c.eventually(loser, "DigestConflict", func() bool {
		return reason(loser, v1alpha1.ConditionReady) == v1alpha1.ReasonDigestConflict && live(loser.Status.Versions) == 0
	})
	c.ready(winner)
	if err := c.client.Delete(t.Context(), winner); err != nil {
		t.Fatal(err)
	}
	c.ready(loser)
}

func TestASpecOverTheCeilingGrantsWhatItDidBefore(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	token := c.token("ci")
	c.ready(token)
	before := token.DeepCopy()
	token.Spec.Permissions = []v1alpha1.Permission{"mintmark:admin"}
	if err := c.client.Patch(t.Context(), token, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	c.eventually(token, "NotAllowed", func() bool { return reason(token, v1alpha1.ConditionReady) == v1alpha1.ReasonNotAllowed })
	peppers, _ := c.peppers.Peppers()
	rec, err := credential.OpenRecord(peppers, token.Status.Record, token.Status.Seal)
	if err != nil || !slices.Equal(rec.Permissions, []string{"api:read"}) {
		t.Errorf("the record grants %v (%v)", rec.Permissions, err)
	}
}

// Of every write of a mint and a rotation: the process dies before it, or after
// it and before the answer. Another one takes over. There is one value, and it
// is accepted.
func TestACrashAtAnyWriteLosesNothing(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		for n := 1; n <= 3; n++ {
			t.Run(when+" write "+string(rune('0'+n)), func(t *testing.T) {
				c := newCluster(t)
				died := make(chan struct{})
				die := func(i int, what string) error {
					if i < n {
						return nil
					}
					if i == n {
						close(died)
					}
					return errDead
				}
				w := &writes{before: die}
				if when == "after" {
					w = &writes{after: die, before: func(i int, _ string) error {
						if i > n {
							return errDead
						}
						return nil
					}}
				}
				first := c.start(w, nil)
				token := c.token("ci")
				select {
				case <-died:
				case <-time.After(20 * time.Second):
					t.Fatal("it never came to that write")
				}
				first.stop()
				c.start(nil, nil)
				c.ready(token)
				checkValue(t, c, token)
			})
		}
	}
}

// revoke revokes a credential as a whole, and waits until status says so and its
// Secret is gone.
func (c *cluster) revoke(token *v1alpha1.ServiceToken) {
	c.t.Helper()
	before := token.DeepCopy()
	token.Spec.Revoked = &v1alpha1.Revoked{Reason: "leaked"}
	if err := c.client.Patch(c.t.Context(), token, client.MergeFrom(before)); err != nil {
		c.t.Fatal(err)
	}
	c.eventually(token, "revoked, and its Secret gone", func() bool {
		secret := &corev1.Secret{}
		err := c.client.Get(c.t.Context(), client.ObjectKeyFromObject(token), secret)
		return apierrors.IsNotFound(err) && live(token.Status.Versions) == 0 && reason(token, v1alpha1.ConditionReady) == v1alpha1.ReasonRevoked &&
			reason(token, v1alpha1.ConditionSecretDelivered) != v1alpha1.ReasonDelivered
	})
}

func checkValue(t *testing.T, c *cluster, token *v1alpha1.ServiceToken) {
	t.Helper()
	parsed, err := credential.Parse(string(c.secret(token.Name).Data["token"]))
	if err != nil {
		t.Fatal(err)
	}
	peppers, _ := c.peppers.Peppers()
	rec, err := credential.OpenRecord(peppers, token.Status.Record, token.Status.Seal)
	if err != nil {
		t.Fatal(err)
	}
	digest := peppers.Current().Digest(parsed.Inner())
	found := slices.ContainsFunc(rec.Versions, func(v credential.SealedVersion) bool {
		return string(v.Digest) == string(digest[:]) && v.State == v1alpha1.VersionActive
	})
	if !found {
		t.Errorf("the value in the Secret is not the active version: %s", describe(token))
	}
}

func state(cr v1alpha1.Credential, version int64) v1alpha1.VersionState {
	for _, v := range cr.CredentialStatus().Versions {
		if v.Version == version {
			return v.State
		}
	}
	return ""
}

func live(versions []v1alpha1.CredentialVersion) int {
	n := 0
	for _, v := range versions {
		if v.State.Live() {
			n++
		}
	}
	return n
}

// An event that comes while a reconcile is at the credential is not looked at before that
// is over, and must be then: here, what somebody asked for between the API server's answer
// to the last write and its arrival.
func TestWhatOthersAskForDuringAReconcileIsDone(t *testing.T) {
	c := newCluster(t)
	token := c.token("ci")
	key := client.ObjectKeyFromObject(token)
	w, p := &writes{}, (*process)(nil)
	started, once := make(chan struct{}), sync.Once{}
	w.after = func(_ int, what string) error {
		if !strings.HasSuffix(what, "/servicetokens/ci/status") {
			return nil
		}
		var is v1alpha1.ServiceToken
		if err := c.client.Get(t.Context(), key, &is); err != nil || is.Status.CurrentVersion != 1 {
			return err
		}
		once.Do(func() {
			<-started
			c.annotate(&is, v1alpha1.AnnotationRotateRequestedAt)
			for is.Annotations = nil; is.Annotations[v1alpha1.AnnotationRotateRequestedAt] == "" && t.Context().Err() == nil; {
				if err := p.cache.Get(t.Context(), key, &is); err != nil {
					t.Error(err)
				}
			}
		})
		return nil
	}
	p = c.start(w, nil)
	close(started)
	c.eventually(token, "rotated as it was asked for", func() bool { return token.Status.CurrentVersion == 2 })
}
