package server

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/management"
)

func TestManagementIsWhereCredentialsAreServed(t *testing.T) {
	for sentence, tc := range map[string]struct {
		management Management
		watched    []string
		says       string
	}{
		"nothing is managed":                {Management{}, nil, ""},
		"everything is served":              {Management{Namespaces: []string{"payments"}, Class: "rest"}, nil, ""},
		"it is served there":                {Management{Namespaces: []string{"payments"}, Class: "rest"}, []string{"billing", "payments"}, ""},
		"it is not served there":            {Management{Namespaces: []string{"payments"}, Class: "rest"}, []string{"billing"}, "--watch-namespaces"},
		"everywhere, and not all is served": {Management{Namespaces: []string{"*"}, Class: "rest"}, []string{"billing"}, "--watch-namespaces"},
		"no class":                          {Management{Namespaces: []string{"payments"}}, nil, "--management-class"},
	} {
		t.Run(sentence, func(t *testing.T) {
			_, err := New(Config{
				ID: "one", Namespace: "mintmark-system", Issuer: testIssuer, Kubernetes: &rest.Config{Host: "https://127.0.0.1:1"},
				WatchNamespaces: tc.watched, Management: tc.management,
			})
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("it says %v", err)
			}
		})
	}
}

func TestOperationsOfOnePathDifferInTheirMethod(t *testing.T) {
	list, create := &route{name: "list", methods: "GET HEAD"}, &route{name: "create", methods: "POST"}
	pick := byMethod([]*route{list, create})
	for method, want := range map[string]*route{"GET": list, "HEAD": list, "POST": create} {
		if got := pick(method); got != want {
			t.Errorf("%s is %s", method, got.name)
		}
	}
	for _, method := range []string{"PUT", "TRACE", "get", ""} {
		if got := pick(method); got == list || got == create || got.methods != "GET HEAD POST" {
			t.Errorf("%s is %s, which has %s", method, got.name, got.methods)
		}
	}
}

func TestTheFirstStatusOfAnAnswerCounts(t *testing.T) {
	w := &managed{ResponseWriter: httptest.NewRecorder()}
	w.WriteHeader(http.StatusEarlyHints)
	w.WriteHeader(http.StatusNotFound)
	_, _ = w.Write([]byte("x"))
	if w.status != http.StatusNotFound {
		t.Errorf("it is %d", w.status)
	}
	unchanged := httptest.NewRecorder()
	unchanged.Header().Set("Content-Type", problemType)
	(&managed{ResponseWriter: unchanged}).WriteHeader(http.StatusNotModified)
	if got := unchanged.Header().Get("Content-Type"); got != "" {
		t.Errorf("a 304 has the Content-Type %s, which is not that of what the caller has", got)
	}
	unsaid := &managed{ResponseWriter: httptest.NewRecorder()}
	if _, _ = unsaid.Write(nil); unsaid.status != http.StatusOK {
		t.Errorf("unsaid it is %d", unsaid.status)
	}
	for status, want := range map[int]outcome{
		200: outcomeOK, 201: outcomeOK, 304: outcomeOK, 400: outcomeInvalid, 401: outcomeUnauthenticated, 403: outcomeForbidden, 404: outcomeInvalid,
		412: outcomeInvalid, 422: outcomeInvalid, 429: outcomeLimited, 500: outcomeFailed, 503: outcomeUnavailable,
	} {
		if got := outcomeOf(status); got != want {
			t.Errorf("%d counts as %s, want %s", status, got, want)
		}
	}
}

// An event of the management API is about what was changed, and names who changed it.
func TestAnEventOfManagementIsAboutWhatWasChanged(t *testing.T) {
	secret := "sk_live_" + strings.Repeat("5eed", 16)
	const long = "ops-of-the-payments-team-in-eu-central-1-production" // as long as what is masked
	for sentence, tc := range map[string]struct {
		method string
		report *management.Report
		before audit.Event
		want   audit.Event
	}{
		"a change of a credential": {
			"POST", &management.Report{
				About: &authn.Identity{UID: "u2", Kind: "APIKey", Namespace: "billing", Name: "x", Subject: "apikey:billing:x"}, Class: "rest", Reason: "Revoked",
				Detail: map[string]string{"reason": "found " + secret},
			},
			audit.Event{Outcome: audit.Allowed, Subject: "apikey:payments:" + long, UID: "u1", Namespace: "payments", Prefix: "mkOps123", Version: 3, Slot: audit.SlotCurrent},
			audit.Event{
				Outcome: audit.Done, Reason: "Revoked", Subject: "apikey:billing:x", UID: "u2", Kind: "APIKey", Namespace: "billing", Name: "x", Class: "rest",
				Actor: audit.Text("apikey:payments:" + long), Detail: map[string]audit.Text{
					"operation": "credentials-revoke", "actor_uid": "u1", "actor_namespace": "payments", "actor_version": "3", "actor_slot": "current",
					"actor_prefix": "mkOps123", "reason": "found sk_live_[masked]",
				},
			},
		},
		"a list": {
			"GET", &management.Report{}, audit.Event{Outcome: audit.Allowed, Reason: "Accepted", Subject: "apikey:payments:ops", UID: "u1"},
			audit.Event{
				Outcome: audit.Allowed, Reason: "Accepted", Subject: "apikey:payments:ops", UID: "u1", Actor: "apikey:payments:ops",
				Detail: map[string]audit.Text{"operation": "credentials-revoke"},
			},
		},
		"a refusal": {
			"POST", nil, audit.Event{Outcome: audit.Denied, Reason: "Permission", Subject: "apikey:payments:ops", Detail: map[string]audit.Text{"note": "lacks x"}},
			audit.Event{
				Outcome: audit.Denied, Reason: "Permission", Subject: "apikey:payments:ops", Actor: "apikey:payments:ops",
				Detail: map[string]audit.Text{"operation": "credentials-revoke", "note": "lacks x"},
			},
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			e := tc.before
			v := &visit{route: &route{name: "credentials-revoke"}, method: tc.method, report: tc.report, began: time.Now()}
			(*auditor)(nil).reported(&e, v)
			if diff := cmp.Diff(tc.want, e, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("the event (-want +got):\n%s", diff)
			}
		})
	}
}
