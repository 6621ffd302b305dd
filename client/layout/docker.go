package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"berth.internal/client"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerManifest is the file that an archive of docker save begins with.
const dockerManifest = "manifest.json"

// dockerImage is one image in manifest.json.
type dockerImage struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// made is an image whose manifest is made here, of content that is elsewhere.
type made struct {
	root   v1.Descriptor
	body   []byte // of the manifest
	config []byte
	layers map[digest.Digest]func(offset int64) (io.ReadCloser, error)
	close  func() error
}

// makeImage writes the manifest for a config and layers.
func makeImage(config []byte, layers []v1.Descriptor) (*made, error) {
	body, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:    layers,
	})
	if err != nil {
		return nil, err
	}
	return &made{
		root:   v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(body), Size: int64(len(body))},
		body:   body,
		config: config,
		layers: map[digest.Digest]func(int64) (io.ReadCloser, error){},
		close:  func() error { return nil },
	}, nil
}

// Root returns the image.
func (m *made) Root(context.Context) (v1.Descriptor, error) { return m.root, nil }

// Manifest returns the image's manifest.
func (m *made) Manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Digest != m.root.Digest {
		return nil, fmt.Errorf("there is no manifest %s here", d.Digest)
	}
	return m.body, nil
}

// Blob opens the config or a layer.
func (m *made) Blob(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	if open := m.layers[d.Digest]; open != nil {
		return open(offset)
	}
	if d.Digest != digest.FromBytes(m.config) {
		return nil, fmt.Errorf("there is no blob %s here", d.Digest)
	}
	return io.NopCloser(bytes.NewReader(m.config[min(offset, int64(len(m.config))):])), nil
}

// Referrers returns none.
func (*made) Referrers(context.Context, digest.Digest) ([]v1.Descriptor, error) { return nil, nil }

// Close closes what the content is read from.
func (m *made) Close() error { return m.close() }

// Docker is an image in an archive of docker save to read from. Its layers are
// taken as they are there, usually uncompressed, so that their digests are
// those of their content and stay the same with every version of berth.
type Docker struct{ *made }

// OpenDocker opens an archive of docker save, and in it the image with the given
// name or tag. An empty tag means the only image there is.
func OpenDocker(file, tag string) (*Docker, error) {
	a, err := openArchive(file)
	if err != nil {
		return nil, err
	}
	m, err := openDocker(a, file, tag)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", file, err), a.Close())
	}
	m.close = a.Close
	return &Docker{m}, nil
}

func openDocker(f files, where, tag string) (*made, error) {
	raw, err := small(f, dockerManifest, maxIndex)
	if errors.Is(err, fs.ErrNotExist) {
		if _, _, err := f.open(v1.ImageLayoutFile); err == nil {
			return nil, errors.New("this is an OCI image layout, not an archive of docker save; name it oci-archive:FILE")
		}
		return nil, errors.New("this is not an archive of docker save: it has no file manifest.json")
	}
	if err != nil {
		return nil, err
	}
	image, err := chooseDocker(raw, tag)
	if err != nil {
		return nil, err
	}
	config, err := small(f, image.Config, client.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("the image's config is missing or wrong: %w", err)
	}
	var cfg struct {
		RootFS v1.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &cfg); err != nil {
		return nil, fmt.Errorf("%s is not the config of an image: %w", image.Config, err)
	}
	if len(cfg.RootFS.DiffIDs) != len(image.Layers) {
		return nil, fmt.Errorf("the config names %d layers, manifest.json %d", len(cfg.RootFS.DiffIDs), len(image.Layers))
	}
	layers := make([]v1.Descriptor, 0, len(image.Layers))
	names := map[digest.Digest]string{}
	for i, name := range image.Layers {
		d, err := dockerLayer(f, name, cfg.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %s is missing or wrong: %w", name, err)
		}
		layers = append(layers, d)
		names[d.Digest] = name
	}
	m, err := makeImage(config, layers)
	if err != nil {
		return nil, err
	}
	for _, d := range layers {
		m.layers[d.Digest] = func(offset int64) (io.ReadCloser, error) {
			return openBlob(f, where, names[d.Digest], d, offset)
		}
	}
	return m, nil
}

// chooseDocker reads manifest.json and finds the image with the given name or
// tag in it.
func chooseDocker(raw []byte, tag string) (dockerImage, error) {
	var images []dockerImage
	if err := json.Unmarshal(raw, &images); err != nil {
		return dockerImage{}, fmt.Errorf("%s is not one of docker save: %w", dockerManifest, err)
	}
	var found []dockerImage
	var tags []string
	for _, image := range images {
		match := tag == ""
		for _, name := range image.RepoTags {
			match = match || name == tag || strings.HasSuffix(name, ":"+tag) || strings.HasSuffix(name, "/"+tag)
		}
		if match {
			found = append(found, image)
		}
		tags = append(tags, image.RepoTags...)
	}
	has := strings.Join(tags, ", ")
	switch {
	case len(images) == 0:
		return dockerImage{}, errors.New("there is no image here")
	case len(found) == 1:
		return found[0], nil
	case tag == "":
		return dockerImage{}, fmt.Errorf("there are %d images here: add :NAME:TAG to choose one of %s", len(images), has)
	case len(found) == 0:
		return dockerImage{}, fmt.Errorf("there is no image %q here, but %s", tag, has)
	}
	return dockerImage{}, fmt.Errorf("%d images are called %q: write the name in full, one of %s", len(found), tag, has)
}

// dockerLayer describes a layer of the archive. An uncompressed one has its
// DiffID as digest, which whoever takes it verifies; any other is read once.
func dockerLayer(f files, name string, diffID digest.Digest) (v1.Descriptor, error) {
	if err := diffID.Validate(); err != nil {
		return v1.Descriptor{}, err
	}
	c, size, err := f.open(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer c.Close()
	magic := make([]byte, 4)
	if _, err := io.ReadFull(c, magic); err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: diffID, Size: size}
	switch compression(magic) {
	case gzipped:
		d.MediaType = v1.MediaTypeImageLayerGzip
	case zstandard:
		d.MediaType = v1.MediaTypeImageLayerZstd
	default:
		return d, nil
	}
	if _, err := c.Seek(0, io.SeekStart); err != nil {
		return v1.Descriptor{}, err
	}
	d.Digest, err = digest.FromReader(c)
	return d, err
}
