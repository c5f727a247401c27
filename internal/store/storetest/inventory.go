package storetest

import (
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/internal/store"
)

func credential(uid, namespace, name string, change ...func(*store.Credential)) store.Credential {
	c := store.Credential{
		UID: uid, Kind: "ServiceToken", Namespace: namespace, Name: name, Class: "default", Owner: "team-a", Description: "of " + name,
		Labels: map[string]string{"app": name}, Metadata: map[string]string{"ticket": "T-" + uid}, Created: noon, State: "Active",
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func inventory(t *testing.T, open Open) {
	s := open(t)
	all := []store.Credential{
		credential("1", "a", "x"), credential("2", "a", "y", func(c *store.Credential) { c.Kind, c.Expires = "APIKey", noon.AddDate(1, 0, 0) }),
		credential("3", "b", "x", func(c *store.Credential) { c.Metadata["team"] = "it's \"quoted\""; c.Admin = true }),
		credential("4", "b", "z", func(c *store.Credential) { c.State, c.Labels, c.Metadata = "Deleted", nil, nil }),
	}
	must(t, s.PutCredentials(t.Context(), all))
	must(t, s.PutCredentials(t.Context(), all[:2]))
	for name, c := range map[string]struct {
		filter store.CredentialFilter
		want   []int
	}{
		"all but those deleted":         {store.CredentialFilter{}, []int{0, 1, 2}},
		"all":                           {store.CredentialFilter{WithDeleted: true}, []int{0, 1, 2, 3}},
		"those deleted":                 {store.CredentialFilter{State: "Deleted"}, []int{3}},
		"by kind":                       {store.CredentialFilter{Kind: "APIKey"}, []int{1}},
		"by namespace and name":         {store.CredentialFilter{Namespace: "b", Name: "x"}, []int{2}},
		"by label":                      {store.CredentialFilter{Labels: map[string]string{"app": "x"}}, []int{0, 2}},
		"by metadata":                   {store.CredentialFilter{Metadata: map[string]string{"team": "it's \"quoted\"", "ticket": "T-3"}}, []int{2}},
		"by metadata that one half has": {store.CredentialFilter{Metadata: map[string]string{"team": "it's \"quoted\"", "ticket": "T-1"}}, nil},
		"by owner":                      {store.CredentialFilter{Owner: "team-b"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []store.Credential
			cursor := ""
			for {
				page, err := s.Credentials(t.Context(), store.AllTenants(), c.filter, store.Page{Limit: 2, Cursor: cursor})
				must(t, err)
				got = append(got, page.Items...)
				if cursor = page.Next; cursor == "" {
					break
				}
			}
			var want []store.Credential
			for _, i := range c.want {
				want = append(want, all[i])
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("it differs:\n%s", diff)
			}
		})
	}
	changed := all[0]
	changed.Owner, changed.State, changed.Metadata = "team-b", "Revoked", map[string]string{"ticket": "new"}
	must(t, s.PutCredentials(t.Context(), []store.Credential{changed}))
	found, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{Metadata: map[string]string{"ticket": "new"}}, store.Page{})
	must(t, err)
	if diff := cmp.Diff([]store.Credential{changed}, found.Items, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("after a change it differs:\n%s", diff)
	}
	if _, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{}, store.Page{Cursor: "x"}); !errors.Is(err, store.ErrCursor) {
		t.Errorf("a cursor of somebody's own making: %v, want ErrCursor", err)
	}
}

func newestFirst(t *testing.T, open Open) {
	s, other := open(t), open(t)
	at := func(version int64, owner string) store.Credential {
		return credential("1", "a", "x", func(c *store.Credential) { c.Applied, c.Owner = version, owner })
	}
	for _, c := range []struct {
		put  store.Credential
		by   Store
		want string
	}{
		{at(10, "ten"), s, "ten"}, {at(9, "nine"), other, "ten"}, {at(10, "ten, by a newer server"), other, "ten, by a newer server"},
		{at(12, "twelve"), other, "twelve"}, {at(11, "eleven"), s, "twelve"}, {at(0, "who knows"), s, "who knows"}, {at(1, "one"), s, "one"},
	} {
		must(t, c.by.PutCredentials(t.Context(), []store.Credential{c.put}))
		found, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{}, store.Page{})
		must(t, err)
		if len(found.Items) != 1 || found.Items[0].Owner != c.want {
			t.Errorf("after %q of %d it is %+v, want %q", c.put.Owner, c.put.Applied, found.Items, c.want)
		}
	}
	must(t, s.PutCredentials(t.Context(), []store.Credential{at(500, "future"), credential("2", "a", "y", func(c *store.Credential) { c.Applied = 20 })}))
	newest, err := other.NewestCredential(t.Context())
	must(t, err)
	if newest != 500 {
		t.Errorf("the newest is %d, want 500", newest)
	}
	must(t, s.RewindCredentials(t.Context(), 30))
	must(t, s.PutCredentials(t.Context(), []store.Credential{at(25, "restored")}))
	found, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{}, store.Page{})
	must(t, err)
	if len(found.Items) != 2 || found.Items[0].Owner != "restored" || found.Items[1].Applied != 20 {
		t.Errorf("after a restore it is %+v", found.Items)
	}
}

func oddMetadata(t *testing.T, open Open) {
	s := open(t)
	odd := []string{`a"b`, "it's", "ünïcødé 🎉", "a b", "", "a:b=c", `{"a":1}`, "%", "x\x00y", "x\\u0000y", "tab\tnewline\n", "true", "1", "null", "[1]"}
	var all []store.Credential
	for i, value := range odd {
		all = append(all, credential(strconv.Itoa(100+i), "a", "n"+strconv.Itoa(i), func(c *store.Credential) {
			c.Labels, c.Metadata = map[string]string{"l": value}, map[string]string{"k" + value: value, "same": "s"}
		}))
	}
	// The same text on the other side of the border between key and value.
	all = append(all, credential("200", "a", "z1", func(c *store.Credential) { c.Labels, c.Metadata = nil, map[string]string{"ab": "c", "same": "s"} }),
		credential("201", "a", "z2", func(c *store.Credential) {
			c.Labels, c.Metadata = map[string]string{"a": "bc"}, map[string]string{"a": "bc", "same": "s"}
		}))
	must(t, s.PutCredentials(t.Context(), all))
	find := func(f store.CredentialFilter) (uids []string) {
		t.Helper()
		found, err := s.Credentials(t.Context(), store.AllTenants(), f, store.Page{Limit: 1000})
		must(t, err)
		for _, c := range found.Items {
			uids = append(uids, c.UID)
		}
		slices.Sort(uids)
		return uids
	}
	for i, value := range odd {
		want := []string{strconv.Itoa(100 + i)}
		for name, f := range map[string]store.CredentialFilter{
			"a label": {Labels: map[string]string{"l": value}}, "metadata": {Metadata: map[string]string{"k" + value: value}},
			"both": {Metadata: map[string]string{"k" + value: value, "same": "s"}, Labels: map[string]string{"l": value}},
		} {
			if diff := cmp.Diff(want, find(f)); diff != "" {
				t.Errorf("%q by %s:\n%s", value, name, diff)
			}
		}
		if got := find(store.CredentialFilter{Labels: map[string]string{"k" + value: value}}); got != nil {
			t.Errorf("%q of metadata is found as a label: %v", value, got)
		}
	}
	if n := len(find(store.CredentialFilter{Metadata: map[string]string{"same": "s"}})); n != len(all) {
		t.Errorf("%d of %d have what all have", n, len(all))
	}
	if diff := cmp.Diff([]string{"200"}, find(store.CredentialFilter{Metadata: map[string]string{"ab": "c"}})); diff != "" {
		t.Errorf("the border between key and value:\n%s", diff)
	}
	// What changes is found by what it is, not by what it was.
	all[0].Labels, all[0].Metadata = map[string]string{"l": "new"}, nil
	must(t, s.PutCredentials(t.Context(), all[:1]))
	if got := find(store.CredentialFilter{Labels: map[string]string{"l": odd[0]}}); got != nil {
		t.Errorf("it is found by what it was: %v", got)
	}
	if diff := cmp.Diff([]string{"100"}, find(store.CredentialFilter{Labels: map[string]string{"l": "new"}})); diff != "" {
		t.Errorf("after a change:\n%s", diff)
	}
	found, err := s.Credentials(t.Context(), store.TenantOf("b"), store.CredentialFilter{Metadata: map[string]string{"same": "s"}}, store.Page{})
	must(t, err)
	if len(found.Items) != 0 {
		t.Errorf("another tenant finds %d", len(found.Items))
	}
}
