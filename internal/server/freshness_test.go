package server

import (
	"errors"
	"testing"
	"time"
)

func TestTheAgeOfWhatIsKnown(t *testing.T) {
	start := time.Now()
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	// beat sends a heartbeat every 2 s, from one time to another, by a clock that is off and over
	// a watch that is late.
	beat := func(f *freshness, holder string, from, to, off, late float64) {
		for s := from; s <= to; s += 2 {
			f.heartbeat(holder, at(s+off), at(s+late))
		}
	}
	for name, c := range map[string]struct {
		run       func(*freshness)
		now       float64
		want      float64
		tolerance float64
	}{
		"listed, and no heartbeat yet":                     {func(f *freshness) { f.listed(at(0)) }, 30, 30, 0},
		"heartbeats come":                                  {func(f *freshness) { beat(f, "a", 0, 60, 0, 0.01) }, 61, 1, 0.02},
		"the controller's clock is a day ahead":            {func(f *freshness) { beat(f, "a", 0, 60, 86400, 0.01) }, 61, 1, 0.02},
		"the controller's clock is a day behind":           {func(f *freshness) { beat(f, "a", 0, 60, -86400, 0.01) }, 61, 1, 0.02},
		"heartbeats have ceased":                           {func(f *freshness) { beat(f, "a", 0, 60, 0, 0.01) }, 360, 300, 0.02},
		"the watch has fallen 100 s behind":                {func(f *freshness) { beat(f, "a", 0, 60, 0, 0.01); beat(f, "a", 62, 70, 0, 100) }, 171, 101, 0.05},
		"a heartbeat told twice is one":                    {func(f *freshness) { beat(f, "a", 0, 60, 0, 0.01); f.heartbeat("a", at(60), at(90)) }, 100, 40, 0.02},
		"another controller with a clock of its own":       {func(f *freshness) { beat(f, "a", 0, 60, 0, 0.01); beat(f, "b", 62, 80, -3600, 0.01) }, 81, 1, 0.02},
		"the controller's clock is set back":               {func(f *freshness) { beat(f, "a", 0, 60, 3600, 0.01); beat(f, "a", 62, 80, 0, 0.01) }, 81, 1, 0.02},
		"an old heartbeat is found by the first list":      {func(f *freshness) { f.listed(at(0)); f.heartbeat("a", at(-5000), at(0)) }, 3, 3, 0.02},
		"lists are as good where heartbeats have ceased":   {func(f *freshness) { beat(f, "a", 0, 10, 0, 0.01); f.listed(at(300)) }, 310, 10, 0.02},
		"a list from before the last heartbeat is no news": {func(f *freshness) { beat(f, "a", 0, 60, 0, 0.01); f.listed(at(5)) }, 61, 1, 0.02},
	} {
		f := newFreshness(start)
		c.run(f)
		age, ok := f.age(at(c.now))
		if diff := age.Seconds() - c.want; !ok || diff > c.tolerance || diff < -c.tolerance {
			t.Errorf("%s: the age is %s, want %vs", name, age, c.want)
		}
	}
	f := newFreshness(start)
	if _, ok := f.age(at(1)); ok {
		t.Error("something is known in the beginning")
	}
	beat(f, "a", 0, 10, 0, 0)
	f.forget()
	if _, ok := f.age(at(11)); ok {
		t.Error("something is known after forgetting")
	}
	if _, seen := f.heartbeatAge(at(11)); seen {
		t.Error("a heartbeat is known after forgetting")
	}
}

func TestTheLeaseIsHeldWellWithinItsDuration(t *testing.T) {
	began := 0
	p := &presence{id: "one", log: new(journal).logger(), onTenure: func() { began++ }}
	start := time.Now()
	at := func(d time.Duration) time.Time { return start.Add(d) }
	if _, err := p.held(at(0)); err == nil {
		t.Error("held before the first renewal")
	}
	p.succeeded(at(0), at(time.Second), false)
	first, err := p.held(at(2 * time.Second))
	if err != nil || !first.Equal(at(time.Second)) || began != 1 {
		t.Errorf("after the first renewal: tenure since %s, %v, begun %d times", first, err, began)
	}
	// It counts from when the renewal was sent, and ends before the Lease can lapse.
	if _, err := p.held(at(holdFor - time.Millisecond)); err != nil {
		t.Errorf("just before the end: %v", err)
	}
	if _, err := p.held(at(holdFor)); err == nil {
		t.Error("held without a renewal for 10 s")
	}
	p.failed(errors.New("connection refused"))
	p.succeeded(at(12*time.Second), at(12*time.Second), false)
	if tenure, err := p.held(at(13 * time.Second)); err != nil || !tenure.Equal(first) || began != 1 {
		t.Errorf("renewed before the Lease lapsed, the tenure is %s (%v), want the same", tenure, err)
	}
	p.succeeded(at(30*time.Second), at(31*time.Second), false)
	if tenure, err := p.held(at(32 * time.Second)); err != nil || !tenure.Equal(at(31*time.Second)) || began != 2 {
		t.Errorf("renewed after it lapsed, the tenure is %s (%v), want another", tenure, err)
	}
	p.succeeded(at(33*time.Second), at(33*time.Second), true)
	if tenure, _ := p.held(at(34 * time.Second)); !tenure.Equal(at(33*time.Second)) || began != 3 {
		t.Errorf("made anew after it was deleted, the tenure is %s, want another", tenure)
	}
}
