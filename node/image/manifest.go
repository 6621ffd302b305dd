package image

import (
	"encoding/json"
	"fmt"

	_ "crypto/sha256" // the digests of the image spec
	_ "crypto/sha512"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types, which the OCI's were made of.
const (
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

const (
	maxManifest = 4 << 20 // bytes, what registries accept
	maxConfig   = 8 << 20 // bytes
	maxLayers   = 500     // what overlayfs stacks
	maxNesting  = 3       // indexes in indexes
)

func isIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == dockerIndex
}

func isManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == dockerManifest
}

// isLayer says whether a layer of this type is a tar that we unpack. How it is
// compressed, its first bytes say: builders have mislabelled that often enough.
func isLayer(mediaType string) bool {
	switch mediaType {
	case v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd,
		dockerLayer, dockerLayer + ".gzip", dockerLayer + ".zstd":
		return true
	}
	return false
}

// mediaTypeOf returns the type that a manifest gives itself, else the one it
// was sent with.
func mediaTypeOf(sent string, raw []byte) string {
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(raw, &m); err == nil && m.MediaType != "" {
		return m.MediaType
	}
	return sent
}

// parseManifest reads a manifest and checks that it is one of an image which
// this package can unpack.
func parseManifest(raw []byte) (v1.Manifest, error) {
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}
	if t := m.Config.MediaType; t != v1.MediaTypeImageConfig && t != dockerConfig {
		return m, fmt.Errorf("%w: its configuration is of type %q: this is no container image", ErrInvalid, t)
	}
	if len(m.Layers) > maxLayers {
		return m, fmt.Errorf("%w: %d layers, at most %d can be stacked", ErrInvalid, len(m.Layers), maxLayers)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := d.Digest.Validate(); err != nil || d.Size < 0 {
			return m, fmt.Errorf("%w: manifest names %q of %d bytes", ErrInvalid, d.Digest, d.Size)
		}
	}
	if m.Config.Size > maxConfig {
		return m, fmt.Errorf("%w: configuration of %d bytes, at most %d are accepted", ErrInvalid, m.Config.Size, maxConfig)
	}
	for _, l := range m.Layers {
		if !isLayer(l.MediaType) {
			return m, fmt.Errorf("%w: layer %s is of type %q, which is not supported", ErrInvalid, l.Digest, l.MediaType)
		}
	}
	return m, nil
}

// chooseFrom returns the manifest of the index raw that suits the platform.
func chooseFrom(raw []byte, want v1.Platform) (v1.Descriptor, error) {
	var x v1.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		return v1.Descriptor{}, fmt.Errorf("%w: index: %w", ErrInvalid, err)
	}
	return choose(x.Manifests, want)
}

// parseConfig reads an image's configuration and checks that it belongs to a
// manifest of that many layers.
func parseConfig(raw []byte, layers int) (v1.Image, error) {
	var c v1.Image
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}
	if n := len(c.RootFS.DiffIDs); n != layers {
		return c, fmt.Errorf("%w: configuration lists %d layers, manifest %d", ErrInvalid, n, layers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return c, fmt.Errorf("%w: configuration names layer %q: %w", ErrInvalid, d, err)
		}
	}
	return c, nil
}

// checkDigest says whether data is what want names.
func checkDigest(data []byte, want digest.Digest) error {
	if err := want.Validate(); err != nil {
		return fmt.Errorf("%w: digest %q: %w", ErrInvalid, want, err)
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return fmt.Errorf("%w: %s was asked for, and content with digest %s came", ErrInvalid, want, got)
	}
	return nil
}
