package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/oci"
	"berth.internal/node/image"
)

const registryName = "registry.test:5000"

// registry is a Source in memory. open, if set, stands in the way of each blob
// request; it may call get.
type registry struct {
	open func(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error)

	mu        sync.Mutex
	manifests map[string]v1.Descriptor // by tag and by digest
	blobs     map[digest.Digest][]byte
	requests  map[digest.Digest]int
}

func newRegistry() *registry {
	return &registry{manifests: map[string]v1.Descriptor{}, blobs: map[digest.Digest][]byte{}, requests: map[digest.Digest]int{}}
}

func (r *registry) Manifest(_ context.Context, _, ref string) (v1.Descriptor, []byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	desc, ok := r.manifests[ref]
	if !ok {
		return desc, nil, errors.New("manifest unknown: " + ref)
	}
	return desc, r.blobs[desc.Digest], nil
}

func (r *registry) Blob(ctx context.Context, _ string, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
	r.mu.Lock()
	r.requests[d]++
	r.mu.Unlock()
	if r.open != nil {
		return r.open(ctx, d, offset, length)
	}
	return r.get(d, offset, length)
}

func (r *registry) get(d digest.Digest, offset, length int64) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	data, ok := r.blobs[d]
	if !ok || offset > int64(len(data)) {
		return nil, errors.New("blob unknown: " + d.String())
	}
	data = data[offset:]
	if length >= 0 && length < int64(len(data)) {
		data = data[:length]
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (r *registry) asked(d digest.Digest) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[d]
}

func (r *registry) put(mediaType string, data []byte) v1.Descriptor {
	d := digest.FromBytes(data)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[d] = data
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (r *registry) putJSON(t testing.TB, mediaType string, v any, refs ...string) v1.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	desc := r.put(mediaType, data)
	for _, ref := range append(refs, desc.Digest.String()) {
		r.manifests[ref] = desc
	}
	return desc
}

// made is an image as put into a registry; a test may change it before.
type made struct {
	manifest v1.Manifest
	config   v1.Image
}

// make puts the layers, each a tar, compressed with gzip.
func (r *registry) make(t testing.TB, tars ...[]byte) *made {
	t.Helper()
	m := &made{config: v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}}
	m.manifest = v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, data := range tars {
		m.config.RootFS.DiffIDs = append(m.config.RootFS.DiffIDs, digest.FromBytes(data))
		m.manifest.Layers = append(m.manifest.Layers, r.put(v1.MediaTypeImageLayerGzip, gzipped(t, data)))
	}
	return m
}

// push puts the image under the given tags and returns its manifest.
func (r *registry) push(t testing.TB, m *made, tags ...string) v1.Descriptor {
	t.Helper()
	if m.manifest.Config.MediaType == "" {
		m.manifest.Config.MediaType = v1.MediaTypeImageConfig
	}
	config := r.putJSON(t, m.manifest.Config.MediaType, m.config)
	m.manifest.Config.Digest, m.manifest.Config.Size = config.Digest, config.Size
	desc := r.putJSON(t, m.manifest.MediaType, m.manifest, tags...)
	desc.Platform = &m.config.Platform
	return desc
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(data, nil)
}

// ent is a tar entry. Without a type it is a file of that body.
type ent struct {
	tar.Header
	body string
}

func file(name, body string) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body}
}

func dir(name string) ent { return ent{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""} }

func symlink(name, target string) ent {
	return ent{tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}, ""}
}

func hardlink(name, target string) ent {
	return ent{tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}, ""}
}

// with returns e after change.
func (e ent) with(change func(*tar.Header)) ent {
	e.PAXRecords = maps.Clone(e.PAXRecords)
	if e.PAXRecords == nil {
		e.PAXRecords = map[string]string{}
	}
	change(&e.Header)
	return e
}

var epoch = time.Unix(1_000_000_000, 500_000_000)

func tarOf(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Typeflag != tar.TypeXGlobalHeader { // has nothing but records
			e.Size, e.ModTime, e.Format = int64(len(e.body)), epoch, tar.FormatPAX
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("tar entry %.50q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openStore(t testing.TB, dir string, o image.Options) *image.Store {
	t.Helper()
	s, err := image.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ref(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s, registryName)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func pull(t testing.TB, s *image.Store, r image.Source, name string) image.Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref(t, name), r, image.PullOptions{Platform: amd64})
	if err != nil {
		t.Fatalf("pull %s: %v", name, err)
	}
	return img
}

var amd64 = &v1.Platform{OS: "linux", Architecture: "amd64"}

func names(img image.Image) []string { return slices.Concat(img.RepoTags, img.RepoDigests) }
