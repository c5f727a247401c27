package management_test

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/management"
)

// Of every operation at every path: nobody gets in without a credential, or with one that
// lacks its permission, and what is another tenant's is as if it did not exist.
func TestEveryOperationIsGuardedByItsPermission(t *testing.T) {
	s := running(t)
	everything := []string{"mintmark:*", "audit_log"}
	made := s.send(t, 0, "POST", "/api/v1/auth/tokens", s.admin, map[string]any{}).want(t, http.StatusCreated)
	other := s.caller(t, "somebody-else", everything...)
	for _, op := range management.Operations() {
		without := slices.DeleteFunc([]string{
			management.PermissionRead, management.PermissionWrite, management.PermissionRevoke, management.PermissionEmergencyRevoke,
			management.PermissionAuditRead, management.PermissionAnalyticsRead, management.PermissionAuditLog, "mintmark:status", "mintmark:revoke", "orders:read",
		}, func(p string) bool { return p == op.Permission })
		lacking := s.caller(t, managed, without...)
		for _, path := range op.Paths {
			t.Run(op.Method+" "+path.Path, func(t *testing.T) {
				mine, nobodys := strings.ReplaceAll(path.Path, "{id}", made.text("id")), strings.ReplaceAll(path.Path, "{id}", "0d3c0d3c-0000-4000-8000-000000000000")
				var body any
				if op.Method == http.MethodPost {
					body = "{}"
				}
				s.send(t, 0, op.Method, mine, "", body).want(t, http.StatusUnauthorized)
				s.send(t, 0, op.Method, mine, made.value()+"0", body).want(t, http.StatusUnauthorized)
				refused := s.send(t, 0, op.Method, mine, lacking, body).want(t, http.StatusForbidden)
				if challenge := refused.header.Get("WWW-Authenticate"); !strings.Contains(challenge, `scope="`+op.Permission+`"`) ||
					!strings.Contains(refused.text("detail"), op.Permission) {
					t.Errorf("the challenge %q, or the problem %s, does not name %s", challenge, refused, op.Permission)
				}
				if mine == nobodys {
					return
				}
				others, absent := s.send(t, 0, op.Method, mine, other, body).want(t, http.StatusNotFound), s.send(t, 0, op.Method, nobodys, other, body).want(t, http.StatusNotFound)
				if string(others.body) != string(absent.body) {
					t.Errorf("another tenant's is told from what does not exist: %s, %s", others, absent)
				}
			})
		}
	}
	if !s.good(t, 0, made.value()) {
		t.Error("something was revoked by one of the requests that were refused")
	}
}

func TestACallerHandsOutNoMoreThanItHolds(t *testing.T) {
	s := running(t)
	writer := s.caller(t, managed, management.PermissionWrite, management.PermissionRead, "orders:read", "deploy:*")
	const path = "/api/v1/auth/tokens"
	for sentence, tc := range map[string]struct {
		body any
		want int
		says string
	}{
		"what it holds":                           {map[string]any{"permissions": []string{"orders:read"}}, 201, ""},
		"what its wildcard covers":                {map[string]any{"permissions": []string{"deploy:write", "deploy:*"}}, 201, ""},
		"what it holds, as text":                  {map[string]any{"permissions": "orders:read deploy:write"}, 201, ""},
		"as text what it has not":                 {map[string]any{"permissions": "orders:read orders:write"}, 403, "orders:write"},
		"nothing":                                 {map[string]any{}, 201, ""},
		"a permission it has not":                 {map[string]any{"permissions": []string{"orders:write"}}, 403, "orders:write"},
		"a wildcard over what it has":             {map[string]any{"permissions": []string{"orders:*"}}, 403, "orders:*"},
		"everything":                              {map[string]any{"permissions": []string{"*"}}, 403, "*"},
		"a role it has not":                       {map[string]any{"roles": []string{"operators"}}, 403, "operators"},
		"an attribute it has not":                 {map[string]any{"attributes": map[string]string{"clearance": "secret"}}, 403, "clearance"},
		"an administrator's":                      {map[string]any{"is_admin": true}, 403, "is_admin"},
		"its own right over credentials":          {map[string]any{"permissions": []string{management.PermissionWrite}}, 422, restClass},
		"in another namespace":                    {map[string]any{"namespace": "kube-system"}, 403, "namespace"},
		"in Mintmark's own":                       {map[string]any{"namespace": systemNamespace}, 403, "namespace"},
		"with a name that is none":                {map[string]any{"name": "../../x"}, 422, "body.name"},
		"with a permission that is none":          {map[string]any{"permissions": []string{"deploy:a b"}}, 422, "permission"},
		"with a network that is none":             {map[string]any{"allowed_cidrs": []string{"10.0.0.0/33"}}, 422, "network"},
		"with a TTL that is none":                 {map[string]any{"ttl": "1week2"}, 422, "ttl"},
		"with a field there is not":               {map[string]any{"permission": []string{"orders:read"}}, 422, "body.permission"},
		"with a field in other letters":           {map[string]any{"Permissions": []string{"orders:read"}}, 422, "body.Permissions"},
		"with a field of another type":            {map[string]any{"permissions": 7}, 422, "body.permissions: write a list of names"},
		"with a permission of no letters":         {map[string]any{"permissions": []string{"orders:read", ""}}, 422, "body.permissions: write a list of names"},
		"with an end that has passed":             {map[string]any{"expires_at": "2020-01-01T00:00:00Z"}, 422, "body.expires_at"},
		"with nothing":                            {nil, 400, "body: there is none"},
		"with a field that is there twice":        {`{"permissions":[],"permissions":["orders:read"]}`, 400, "permissions"},
		"in something other than JSON":            {`permissions=orders:read`, 400, "JSON"},
		"in an array":                             {`[]`, 422, "body"},
		"with a SHA-256 of its own choosing":      {map[string]any{"external": map[string]any{"sha256": []string{strings.Repeat("a", 64)}}}, 422, "body.external"},
		"with a class of its own choosing":        {map[string]any{"class": "operators"}, 422, "body.class"},
		"with labels that Kubernetes has not":     {map[string]any{"labels": map[string]string{"a b": "c"}}, 422, "label"},
		"with more permissions than there may be": {map[string]any{"permissions": many(257)}, 422, "body.permissions"},
	} {
		t.Run(sentence, func(t *testing.T) {
			got := s.send(t, 0, "POST", path, writer, tc.body).want(t, tc.want)
			if !strings.Contains(string(got.body), tc.says) || tc.want >= 400 && got.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("answered %s as %s, want it to say %q", got, got.header.Get("Content-Type"), tc.says)
			}
			if tc.want == 201 && !strings.HasPrefix(got.text("token"), "sk_") {
				t.Errorf("answered %s", got)
			}
		})
	}
	t.Run("nor by rotating what holds more", func(t *testing.T) {
		made := s.send(t, 0, "POST", path, s.admin, map[string]any{"permissions": []string{"payments:write"}}).want(t, 201)
		s.send(t, 0, "POST", path+"/"+made.text("id")+"/rotate", writer, nil).want(t, 403)
		if !s.good(t, 0, made.value()) {
			t.Error("it was rotated")
		}
	})
	t.Run("nor by a JWT", func(t *testing.T) {
		jwt := s.send(t, 0, "POST", "/api/auth/token", writer, nil).want(t, 200).text("token")
		s.send(t, 0, "POST", path, jwt, map[string]any{"permissions": []string{"orders:read", "deploy:*"}}).want(t, 201)
		s.send(t, 0, "POST", path, jwt, map[string]any{"permissions": []string{"orders:write"}}).want(t, 403)
	})
}

func many(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = "orders:read" + strings.Repeat("x", i%50)
	}
	return all
}

func TestAnAdministratorHandsOutWhatTheClassAllows(t *testing.T) {
	s := running(t)
	for sentence, tc := range map[string]struct {
		body any
		want int
		says string
	}{
		"any permission that the class allows":  {map[string]any{"permissions": []string{"orders:*"}}, 201, ""},
		"none that it does not":                 {map[string]any{"permissions": []string{"mintmark:status"}}, 422, "mintmark-rest"},
		"not everything":                        {map[string]any{"permissions": []string{"*"}}, 422, "mintmark-rest"},
		"no role that servers may not hand out": {map[string]any{"roles": []string{"operators"}}, 403, "operators"},
		"no administrator's credential":         {map[string]any{"is_admin": true}, 403, "is_admin"},
		"not where management is not enabled":   {map[string]any{"namespace": "kube-system"}, 403, "management-namespaces"},
		"not where there is no namespace":       {map[string]any{"namespace": "no-such-namespace"}, 403, "management-namespaces"},
	} {
		t.Run(sentence, func(t *testing.T) {
			got := s.send(t, 0, "POST", "/api/auth/keys", s.admin, tc.body).want(t, tc.want)
			if !strings.Contains(string(got.body), tc.says) {
				t.Errorf("answered %s, want it to say %q", got, tc.says)
			}
		})
	}
}

// Of a request that is sent to both servers at once, many times, one makes a credential and
// shows its value.
func TestARequestWithAnIdempotencyKeyIsCarriedOutOnce(t *testing.T) {
	s := running(t)
	const path = "/api/auth/keys"
	body := map[string]any{"permissions": []string{"orders:read"}, "description": "once"}
	key := unique("a key of")
	var mu sync.Mutex
	ids, values, statuses := map[string]int{}, map[string]int{}, map[int]int{}
	var asking sync.WaitGroup
	for n := range 12 {
		asking.Go(func() {
			r, err := s.exchange(n%2, "POST", path, s.admin, body, "Idempotency-Key", key)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[r.text("id")]++
			statuses[r.status]++
			if v := r.value(); v != "" {
				values[v]++
			}
		})
	}
	asking.Wait()
	if len(ids) != 1 || len(values) != 1 || statuses[201] != 1 || statuses[200] != 11 {
		t.Fatalf("statuses %v, %d credentials, %d values", statuses, len(ids), len(values))
	}
	id := sorted(ids)[0]
	t.Run("the key in quotes is the same key", func(t *testing.T) {
		r := s.send(t, 1, "POST", path, s.admin, body, "Idempotency-Key", `"`+key+`"`).want(t, 200)
		if r.text("id") != id || r.field("replayed") != true || r.value() != "" {
			t.Errorf("answered %s", r)
		}
	})
	t.Run("for another request it is refused", func(t *testing.T) {
		s.send(t, 1, "POST", path, s.admin, map[string]any{"description": "twice"}, "Idempotency-Key", key).want(t, 422)
	})
	t.Run("another caller's is another key", func(t *testing.T) {
		other := s.caller(t, managed, management.PermissionWrite, "orders:read")
		if r := s.send(t, 1, "POST", path, other, body, "Idempotency-Key", key).want(t, 201); r.text("id") == id {
			t.Error("a caller was shown what another one has made")
		}
	})
	t.Run("so is a rotation", func(t *testing.T) {
		rotate := path + "/" + id + "/rotate"
		first := s.send(t, 0, "POST", rotate, s.admin, nil, "Idempotency-Key", "r1").want(t, 200)
		again := s.send(t, 1, "POST", rotate, s.admin, nil, "Idempotency-Key", "r1").want(t, 200)
		if first.value() == "" || again.value() != "" || again.field("replayed") != true || !s.good(t, 0, first.value()) {
			t.Errorf("answered %s, then %s", first, again)
		}
		s.send(t, 1, "POST", rotate, s.admin, map[string]any{"immediate": true}, "Idempotency-Key", "r1").want(t, 422)
	})
	t.Run("without a key a name is taken once", func(t *testing.T) {
		name := unique("named")
		s.send(t, 0, "POST", path, s.admin, map[string]any{"name": name}).want(t, 201)
		s.send(t, 1, "POST", path, s.admin, map[string]any{"name": name}).want(t, 409)
	})
}

func TestChangesDependOnTheStateTheCallerHasSeen(t *testing.T) {
	s := running(t)
	made := s.send(t, 0, "POST", "/api/auth/keys", s.admin, map[string]any{}).want(t, 201)
	path := "/api/auth/keys/" + made.text("id")
	var seen string
	eventually(t, "the controller has settled", func() bool {
		before := seen
		seen = s.send(t, 0, "GET", path, s.admin, nil).want(t, 200).header.Get("ETag")
		return before == seen && before != ""
	})
	unchanged := s.send(t, 0, "GET", path, s.admin, nil, "If-None-Match", `"x", W/`+seen).want(t, 304)
	if len(unchanged.body) != 0 || unchanged.header.Get("ETag") != seen {
		t.Errorf("answered %s with ETag %s", unchanged, unchanged.header.Get("ETag"))
	}
	s.send(t, 0, "POST", path+"/rotate", s.admin, nil, "If-Match", `"1"`).want(t, 412)
	s.send(t, 0, "POST", path+"/rotate", s.admin, nil, "If-Match", "W/"+seen).want(t, 412)
	s.send(t, 0, "POST", path+"/revoke", s.admin, nil, "If-Match", `"1"`).want(t, 412)
	s.send(t, 0, "DELETE", "/api/v1/auth/tokens/"+made.text("id"), s.admin, nil, "If-Match", `"1"`).want(t, 412)
	if !s.good(t, 0, made.value()) {
		t.Fatal("something was changed")
	}
	s.send(t, 0, "POST", path+"/rotate", s.admin, nil, "If-Match", seen).want(t, 200)
	s.send(t, 0, "DELETE", "/api/v1/auth/tokens/"+made.text("id")+"?reason=over", s.admin, nil, "If-Match", "*").want(t, 200)
	if o := s.object(t, made); o.CredentialSpec().Revoked == nil || o.CredentialSpec().Revoked.Reason != "over" {
		t.Errorf("the object says %+v", o.CredentialSpec().Revoked)
	}
}

func TestWhatASecretDeliversIsRotatedThereAndRevokedHere(t *testing.T) {
	s := running(t)
	name := unique("delivered")
	value, err := s.mint(t.Context(), managed, name, v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"orders:read"}})
	if err != nil {
		t.Fatal(err)
	}
	o := &v1alpha1.ServiceToken{}
	read := func() *v1alpha1.ServiceToken {
		if err := s.cluster.Get(t.Context(), client.ObjectKey{Namespace: managed, Name: name}, o); err != nil {
			t.Fatal(err)
		}
		return o
	}
	path := "/api/v1/auth/tokens/" + string(read().UID)
	asked := s.send(t, 0, "POST", path+"/rotate", s.admin, map[string]any{"reason": "quarterly"}).want(t, 202)
	if asked.value() != "" || strings.Contains(string(asked.body), "sk_") && strings.Contains(string(asked.body), value) {
		t.Errorf("a value is shown: %s", asked)
	}
	eventually(t, "the controller rotates it", func() bool { return read().Status.CurrentVersion == 2 })
	for _, v := range read().Status.Versions {
		if v.Version == 2 && (!strings.HasPrefix(v.Reason, "quarterly") || !strings.Contains(v.Actor, "for servicetoken:mintmark-system:admin")) {
			t.Errorf("version 2 is by %q for %q", v.Actor, v.Reason)
		}
	}
	s.send(t, 0, "POST", path+"/rotate", s.admin, map[string]any{"immediate": true}).want(t, 409)
	s.send(t, 1, "POST", path+"/revoke", s.admin, map[string]any{"versions": []int64{1}, "reason": "old"}).want(t, 200)
	eventually(t, "the version is refused", func() bool { return !s.good(t, 0, value) })
	s.send(t, 1, "POST", path+"/revoke", s.admin, map[string]any{"versions": []int64{0}}).want(t, 422)
	if got := s.send(t, 1, "POST", path+"/revoke", s.admin, map[string]any{"versions": []int64{1, 99}}).want(t, 422); !strings.Contains(got.text("detail"), "the latest is ") {
		t.Errorf("of a version that there is not yet: %s", got)
	}
	s.send(t, 1, "DELETE", path, s.admin, nil).want(t, 200)
	eventually(t, "the status accounts for it", func() bool { return read().Status.Revocation != nil })
	s.send(t, 1, "POST", path+"/rotate", s.admin, nil).want(t, 409)

	t.Run("not in a namespace where management is not enabled", func(t *testing.T) {
		elsewhere := s.caller(t, "not-managed", "orders:read")
		list := s.send(t, 0, "GET", "/api/v1/auth/tokens?namespace=not-managed", s.admin, nil).want(t, 200)
		id := list.field("items").([]any)[0].(map[string]any)["id"].(string)
		s.send(t, 0, "POST", "/api/v1/auth/tokens/"+id+"/rotate", s.admin, nil).want(t, 403)
		s.send(t, 0, "POST", "/api/v1/auth/tokens/"+id+"/revoke", s.admin, nil).want(t, 403)
		if !s.good(t, 0, elsewhere) {
			t.Error("it was revoked")
		}
	})
}

func TestTheEmergencyBrakeTakesWhatItSelects(t *testing.T) {
	s := running(t)
	const path = "/api/v1/auth/emergency-revoke"
	braked, unbraked, key := unique("braked"), unique("unbraked"), unique("drill")
	inside, outside := s.caller(t, braked, "orders:read", management.PermissionEmergencyRevoke), s.caller(t, unbraked, "orders:read")
	for sentence, tc := range map[string]struct {
		credential string
		body       any
		want       int
	}{
		"no reason":                      {s.admin, map[string]any{"all": true}, 422},
		"an empty reason":                {s.admin, map[string]any{"all": true, "reason": ""}, 422},
		"nothing selected":               {s.admin, map[string]any{"reason": "x"}, 422},
		"all and a selection":            {s.admin, map[string]any{"reason": "x", "all": true, "kinds": []string{"APIKey"}}, 422},
		"a kind there is not":            {s.admin, map[string]any{"reason": "x", "kinds": []string{"Secret"}}, 422},
		"labels that are none":           {s.admin, map[string]any{"reason": "x", "labels": map[string]string{"a b": "c"}}, 422},
		"another namespace than its own": {inside, map[string]any{"reason": "x", "namespaces": []string{unbraked}}, 403},
		"one of two namespaces its own":  {inside, map[string]any{"reason": "x", "namespaces": []string{braked, unbraked}}, 403},
	} {
		t.Run(sentence, func(t *testing.T) { s.send(t, 0, "POST", path, tc.credential, tc.body).want(t, tc.want) })
	}
	pulled := s.send(t, 0, "POST", path, inside, map[string]any{"reason": "leaked", "all": true}, "Idempotency-Key", "brake").want(t, 201)
	if pulled.field("matched") != float64(1) {
		t.Errorf("answered %s", pulled)
	}
	for i := range s.servers {
		eventually(t, "everything of the namespace is refused", func() bool { return !s.good(t, i, inside) })
		if !s.good(t, i, outside) || !s.good(t, i, s.admin) {
			t.Error("somebody else was revoked")
		}
	}
	r := &v1alpha1.Revocation{}
	if err := s.cluster.Get(t.Context(), client.ObjectKey{Name: pulled.text("name")}, r); err != nil {
		t.Fatal(err)
	}
	if r.Spec.All || !slices.Equal(r.Spec.Namespaces, []string{braked}) || !strings.HasPrefix(r.Annotations[v1alpha1.AnnotationOnBehalfOf], "servicetoken:"+braked+":") {
		t.Errorf("the Revocation is %+v by %q", r.Spec, r.Annotations)
	}
	body := map[string]any{"reason": "drill", "namespaces": []string{"nobody-is-here"}, "kinds": []string{"APIKey"}}
	first := s.send(t, 0, "POST", path, s.admin, body, "Idempotency-Key", key).want(t, 201)
	again := s.send(t, 1, "POST", path, s.admin, body, "Idempotency-Key", key).want(t, 200)
	if first.text("id") != again.text("id") || again.field("replayed") != true {
		t.Errorf("answered %s, then %s", first, again)
	}
	body["reason"] = "another drill"
	s.send(t, 1, "POST", path, s.admin, body, "Idempotency-Key", key).want(t, 422)
}

// What an operation is recorded as: who did what to which credential, and nothing secret.
func TestEveryChangeIsRecordedWithWhoMadeIt(t *testing.T) {
	s := running(t)
	made := s.send(t, 0, "POST", "/api/auth/keys", s.admin, map[string]any{}).want(t, 201)
	path := "/api/auth/keys/" + made.text("id")
	s.send(t, 0, "POST", path+"/revoke", s.admin, map[string]any{"reason": "because"}).want(t, 200)
	for _, want := range []string{"credentials-create", "credentials-revoke"} {
		eventually(t, want+" is recorded", func() bool {
			for line := range strings.Lines(s.events.String()) {
				if strings.Contains(line, `"`+want+`"`) && strings.Contains(line, made.text("id")) && strings.Contains(line, `"actor":"servicetoken:mintmark-system:admin"`) &&
					strings.Contains(line, `"type":"management"`) && strings.Contains(line, `"outcome":"done"`) {
					return true
				}
			}
			return false
		})
	}
	if strings.Contains(s.events.String(), made.value()) {
		t.Error("the value is in the audit log")
	}
}

func TestBodiesAreBoundedAndOfOneType(t *testing.T) {
	s := running(t)
	large := `{"description":"` + strings.Repeat("x", management.MaxBody) + `"}`
	if got := s.send(t, 0, "POST", "/api/auth/keys", s.admin, large).want(t, http.StatusRequestEntityTooLarge); !strings.Contains(got.text("detail"), "1 MiB") {
		t.Errorf("answered %s", got)
	}
	got := s.send(t, 0, "POST", "/api/auth/keys", s.admin, "{}", "Content-Type", "text/plain").want(t, http.StatusUnsupportedMediaType)
	if detail := got.text("detail"); !strings.Contains(detail, "application/json") || strings.Contains(detail, "plain") {
		t.Errorf("answered %s, want it to say what to send, and not what was", got)
	}
	s.send(t, 0, "POST", "/api/auth/keys", s.admin, "description=x", "Content-Type", "application/x-www-form-urlencoded").want(t, http.StatusUnsupportedMediaType)
	refused := s.send(t, 0, "PUT", "/api/auth/keys", s.admin, "{}").want(t, http.StatusMethodNotAllowed)
	if got := refused.header.Get("Allow"); got != "GET, HEAD, POST" {
		t.Errorf("Allow: %s", got)
	}
	s.send(t, 0, "PUT", "/api/auth/keys", "", "{}").want(t, http.StatusUnauthorized)
	s.send(t, 0, "POST", "/api/auth/keys/x/nothing", s.admin, "{}").want(t, http.StatusNotFound)
	if head := s.send(t, 0, "HEAD", "/api/auth/keys", s.admin, nil).want(t, http.StatusOK); len(head.body) > 0 {
		t.Errorf("HEAD has a body: %s", head)
	}
}

// A marker that is sent in every wrong place is in no log, event, object or answer.
func TestWhatIsSentInTheWrongPlaceIsNotRepeated(t *testing.T) {
	s := running(t)
	marker := "sk_live_" + strings.Repeat("5eed", 16)
	var answers []string
	for _, request := range []struct {
		method, path string
		body         any
		headers      []string
	}{
		{"POST", "/api/auth/keys", map[string]any{"is_admin": marker}, nil},
		{"POST", "/api/auth/keys", map[string]any{marker: 1}, nil},
		{"POST", "/api/auth/keys", `{"ttl":` + marker + `}`, nil},
		{"POST", "/api/auth/keys", map[string]any{"ttl": marker}, nil},
		{"POST", "/api/auth/keys", map[string]any{"permissions": []string{marker + "!"}}, nil},
		{"POST", "/api/auth/keys", map[string]any{"permissions": []any{map[string]any{marker: marker}}}, nil},
		{"POST", "/api/auth/keys", map[string]any{"kind": marker}, nil},
		{"GET", "/api/auth/keys?" + marker + "=1", nil, nil},
		{"GET", "/api/auth/keys?kind=" + marker, nil, nil},
		{"GET", "/api/auth/keys?limit=" + marker, nil, nil},
		{"GET", "/api/auth/keys?cursor=" + marker, nil, nil},
		{"GET", "/api/auth/keys?label=" + marker, nil, nil},
		{"GET", "/api/auth/keys/" + marker, nil, nil},
		{"POST", "/api/auth/keys/" + marker + "/rotate", nil, nil},
		{"POST", "/api/auth/keys/x/rotate", nil, []string{"If-Match", marker}},
		{"POST", "/api/auth/keys", map[string]any{"name": "Bad Name"}, []string{"Idempotency-Key", marker}},
		{"POST", "/api/v1/auth/emergency-revoke", map[string]any{"reason": "x", "kinds": []string{marker}}, nil},
		{"POST", "/api/v1/auth/emergency-revoke", map[string]any{"reason": "x", "labels": map[string]string{marker + marker: marker}}, nil},
	} {
		r := s.send(t, 0, request.method, request.path, s.admin, request.body, request.headers...)
		if r.status < 400 || r.status >= 500 {
			t.Errorf("%s %s with %v: answered %s", request.method, request.path, request.body, r)
		}
		answers = append(answers, string(r.body))
	}
	secret := strings.Repeat("5eed", 16)
	if strings.Contains(strings.Join(answers, "\n"), secret) {
		t.Errorf("the marker is in an answer:\n%s", strings.Join(answers, "\n"))
	}
	if strings.Contains(s.log.String(), secret) || strings.Contains(s.events.String(), secret) {
		t.Error("the marker is in a log")
	}
}
