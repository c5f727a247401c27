package credential

import (
	"crypto/rand"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestIsPrefix(t *testing.T) {
	for _, f := range []Format{
		{Kind: v1alpha1.KindAPIKey}, {Kind: v1alpha1.KindServiceToken}, {Kind: v1alpha1.KindServiceToken, Environment: "live", Checksum: true},
	} {
		value, err := f.Mint(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if !IsPrefix(value.Prefix()) {
			t.Errorf("%q is a prefix", value.Prefix())
		}
		if text := value.Reveal(); IsPrefix(text) || IsPrefix(text[:20]) {
			t.Error("more of a value than its prefix is taken for one")
		}
	}
	for _, text := range []string{"", "mk", "mk12345", "mk1234567", "mk12345.", "MK123456", "sk_", "sk_12345", "sk_ABCD", "sk_live_", "sk_Live_abcd", "sk__abcd", "pk_abcd", "mk1234\n6"} {
		if IsPrefix(text) {
			t.Errorf("%q is none", text)
		}
	}
}
