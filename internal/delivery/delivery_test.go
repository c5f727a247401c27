package delivery

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestRender(t *testing.T) {
	values := Values{Namespace: "payments", Name: "ci", Current: "new", Previous: "old", Version: 3, PreviousVersion: 2}
	for name, test := range map[string]struct {
		kind     v1alpha1.Kind
		values   Values
		template map[string]v1alpha1.TemplateText
		want     map[string]string
	}{
		"a service token": {
			v1alpha1.KindServiceToken, values, nil,
			map[string]string{"token": "new", "token.previous": "old", "version": "3", "version.previous": "2"},
		},
		"an API key without a previous value": {
			v1alpha1.KindAPIKey, Values{Current: "new", Version: 1}, nil,
			map[string]string{"api-key": "new", "version": "1"},
		},
		"a template over everything there is": {
			v1alpha1.KindServiceToken, Values{Namespace: "payments", Name: "ci", Current: "a+b", Version: 1},
			map[string]v1alpha1.TemplateText{
				"netrc": `machine x password {{ .token }}`,
				"more":  `{{ b64enc .token }} {{ urlquery .token }} {{ quote .token }} {{ printf "%s-%d" .name .version }} {{ .namespace }}{{ if .previous }}!{{ else }}.{{ end }}`,
			},
			map[string]string{
				"token": "a+b", "version": "1", "netrc": "machine x password a+b", "more": `YSti a%2Bb "a+b" ci-1 payments.`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := Render(test.kind, &v1alpha1.SecretTarget{Template: &v1alpha1.SecretTemplate{Data: test.template}}, test.values)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for k, v := range data {
				got[k] = string(v)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestValidateTemplateRefuses(t *testing.T) {
	data := func(text string) *v1alpha1.SecretTemplate {
		return &v1alpha1.SecretTemplate{Data: map[string]v1alpha1.TemplateText{"k": v1alpha1.TemplateText(text)}}
	}
	label := func(k, v string) *v1alpha1.SecretTemplate {
		return &v1alpha1.SecretTemplate{Metadata: &v1alpha1.TemplateMetadata{Labels: map[string]string{k: v}}}
	}
	annotation := func(k string) *v1alpha1.SecretTemplate {
		return &v1alpha1.SecretTemplate{Metadata: &v1alpha1.TemplateMetadata{Annotations: map[string]string{k: "x"}}}
	}
	for name, test := range map[string]struct {
		template *v1alpha1.SecretTemplate
		says     string
	}{
		"what does not parse":                 {data("{{ .token"), "not a template"},
		"a name that does not exist":          {data("{{ .tokken }}"), "cannot be rendered"},
		"a function that does not exist":      {data("{{ env .token }}"), "not a template"},
		"work without end":                    {data("{{ range 1000000000000 }}{{ end }}"), "range"},
		"a range within an if":                {data("{{ if .token }}{{ range 1000000000000 }}{{ end }}{{ end }}"), "range"},
		"a template within":                   {data(`{{ define "x" }}{{ template "x" }}{{ end }}{{ template "x" }}`), "define"},
		"a width of a gigabyte":               {data(`{{ printf "%999999999d" .version }}`), "without width"},
		"a built-in function we took away":    {data("{{ slice .token 3 }}"), "not available"},
		"one of our own keys":                 {&v1alpha1.SecretTemplate{Data: map[string]v1alpha1.TemplateText{"token": "x"}}, "own key"},
		"a label of Kubernetes":               {label("kubernetes.io/x", "y"), "reserved"},
		"a label below Kubernetes":            {label("app.kubernetes.io/name", "y"), "reserved"},
		"our own label":                       {label("mintmark.dev/managed", "false"), "reserved"},
		"a label value that is none":          {label("team", "a b"), "label"},
		"a key that is none":                  {label("a b", "c"), "name part"},
		"the annotation that makes a token":   {annotation("kubernetes.io/service-account.name"), "reserved"},
		"the annotation that names our owner": {annotation("mintmark.dev/credential-uid"), "reserved"},
	} {
		t.Run(name, func(t *testing.T) {
			errs := ValidateTemplate(field.NewPath("spec", "secret", "template"), v1alpha1.KindServiceToken, test.template)
			if len(errs) == 0 || !strings.Contains(errs.ToAggregate().Error(), test.says) {
				t.Errorf("got %v, want it to say %q", errs, test.says)
			}
			for _, e := range errs {
				if !strings.HasPrefix(e.Field, "spec.secret.template.") {
					t.Errorf("the error does not name the field: %v", e)
				}
			}
		})
	}
}

func TestARenderedSecretIsBounded(t *testing.T) {
	text := v1alpha1.TemplateText(strings.Repeat("{{ .token }}", 1000))
	_, err := Render(v1alpha1.KindServiceToken, &v1alpha1.SecretTarget{Template: &v1alpha1.SecretTemplate{Data: map[string]v1alpha1.TemplateText{"k": text}}},
		Values{Current: strings.Repeat("x", 600), Version: 1})
	if err == nil {
		t.Error("rendered 600 kB")
	}
}

func TestErrorsHoldNoValue(t *testing.T) {
	for _, text := range []string{`{{ .token.x }}`, `{{ index .token 4000 }}`, `{{ b64enc .version }}`, `{{ printf "%s" }}{{ .nothing }}`, `{{ eq .token .version }}`, `{{ len .version }}`} {
		_, err := Render(v1alpha1.KindServiceToken, &v1alpha1.SecretTarget{Template: &v1alpha1.SecretTemplate{Data: map[string]v1alpha1.TemplateText{"k": v1alpha1.TemplateText(text)}}},
			Values{Current: "sk_marker", Previous: "sk_marker", Version: 1})
		if err == nil {
			t.Errorf("%s: no error", text)
		} else if strings.Contains(err.Error(), "marker") {
			t.Errorf("%s: the error gives the value away: %v", text, err)
		}
	}
}
