package main

import (
	"archive/tar"
	"context"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestImage builds the image on an empty base and looks into what a cluster would
// pull.
func TestImage(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	target, stop, err := scratchRegistry()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	o := options{
		root: root, ko: buildKo(t, root), repository: target + "/mintmark", tag: "v9.9.9", base: "scratch", platforms: "linux/amd64",
	}
	reference, err := build(t.Context(), o, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	image := pull(t, reference)
	if tagged := pull(t, o.repository+":"+o.tag); digest(t, tagged) != digest(t, image) {
		t.Errorf("the tag %s leads to %s, not to %s", o.tag, digest(t, tagged), digest(t, image))
	}

	t.Run("runs as a user that is not root", func(t *testing.T) {
		if got := config(t, image).Config.User; got != user {
			t.Errorf("the user is %q", got)
		}
	})
	t.Run("does not tell where it was built", func(t *testing.T) {
		manifest, err := image.RawManifest()
		if err != nil {
			t.Fatal(err)
		}
		configuration, err := image.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if text := string(manifest) + string(configuration); strings.Contains(text, "127.0.0.1") || strings.Contains(text, root) {
			t.Errorf("it does: %s", text)
		}
	})
	t.Run("its entry point is the command line tool", func(t *testing.T) {
		if got := config(t, image).Config.Entrypoint; len(got) != 1 || got[0] != "/ko-app/mintmark" {
			t.Errorf("the entry point is %q", got)
		}
	})
	dir := unpack(t, image)
	for _, program := range programs {
		t.Run("/"+program.path+" is static and knows its version", func(t *testing.T) {
			link, err := os.Readlink(filepath.Join(dir, program.path))
			if err != nil {
				t.Fatal(err)
			}
			binary := filepath.Join(dir, link)
			file, err := elf.Open(binary)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = file.Close() }()
			for _, section := range file.Progs {
				if section.Type == elf.PT_INTERP {
					t.Error("it needs a dynamic linker, and the image has none")
				}
			}
			out, err := exec.CommandContext(t.Context(), binary, versionArgs(program.folder)...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "v9.9.9") {
				t.Errorf("%v: it says %q", err, out)
			}
		})
	}
	t.Run("building it again gives the same digest", func(t *testing.T) {
		again, err := build(t.Context(), o, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if again != reference {
			t.Errorf("first %s, then %s", reference, again)
		}
	})
}

func TestBadOptionsAreExplained(t *testing.T) {
	for name, test := range map[string]struct {
		o    options
		want string
	}{
		"no repository":           {options{tag: "v1"}, "-repository ghcr.io/OWNER/mintmark"},
		"a tag that is none":      {options{repository: "localhost/mintmark", tag: "a b"}, "is no image"},
		"a base that is none":     {options{repository: "localhost/mintmark", tag: "v1", base: "A B", platforms: "linux/amd64"}, "-base A B is no image"},
		"a platform that is none": {options{repository: "localhost/mintmark", tag: "v1", base: "scratch", platforms: "a/b/c/d"}, "write it like linux/amd64"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := build(context.Background(), test.o, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error does not say %q: %v", test.want, err)
			}
		})
	}
}

// versionArgs asks a program for its version: the tool by a command, the others by
// a flag.
func versionArgs(folder string) []string {
	if folder == "mintmark" {
		return []string{"version"}
	}
	return []string{"--version"}
}

func buildKo(t *testing.T, root string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ko")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/google/ko")
	cmd.Dir = filepath.Join(root, "hack", "tools", "ko")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build ko: %v\n%s", err, out)
	}
	return path
}

func pull(t *testing.T, reference string) v1.Image {
	t.Helper()
	ref, err := name.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func digest(t *testing.T, image v1.Image) string {
	t.Helper()
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func config(t *testing.T, image v1.Image) *v1.ConfigFile {
	t.Helper()
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// unpack writes the files of an image into a folder, as a runtime would.
func unpack(t *testing.T, image v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	files := mutate.Extract(image)
	defer func() { _ = files.Close() }()
	for r := tar.NewReader(files); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Clean("/"+header.Name))
		switch header.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(header.Linkname, path)
		case tar.TypeReg:
			err = extract(path, r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func extract(path string, content io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(file, content); err != nil {
		return errors.Join(err, file.Close())
	}
	return file.Close()
}
