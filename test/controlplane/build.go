package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// GoBuild is one binary to build with the go command in PATH.
type GoBuild struct {
	// Dir is the folder of the module, Package the main package as seen from there.
	Dir, Package string
	// Output is the path of the binary. It is replaced at once or not at all.
	Output string
	// Flags of go build, beside -o.
	Flags []string
	// Env is added to the environment.
	Env []string
	// Out is told every 15 seconds that the build goes on. Nil: nobody.
	Out io.Writer
}

// Run builds.
func (b GoBuild) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(b.Output), 0o755); err != nil {
		return fmt.Errorf("make the folder of %s: %w", b.Output, err)
	}
	temporary := fmt.Sprintf("%s.%d.tmp", b.Output, os.Getpid())
	defer func() { _ = os.Remove(temporary) }()
	args := append([]string{"build", "-o", temporary}, b.Flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, b.Package)...)
	cmd.Dir, cmd.Env = b.Dir, append(append(os.Environ(), "CGO_ENABLED=0"), b.Env...)
	var messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &messages, &messages
	stop := func() {}
	if b.Out != nil {
		stop = progress(b.Out, "still building "+b.Package)
	}
	err := cmd.Run()
	stop()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("go build %s: %w", b.Package, ctx.Err())
	case err != nil:
		return fmt.Errorf("go build %s: %w\n%s", b.Package, err, messages.String())
	}
	if err := os.Rename(temporary, b.Output); err != nil {
		return fmt.Errorf("go build %s: %w", b.Package, err)
	}
	return nil
}

// BuildMintmark builds binaries of this repository from their folders in cmd: what
// maps the name of a folder to the path of the binary.
func BuildMintmark(ctx context.Context, root string, out io.Writer, what map[string]string) error {
	for name, path := range what {
		if err := (GoBuild{Dir: root, Package: "./cmd/" + name, Output: path, Out: out}).Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// progress writes a line every 15 seconds until stop is called.
func progress(out io.Writer, what string) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	began := time.Now()
	go func() {
		defer close(ended)
		tick := time.NewTicker(15 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				fmt.Fprintf(out, "%s (%s)\n", what, time.Since(began).Round(time.Second))
			}
		}
	}()
	return func() { close(done); <-ended }
}
