package audit

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTypesListsEveryConstant(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []Type
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Type") {
			return true
		}
		if value, ok := spec.Values[0].(*ast.BasicLit); ok {
			text, err := strconv.Unquote(value.Value)
			if err != nil {
				t.Fatal(err)
			}
			declared = append(declared, Type(text))
		}
		return true
	})
	listed := Types()
	slices.Sort(declared)
	slices.Sort(listed)
	if diff := cmp.Diff(declared, listed); diff != "" || len(declared) == 0 {
		t.Errorf("it differs (-declared +listed):\n%s", diff)
	}
}

func TestAUseIsOfTheCredentialThatARequestWasMadeWith(t *testing.T) {
	presented := Event{
		Type: TypeAuthentication, Outcome: Allowed, Subject: "servicetoken:payments:ops", UID: "u-1", Namespace: "payments", Version: 3, Slot: SlotPrevious, Prefix: "sk_81ac",
	}
	own := Use{UID: "u-1", Namespace: "payments", Subject: "servicetoken:payments:ops", Version: 3, Slot: SlotPrevious, Prefix: "sk_81ac", Allowed: true}
	with := func(change func(*Event)) Event {
		e := presented
		e.Detail = map[string]Text{}
		change(&e)
		return e
	}
	denied := own
	denied.Allowed = false
	managed := func(e *Event) {
		e.Type, e.Outcome, e.Actor = TypeManagement, Done, Text(e.Subject)
		e.KeepUse()
		e.Subject, e.UID, e.Namespace = "apikey:billing:x", "u-2", "billing"
	}
	for sentence, c := range map[string]struct {
		event Event
		want  Use
		none  bool
	}{
		"a verification":                  {presented, own, false},
		"one that was refused":            {with(func(e *Event) { e.Outcome = Denied }), denied, false},
		"a list of credentials":           {with(func(e *Event) { e.Type = TypeManagement }), own, false},
		"a search":                        {with(func(e *Event) { e.Type = TypeManagementRead }), own, false},
		"a pipeline that failed":          {with(func(e *Event) { e.Type, e.Outcome = TypeCICD, Failed }), own, false},
		"a change of another credential":  {with(managed), own, false},
		"a request that is amiss":         {with(func(e *Event) { e.Type, e.Outcome = TypeManagement, Failed }), own, false},
		"a verification that is amiss":    {with(func(e *Event) { e.Outcome = Failed }), denied, false},
		"a request of nobody known":       {Event{Type: TypeManagement, Outcome: Failed}, Use{}, false},
		"one that was refused by a class": {with(func(e *Event) { managed(e); e.Outcome = Denied }), denied, false},
		"one of before versions were kept": {
			with(func(e *Event) { managed(e); delete(e.Detail, "actor_version"); delete(e.Detail, "actor_slot") }),
			Use{UID: "u-1", Namespace: "payments", Subject: "servicetoken:payments:ops", Prefix: "sk_81ac", Allowed: true}, false,
		},
		"a change by another issuer's": {
			with(func(e *Event) { e.UID, e.Namespace, e.Version, e.Slot, e.Prefix = "", "", 0, "", ""; managed(e) }),
			Use{Subject: "servicetoken:payments:ops", Allowed: true}, false,
		},
		"a detail that a caller made up": {with(func(e *Event) { e.Detail["actor_uid"] = "u-3" }), own, false},
		"a rotation":                     {with(func(e *Event) { e.Type = TypeCredential }), Use{}, true},
		"a Revocation":                   {with(func(e *Event) { e.Type = TypeRevocation }), Use{}, true},
	} {
		if got, ok := c.event.Use(); got != c.want || ok == c.none {
			t.Errorf("%s: %+v (%v), want %+v", sentence, got, ok, c.want)
		}
	}
}
