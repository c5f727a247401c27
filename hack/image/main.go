package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// programs in the order in which they are stacked: the last one's is the entry
// point of the image. Each has its folder under cmd and its path in the image.
var programs = []struct{ folder, path string }{
	{"controller", "mintmark-controller"},
	{"server", "mintmark-server"},
	{"mintmark", "mintmark"},
}

// options are the flags.
type options struct {
	root       string
	ko         string
	repository string
	tag        string
	base       string
	platforms  string
	version    string
}

func main() {
	var o options
	flag.StringVar(&o.root, "root", ".", "`folder` of the repository")
	flag.StringVar(&o.ko, "ko", "bin/ko", "ko's `binary`")
	flag.StringVar(&o.repository, "repository", "", "image `repository` to push to, such as ghcr.io/mintmark-dev/mintmark")
	flag.StringVar(&o.tag, "tag", "dev", "`tag` of the image")
	flag.StringVar(&o.base, "base", "gcr.io/distroless/static-debian12:nonroot", "base `image`, or scratch")
	flag.StringVar(&o.platforms, "platforms", "linux/amd64,linux/arm64", "`platforms`, separated by commas")
	flag.StringVar(&o.version, "version", "", "`version` the programs report; default: the tag")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	image, err := build(ctx, o, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
	fmt.Println(image)
}

// build builds and pushes the image and returns its reference, by digest.
func build(ctx context.Context, o options, progress io.Writer) (string, error) {
	if o.repository == "" {
		return "", fmt.Errorf("say where to push the image: -repository ghcr.io/OWNER/mintmark")
	}
	if _, err := name.NewTag(o.repository + ":" + o.tag); err != nil {
		return "", fmt.Errorf("-repository %s -tag %s is no image: %w", o.repository, o.tag, err)
	}
	if o.version == "" {
		o.version = o.tag
	}
	root, err := filepath.Abs(o.root)
	if err != nil {
		return "", err
	}
	if o.ko, err = filepath.Abs(o.ko); err != nil {
		return "", err
	}
	o.root = root

	between, stop, err := scratchRegistry()
	if err != nil {
		return "", err
	}
	defer stop()
	layer, err := pushBase(ctx, o, between+"/base:"+o.tag)
	if err != nil {
		return "", err
	}
	for _, program := range programs {
		fmt.Fprintf(progress, "Building cmd/%s\n", program.folder)
		if layer, err = runKo(ctx, o, program.folder, layer, between+"/"+program.folder, progress); err != nil {
			return "", err
		}
	}
	return publish(ctx, o, layer)
}

// pushBase puts the base image, with the links added, where ko can take it from.
func pushBase(ctx context.Context, o options, reference string) (string, error) {
	index, err := baseIndex(ctx, o)
	if err != nil {
		return "", err
	}
	tag, err := name.NewTag(reference)
	if err != nil {
		return "", err
	}
	if err := remote.WriteIndex(tag, index, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("put the base image aside: %w", err)
	}
	return byDigest(tag, index)
}

// byDigest is the reference of what was pushed under a tag.
func byDigest(tag name.Tag, pushed interface{ Digest() (v1.Hash, error) }) (string, error) {
	digest, err := pushed.Digest()
	if err != nil {
		return "", err
	}
	return tag.Context().Digest(digest.String()).String(), nil
}

// runKo stacks one program on an image and returns the new image, by digest.
func runKo(ctx context.Context, o options, folder, on, repository string, progress io.Writer) (string, error) {
	cmd := exec.CommandContext(ctx, o.ko, "build", "--bare", "--platform", o.platforms, "--tags", o.tag, "--sbom", "none", "./cmd/"+folder)
	cmd.Dir = o.root
	cmd.Env = append(os.Environ(), "KO_DOCKER_REPO="+repository, "KO_DEFAULTBASEIMAGE="+on, "MINTMARK_VERSION="+o.version)
	cmd.Stderr = progress
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ko build ./cmd/%s: %w", folder, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// scratchRegistry serves a registry of this process's own, on the loopback
// interface.
func scratchRegistry() (address string, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("serve a registry for what lies in between: %w", err)
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))} //nolint:gosec // loopback, for this process
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String(), func() { _ = server.Close() }, nil
}

// keychain is where docker login puts what registries ask for.
func keychain() remote.Option { return remote.WithAuthFromKeychain(authn.DefaultKeychain) }
