package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// patience is how long each step of the demonstration may take.
const patience = time.Minute

// demonstration is the life of one credential, shown to the person in front of
// the terminal.
type demonstration struct {
	kube    client.Client
	http    *http.Client
	servers []string
	token   *v1alpha1.ServiceToken
	// The values stay here; nothing prints them.
	first, second, jwt string
}

// walkthrough shows the life of a credential from its making to its revocation.
func (s *system) walkthrough(ctx context.Context) error {
	d, err := s.newDemonstration()
	if err != nil {
		return err
	}
	s.out.line("\nThe life of a credential, ServiceToken %s/%s:", d.token.Namespace, d.token.Name)
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"applied, minted, and delivered", d.mint},
		{"key exchanged for a JWT at POST /api/auth/token", d.exchange},
		{"JWT checked at /forward-auth", d.check},
		{"rotated by annotation", d.rotate},
		{"old and new value are both accepted", d.overlap},
		{"revoked by spec.revoked", d.revoke},
		{"its JWT is refused too", d.refuseJWT},
	} {
		if err := s.out.step(step.name, func() (string, error) {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			return step.do(ctx)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (s *system) newDemonstration() (*demonstration, error) {
	kube, err := s.client()
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(s.path("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the servers' ca.crt holds no certificate")
	}
	d := &demonstration{
		kube: kube,
		http: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		}},
		token: &v1alpha1.ServiceToken{
			ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "walkthrough"},
			Spec: v1alpha1.CredentialSpec{
				CredentialClassName: "production",
				Description:         "Shown by make run.",
				Permissions:         []v1alpha1.Permission{"api:read", "deploy:write"},
			},
		},
	}
	for i := range s.ports.servers {
		d.servers = append(d.servers, s.serverURL(i))
	}
	return d, nil
}

func (s *system) client() (client.Client, error) {
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), v1alpha1.AddToScheme(types)); err != nil {
		return nil, err
	}
	return client.New(s.plane.Config, client.Options{Scheme: types})
}

// awaitReady waits for every credential among objects.
func (s *system) awaitReady(ctx context.Context, objects []*unstructured.Unstructured) error {
	kube, err := s.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, o := range objects {
		var credential v1alpha1.Credential
		switch o.GetKind() {
		case string(v1alpha1.KindServiceToken):
			credential = &v1alpha1.ServiceToken{}
		case string(v1alpha1.KindAPIKey):
			credential = &v1alpha1.APIKey{}
		default:
			continue
		}
		credential.SetNamespace(o.GetNamespace())
		credential.SetName(o.GetName())
		if err := awaitReady(ctx, kube, credential); err != nil {
			return err
		}
	}
	return nil
}

func awaitReady(ctx context.Context, kube client.Client, credential v1alpha1.Credential) error {
	return until(ctx, func() error {
		if err := kube.Get(ctx, client.ObjectKeyFromObject(credential), credential); err != nil {
			return err
		}
		ready := meta.FindStatusCondition(credential.CredentialStatus().Conditions, v1alpha1.ConditionReady)
		if ready != nil && ready.Status == metav1.ConditionTrue {
			return nil
		}
		said := "has no condition Ready yet"
		if ready != nil {
			said = ready.Reason + ": " + ready.Message
		}
		return fmt.Errorf("%s %s/%s is not Ready: %s", credential.CredentialKind(), credential.GetNamespace(), credential.GetName(), said)
	})
}

// until polls check until it says nil, and tells what it said last when ctx
// ends.
func until(ctx context.Context, check func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain: %w", err)
		case <-tick.C:
		}
	}
}

func (d *demonstration) mint(ctx context.Context) (string, error) {
	if err := d.kube.Create(ctx, d.token); err != nil {
		return "", err
	}
	if err := awaitReady(ctx, d.kube, d.token); err != nil {
		return "", err
	}
	secret, err := d.secret(ctx)
	if err != nil {
		return "", err
	}
	d.first = string(secret.Data["token"])
	keys := slices.Sorted(maps.Keys(secret.Data))
	return fmt.Sprintf("Secret %s/%s with the keys %s", secret.Namespace, secret.Name, strings.Join(keys, ", ")), nil
}

func (d *demonstration) secret(ctx context.Context) (*corev1.Secret, error) {
	var secret corev1.Secret
	err := d.kube.Get(ctx, client.ObjectKeyFromObject(d.token), &secret)
	return &secret, err
}

func (d *demonstration) exchange(ctx context.Context) (string, error) {
	a, err := d.request(ctx, http.MethodPost, d.servers[0]+"/api/auth/token", d.first)
	if err != nil {
		return "", err
	}
	if a.status != http.StatusOK {
		return "", fmt.Errorf("the server answers %d: %s", a.status, a.body)
	}
	var issued struct {
		Token       string `json:"token"`
		ExpiresIn   int    `json:"expires_in"`
		Permissions string `json:"permissions"`
	}
	if err := json.Unmarshal(a.body, &issued); err != nil {
		return "", fmt.Errorf("the answer is not as documented: %w", err)
	}
	if issued.Token == "" {
		return "", errors.New("the answer holds no token")
	}
	d.jwt = issued.Token
	return fmt.Sprintf("good for %s, permissions %q", time.Duration(issued.ExpiresIn)*time.Second, issued.Permissions), nil
}

func (d *demonstration) check(ctx context.Context) (string, error) {
	a, err := d.request(ctx, http.MethodGet, d.servers[0]+"/forward-auth", d.jwt)
	if err != nil {
		return "", err
	}
	if a.status != http.StatusOK {
		return "", fmt.Errorf("the server answers %d: %s", a.status, a.body)
	}
	return fmt.Sprintf("%d, X-User-ID %s, X-User-Permissions %s", a.status,
		a.header.Get("X-User-ID"), a.header.Get("X-User-Permissions")), nil
}

func (d *demonstration) rotate(ctx context.Context) (string, error) {
	patch := client.MergeFrom(d.token.DeepCopy())
	metav1.SetMetaDataAnnotation(&d.token.ObjectMeta, v1alpha1.AnnotationRotateRequestedAt, time.Now().UTC().Format(time.RFC3339Nano))
	if err := d.kube.Patch(ctx, d.token, patch); err != nil {
		return "", err
	}
	err := until(ctx, func() error {
		secret, err := d.secret(ctx)
		if err != nil {
			return err
		}
		if string(secret.Data[v1alpha1.SecretKeyVersion]) != "2" {
			return fmt.Errorf("Secret %s/%s still holds version %s", secret.Namespace, secret.Name, secret.Data[v1alpha1.SecretKeyVersion])
		}
		d.second = string(secret.Data["token"])
		return nil
	})
	return "version 2 is in the Secret, version 1 beside it as token.previous", err
}

func (d *demonstration) overlap(ctx context.Context) (string, error) {
	for _, server := range d.servers {
		for version, value := range []string{d.first, d.second} {
			a, err := d.request(ctx, http.MethodGet, server+"/forward-auth", value)
			if err != nil {
				return "", err
			}
			if a.status != http.StatusOK {
				return "", fmt.Errorf("%s answers %d to version %d", server, a.status, version+1)
			}
		}
	}
	return fmt.Sprintf("asked of %d server(s)", len(d.servers)), nil
}

// revoke measures from the moment the API server has stored the revocation to
// the moment the last server refuses both values.
func (d *demonstration) revoke(ctx context.Context) (string, error) {
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"revoked":{"reason":"shown by make run"}}}`))
	if err := d.kube.Patch(ctx, d.token, patch); err != nil {
		return "", err
	}
	stored := time.Now()
	for _, server := range d.servers {
		for _, value := range []string{d.first, d.second} {
			if err := until(ctx, func() error { return d.refused(ctx, server, value) }); err != nil {
				return "", err
			}
		}
	}
	return "every server refuses both values " + short(time.Since(stored)) + " after it was stored", nil
}

func (d *demonstration) refuseJWT(ctx context.Context) (string, error) {
	return "401", until(ctx, func() error { return d.refused(ctx, d.servers[0], d.jwt) })
}

func (d *demonstration) refused(ctx context.Context, server, value string) error {
	a, err := d.request(ctx, http.MethodGet, server+"/forward-auth", value)
	if err != nil {
		return err
	}
	if a.status != http.StatusUnauthorized {
		return fmt.Errorf("%s still answers %d", server, a.status)
	}
	return nil
}

// answer of a server.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (d *demonstration) request(ctx context.Context, method, url, value string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+value)
	resp, err := d.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return answer{status: resp.StatusCode, header: resp.Header, body: body}, err
}
