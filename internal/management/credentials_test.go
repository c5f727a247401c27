package management_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestAKeyIsMadeUsedRotatedAndRevokedOverREST(t *testing.T) {
	s := running(t)
	for _, family := range []struct{ path, kind, field string }{
		{"/api/auth/keys", "APIKey", "key"}, {"/api/v1/auth/tokens", "ServiceToken", "token"},
	} {
		t.Run(family.kind, func(t *testing.T) {
			made := s.send(t, 0, "POST", family.path, s.admin, map[string]any{"description": "a test", "permissions": []string{"orders:read"}}).want(t, http.StatusCreated)
			value := made.text(family.field)
			if value == "" || made.field("ready") != true || made.text("kind") != family.kind {
				t.Fatalf("the answer is %s", made)
			}
			if made.header.Get("Location") != family.path+"/"+made.text("id") || made.header.Get("Cache-Control") != "no-store" {
				t.Errorf("headers %v", made.header)
			}
			for i := range s.servers {
				eventually(t, "every server accepts it", func() bool { return s.good(t, i, value) })
			}
			if o := s.object(t, made); o.CredentialSpec().External == nil || o.CredentialSpec().CredentialClassName != restClass {
				t.Errorf("the object is %+v", o.CredentialSpec())
			}
			if prefix := made.text("prefix"); prefix == "" || !strings.HasPrefix(value, prefix) {
				t.Errorf("the prefix shown is %q", prefix)
			}
			shown := s.send(t, 1, "GET", family.path+"/"+made.text("id"), s.admin, nil).want(t, http.StatusOK)
			if shown.value() != "" || strings.Contains(string(shown.body), value) {
				t.Errorf("the value is shown again: %s", shown)
			}

			rotated := s.send(t, 1, "POST", family.path+"/"+made.text("id")+"/rotate", s.admin, map[string]any{"reason": "quarterly"}).want(t, http.StatusOK)
			next := rotated.text(family.field)
			if next == "" || next == value || rotated.field("ready") != true {
				t.Fatalf("the answer is %s", rotated)
			}
			if !s.good(t, 1, next) || !s.good(t, 1, value) {
				t.Error("in the overlap one of the values is not accepted")
			}
			last := s.send(t, 0, "POST", family.path+"/"+made.text("id")+"/rotate", s.admin, map[string]any{"immediate": true}).want(t, http.StatusOK).text(family.field)
			for i := range s.servers {
				eventually(t, "after an immediate rotation the new value alone is accepted", func() bool {
					return s.good(t, i, last) && !s.good(t, i, next) && !s.good(t, i, value)
				})
			}

			revoked := s.send(t, 0, "POST", family.path+"/"+made.text("id")+"/revoke", s.admin, map[string]any{"reason": "leaked"}).want(t, http.StatusOK)
			if revoked.text("state") != "Revoked" {
				t.Errorf("the answer is %s", revoked)
			}
			for i := range s.servers {
				eventually(t, "a revoked value is refused", func() bool { return !s.good(t, i, last) })
			}
			o := s.object(t, made)
			by := o.GetAnnotations()[v1alpha1.AnnotationRevokedBy]
			if !strings.Contains(by, "mintmark-server for servicetoken:mintmark-system:admin") || o.CredentialSpec().Revoked.Reason != "leaked" {
				t.Errorf("revoked by %q for %q", by, o.CredentialSpec().Revoked.Reason)
			}
			s.send(t, 0, "POST", family.path+"/"+made.text("id")+"/rotate", s.admin, map[string]any{}).want(t, http.StatusConflict)
			s.send(t, 0, "POST", family.path+"/"+made.text("id")+"/revoke", s.admin, nil).want(t, http.StatusOK)

			for _, secret := range []string{value, next, last} {
				if strings.Contains(s.log.String(), secret) || strings.Contains(s.events.String(), secret) {
					t.Error("a value is in a log")
				}
			}
		})
	}
}

func TestListsArePagedAndFiltered(t *testing.T) {
	s := running(t)
	owner := unique("owner")
	var ids []string
	for range 3 {
		ids = append(ids, s.send(t, 0, "POST", "/api/auth/keys", s.admin, map[string]any{"owner": owner, "labels": map[string]string{"team": owner}}).want(t, http.StatusCreated).text("id"))
	}
	var found []string
	path := "/api/auth/keys?label=team%3D" + owner + "&limit=2"
	for pages := 0; path != "" && pages < 10; pages++ {
		page := s.send(t, 0, "GET", path, s.admin, nil).want(t, http.StatusOK)
		for _, item := range page.field("items").([]any) {
			found = append(found, item.(map[string]any)["id"].(string))
		}
		link := page.header.Get("Link")
		if path = strings.TrimSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`); (path == "") != (page.text("next") == "") {
			t.Errorf("Link %q, next %q", link, page.text("next"))
		}
	}
	slices.Sort(ids)
	slices.Sort(found)
	if !slices.Equal(ids, found) {
		t.Errorf("found %v, want %v", found, ids)
	}
	for query, want := range map[string]int{
		"?owner=" + owner: 3, "?owner=" + owner + "&state=Revoked": 0, "?owner=" + owner + "&kind=ServiceToken": 0, "?namespace=payments&owner=" + owner: 0,
	} {
		eventually(t, query+" finds those", func() bool { // an owner is looked for in the database, which is a moment behind
			items, ok := s.send(t, 1, "GET", "/api/auth/keys"+query, s.admin, nil).want(t, http.StatusOK).field("items").([]any)
			return ok && len(items) == want
		})
	}
}
