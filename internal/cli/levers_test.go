package cli

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// The controller counts a request that it refuses as handled. Whoever asked must not be told
// that it was carried out.
func TestARollbackThatWasRefusedIsNoSuccess(t *testing.T) {
	for sentence, test := range map[string]struct {
		current int64 // once it is handled
		says    string
	}{
		"carried out": {1, ""}, "refused": {2, "was not rolled back"},
	} {
		t.Run(sentence, func(t *testing.T) {
			activated := metav1.NewTime(time.Now().Add(-time.Hour))
			stored := &v1alpha1.ServiceToken{
				TypeMeta:   metav1.TypeMeta{APIVersion: "mintmark.dev/v1alpha1", Kind: "ServiceToken"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c", UID: "u", Generation: 1, ResourceVersion: "1"},
				Status: v1alpha1.CredentialStatus{
					CurrentVersion: 2, Handled: &v1alpha1.HandledRequests{},
					Versions: []v1alpha1.CredentialVersion{
						{Version: 2, State: v1alpha1.VersionActive, Activated: &activated}, {Version: 1, State: v1alpha1.VersionSuperseded, Activated: &activated},
					},
					Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", ObservedGeneration: 1}},
				},
			}
			app, _, stderr := apiServer(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPatch {
					var patch struct {
						Metadata struct{ Annotations map[string]*string }
					}
					if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
						t.Error(err)
					}
					asked, err := time.Parse(time.RFC3339Nano, *patch.Metadata.Annotations[v1alpha1.AnnotationRollbackRequestedAt])
					if err != nil {
						t.Error(err)
					}
					handled, now := metav1.NewMicroTime(asked), metav1.Now()
					stored.Status.Handled.Rollback = &handled
					if stored.Status.CurrentVersion = test.current; test.current == 1 {
						stored.Status.Versions[0].State, stored.Status.Versions[1].State = v1alpha1.VersionSuperseded, v1alpha1.VersionActive
						stored.Status.Versions[1].Activated = &now
					}
				}
				writeObject(w, 200, stored)
			})
			o := &simpleLever{app: app, lever: rollbackLever, waitFlags: waitFlags{wait: true, timeout: time.Minute}}
			err := o.run(t.Context(), []string{"servicetoken/c"})
			if failed := err != nil; failed != (test.says != "") || failed && !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, told %q", err, stderr)
			}
		})
	}
}
