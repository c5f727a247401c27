package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// reporter tells the person in front of the terminal what happens.
type reporter struct {
	mu   sync.Mutex
	out  io.Writer
	last time.Time // of the latest line
}

// quiet is after how much time without a line one is written to say that things
// go on.
const quiet = 15 * time.Second

func (r *reporter) line(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format+"\n", args...)
	r.last = time.Now()
}

// silent is how long ago the latest line was written.
func (r *reporter) silent() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.last)
}

// Write lets the control plane report its builds.
func (r *reporter) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = time.Now()
	if _, err := fmt.Fprintf(r.out, "  %s", p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// step does one thing and prints a line with its time, and lines before that while
// it lasts long. What do returns is printed after name.
func (r *reporter) step(name string, do func() (detail string, err error)) error {
	began := time.Now()
	done := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if time.Since(began) >= quiet && r.silent() >= quiet {
					r.line("  … %s (%s)", name, short(time.Since(began)))
				}
			}
		}
	})
	detail, err := do()
	close(done)
	waiting.Wait()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if detail != "" {
		name += ": " + detail
	}
	r.line("✓ %s (%s)", name, short(time.Since(began)))
	return nil
}

// short is a duration as people read it.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
