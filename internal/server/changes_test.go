package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
)

// fedSink is a sink that notes what it is told.
type fedSink struct{ all []string }

func (s *fedSink) BeginList()            { s.all = append(s.all, "begin") }
func (s *fedSink) EndList()              { s.all = append(s.all, "end") }
func (s *fedSink) Put(runtime.Object)    { s.all = append(s.all, "put") }
func (s *fedSink) Delete(runtime.Object) { s.all = append(s.all, "delete") }

func TestWithoutADatabaseAStartTellsOfNothingThatWasThere(t *testing.T) {
	tr, a := newTrail(t)
	inner := new(fedSink)
	sink := (&feed{audit: a}).recorded("AccessRole", inner)
	role := func(name string, generation int64) *v1alpha1.AccessRole {
		return &v1alpha1.AccessRole{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Generation: generation, CreationTimestamp: metav1.Now(), ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: "kubectl", Time: &metav1.Time{Time: time.Now()}}, {Manager: "mintmark-controller", Subresource: "status", Time: &metav1.Time{Time: time.Now().Add(time.Hour)}},
			}},
			Spec: v1alpha1.AccessRoleSpec{Description: "line\nbreak sk_" + strings.Repeat("0", 64)},
		}
	}
	sink.BeginList()
	sink.Put(role("a", 3))
	sink.EndList()
	sink.Put(role("a", 3))
	sink.Put(role("a", 4))
	sink.BeginList() // it is not there any more
	sink.EndList()
	sink.Delete(role("b", 1))
	events, lines := tr.all()
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprint(e.Type, " ", e.Reason, " ", e.Name, " ", e.Detail["generation"], " ", e.Actor))
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"configuration Changed a 4 with kubectl", "configuration Deleted a  ", "configuration Deleted b  "}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"begin", "put", "end", "put", "put", "begin", "end", "delete"}, inner.all); diff != "" {
		t.Errorf("what is passed on: %s", diff)
	}
	if strings.Contains(lines, strings.Repeat("0", 64)) || strings.Count(lines, "\n") != 3 {
		t.Errorf("the lines are\n%s", lines)
	}
	if sink := (&feed{}).recorded("AccessRole", inner); sink != inner {
		t.Error("where nothing is recorded the sink is another")
	}
}

func TestWhatIsSentOnIsMeasured(t *testing.T) {
	o, err := audit.NewOTLP(audit.OTLPConfig{Endpoint: "http://collector", Queue: 2, Client: &http.Client{}})
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registerOTLP(registry, o)
	registerOTLP(registry, nil)
	_, _ = o.Export(t.Context(), make([]audit.Event, 2)), o.Export(t.Context(), make([]audit.Event, 3))
	text := scrape(t, registry)
	for _, line := range []string{
		`mintmark_audit_otlp_events_total{result="dropped"} 3`, `mintmark_audit_otlp_events_total{result="sent"} 0`, `mintmark_audit_otlp_events_total{result="rejected"} 0`,
		`mintmark_audit_otlp_queue_events 2`,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("the metrics lack %s:\n%s", line, text)
		}
	}
}
