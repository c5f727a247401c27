package federation

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func minimal(change func(*v1alpha1.TrustedIssuerSpec)) *v1alpha1.TrustedIssuerSpec {
	s := &v1alpha1.TrustedIssuerSpec{Issuer: "https://issuer.example.com", Audiences: []string{"mintmark"}}
	if change != nil {
		change(s)
	}
	return s
}

func TestWhatCannotBeCompiledNamesTheField(t *testing.T) {
	private := `{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"shared"}]}`
	for name, c := range map[string]struct {
		change func(*v1alpha1.TrustedIssuerSpec)
		want   string // in the error; empty: it compiles
	}{
		"the least there can be": {nil, ""},
		"an issuer by http":      {func(s *v1alpha1.TrustedIssuerSpec) { s.Issuer = "http://a.example.com" }, "spec.issuer"},
		"an issuer with a user":  {func(s *v1alpha1.TrustedIssuerSpec) { s.Issuer = "https://u:p@a.example.com" }, "spec.issuer"},
		"no audience":            {func(s *v1alpha1.TrustedIssuerSpec) { s.Audiences = nil }, "spec.audiences"},
		"an empty audience":      {func(s *v1alpha1.TrustedIssuerSpec) { s.Audiences = []string{"a", ""} }, "spec.audiences[1]"},
		"HS256":                  {func(s *v1alpha1.TrustedIssuerSpec) { s.Algorithms = []string{"HS256"} }, "spec.algorithms[0]"},
		"alg none":               {func(s *v1alpha1.TrustedIssuerSpec) { s.Algorithms = []string{"ES256", "none"} }, "spec.algorithms[1]"},
		"keys in two ways": {func(s *v1alpha1.TrustedIssuerSpec) {
			s.JWKSURL, s.JWKS = "https://a.example.com/keys", keySetOf(t, newSigner("ec-1", "ES256"))
		}, "spec.jwks"},
		"keys that are none":                {func(s *v1alpha1.TrustedIssuerSpec) { s.JWKS = `{"keys":[]}` }, "spec.jwks"},
		"a key that is a secret":            {func(s *v1alpha1.TrustedIssuerSpec) { s.JWKS = private }, "spec.jwks"},
		"certificates that are none":        {func(s *v1alpha1.TrustedIssuerSpec) { s.CABundle = []byte("x") }, "spec.caBundle"},
		"a life out of range":               {func(s *v1alpha1.TrustedIssuerSpec) { s.MaxTTL = "2h" }, "spec.maxTTL"},
		"a life without end":                {func(s *v1alpha1.TrustedIssuerSpec) { s.MaxTTL = v1alpha1.Never }, "spec.maxTTL"},
		"an age that is none":               {func(s *v1alpha1.TrustedIssuerSpec) { s.MaxTokenAge = "soon" }, "spec.maxTokenAge"},
		"a subject that is not there":       {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Subject = "clams.sub" }, "spec.mapping.subject: Invalid value: \"clams.sub\": line 1, column 1"},
		"a subject that is a number":        {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Subject = "1 + 2" }, "has to give a string"},
		"roles that are one string":         {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Roles = "'deployer'" }, "spec.mapping.roles"},
		"roles that are numbers":            {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Roles = "[1]" }, "has to give a list of strings"},
		"attributes that are a list":        {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Attributes = "['a']" }, "spec.mapping.attributes"},
		"an optional without a value":       {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Email = "claims.?email" }, ".orValue()"},
		"a syntax error on the second line": {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Email = "claims.\n  )" }, "line 2"},
		"a replacement that a token says":   {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Email = "claims.sub.replace('a', claims.sub)" }, "replace()"},
		"a replacement that is long": {func(s *v1alpha1.TrustedIssuerSpec) {
			s.Mapping.Email = "claims.sub.replace('a', '" + strings.Repeat("a", 65) + "')"
		}, "replace()"},
		"a replacement":                     {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Email = "claims.sub.replace('/', '-')" }, ""},
		"a regular expression that is none": {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Email = "claims.sub.matches('(') ? 'a@b' : ''" }, "spec.mapping.email"},
		"loops in loops in loops": {func(s *v1alpha1.TrustedIssuerSpec) {
			s.Validations = []v1alpha1.ClaimValidation{{Expression: "[1].all(a, [1].all(b, [1].all(c, true)))"}}
		}, "spec.validations[0].expression"},
		"an expression that is far too long": {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Email = "'" + strings.Repeat("a", 5000) + "'" }, "spec.mapping.email"},
		"a validation that is no condition": {func(s *v1alpha1.TrustedIssuerSpec) {
			s.Validations = []v1alpha1.ClaimValidation{{Expression: "true"}, {Expression: "'yes'"}}
		}, "spec.validations[1].expression"},
		"all that can be said": {func(s *v1alpha1.TrustedIssuerSpec) {
			s.Validations = []v1alpha1.ClaimValidation{{Expression: "claims.email_verified"}, {Expression: "claims.ref.startsWith('refs/')"}}
			s.Mapping = v1alpha1.ClaimMapping{
				Subject: "claims.sub", Email: "claims.?email.orValue('')", Roles: "claims.groups.filter(g, g.startsWith('m-')).map(g, g.substring(2))",
				Permissions: "claims.ref == 'refs/heads/main' ? ['deploy:write'] : []", Attributes: "{'team': claims.team}",
			}
			s.MaxTTL, s.MaxTokenAge = "60m", "1d"
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile("github", minimal(c.change))
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var invalid *InvalidError
			if !errors.As(err, &invalid) || len(invalid.Fields) == 0 || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("the error is %v, want one with %q", err, c.want)
			}
			if strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("the error repeats a key: %v", err)
			}
		})
	}
}

func TestAMappingSaysWhoTheHolderIs(t *testing.T) {
	claims := map[string]any{
		"sub": "repo:octo/app:ref:refs/heads/main", "email": "a@example.com", "groups": []any{"deployer", "auditor", "deployer"}, "level": int64(7),
		"mixed": []any{"a", int64(1)}, "nested": map[string]any{"team": "payments", "size": int64(3)}, "long": strings.Repeat("x", 600), "odd": "a\nb",
		"secret": "hunter2",
	}
	for name, c := range map[string]struct {
		mapping v1alpha1.ClaimMapping
		want    *Holder
		problem string
	}{
		"the default": {v1alpha1.ClaimMapping{}, &Holder{Subject: "issuer:github:repo:octo/app:ref:refs/heads/main"}, ""},
		"roles and permissions under the ceiling": {
			v1alpha1.ClaimMapping{Subject: "'x'", Roles: "claims.groups", Permissions: "['deploy:*', 'api:read', 'admin']", Email: "claims.email"},
			&Holder{Subject: "issuer:github:x", Roles: []string{"deployer"}, Permissions: []string{"api:read", "deploy:read", "deploy:write"}, Email: "a@example.com"}, "",
		},
		"everything under the ceiling": {
			v1alpha1.ClaimMapping{Subject: "'x'", Permissions: "['*']"},
			&Holder{Subject: "issuer:github:x", Permissions: []string{"api:*", "deploy:read", "deploy:write"}}, "",
		},
		"attributes": {
			v1alpha1.ClaimMapping{Subject: "'x'", Attributes: "{'team': claims.nested.team}"},
			&Holder{Subject: "issuer:github:x", Attributes: map[string]string{"team": "payments"}}, "",
		},
		"a claim that is missing": {v1alpha1.ClaimMapping{Subject: "claims.name"}, nil, "spec.mapping.subject: the token has no claim name"},
		"a claim that may be missing": {
			v1alpha1.ClaimMapping{Subject: "claims.sub", Email: "claims.?mail.orValue('')"}, &Holder{Subject: "issuer:github:repo:octo/app:ref:refs/heads/main"}, "",
		},
		"a subject that is a number":    {v1alpha1.ClaimMapping{Subject: "claims.level"}, nil, "it gave a value of type int, and has to give a string"},
		"roles that are one string":     {v1alpha1.ClaimMapping{Subject: "'x'", Roles: "claims.email"}, nil, "has to give a list of strings"},
		"roles of which one is no name": {v1alpha1.ClaimMapping{Subject: "'x'", Roles: "['A b']"}, nil, "not the name of an AccessRole"},
		"a list with a number":          {v1alpha1.ClaimMapping{Subject: "'x'", Roles: "claims.mixed"}, nil, "a list with a int"},
		"attributes with a number":      {v1alpha1.ClaimMapping{Subject: "'x'", Attributes: "claims.nested"}, nil, "a map of other values"},
		"permissions of no shape":       {v1alpha1.ClaimMapping{Subject: "'x'", Permissions: "['a b']"}, nil, "not a permission"},
		"an empty subject":              {v1alpha1.ClaimMapping{Subject: "''"}, nil, "spec.mapping.subject"},
		"a subject that is too long":    {v1alpha1.ClaimMapping{Subject: "claims.long"}, nil, "spec.mapping.subject"},
		"a subject with a line end":     {v1alpha1.ClaimMapping{Subject: "claims.odd"}, nil, "spec.mapping.subject"},
		"an address that is none":       {v1alpha1.ClaimMapping{Subject: "'x'", Email: "claims.sub"}, nil, "not an email address"},
		"a conversion that fails":       {v1alpha1.ClaimMapping{Subject: "string(int(claims.secret))"}, nil, "cannot be evaluated with these claims, secret"},
		"a key made of a claim":         {v1alpha1.ClaimMapping{Subject: "claims[claims.secret]"}, nil, "cannot be evaluated"},
		"too much work": {
			v1alpha1.ClaimMapping{Subject: "claims.long.replace('x', 'xxxxxxxxxxxxxxxx').replace('x', 'xxxxxxxxxxxxxxxx')"}, nil, "costs more than",
		},
	} {
		t.Run(name, func(t *testing.T) {
			compiled, err := Compile("github", minimal(func(s *v1alpha1.TrustedIssuerSpec) {
				s.Mapping = c.mapping
				s.Ceiling = v1alpha1.IssuerCeiling{Permissions: []v1alpha1.Permission{"deploy:read", "deploy:write", "api:*"}, Roles: []string{"deployer"}}
			}))
			if err != nil {
				t.Fatal(err)
			}
			got, err := compiled.apply(claims)
			if c.problem != "" {
				if err == nil || !strings.Contains(err.Error(), c.problem) {
					t.Fatalf("the error is %v, want one with %q", err, c.problem)
				}
				if strings.Contains(err.Error(), "hunter2") {
					t.Errorf("the error repeats a claim: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, equateEmpty, ignoreTrust); diff != "" {
				t.Errorf("the holder differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEveryValidationHasToHold(t *testing.T) {
	compiled, err := Compile("github", minimal(func(s *v1alpha1.TrustedIssuerSpec) {
		s.Validations = []v1alpha1.ClaimValidation{
			{Expression: "claims.repository == 'octo/app'", Message: "only our repository"}, {Expression: "claims.protected"},
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		claims  map[string]any
		problem string
	}{
		"all hold":                     {map[string]any{"repository": "octo/app", "protected": true}, ""},
		"one does not":                 {map[string]any{"repository": "evil/app", "protected": true}, "only our repository"},
		"one is missing":               {map[string]any{"repository": "octo/app"}, "no claim protected"},
		"one is not a bool":            {map[string]any{"repository": "octo/app", "protected": "true"}, "has to give true or false"},
		"one is null":                  {map[string]any{"repository": "octo/app", "protected": nil}, "has to give true or false"},
		"one is of another type":       {map[string]any{"repository": int64(1), "protected": true}, "only our repository"},
		"the last one is simply false": {map[string]any{"repository": "octo/app", "protected": false}, "spec.validations[1].expression: the validation does not hold"},
	} {
		t.Run(name, func(t *testing.T) {
			err := compiled.validate(c.claims)
			if (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
				t.Errorf("the error is %v, want one with %q", err, c.problem)
			}
			if err != nil && strings.Contains(err.Error(), "evil") {
				t.Errorf("the error repeats a claim: %v", err)
			}
		})
	}
}

// What costs much ends soon, whatever the expression.
func TestAnExpressionCannotTakeLong(t *testing.T) {
	many := make([]any, 4000)
	for i := range many {
		many[i] = strings.Repeat("a", 3)
	}
	claims := map[string]any{"many": many, "sub": strings.Repeat("a", 12<<10)}
	for _, text := range []string{
		"claims.many.all(a, claims.many.all(b, a == b)) ? 'x' : 'y'",
		"claims.many.map(a, claims.sub).join('')",
		"claims.sub.matches('(a*)*(a*)*(a*)*b') ? 'x' : 'y'",
		"claims.sub + claims.sub + claims.sub + claims.sub",
		"claims.sub.replace('', '" + strings.Repeat("x", 64) + "')",
	} {
		e, problem := compileExpression(nil, text, resultString)
		if problem != nil {
			t.Fatal(problem)
		}
		began := time.Now()
		_, _ = e.eval(claims)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s took %s", text, took)
		}
	}
}

func TestTheFingerprintIsOfWhatDecidesWhoGetsIn(t *testing.T) {
	base := minimal(nil)
	for name, c := range map[string]struct {
		change func(*v1alpha1.TrustedIssuerSpec)
		other  bool
	}{
		"the same":              {nil, false},
		"another ceiling":       {func(s *v1alpha1.TrustedIssuerSpec) { s.Ceiling.Roles = []string{"a"} }, false},
		"another life":          {func(s *v1alpha1.TrustedIssuerSpec) { s.MaxTTL = "5m" }, false},
		"another validation":    {func(s *v1alpha1.TrustedIssuerSpec) { s.Validations = []v1alpha1.ClaimValidation{{Expression: "true"}} }, true},
		"another mapping":       {func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Subject = "claims.name" }, true},
		"another audience":      {func(s *v1alpha1.TrustedIssuerSpec) { s.Audiences = []string{"other"} }, true},
		"another issuer":        {func(s *v1alpha1.TrustedIssuerSpec) { s.Issuer = "https://b.example.com" }, true},
		"another word about it": {func(s *v1alpha1.TrustedIssuerSpec) { s.Validations = []v1alpha1.ClaimValidation{} }, false},
	} {
		got := fingerprint(minimal(c.change))
		if other := got != fingerprint(base); other != c.other || got <= 0 || got >= 1<<53 {
			t.Errorf("%s: other is %t, want %t (%d)", name, other, c.other, got)
		}
	}
}
