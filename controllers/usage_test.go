package controllers

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
)

// hears takes the answer of a process that has counted so many uses of version 1.
func (u *UsageCollector) hears(process string, uses int64, at time.Time) {
	u.take(u.processes[process], &internalapi.UsageResponse{
		Since: at.Add(-time.Hour), Items: []internalapi.UsageItem{{UID: "u", Version: 1, Uses: uses, LastUsed: at}},
	})
	u.through = at
}

func (u *UsageCollector) heard(uid types.UID) (n int64) {
	if usage := u.Of(uid); usage != nil {
		for _, c := range usage.Uses[1] {
			n += c.Uses
		}
	}
	return n
}

func TestUsesAreSummedOverServersAndTheirRestarts(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	u := NewUsageCollector(NewFleet(FleetConfig{Now: func() time.Time { return now }}))
	servers := func(processes ...string) {
		var there []server
		for _, p := range processes {
			there = append(there, server{name: p, process: p})
		}
		u.meet(there, now)
	}
	for _, step := range []struct {
		what    string
		there   []string
		process string
		uses    int64
		want    int64
	}{
		{"one server", []string{"a1", "b1"}, "a1", 3, 3},
		{"another", []string{"a1", "b1"}, "b1", 4, 7},
		{"one goes on counting", []string{"a1", "b1"}, "a1", 10, 14},
		{"tells the same again", []string{"a1", "b1"}, "a1", 10, 14},
		{"restarts, and counts anew", []string{"a2", "b1"}, "a2", 1, 15},
		{"drops its index, and counts anew", []string{"a2", "b1"}, "b1", 2, 17},
		{"and goes on", []string{"a2", "b1"}, "b1", 5, 20},
		{"is cut off", []string{"a2"}, "a2", 1, 20},
		{"and is there again, with what it counted meanwhile", []string{"a2", "b1"}, "b1", 6, 21},
	} {
		servers(step.there...)
		if u.hears(step.process, step.uses, now); u.heard("u") != step.want {
			t.Errorf("%s: %d uses, want %d", step.what, u.heard("u"), step.want)
		}
	}
	for i := range 3 * maxCounts {
		now = now.Add(time.Minute)
		process := fmt.Sprintf("c%d", i)
		servers("b1", process)
		u.hears(process, 10, now)
	}
	if got, counts := u.heard("u"), len(u.Of("u").Uses[1]); got != 21+3*maxCounts*10 || counts > maxCounts {
		t.Errorf("after many restarts: %d uses, want %d, in %d counts", got, 21+3*maxCounts*10, counts)
	}
}

// A server whose Lease lapses because the API server is away is the same process when it
// comes back. Asked from the beginning it would tell every use there ever was once more, and
// all of it would pass for uses of today.
func TestAServerThatWasCutOffGoesOnFromWhatItHasTold(t *testing.T) {
	now := time.Date(2026, 1, 10, 12, 0, 0, 0, time.UTC)
	u := NewUsageCollector(NewFleet(FleetConfig{Now: func() time.Time { return now }}))
	tells := func(cursor uint64, uses int64, last time.Time) {
		process := u.processes["a"]
		u.take(process, &internalapi.UsageResponse{
			Cursor: cursor, Since: now.AddDate(0, 0, -9), Items: []internalapi.UsageItem{{UID: "u", Version: 1, Uses: uses, LastUsed: last}},
		})
		process.told, u.through = now, now
	}
	u.meet([]server{{process: "a"}}, now)
	tells(5, 3, now.AddDate(0, 0, -5))
	for range 2 {
		now = now.Add(20 * time.Second)
		u.meet(nil, now)
		if u.through = now; len(u.left) != 1 || u.Of("u").Since.IsZero() {
			t.Errorf("%d are remembered", len(u.left))
		}
	}
	now = now.Add(20 * time.Second)
	u.meet([]server{{process: "a"}}, now)
	if cursor := u.processes["a"].cursor; cursor != 5 || len(u.left) != 0 {
		t.Fatalf("it is asked from %d, want 5", cursor)
	}
	meanwhile := now.Add(-30 * time.Second)
	if tells(6, 4, meanwhile); u.heard("u") != 4 || !u.Of("u").LastUsed[1].Equal(meanwhile) {
		t.Errorf("used %d times, last at %s; want 4 and %s", u.heard("u"), u.Of("u").LastUsed[1], meanwhile)
	}
	u.meet(nil, now)
	now = now.Add(leftFor + time.Second)
	if u.meet(nil, now); len(u.left) != 0 {
		t.Errorf("%d that went long ago are remembered", len(u.left))
	}
}

func TestACredentialIsToldOfOnceItWasUsedAsOftenAsAsked(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	u := NewUsageCollector(NewFleet(FleetConfig{Now: func() time.Time { return now }}))
	u.meet([]server{{process: "a"}}, now)
	u.TellAt("u", 1, 10)
	for _, step := range []struct {
		uses int64
		told bool
	}{{1, true} /* the first use */, {9, false}, {10, true}, {11, false}} {
		clear(u.fresh)
		if u.hears("a", step.uses, now); u.fresh["u"] != step.told {
			t.Errorf("at %d uses: told %t", step.uses, u.fresh["u"])
		}
	}
	clear(u.fresh)
	if u.TellAt("u", 1, 11); !u.fresh["u"] {
		t.Error("not told of what has been used as often already")
	}
}

// While nobody looked who is there, a server can have come and gone: what it saw is
// not known.
func TestTheEvidenceBeginsAnewWhereNobodyLookedForLong(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := begin
	u := NewUsageCollector(NewFleet(FleetConfig{Now: func() time.Time { return now }}))
	for _, step := range []struct {
		after time.Duration
		since time.Duration
	}{{0, 0}, {usagePoll, 0}, {time.Minute, 0}, {10 * time.Minute, 10 * time.Minute}, {10*time.Minute + usagePoll, 10 * time.Minute}} {
		now = begin.Add(step.after)
		u.meet([]server{{process: "a"}}, now)
		if u.hears("a", 1, now); !u.Of("u").Since.Equal(begin.Add(step.since)) {
			t.Errorf("after %s: no gap since %s", step.after, u.Of("u").Since.Sub(begin))
		}
	}
}

func TestWhatIsKnownOfUsesDoesNotGrowForEver(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	u := NewUsageCollector(NewFleet(FleetConfig{Now: func() time.Time { return now }}))
	meet := func() { u.meet([]server{{process: "a"}}, now) }
	tell := func(version int64) {
		u.take(u.processes["a"], &internalapi.UsageResponse{Items: []internalapi.UsageItem{{UID: "u", Version: version, Uses: 1, LastUsed: now}}})
		u.through = now
	}
	meet()
	for version := range int64(100) {
		tell(version + 1)
		u.Keep("u", []v1alpha1.CredentialVersion{{Version: version + 1}, {Version: version}})
	}
	if usage := u.Of("u"); len(usage.LastUsed) != 2 || usage.LastUsed[100].IsZero() || usage.LastUsed[99].IsZero() {
		t.Errorf("of the versions there were, these are remembered: %v", usage.LastUsed)
	}
	tell(101)
	u.Keep("u", []v1alpha1.CredentialVersion{{Version: 100}})
	if usage := u.Of("u"); len(usage.LastUsed) != 2 || usage.LastUsed[101].IsZero() {
		t.Errorf("of versions that this process has yet to see: %v", usage.LastUsed)
	}
	u.Forget("u")
	tell(100) // a server that has yet to hear that the credential is gone
	if len(u.used) != 0 || len(u.fresh) != 0 {
		t.Errorf("of a credential that is gone: %v, %v", u.used, u.fresh)
	}
	now = now.Add(goneFor + time.Second)
	if meet(); len(u.gone) != 0 {
		t.Errorf("%d that are gone are remembered as such", len(u.gone))
	}
}

func TestAVersionThatIsUsedALotIsRotatedSooner(t *testing.T) {
	c := newCluster(t)
	s := c.serve("one", true)
	fleet := c.fleet()
	c.usage = NewUsageCollector(fleet)
	c.start(nil, NewPropagation(fleet))
	token := c.token("ci", func(s *v1alpha1.CredentialSpec) {
		s.Rotation = &v1alpha1.Rotation{HighUsage: &v1alpha1.HighUsage{Threshold: 100, Every: "30d"}}
	})
	c.ready(token)
	byAge := token.Status.NextRotation
	tell := func(uses int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.usage.Cursor++
		s.usage.Since = time.Now().Add(-time.Hour)
		s.usage.Items = []internalapi.UsageItem{{UID: string(token.UID), Version: 1, Uses: uses, LastUsed: time.Now()}}
		c.usage.Ask()
	}
	tell(99)
	c.eventually(token, "the first use of the day", func() bool { return token.Status.LastUsed != "" })
	if v := token.Status.Versions[0]; v.Uses != 99 || token.Status.NextRotation != byAge {
		t.Errorf("%d uses, next rotation %s, by age %s", v.Uses, token.Status.NextRotation, byAge)
	}
	tell(100)
	c.eventually(token, "a rotation by high usage", func() bool { return token.Status.NextRotation < byAge })
	if v := token.Status.Versions[0]; v.Uses != 100 {
		t.Errorf("%d uses in status", v.Uses)
	}
	tell(150)
	c.annotate(token, v1alpha1.AnnotationUsageRequestedAt)
	c.eventually(token, "the uses that were asked for", func() bool {
		return token.Status.Usage.RequestedAt != nil && token.Status.Versions[0].Uses == 150 && token.Status.Versions[0].LastUsed != nil
	})
}
