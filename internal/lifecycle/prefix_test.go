package lifecycle

import (
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestThePrefixOfADeclaredValueIsTheOneSaidOfIt(t *testing.T) {
	digest := "0123456789abcdef" + strings.Repeat("0", 48)
	for sentence, tc := range map[string]struct{ annotation, want string }{
		"said of it":                  {"mkAbC123 01234567", "mkAbC123"},
		"of a service token":          {"sk_live_0a1b 0123456789abcdef", "sk_live_0a1b"},
		"said of another":             {"mkAbC123 11234567", ""},
		"said of too many":            {"mkAbC123 0123456", ""},
		"said of none":                {"mkAbC123", ""},
		"said of all":                 {"mkAbC123 ", ""},
		"no prefix":                   {"secret 01234567", ""},
		"more than a prefix":          {"mkAbC123.x 01234567", ""},
		"nothing":                     {"", ""},
		"a prefix and more than that": {"mkAbC123 01234567 x", ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			p := &plan{Observed: &Observed{
				Spec: &v1alpha1.CredentialSpec{External: &v1alpha1.External{SHA256: []string{digest}}}, Annotations: map[string]string{v1alpha1.AnnotationPrefix: tc.annotation},
			}}
			if got := p.declaredPrefix(0); got != tc.want {
				t.Errorf("it is %q", got)
			}
			if got := p.declaredPrefix(1); got != "" {
				t.Errorf("that of no value is %q", got)
			}
		})
	}
}
