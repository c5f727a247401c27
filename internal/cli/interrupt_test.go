package cli

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// Standard input that nobody writes to, as a terminal where somebody thinks.
func silent(t *testing.T) io.Reader {
	t.Helper()
	in, out := io.Pipe()
	t.Cleanup(func() { _ = out.Close() })
	return in
}

func TestWhatWaitsForInputCanBeInterrupted(t *testing.T) {
	for _, args := range [][]string{
		{"verify", "--url", "http://127.0.0.1:1"}, {"token", "--url", "http://127.0.0.1:1", "--key-file", "-"}, {"inspect"},
		{"policy", "check", "-"}, {"policy", "test", "-"}, {"import", "-"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			streams := genericiooptions.IOStreams{In: silent(t), Out: io.Discard, ErrOut: io.Discard}
			ended := make(chan int, 1)
			go func() { ended <- Run(ctx, Config{Streams: streams, Getenv: func(string) string { return "" }}, args) }()
			select {
			case code := <-ended:
				if code != exitInterrupted {
					t.Errorf("exit %d", code)
				}
			case <-time.After(10 * time.Second):
				t.Error("it goes on waiting")
			}
		})
	}
}

func TestQuestionsCanBeInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := newApp(Config{Streams: genericiooptions.IOStreams{In: silent(t), Out: io.Discard, ErrOut: io.Discard}})
	for name, ask := range map[string]func() error{
		"yes":    func() error { return a.confirm(ctx, "Delete these 2 credentials?") },
		"number": func() error { return (&emergencyOptions{app: a}).confirmTyped(ctx, &hit{}) },
	} {
		answered := make(chan error, 1)
		go func() { answered <- ask() }()
		select {
		case err := <-answered:
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: it goes on waiting", name)
		}
	}
}
