package lifecycle

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

func TestRevocationsThatAreGoneAreForgottenAtLast(t *testing.T) {
	p := &plan{Observed: &Observed{}, status: &v1alpha1.CredentialStatus{}}
	for i := range maxGone + 15 {
		uid := fmt.Sprint(i)
		p.status.SettledRevocations = append(p.status.SettledRevocations, uid)
		if i < 5 {
			p.Revocations = append(p.Revocations, Revocation{UID: uid})
		}
	}
	p.forgetRevocations()
	if got := p.status.SettledRevocations; len(got) != maxGone+5 || !slices.Equal(got[:6], []string{"0", "1", "2", "3", "4", "15"}) {
		t.Errorf("kept %d: %v ...", len(got), got[:6])
	}
}

// serverRefuses is how a server judges the credential's versions: by every Revocation
// that exists, and by the record.
func (w *world) serverRefuses(version int64) bool {
	for i := range w.o.Revocations {
		if r := &w.o.Revocations[i]; !w.o.Record.Accounts(r.UID, r.Created) {
			return true
		}
	}
	return version <= w.o.Record.RevokedThrough
}

func TestElevenHundredRevocationsOfOneCredential(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{})
	w.run()
	const many = 1100
	for i := range many {
		w.o.Revocations = append(w.o.Revocations, Revocation{
			UID: fmt.Sprintf("%08d-0000-0000-0000-000000000000", i), Name: fmt.Sprint(i), Reason: "r", Created: w.now.Add(time.Duration(i) * time.Millisecond).Truncate(time.Second),
		})
	}
	fits := func() {
		t.Helper()
		if got := len(w.o.Status.SettledRevocations); got > 1024 {
			t.Fatalf("status names %d, and has room for 1024", got)
		}
		if _, _, err := w.o.Record.Seal(w.pepper); err != nil {
			t.Fatal(err)
		}
	}
	w.now = w.now.Add(2 * time.Second)
	w.run()
	fits()
	if !w.serverRefuses(1) {
		t.Fatal("version 1 is accepted after 1,100 Revocations")
	}
	// While they are young, no value is made that servers would refuse.
	w.command([]string{"rotate", "again"})
	fits()
	if ready := readyOf(w); ready.Reason != v1alpha1.ReasonTooManyRevocations || w.minted != 1 {
		t.Fatalf("Ready=%s %q, %d minted", ready.Reason, ready.Message, w.minted)
	}
	// Once they are old, all of them are accounted for at once, and few are named.
	w.command([]string{"wait", "2h"})
	fits()
	for i := range w.o.Revocations {
		if r := &w.o.Revocations[i]; !w.o.Record.Accounts(r.UID, r.Created) {
			t.Fatalf("Revocation %s is not accounted for after two hours", r.Name)
		}
	}
	if named := len(w.o.Record.Settled); named > namedAlone {
		t.Errorf("%d are still named", named)
	}
	w.command([]string{"rotate", "and", "again"})
	latest := w.o.Status.CurrentVersion
	if latest < 2 || w.serverRefuses(latest) || !w.serverRefuses(1) {
		t.Fatalf("version %d: refused %t; version 1: refused %t", latest, w.serverRefuses(latest), w.serverRefuses(1))
	}
	// The next one takes it all the same.
	w.command([]string{"revocation", "last"})
	if !w.serverRefuses(latest) || w.o.Status.CurrentVersion != 0 {
		t.Error("the Revocation after them takes nothing")
	}
}

func TestARevocationThatIsNotAccountedForIsNeverTakenTogetherWithOthers(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	p := &plan{Observed: &Observed{}, status: &v1alpha1.CredentialStatus{}, now: now}
	for i := range namedAlone + 10 {
		r := Revocation{UID: fmt.Sprint(i), Created: now.Add(-48 * time.Hour).Add(time.Duration(i) * time.Minute)}
		p.Revocations = append(p.Revocations, r)
		if i != 100 {
			p.status.SettledRevocations = append(p.status.SettledRevocations, r.UID)
		}
	}
	p.forgetRevocations()
	rec := &credential.Record{Settled: p.status.SettledRevocations, SettledBefore: p.settledBefore}
	for _, r := range p.Revocations {
		if got := rec.Accounts(r.UID, r.Created); got != (r.UID != "100") {
			t.Errorf("Revocation %s: accounted for: %t", r.UID, got)
		}
	}
	p.ClockSkewed, p.settledBefore = true, 0
	if p.forgetRevocations(); p.settledBefore != 0 {
		t.Error("taken together by a clock that is wrong")
	}
}
