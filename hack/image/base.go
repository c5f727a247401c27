package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user of the image: distroless' nonroot. A number, for the kubelet cannot tell
// that a name is not root's.
const user = "65532:65532"

// baseIndex is the base image of every platform, with the links added.
func baseIndex(ctx context.Context, o options) (v1.ImageIndex, error) {
	links, err := tarball.LayerFromOpener(linkLayer, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("make the layer of links: %w", err)
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range platforms(o) {
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			return nil, fmt.Errorf("platform %q: write it like linux/amd64: %w", p, err)
		}
		image, err := baseImage(ctx, o.base, *platform)
		if err != nil {
			return nil, err
		}
		if image, err = mutate.Append(image, mutate.Addendum{Layer: links, MediaType: types.OCILayer}); err != nil {
			return nil, err
		}
		config, err := image.ConfigFile()
		if err != nil {
			return nil, fmt.Errorf("read the configuration of %s: %w", o.base, err)
		}
		config = config.DeepCopy()
		config.Config.User, config.Config.WorkingDir = user, "/"
		if image, err = mutate.ConfigFile(image, config); err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return index, nil
}

func platforms(o options) []string { return strings.Split(o.platforms, ",") }

func baseImage(ctx context.Context, base string, platform v1.Platform) (v1.Image, error) {
	if base == "scratch" {
		image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
		config := &v1.ConfigFile{
			OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant,
			RootFS: v1.RootFS{Type: "layers"},
		}
		return mutate.ConfigFile(image, config)
	}
	reference, err := name.ParseReference(base)
	if err != nil {
		return nil, fmt.Errorf("-base %s is no image: %w", base, err)
	}
	image, err := remote.Image(reference, remote.WithContext(ctx), remote.WithPlatform(platform), keychain())
	if err != nil {
		return nil, fmt.Errorf("get the base image %s for %s (-base scratch needs none): %w", base, platform, err)
	}
	return image, nil
}

// linkLayer is a layer with a link to each program: the paths that manifests and
// the Dockerfile use lead to where ko puts it.
func linkLayer() (io.ReadCloser, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, program := range programs {
		if err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeSymlink, Name: program.path, Linkname: "/ko-app/" + program.folder, Mode: 0o777,
		}); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return io.NopCloser(&layer), nil
}
