package server

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
)

// FuzzEachField walks over whatever a decoder takes as the decoder does, and over
// nothing for ever.
func FuzzEachField(f *testing.F) {
	for _, seed := range []string{
		`{}`, ` { } `, `null`, `{"a":1}`, `{"a":"x\\\"}{","b":[{"c":"]"}],"d":{"e":null}}`, `{"\u0061":true,"":-1.5e3,"é":"\\"}`, `{"a":1,"a":2}`,
		`[]`, `[1]`, `"a"`, `{"a"}`, `{"a":}`, `{,}`, `{"a":1,}`, `{"a":"`, `{"a":"\`, `{"a":{`, "{\n\t\"a\" :\r [ ] }", `{"a":1}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := map[string]json.RawMessage{}
		err := eachField([]byte(text), func(key, value []byte) error {
			got[string(key)] = bytes.Clone(value)
			return nil
		})
		var want map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &want) != nil {
			return
		}
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		for key := range got {
			// The decoder makes what is no UTF-8 the replacement character.
			if strings.ToValidUTF8(key, "\ufffd") != key {
				return
			}
		}
		if want == nil {
			want = map[string]json.RawMessage{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	})
}

// FuzzEvents reads anything as a watch.
func FuzzEvents(f *testing.F) {
	for _, seed := range []string{
		"", "\n", `{"type":"ADDED","object":{}}`, `{"type":"ADDED","object":{"metadata":{"name":"a","uid":"u"},"spec":{"permissions":["a"]},"status":{"record":"AQ==","seal":"s"}}}` + "\n",
		`{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"reason":"Expired"}}` + "\n", `{"type":"BOOKMARK","object":{"metadata":{"annotations":{"k8s.io/initial-events-end":"true"}}}}` + "\n",
		`{"type":"OTHER","object":{}}` + "\n", `{"object":{},"type":"ADDED"}` + "\n", `{"type":"ADDED","object":{"metadata":[]}}` + "\n", strings.Repeat(" ", 100) + "\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		lines := events(text)
		for range strings.Count(text, "\n") + 2 {
			if _, o, err := lines.Decode(); err != nil {
				return
			} else if o == nil {
				t.Fatal("neither an object nor an error")
			}
		}
		t.Error("it goes on after its end")
	})
}

func events(text string) *eventLines {
	in := strings.NewReader(text)
	return &eventLines{body: io.NopCloser(in), in: bufio.NewReaderSize(in, 16), make: func() v1alpha1.Credential { return new(v1alpha1.ServiceToken) }}
}

// full is a credential with everything that a server reads, and much that it does not.
func full() *v1alpha1.ServiceToken {
	at := metav1.NewTime(time.Unix(1_900_000_000, 0))
	return &v1alpha1.ServiceToken{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "ServiceToken"},
		ObjectMeta: metav1.ObjectMeta{
			Name: "ci-deploy", Namespace: "payments", UID: "0b1f2c3d", ResourceVersion: "42", CreationTimestamp: at, DeletionTimestamp: &at,
			Labels: map[string]string{"app": "a\"\\é", "b": ""}, Annotations: map[string]string{"k": `{"a":"\"}"}`},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"k:{\"type\":\"Ready\"}":{}}}`)}},
		},
		Spec: v1alpha1.CredentialSpec{
			CredentialClassName: "default", Permissions: []v1alpha1.Permission{"api:read", "deploy:*"}, Roles: []string{"deployer"}, Admin: true,
			Attributes: map[string]v1alpha1.MetadataValue{"department": "payments"}, ExpiresAt: &at, AllowedCIDRs: []v1alpha1.CIDR{"10.0.0.0/8"},
			RateLimit: &v1alpha1.RateLimit{Requests: 10, Per: "1m", Burst: 20}, JWT: &v1alpha1.JWT{TTL: "5m", Audiences: []string{"x"}},
			External: &v1alpha1.External{SHA256: []string{strings.Repeat("ab", 32)}}, Revoked: &v1alpha1.Revoked{Reason: "leak", Versions: []int64{3}},
		},
		Status: v1alpha1.CredentialStatus{
			Record: []byte{1, 2, 3, 0xff}, Seal: "p1.abc", Epoch: 7,
			Conditions: []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue, Message: `"seal":"not this one"`}},
		},
	}
}

// TestWhatIsReadIsWhatATypedDecoderReads, as far as the server asks for it.
func TestWhatIsReadIsWhatATypedDecoderReads(t *testing.T) {
	want := full()
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	same := func(how string, got v1alpha1.Credential) {
		t.Helper()
		if diff := cmp.Diff(authn.LiveOf(want), authn.LiveOf(got)); diff != "" {
			t.Errorf("%s: %s", how, diff)
		}
		status := got.CredentialStatus()
		if !bytes.Equal(status.Record, want.Status.Record) || status.Seal != want.Status.Seal || got.GetResourceVersion() != "42" {
			t.Errorf("%s: %+v", how, got)
		}
		if got.GetManagedFields() != nil || status.Conditions != nil || len(got.GetAnnotations()) > 0 {
			t.Errorf("%s: what nobody asks for is kept: %+v", how, got)
		}
	}
	lines := events(fmt.Sprintf("{\"type\":\"ADDED\",\"object\":%s}\n{\"type\":\"DELETED\",\"object\":%s}\n", text, text))
	for _, kind := range []watch.EventType{watch.Added, watch.Deleted} {
		got, object, err := lines.Decode()
		if err != nil || got != kind {
			t.Fatalf("%s: %v", got, err)
		}
		same("in a watch", object.(v1alpha1.Credential))
	}
	if _, _, err := lines.Decode(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	list, err := decodeList(fmt.Appendf(nil, `{"kind":"ServiceTokenList","metadata":{"resourceVersion":"99","continue":"more"},"items":[%s, %s]}`, text, text), lines.make)
	if err != nil || list.ResourceVersion != "99" || list.Continue != "more" || len(list.Items) != 2 {
		t.Fatalf("%+v: %v", list, err)
	}
	same("in a list", list.Items[1])
}

func TestAWatchThatCannotBeReadIsAnErrorAndNoEvent(t *testing.T) {
	for sentence, text := range map[string]string{
		"no event":                   "{}\n",
		"an unknown type":            `{"type":"GUESS","object":{}}` + "\n",
		"an object cut short":        `{"type":"ADDED","object":{"metadata":{"name":"a"}` + "\n",
		"a line cut short":           `{"type":"ADDED","object":{}}`,
		"a record that is no base64": `{"type":"ADDED","object":{"status":{"record":"*"}}}` + "\n",
	} {
		if _, o, err := events(text).Decode(); err == nil {
			t.Errorf("%s: %+v", sentence, o)
		}
	}
}

func BenchmarkDecodeCredential(b *testing.B) {
	text, err := json.Marshal(full())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("what is needed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := decodeCredential(text, new(v1alpha1.ServiceToken)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("all of it", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := json.Unmarshal(text, new(v1alpha1.ServiceToken)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
