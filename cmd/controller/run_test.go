package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/controllers"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/manifests"
)

const installed = "mintmark-system"

// get fetches a page in plain HTTP.
func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), errors.Join(err, notYet(response.StatusCode == http.StatusOK, "%s: %s", response.Status, body))
}

func (c *controller) ready(ctx context.Context) error {
	select {
	case err := <-c.exit:
		c.exit <- err
		return fmt.Errorf("it ended: %v", err)
	default:
	}
	_, err := get(ctx, "http://"+loopback(c.health)+"/readyz")
	return err
}

// Two replicas with exactly the rights users give them, on an empty cluster: as
// at the first installation, through the loss of the leader.
func TestTwoReplicas(t *testing.T) {
	plane := controlplane.ForTest(t)
	admin := adminClient(t, plane)
	webhookPort := freePort(t)
	if _, err := manifests.Install(t.Context(), plane.Config, filepath.Join("..", ".."), webhookPort); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // they fail closed, for the tests after this one too
		for _, o := range []client.Object{&admissionregistrationv1.ValidatingWebhookConfiguration{}, &admissionregistrationv1.MutatingWebhookConfiguration{}} {
			o.SetName(controllers.WebhookConfiguration)
			if err := admin.Delete(context.Background(), o); err != nil {
				t.Error(err)
			}
		}
	})
	account, err := plane.ServiceAccountConfig(t.Context(), installed, "mintmark-controller")
	if err != nil {
		t.Fatal(err)
	}
	config := kubeconfig(t, plane, account)
	started := time.Now()
	called, other := startController(t, config, webhookPort), startController(t, config, 0)
	for _, replica := range []*controller{called, other} {
		eventually(t, "ready", replica.ready)
	}
	t.Logf("both ready after %v", time.Since(started))

	keys := make(map[string]map[string][]byte)
	for _, name := range []string{keyring.PepperSecret, keyring.SigningKeysSecret, keyring.WebhookTLSSecret, keyring.ServerTLSSecret} {
		eventually(t, "Secret "+name, func(ctx context.Context) error {
			var secret corev1.Secret
			err := admin.Get(ctx, client.ObjectKey{Namespace: installed, Name: name}, &secret)
			keys[name] = secret.Data
			return err
		})
	}
	beating(t, admin)

	t.Run("admission trusts the certificate that was made", func(t *testing.T) {
		token := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ci"}}
		eventually(t, "a credential is admitted", func(ctx context.Context) error { return admin.Create(ctx, token) })
		if token.Spec.CredentialClassName == "" {
			t.Error("no class was written into it: its webhook was not called")
		}
		eventually(t, "its Secret", func(ctx context.Context) error {
			return admin.Get(ctx, client.ObjectKey{Namespace: "default", Name: "ci"}, new(corev1.Secret))
		})
	})

	t.Run("what somebody takes away comes back by a watch", func(t *testing.T) {
		configuration := new(admissionregistrationv1.ValidatingWebhookConfiguration)
		if err := admin.Get(t.Context(), client.ObjectKey{Name: controllers.WebhookConfiguration}, configuration); err != nil {
			t.Fatal(err)
		}
		for n := range configuration.Webhooks {
			configuration.Webhooks[n].ClientConfig.CABundle = nil
		}
		if err := admin.Update(t.Context(), configuration); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the authorities in every webhook", func(ctx context.Context) error {
			err := admin.Get(ctx, client.ObjectKeyFromObject(configuration), configuration)
			for _, hook := range configuration.Webhooks {
				err = errors.Join(err, notYet(string(hook.ClientConfig.CABundle) == string(keys[keyring.WebhookTLSSecret]["ca.crt"]), "%s has others", hook.Name))
			}
			return err
		})
		pepper := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: installed, Name: keyring.PepperSecret}}
		if err := admin.Delete(t.Context(), pepper); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pepper", func(ctx context.Context) error { return admin.Get(ctx, client.ObjectKeyFromObject(pepper), pepper) })
		if diff := cmp.Diff(keys[keyring.PepperSecret], pepper.Data); diff != "" {
			t.Errorf("another pepper (-before +after):\n%s", diff)
		}
	})

	t.Run("metrics", func(t *testing.T) {
		for _, replica := range []*controller{called, other} {
			page, err := get(t.Context(), "http://"+loopback(replica.metrics)+"/metrics")
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"mintmark_certificate_expiry_timestamp_seconds{", "mintmark_clock_skew_seconds ", "controller_runtime_webhook_requests_total{"} {
				if !strings.Contains(page, want) {
					t.Errorf("no %s among the metrics", want)
				}
			}
		}
	})

	t.Run("the other replica takes over at once, and changes nothing", func(t *testing.T) {
		leader, follower := called, other
		if strings.Contains(other.logged(), "Successfully acquired lease") {
			leader, follower = other, called
		}
		leader.terminate()
		ended := time.Now()
		eventually(t, "a new leader", func(context.Context) error {
			return notYet(strings.Contains(follower.logged(), "Successfully acquired lease"), "nobody leads")
		})
		if took := time.Since(ended); took > 10*time.Second {
			t.Errorf("it took %v: the old leader did not let go of its Lease", took)
		}
		beating(t, admin)
		// Each of its controllers, so that it is not stopped while their caches fill.
		eventually(t, "the new leader to reconcile", func(context.Context) error {
			for _, name := range []string{"servicetoken", "apikey", "revocation", "keys"} {
				if !strings.Contains(follower.logged(), `"msg":"Starting workers","controller":"`+name+`"`) {
					return fmt.Errorf("controller %s has no workers yet", name)
				}
			}
			return nil
		})
		for name, want := range keys {
			var secret corev1.Secret
			if err := admin.Get(t.Context(), client.ObjectKey{Namespace: installed, Name: name}, &secret); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, secret.Data); diff != "" {
				t.Errorf("Secret %s changed", name)
			}
		}
		follower.terminate()
	})

	for _, replica := range []*controller{called, other} {
		checkLog(t, replica.logged(), keys)
	}
}

func adminClient(t *testing.T, plane *controlplane.ControlPlane) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(plane.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return admin
}

// An installation for some namespaces keeps its keys in its own, which is none
// of them, and looks at no credential elsewhere.
func TestWatchNamespaces(t *testing.T) {
	// A control plane of its own: with what users install, a cluster admin may not
	// write status, and this controller runs as one.
	plane, err := controlplane.Start(t.Context(), controlplane.Options{CRDs: true})
	if err != nil {
		t.Fatal(err)
	}
	defer plane.Stop()
	admin := adminClient(t, plane)
	for _, name := range []string{"limited", "team", "stranger"} {
		if err := admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	in := func(namespace string) *v1alpha1.ServiceToken {
		return &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "ci"}}
	}
	for _, namespace := range []string{"team", "stranger"} {
		if err := admin.Create(t.Context(), in(namespace)); err != nil {
			t.Fatal(err)
		}
	}
	c := startController(t, plane.Kubeconfig(), 0, "--namespace=limited", "--watch-namespaces=team")
	eventually(t, "ready", c.ready)
	eventually(t, "the pepper", func(ctx context.Context) error {
		return admin.Get(ctx, client.ObjectKey{Namespace: "limited", Name: keyring.PepperSecret}, new(corev1.Secret))
	})
	token := in("team")
	eventually(t, "a status of the credential in a watched namespace", func(ctx context.Context) error {
		err := admin.Get(ctx, client.ObjectKeyFromObject(token), token)
		return errors.Join(err, notYet(len(token.Status.Conditions) > 0, "no condition"))
	})
	c.terminate()
	token = in("stranger")
	if err := admin.Get(t.Context(), client.ObjectKeyFromObject(token), token); err != nil || len(token.Status.Conditions) > 0 {
		t.Errorf("status %+v, error %v: want a credential nobody looked at", token.Status, err)
	}
}

// beating waits for the heartbeat to move.
func beating(t *testing.T, admin client.Client) {
	t.Helper()
	renewed := func(ctx context.Context) (time.Time, error) {
		var lease coordinationv1.Lease
		err := admin.Get(ctx, client.ObjectKey{Namespace: installed, Name: controllers.HeartbeatLease}, &lease)
		return ptr.Deref(lease.Spec.RenewTime, metav1.MicroTime{}).Time, err
	}
	var first time.Time
	eventually(t, "the heartbeat", func(ctx context.Context) (err error) { first, err = renewed(ctx); return err })
	eventually(t, "the next beat", func(ctx context.Context) error {
		next, err := renewed(ctx)
		return errors.Join(err, notYet(next.After(first), "still that of %v", first))
	})
}

// expected are what the libraries call errors in a run without any: of two that
// find no Lease the slower one cannot make it, and who ends no longer leads.
var expected = map[string]bool{
	`Error initially creating lease lock: leases.coordination.k8s.io "mintmark-controller" already exists`: true,
	"error received after stop sequence was engaged: leader election lost":                                 true,
}

// checkLog holds a log to be JSON, line by line, without errors and without a
// trace of any key.
func checkLog(t *testing.T, log string, keys map[string]map[string][]byte) {
	t.Helper()
	for lines := bufio.NewScanner(strings.NewReader(log)); lines.Scan(); {
		var line struct{ Level, Msg, Err string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Errorf("a line that is no JSON: %s", lines.Text())
		}
		if line.Level == "ERROR" && !expected[line.Msg+": "+line.Err] {
			t.Errorf("an error in a run without any: %s", lines.Text())
		}
	}
	for name, data := range keys {
		for entry, value := range data {
			if entry == "current" || entry == "ca.crt" || entry == "tls.crt" || entry == "slots.json" {
				continue
			}
			for _, form := range []string{string(value), base64.StdEncoding.EncodeToString(value)} {
				if strings.Contains(log, form) {
					t.Errorf("the log gives away %s of %s", entry, name)
				}
			}
		}
	}
	if strings.Contains(log, "PRIVATE KEY") {
		t.Error("the log gives away a private key")
	}
}
