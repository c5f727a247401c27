package jsontext_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/jsontext"
)

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "plain", `a "quoted" \ word`, "line\nend", "tab\t", "\x00", "\x7f", "ü", "\u2028", "</script>", "\xff\xfe", "a\xc3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff("x"+string(want), string(jsontext.AppendString([]byte("x"), s))); diff != "" {
			t.Error(diff)
		}
	})
}

func TestStringsComeBackAsTheyWere(t *testing.T) {
	for name, list := range map[string][]string{
		"none": {}, "one": {"a"}, "several": {"a", "", "b"}, "with something to escape": {`"`, `\`, "\n", "é", "a,b", "]"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			if err := json.Unmarshal(jsontext.AppendStrings(nil, list), &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(list, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
