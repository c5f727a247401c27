package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func hashOf(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

func theRules() *importRules {
	return &importRules{kind: kinds[0], namespace: "payments", class: "legacy", zone: time.UTC, now: noonOf(15)}
}

// planned imports a table of CSV.
func planned(t *testing.T, r *importRules, table string) []*importLine {
	t.Helper()
	read, err := readTableCSV(strings.NewReader(table), ',', nil)
	if err != nil {
		t.Fatal(err)
	}
	return r.plan(read)
}

func TestEveryLineOfATableIsAccountedFor(t *testing.T) {
	admin := theRules()
	admin.adminClass = "legacy-admin"
	raw, _ := hex.DecodeString(hashOf("a"))
	for name, c := range map[string]struct {
		rules  *importRules
		header string
		row    string
		want   importOutcome
		detail string
	}{
		"a token":                                {nil, "name,token_hash", "ci," + hashOf("a"), outcomeImported, ""},
		"a hash in capitals":                     {nil, "name,token_hash", "ci," + strings.ToUpper(hashOf("a")), outcomeImported, ""},
		"a hash as bytea":                        {nil, "name,token_hash", `ci,\x` + hashOf("a"), outcomeImported, ""},
		"a hash in base64":                       {nil, "name,token_hash", "ci," + base64.StdEncoding.EncodeToString(raw), outcomeImported, ""},
		"a hash with its name":                   {nil, "name,token_hash", "ci,sha256:" + hashOf("a"), outcomeImported, ""},
		"no hash":                                {nil, "name,token_hash", "ci,", outcomeHash, "it has no hash"},
		"half a hash":                            {nil, "name,token_hash", "ci," + hashOf("a")[:63], outcomeHash, "it has 63 characters"},
		"the hash of nothing":                    {nil, "name,token_hash", "ci," + hashOf(""), outcomeHash, "that of nothing"},
		"zeros":                                  {nil, "name,token_hash", "ci," + strings.Repeat("0", 64), outcomeHash, "that of nothing"},
		"a bcrypt hash":                          {nil, "name,token_hash", "ci,$2b$12$abcdefghijklmnopqrstuv", outcomeHash, "as a password is"},
		"the token itself":                       {nil, "name,token_hash", "ci,sk_live_" + strings.Repeat("ab", 32), outcomeHash, "has leaked"},
		"an API key itself":                      {nil, "name,token_hash", "ci,mk4Tq9Zx.abcdefghijklmnopqrstuvwxyz", outcomeHash, "has leaked"},
		"inactive":                               {nil, "name,token_hash,is_active", "ci," + hashOf("a") + ",f", outcomeInactive, ""},
		"neither active nor inactive":            {nil, "name,token_hash,is_active", "ci," + hashOf("a") + ",", outcomeInactive, ""},
		"active, as nobody writes it":            {nil, "name,token_hash,is_active", "ci," + hashOf("a") + ",maybe", outcomeFlag, `neither true nor false: "maybe"`},
		"revoked":                                {nil, "name,token_hash,revoked_at", "ci," + hashOf("a") + ",2026-01-01 00:00:00+00", outcomeRevoked, ""},
		"not revoked":                            {nil, "name,token_hash,revoked_at", "ci," + hashOf("a") + ",", outcomeImported, ""},
		"expired":                                {nil, "name,token_hash,expires_at", "ci," + hashOf("a") + ",2026-01-15 12:00:00", outcomeExpired, "2026-01-15T12:00:00Z"},
		"expires in a moment":                    {nil, "name,token_hash,expires_at", "ci," + hashOf("a") + ",2026-01-15 12:00:01", outcomeImported, ""},
		"expires at some time":                   {nil, "name,token_hash,expires_at", "ci," + hashOf("a") + ",31/12/2026", outcomeTime, "not a time"},
		"expires in the year 20260":              {nil, "name,token_hash,expires_at", "ci," + hashOf("a") + ",20260-01-01", outcomeTime, "not a time"},
		"an administrator's":                     {nil, "name,token_hash,is_admin", "ci," + hashOf("a") + ",t", outcomeAdmin, "--admin-class"},
		"an administrator's, with a class":       {admin, "name,token_hash,is_admin", "ci," + hashOf("a") + ",t", outcomeImported, ""},
		"a permission that is none":              {nil, "name,token_hash,permissions", "ci," + hashOf("a") + `,"[""can do""]"`, outcomePermissions, `"can do"`},
		"permissions that are no list":           {nil, "name,token_hash,permissions", "ci," + hashOf("a") + `,"[1]"`, outcomePermissions, "not a JSON array of texts"},
		"metadata that is none":                  {nil, "name,token_hash,metadata", "ci," + hashOf("a") + `,[]`, outcomeMetadata, "no JSON object"},
		"metadata that is long":                  {nil, "name,token_hash,metadata", "ci," + hashOf("a") + `,"{""a"":""` + strings.Repeat("x", 1025) + `""}"`, outcomeMetadata, "more than 128"},
		"no name":                                {nil, "name,token_hash", "," + hashOf("a"), outcomeName, ""},
		"no name, and an id":                     {nil, "id,name,token_hash", "7,," + hashOf("a"), outcomeImported, ""},
		"a column too few":                       {nil, "name,token_hash,is_active", "ci," + hashOf("a"), outcomeDamaged, ""},
		"a quoted line break does not shift one": {nil, "name,token_hash,description", "ci," + hashOf("a") + ",\"a\nb\"", outcomeImported, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := theRules()
			if c.rules != nil {
				r = c.rules
			}
			lines := planned(t, r, c.header+"\n"+c.row+"\n")
			if len(lines) != 1 || lines[0].line != 2 || lines[0].outcome != c.want || !strings.Contains(lines[0].detail, c.detail) {
				t.Fatalf("got %+v, want %s %q", lines[0], c.want, c.detail)
			}
			if (lines[0].object != nil) != (c.want == outcomeImported) {
				t.Errorf("the object is %v", lines[0].object)
			}
			if c.want == outcomeImported && !slices.Equal(lines[0].object.CredentialSpec().External.SHA256, []string{hashOf("a")}) {
				t.Errorf("the hash is %v", lines[0].object.CredentialSpec().External.SHA256)
			}
			for _, secret := range []string{"sk_live_abab", "abcdefghijklmnop", hashOf("a")[:16]} {
				if strings.Contains(lines[0].detail, secret) || strings.Contains(strings.Join(lines[0].notes, " "), secret) {
					t.Errorf("%q is repeated: %+v", secret, lines[0])
				}
			}
		})
	}
}

func TestNamesAreTheSameWhateverTheOrder(t *testing.T) {
	sources := []string{"CI Deploy", "ci-deploy", "ci_deploy", "monitoring", "日本", "", strings.Repeat("long ", 30), strings.Repeat("long ", 31), "-", "a.b", "a b", "Ünïcode"}
	table := func(order []int) string {
		var b strings.Builder
		b.WriteString("id,name,token_hash\n")
		for _, i := range order {
			fmt.Fprintf(&b, "%d,%s,%s\n", i+1, sources[i], hashOf(fmt.Sprint(i)))
		}
		return b.String()
	}
	names := func(order []int) map[string]string {
		found := map[string]string{}
		for _, l := range planned(t, theRules(), table(order)) {
			if problems := validation.IsDNS1123Label(l.object.GetName()); len(problems) > 0 {
				t.Errorf("%q: %v", l.object.GetName(), problems)
			}
			found[l.id] = l.object.GetName()
		}
		return found
	}
	forwards := make([]int, len(sources))
	for i := range forwards {
		forwards[i] = i
	}
	backwards := slices.Clone(forwards)
	slices.Reverse(backwards)
	one := names(forwards)
	if diff := cmp.Diff(one, names(backwards)); diff != "" {
		t.Errorf("another order, other names:\n%s", diff)
	}
	seen := map[string]bool{}
	for _, name := range one {
		if seen[name] {
			t.Errorf("two are called %s", name)
		}
		seen[name] = true
	}
	if one["4"] != "monitoring" || !strings.HasPrefix(one["1"], "ci-deploy-") || one["1"] == one["2"] {
		t.Errorf("named %v", one)
	}
}

func TestWhatIsImportedIsWhatTheTableHas(t *testing.T) {
	r := theRules()
	r.labels, r.permissions = map[string]string{"from": "old"}, map[string]string{"read": "api:read", "obsolete": ""}
	lines := planned(t, r, "id,name,token_hash,permissions,expires_at,created_at,last_used,owner,description,metadata\n"+
		`7,ci,`+hashOf("a")+`,"{read,obsolete,""deploy:*"",read}",2031-01-31 09:00:00.5+01,2025-01-01,2026-01-01,amy,"=x`+"\n\x1b"+`y","{""team"":""a"",""n"":1,""none"":null}"`+"\n")
	o := lines[0].object
	text, err := manifest(o)
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: mintmark.dev/v1alpha1
kind: ServiceToken
metadata:
  labels:
    from: old
  name: ci
  namespace: payments
spec:
  credentialClassName: legacy
  description: =x y
  expiresAt: "2031-01-31T08:00:00Z"
  external:
    sha256:
    - ` + hashOf("a") + `
  metadata:
    imported-created: "2025-01-01"
    imported-id: "7"
    imported-last-used: "2026-01-01"
    imported-name: ci
    "n": "1"
    team: a
  owner: amy
  permissions:
  - api:read
  - deploy:*
  ttl: Never
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("it differs (-want +got):\n%s", diff)
	}
}

func TestAHashIsImportedOnce(t *testing.T) {
	lines := planned(t, theRules(), "name,token_hash,is_active\na,"+hashOf("a")+",f\nb,"+hashOf("a")+",t\nc,"+hashOf("a")+",t\n")
	var got []string
	for _, l := range lines {
		got = append(got, string(l.outcome))
	}
	if diff := cmp.Diff([]string{"inactive", "imported", "duplicate-hash"}, got); diff != "" {
		t.Errorf("it differs:\n%s", diff)
	}
}

func TestTimesOfTables(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"2026-07-01 12:00:00":           "2026-07-01T10:00:00Z",
		"2026-07-01 12:00:00.123456":    "2026-07-01T10:00:00.123456Z",
		"2026-07-01 12:00:00+00":        "2026-07-01T12:00:00Z",
		"2026-07-01 12:00:00.5+05:30":   "2026-07-01T06:30:00.5Z",
		"2026-07-01T12:00:00Z":          "2026-07-01T12:00:00Z",
		"2026-07-01T12:00:00":           "2026-07-01T10:00:00Z",
		"2026-07-01":                    "2026-06-30T22:00:00Z",
		"2026-07-01 12:00:00 UTC":       "2026-07-01T12:00:00Z",
		"1782907200":                    "2026-07-01T12:00:00Z",
		"":                              "",
		"NULL":                          "",
		"infinity":                      "",
		"tomorrow":                      "error",
		"2026-13-01 00:00:00":           "error",
		"0001-01-01 00:00:00":           "error",
		"2026-07-01 12:00:00; DROP":     "error",
		"99999999999999999999999999999": "error",
	} {
		at, err := tableTime(text, berlin)
		got := "error"
		switch {
		case err == nil && at.IsZero():
			got = ""
		case err == nil:
			got = at.Format(time.RFC3339Nano)
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

func TestListsOfTables(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "",
		"{}":                       "",
		"[]":                       "",
		"null":                     "",
		"api_read":                 "api_read",
		"api_read, deploy:write":   "api_read|deploy:write",
		`["a","b:*"]`:              "a|b:*",
		`{a,"b:c", d }`:            "a|b:c|d",
		`{"a \"b\" \\c"}`:          `a "b" \c`,
		`{"a,b"}`:                  "a,b",
		`{a,`:                      "error",
		`{a,,b}`:                   "error",
		`{"a}`:                     "error",
		`{{a},{b}}`:                "error",
		`{"a"b}`:                   "error",
		`["a",1]`:                  "error",
		`{a,}`:                     "error",
		`{"a",}`:                   "error",
		"{\"\xff\"}":               "error",
		"a\tb\nc":                  "a|b|c",
		`["a"`:                     "error",
		"*":                        "*",
		`{"x":"y"}`:                "error",
		"api:read deploy:write,x:": "api:read|deploy:write|x:",
	} {
		list, err := textList(text)
		got := strings.Join(list, "|")
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

// Whatever a file has in it: each line is accounted for once, and what would be made is
// what the API takes.
func FuzzImport(f *testing.F) {
	f.Add([]byte("name,token_hash\nci," + hashOf("a") + "\n"))
	f.Add([]byte("\ufeffid,name,token_hash,permissions,is_admin,expires_at,metadata\n1,\"a\"\"b\n\"," + hashOf("a") + `,"{a,""b""}",t,2031-01-01 00:00:00+00,"{""k"":1}"` + "\n2,x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := readTableCSV(bytes.NewReader(data), ',', nil)
		if err != nil {
			return
		}
		r := theRules()
		r.adminClass = "legacy-admin"
		lines := r.plan(table)
		if len(lines) != len(table.rows)+len(table.damaged) {
			t.Fatalf("%d lines of %d and %d", len(lines), len(table.rows), len(table.damaged))
		}
		names, hashes := map[string]bool{}, map[string]bool{}
		for _, l := range lines {
			if l.outcome == "" || (l.object != nil) != (l.outcome == outcomeImported) {
				t.Fatalf("line %d: %+v", l.line, l)
			}
			if l.object == nil {
				continue
			}
			spec, name := l.object.CredentialSpec(), l.object.GetName()
			if names[name] || hashes[l.hash] || len(validation.IsDNS1123Label(name)) > 0 || len(spec.Owner) > 253 || len(spec.Description) > 1024 ||
				len(spec.Metadata) > 64 || spec.Admin && len(spec.Permissions) > 0 || spec.Admin != (spec.CredentialClassName == "legacy-admin") {
				t.Fatalf("line %d: %s %+v", l.line, name, spec)
			}
			if spec.ExpiresAt != nil && spec.TTL != v1alpha1.Never {
				t.Fatalf("line %d: the class's ttl may end it before", l.line)
			}
			names[name], hashes[l.hash] = true, true
			if _, err := manifest(l.object); err != nil {
				t.Fatal(err)
			}
		}
	})
}
