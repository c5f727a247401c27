package management

import (
	"encoding/json"
	"testing"
)

func TestTheDocumentIsOpenAPI31(t *testing.T) {
	a, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	var document struct{ OpenAPI string }
	if err := json.Unmarshal(a.Document(), &document); err != nil || document.OpenAPI != "3.1.0" {
		t.Errorf("%v %q", err, document.OpenAPI)
	}
	t.Logf("%s", a.Document())
}
