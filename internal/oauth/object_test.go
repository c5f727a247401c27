package oauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"
	"unicode/utf8"
)

// slowObject reads an object with encoding/json's own tokens.
func slowObject(data []byte) (map[string]string, bool) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if first, err := decoder.Token(); !utf8.Valid(data) || err != nil || first != json.Delim('{') {
		return nil, false
	}
	members := map[string]string{}
	for decoder.More() {
		token, err := decoder.Token()
		name, ok := token.(string)
		if _, twice := members[name]; err != nil || !ok || twice {
			return nil, false
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, false
		}
		members[name] = string(value)
	}
	if _, err := decoder.Token(); err != nil {
		return nil, false
	}
	_, err := decoder.Token()
	return members, errors.Is(err, io.EOF)
}

var objects = []string{
	`{}`, ` { } `, `{"a":1}`, `{"a":"b","c":[1,{"d":"}"}],"e":{"f":[]},"g":null,"h":-1.5e+3,"i":true}`, "{\n\t\"a\" : \"\\\"\\\\\" ,\r\"b\": 1 }",
	`{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":1}{}`, `{"a":1},`, `[]`, `"x"`, `null`, ``, ` `, `{`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{"a":"\ud800"}`, `{"":""}`,
	`{"a":"b" }`, `{"a":1 ,"b":[ ] , "c":{ } }`,
}

func TestObjectsAreReadAsEncodingJSONReadsThem(t *testing.T) {
	for _, text := range objects {
		sameAsSlow(t, []byte(text))
	}
}

func FuzzObject(f *testing.F) {
	for _, text := range objects {
		f.Add([]byte(text))
	}
	f.Fuzz(sameAsSlow)
}

func sameAsSlow(t *testing.T, data []byte) {
	want, ok := slowObject(data)
	got, err := decodeObject(data)
	if ok != (err == nil) {
		t.Fatalf("%q: %v, and encoding/json says %v", data, err, ok)
	}
	if err != nil {
		return
	}
	texts := map[string]string{}
	for name, value := range got {
		texts[name] = string(value)
	}
	if !maps.Equal(want, texts) {
		t.Errorf("%q: %v, want %v (%v)", data, texts, want, slices.Sorted(maps.Keys(want)))
	}
	for _, value := range got {
		text, err := decodeString(value)
		var whole string
		if wrong := json.Unmarshal(value, &whole) != nil || value[0] != '"'; wrong != (err != nil) || !wrong && text != whole {
			t.Errorf("%q: %q %v, want %q", value, text, err, whole)
		}
	}
}
