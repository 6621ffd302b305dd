package layout

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"berth.internal/client"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// DockerTarget is an archive for docker load to write to. It holds one image,
// its layers uncompressed. A file that had its name is replaced at Commit.
type DockerTarget struct {
	tar  *tarball
	name string

	mu      sync.Mutex
	configs map[digest.Digest][]byte
	layers  map[digest.Digest]digest.Digest // to the digest of the uncompressed content
}

// CreateDocker begins to write an image to an archive. name is what docker load
// will call it, with its tag; empty: nothing.
func CreateDocker(file, name string) (*DockerTarget, error) {
	t, err := createTarball(file)
	if err != nil {
		return nil, err
	}
	return &DockerTarget{
		tar: t, name: name,
		configs: map[digest.Digest][]byte{}, layers: map[digest.Digest]digest.Digest{},
	}, nil
}

// Begin refuses an index: an archive of docker save has one image.
func (t *DockerTarget) Begin(_ context.Context, root v1.Descriptor, manifests int) error {
	if client.IsIndex(root.MediaType) || manifests > 1 {
		return errors.New("a docker-archive holds one image: choose one with --platform and without --referrers, or pull to an oci-archive")
	}
	return nil
}

// PutBlob takes a config or a layer.
func (t *DockerTarget) PutBlob(_ context.Context, d v1.Descriptor, open func(int64) (io.ReadCloser, error), progress func(int64)) (client.PushResult, error) {
	if !strings.Contains(d.MediaType, "layer") && !strings.Contains(d.MediaType, "rootfs.diff") {
		return client.Uploaded, t.putConfig(d, open, progress)
	}
	rc, err := open(0)
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	v := &verifying{r: rc, desc: d, verifier: d.Digest.Verifier(), progress: progress}
	return client.Uploaded, t.tar.append(func(w io.Writer) (string, error) {
		diffID := digest.Canonical.Digester()
		if err := inflate(io.MultiWriter(w, diffID.Hash()), v); err != nil {
			return "", fmt.Errorf("unpack layer %s: %w", d.Digest, err)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.layers[d.Digest] = diffID.Digest()
		return layerName(diffID.Digest()), nil
	})
}

func (t *DockerTarget) putConfig(d v1.Descriptor, open func(int64) (io.ReadCloser, error), progress func(int64)) error {
	if d.Size > client.MaxManifest {
		return fmt.Errorf("config %s is larger than %d bytes", d.Digest, client.MaxManifest)
	}
	var b bytes.Buffer
	if err := copyVerified(&b, d, open, progress); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.configs[d.Digest] = b.Bytes()
	return nil
}

func layerName(diffID digest.Digest) string { return diffID.Encoded() + ".tar" }

// inflate copies the uncompressed content of src, and reads src to its end, so
// that all of it is verified.
func inflate(w io.Writer, src io.Reader) error {
	buffered := bufio.NewReaderSize(src, 128<<10)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var r io.Reader = buffered
	switch compression(magic) {
	case gzipped:
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return err
		}
		r = z
	case zstandard:
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return err
		}
		defer z.Close()
		r = z
	}
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, buffered)
	return err
}

// PutManifest refuses: there is one manifest, which Commit takes.
func (t *DockerTarget) PutManifest(_ context.Context, d v1.Descriptor, _ []byte) error {
	return fmt.Errorf("a docker-archive has no place for manifest %s", d.Digest)
}

// Commit compares the layers with the config and gives the archive its name.
func (t *DockerTarget) Commit(_ context.Context, root v1.Descriptor, body []byte) error {
	var m v1.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("manifest %s: %w", root.Digest, err)
	}
	config, ok := t.configs[m.Config.Digest]
	var cfg v1.Image
	if err := json.Unmarshal(config, &cfg); !ok || err != nil || len(cfg.RootFS.DiffIDs) != len(m.Layers) {
		return fmt.Errorf("%s is not a container image that docker load could take: pull it to an oci-archive", root.Digest)
	}
	image := dockerImage{Config: m.Config.Digest.Encoded() + ".json"}
	if t.name != "" {
		image.RepoTags = []string{t.name}
	}
	for i, l := range m.Layers {
		got, ok := t.layers[l.Digest]
		if !ok || got != cfg.RootFS.DiffIDs[i] {
			return fmt.Errorf("wrong content: layer %s unpacks to %s, but the config says %s", l.Digest, got, cfg.RootFS.DiffIDs[i])
		}
		image.Layers = append(image.Layers, layerName(got))
	}
	manifest, err := json.Marshal([]dockerImage{image})
	if err != nil {
		return err
	}
	if err := t.tar.add(image.Config, config); err != nil {
		return err
	}
	if err := t.tar.add(dockerManifest, manifest); err != nil {
		return err
	}
	return t.tar.commit()
}

// Close drops what was not committed.
func (t *DockerTarget) Close() error { return t.tar.close() }
