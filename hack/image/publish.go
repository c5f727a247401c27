package main

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// publish pushes the finished image, one manifest for each platform under an index,
// and returns its reference, by digest. ko notes in annotations which image it
// built on; that was one of this process, and its address differs each time, so
// the manifests are written anew.
func publish(ctx context.Context, o options, finished string) (string, error) {
	reference, err := name.ParseReference(finished)
	if err != nil {
		return "", err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range platforms(o) {
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			return "", err
		}
		image, err := remote.Image(reference, remote.WithContext(ctx), remote.WithPlatform(*platform))
		if err != nil {
			return "", fmt.Errorf("take the image for %s from ko: %w", p, err)
		}
		if image, err = withoutAnnotations(image); err != nil {
			return "", err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	tag, err := name.NewTag(o.repository + ":" + o.tag)
	if err != nil {
		return "", err
	}
	if err := remote.WriteIndex(tag, index, remote.WithContext(ctx), keychain()); err != nil {
		return "", fmt.Errorf("push %s: %w", tag, err)
	}
	return byDigest(tag, index)
}

// withoutAnnotations is an image of the same layers and configuration, and no more.
func withoutAnnotations(image v1.Image) (v1.Image, error) {
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	layers, err := image.Layers()
	if err != nil {
		return nil, err
	}
	plain := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if plain, err = mutate.AppendLayers(plain, layers...); err != nil {
		return nil, err
	}
	return mutate.ConfigFile(plain, config)
}
