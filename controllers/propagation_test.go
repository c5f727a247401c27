package controllers

import (
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// With ten thousand credentials rotated, ten thousand answers are remembered: a
// batch is not looked for among them.
func TestWhatEveryServerAcceptsIsAskedNoMore(t *testing.T) {
	p := NewPropagation(NewFleet(FleetConfig{}))
	q := Question{Kind: v1alpha1.KindServiceToken, UID: "u", Epoch: 1}
	yes, no := []serverAnswer{{"one", []bool{true}}, {"two", []bool{true}}}, []serverAnswer{{"one", []bool{true}}, {"two", []bool{false}}}
	var older *question
	for _, step := range []struct {
		what    string
		answers []serverAnswer
		open    int
	}{{"one does not accept it", no, 1}, {"all accept it", yes, 0}} {
		p.Ask(q)
		batch := p.take()
		if len(batch) != 1 || len(p.take()) != 0 {
			t.Fatalf("%s: %d questions are put", step.what, len(batch))
		}
		if p.settle(batch[0], 0, step.answers, nil); len(p.open) != step.open || p.Answer(q).Accepted != (step.open == 0) {
			t.Errorf("%s: %d are open, accepted: %t", step.what, len(p.open), p.Answer(q).Accepted)
		}
		older = batch[0]
		p.tell(t.Context(), older)
	}
	if len(p.changes[q.Kind]) != 1 || len(p.questions) != 0 || !p.Answer(q).Accepted {
		t.Errorf("%d were told, %d questions are kept of what is accepted: %t", len(p.changes[q.Kind]), len(p.questions), p.Answer(q).Accepted)
	}
	if p.Ask(q); len(p.take()) != 0 {
		t.Error("asked again though all accept it")
	}
	q.Epoch++
	if p.Ask(q); len(p.take()) != 1 || p.Answer(q).Accepted {
		t.Error("the next record is not asked for")
	}
	if p.settle(older, 0, yes, nil); len(p.open) != 1 || p.Answer(q).Accepted {
		t.Error("an answer about the record before counts for the next one")
	}
	if p.Forget("u"); len(p.open)+len(p.questions)+len(p.accepted) != 0 {
		t.Errorf("of what is forgotten: %v, %v, %v", p.open, p.questions, p.accepted)
	}
}
