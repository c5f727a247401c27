package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// asTerminal gives the file of a terminal, or nil.
func asTerminal(stream any) *os.File {
	if f, ok := stream.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// interactive tells whether there is somebody to ask.
func (a *app) interactive() bool { return asTerminal(a.In) != nil }

// interruptible waits for a read no longer than the context lasts: one of standard input
// cannot be ended from outside. The command is over then, and the read with it.
func interruptible[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		value, err := read()
		done <- outcome{value, err}
	}()
	select {
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	case o := <-done:
		return o.value, o.err
	}
}

// ask puts a question, and gives the line that is typed, each space of it one.
func (a *app) ask(ctx context.Context, question string) (string, error) {
	fmt.Fprint(a.ErrOut, question)
	line, err := interruptible(ctx, func() (string, error) { return bufio.NewReader(io.LimitReader(a.In, 64)).ReadString('\n') })
	if err != nil {
		a.note("") // nobody ended the line
	}
	if ctx.Err() != nil {
		return "", fmt.Errorf("nothing was changed: %w", ctx.Err())
	}
	return strings.Join(strings.Fields(line), " "), nil
}

// confirm asks before more than one credential is acted on, or whatever else
// calls for a question.
func (a *app) confirm(ctx context.Context, question string) error {
	answer, err := a.ask(ctx, question+" Type yes to go on: ")
	if err != nil || strings.EqualFold(answer, "yes") {
		return err
	}
	return errors.New("not confirmed, nothing was changed (--yes goes on without asking)")
}

// readKey reads a key from a pipe, or from a terminal without showing it.
func (a *app) readKey(ctx context.Context) ([]byte, error) {
	f := asTerminal(a.In)
	if f == nil {
		return interruptible(ctx, func() ([]byte, error) { return readAllLimited(a.In, maxKey) })
	}
	before, err := term.GetState(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	fmt.Fprint(a.ErrOut, "Key (not shown): ")
	data, err := interruptible(ctx, func() ([]byte, error) { return term.ReadPassword(int(f.Fd())) })
	a.note("")
	if ctx.Err() != nil { // what still reads would leave the terminal without an echo
		err = errors.Join(err, term.Restore(int(f.Fd()), before))
	}
	return data, err
}

// readFile reads a file of at most so many bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readAllLimited(f, limit)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return data, nil
}

func readAllLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return data, err
}
