package server

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// post sends a form to a running server.
func (r *running) post(path string, form url.Values, value string) answer {
	r.in.t.Helper()
	req, err := http.NewRequest(http.MethodPost, testIssuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		r.in.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+value)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return send(r.in.t, r.public, req)
}

func (r *running) jwt(s *sealed) string {
	r.in.t.Helper()
	got := r.post("/api/auth/token", url.Values{}, s.token.Reveal())
	var issued tokenResponse
	if err := json.Unmarshal([]byte(got.body), &issued); err != nil || issued.Token == "" {
		r.in.t.Fatalf("%d %s", got.status, got.body)
	}
	return issued.Token
}

func (r *running) profile(token string) int {
	r.in.t.Helper()
	req, err := http.NewRequest(http.MethodGet, testIssuer+"/api/auth/profile", nil)
	if err != nil {
		r.in.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return send(r.in.t, r.public, req).status
}

// With the permissions as they are installed, and the ConfigMap as it is.
func TestARevokedJWTIsRefusedOnEveryServerAndByThoseThatComeLater(t *testing.T) {
	in := newInstallation(t)
	one := in.startReady()
	two := in.startReady(func(c *Config) { c.ID = "two" })
	s := in.credential()
	one.expect(30*time.Second, s, http.StatusOK, "the key is known")
	two.expect(30*time.Second, s, http.StatusOK, "the key is known")
	revoked, kept := one.jwt(s), one.jwt(s)
	if two.profile(revoked) != 200 || two.profile(kept) != 200 {
		t.Fatal("the other server does not take them")
	}
	if got := one.post("/oauth2/revoke", url.Values{"token": {revoked}}, s.token.Reveal()); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if one.profile(revoked) != 401 {
		t.Error("it is still good where it was revoked")
	}
	eventually(t, 30*time.Second, "the other server refuses it", func() bool { return two.profile(revoked) == 401 })
	if one.profile(kept) != 200 || two.profile(kept) != 200 {
		t.Error("another JWT of the key went with it")
	}
	three := in.startReady(func(c *Config) { c.ID = "three" })
	if three.profile(revoked) != 401 || three.profile(kept) != 200 {
		t.Error("a server that has just become ready does not know of it")
	}

	// Both write at once: nothing is lost. I5 is about how long it takes after the answer;
	// of one out of twelve a machine with other work says nothing, of most of them it does.
	var wait sync.WaitGroup
	tokens, took := make([]string, 12), make([]time.Duration, 12)
	for n := range tokens {
		tokens[n] = one.jwt(s)
	}
	for n, token := range tokens {
		wait.Go(func() {
			if got := []*running{one, two}[n%2].post("/oauth2/revoke", url.Values{"token": {token}}, s.token.Reveal()); got.status != 200 {
				t.Errorf("%d %s", got.status, got.body)
				return
			}
			answered, tick := time.Now(), time.NewTicker(2*time.Millisecond)
			defer tick.Stop()
			for one.profile(token) != 401 || two.profile(token) != 401 || three.profile(token) != 401 {
				if took[n] = time.Since(answered); took[n] > 30*time.Second {
					t.Error("not every server refuses it")
					return
				}
				<-tick.C
			}
			took[n] = time.Since(answered)
		})
	}
	wait.Wait()
	slices.Sort(took)
	t.Logf("refused by every server after %s, %s at most", took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > soon {
		t.Errorf("every server refuses them after %v, want most of them within %s", took, soon)
	}

	list := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: in.namespace, Name: RevokedTokensConfigMap}
	if err := in.client.Get(t.Context(), key, list); err != nil || len(list.Data) != 13 {
		t.Fatalf("%d entries, error %v", len(list.Data), err)
	}
	// A full list takes no more, and what is over in it makes room.
	over, alive := strconv.FormatInt(time.Now().Add(-time.Minute).Unix(), 10), strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)
	for n := range maxDenied - 13 {
		list.Data["x"+strconv.Itoa(n)] = alive
	}
	if err := in.client.Update(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	if got := one.post("/oauth2/revoke", url.Values{"token": {kept}}, s.token.Reveal()); got.status != 503 {
		t.Errorf("a full list: %d %s, want 503", got.status, got.body)
	}
	list.Data["x0"] = over
	if err := in.client.Update(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	if got := one.post("/oauth2/revoke", url.Values{"token": {kept}}, s.token.Reveal()); got.status != 200 {
		t.Errorf("a list with room: %d %s", got.status, got.body)
	}

	// Gone is not forgotten, and says so.
	if err := in.client.Delete(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: in.namespace, Name: RevokedTokensConfigMap}}); err != nil {
		t.Fatal(err)
	}
	last := one.jwt(s)
	if got := one.post("/oauth2/revoke", url.Values{"token": {last}}, s.token.Reveal()); got.status != 503 || !strings.Contains(one.log.String(), RevokedTokensConfigMap) {
		t.Errorf("without the ConfigMap: %d %s, want 503", got.status, got.body)
	}
	if one.profile(revoked) != 401 || two.profile(revoked) != 401 || one.profile(last) != 200 {
		t.Error("with the ConfigMap gone the verdicts are others")
	}
}
