package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"berth.internal/node/image"
)

func TestPull(t *testing.T) {
	r := newRegistry()
	lower, upper := tarOf(t, dir("etc"), file("etc/hosts", "below")), tarOf(t, file("etc/motd", "hello"))
	m := r.make(t, lower, upper, lower) // the lowest is the topmost again
	m.config.Created = &epoch
	m.config.Config.Entrypoint = []string{"/bin/app"}
	desc := r.push(t, m, "1")
	root := onTmpfs(t)
	s := openStore(t, root, image.Options{})
	img := pull(t, s, r, "app:1")
	want := []string{registryName + "/app:1", registryName + "/app@" + desc.Digest.String()}
	if img.Manifest.Digest != desc.Digest || img.ID != m.manifest.Config.Digest || img.Size != int64(len("below")+len("hello")) ||
		!img.Created.Equal(epoch) || img.Config.Config.Entrypoint[0] != "/bin/app" || !slices.Equal(names(img), want) {
		t.Errorf("image = %+v, want manifest %s, id %s, names %v", img, desc.Digest, m.manifest.Config.Digest, want)
	}
	content := func(s *image.Store) (out []string) {
		dirs, err := s.Layers(img.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			out = append(out, strings.Join(tree(t, dir), ", "))
		}
		return out
	}
	wantContent := []string{
		`etc dir 755 0:0, etc/motd file 644 0:0 "hello"`,
		`etc dir 755 0:0, etc/hosts file 644 0:0 "below"`,
	}
	if got := content(s); !slices.Equal(got, wantContent) {
		t.Errorf("layers = %q, want %q", got, wantContent)
	}
	s = openStore(t, root, image.Options{}) // as after a restart
	again, err := s.Get("app:1")
	if err == nil {
		t.Errorf("Get of a name that is not canonical = %v", again)
	}
	if again, err = s.Get(registryName + "/app:1"); err != nil || !slices.Equal(names(again), want) || again.Size != img.Size {
		t.Errorf("after reopening Get = %+v, %v, want %+v", again, err, img)
	}
	if got := content(s); !slices.Equal(got, wantContent) {
		t.Errorf("after reopening layers = %q, want %q", got, wantContent)
	}
	before := r.asked(m.manifest.Layers[0].Digest)
	pull(t, s, r, "app:1")
	if got := r.asked(m.manifest.Layers[0].Digest); got != before {
		t.Errorf("the second pull asked %d times for a layer that is there", got-before)
	}
	onlyComplete(t, root)
}

func TestPullMediaTypes(t *testing.T) {
	data := tarOf(t, file("f", strings.Repeat("content ", 1000)))
	const docker = "application/vnd.docker.distribution.manifest.v2+json"
	const dockerLayer = "application/vnd.docker.image.rootfs.diff.tar"
	for _, tc := range []struct {
		name, manifest, config, layer string
		blob                          []byte
	}{
		{"OCI plain", v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, v1.MediaTypeImageLayer, data},
		{"OCI gzip", v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, v1.MediaTypeImageLayerGzip, gzipped(t, data)},
		{"OCI zstd", v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, v1.MediaTypeImageLayerZstd, zstded(t, data)},
		{"Docker", docker, "application/vnd.docker.container.image.v1+json", dockerLayer + ".gzip", gzipped(t, data)},
		{"Docker plain", docker, "application/vnd.docker.container.image.v1+json", dockerLayer, data},
		{"mislabelled", v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, v1.MediaTypeImageLayerGzip, zstded(t, data)},
		{"two gzip members", v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, v1.MediaTypeImageLayerGzip, slices.Concat(gzipped(t, data[:700]), gzipped(t, data[700:]))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRegistry()
			m := r.make(t, data)
			m.manifest.MediaType, m.manifest.Config.MediaType = tc.manifest, tc.config
			m.manifest.Layers[0] = r.put(tc.layer, tc.blob)
			r.push(t, m, "latest")
			pull(t, openStore(t, onTmpfs(t), image.Options{}), r, "app")
		})
	}
}

func TestPullInline(t *testing.T) {
	r := newRegistry()
	m := r.make(t, tarOf(t, file("f", "x")))
	layer := &m.manifest.Layers[0]
	layer.Data = r.blobs[layer.Digest]
	delete(r.blobs, layer.Digest)
	r.push(t, m, "latest")
	pull(t, openStore(t, onTmpfs(t), image.Options{}), r, "app")
}

func TestPullPlatform(t *testing.T) {
	r := newRegistry()
	var index v1.Index
	for _, p := range []v1.Platform{
		{OS: "unknown", Architecture: "unknown"},
		{OS: "linux", Architecture: "amd64"},
		{OS: "linux", Architecture: "amd64", Variant: "v3"},
		{OS: "linux", Architecture: "arm", Variant: "v6"},
		{OS: "linux", Architecture: "arm", Variant: "v7"},
		{OS: "linux", Architecture: "arm64", Variant: "v8"},
	} {
		m := r.make(t, tarOf(t, file(platform(p), "")))
		m.config.Platform = p
		desc := r.push(t, m)
		index.Manifests = append(index.Manifests, desc)
	}
	index.Versioned, index.MediaType = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageIndex
	inner := r.putJSON(t, v1.MediaTypeImageIndex, index, "latest")
	inner.Platform = amd64
	bare := inner
	bare.Platform = nil
	r.putJSON(t, v1.MediaTypeImageIndex, v1.Index{Versioned: index.Versioned, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{bare}}, "bare")
	r.putJSON(t, v1.MediaTypeImageIndex, v1.Index{Versioned: index.Versioned, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{inner}}, "nested")
	m := r.make(t, tarOf(t, file("only", "")))
	m.config.Platform = v1.Platform{OS: "linux", Architecture: "s390x"}
	r.push(t, m, "single")
	for _, tc := range []struct{ tag, want, got, err string }{
		{"latest", "linux/amd64", "linux/amd64", ""},
		{"latest", "linux/amd64/v2", "linux/amd64", ""},
		{"latest", "linux/amd64/v4", "linux/amd64/v3", ""},
		{"latest", "linux/arm/v7", "linux/arm/v7", ""},
		{"latest", "linux/arm", "linux/arm/v7", ""},
		{"latest", "linux/arm/v6", "linux/arm/v6", ""},
		{"latest", "linux/arm/v5", "", "linux/arm/v5 is wanted, there is linux/amd64, linux/amd64/v3, linux/arm/v6"},
		{"latest", "linux/arm64", "linux/arm64/v8", ""},
		{"latest", "windows/amd64", "", "not for this platform: windows/amd64 is wanted"},
		{"nested", "linux/amd64", "linux/amd64", ""},
		{"bare", "linux/arm64", "linux/arm64/v8", ""},
		{"single", "linux/s390x", "linux/s390x", ""},
		{"single", "linux/amd64", "", "linux/amd64 is wanted, it is for linux/s390x"},
	} {
		t.Run(tc.tag+" "+tc.want, func(t *testing.T) {
			elems := append(strings.Split(tc.want, "/"), "")
			want := v1.Platform{OS: elems[0], Architecture: elems[1], Variant: elems[2]}
			s := openStore(t, onTmpfs(t), image.Options{})
			img, err := s.Pull(t.Context(), ref(t, "app:"+tc.tag), r, image.PullOptions{Platform: &want})
			if tc.err != "" {
				if !errors.Is(err, image.ErrPlatform) || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("Pull = %v, want %q", err, tc.err)
				}
				return
			}
			if got := platform(img.Config.Platform); err != nil || got != tc.got {
				t.Errorf("Pull chose %s, %v, want %s", got, err, tc.got)
			}
		})
	}
}

func platform(p v1.Platform) string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// TestPullRefuses holds that what is wrong with an image is said, is final, and
// leaves nothing.
func TestPullRefuses(t *testing.T) {
	good := tarOf(t, file("f", strings.Repeat("x", 100)))
	other := tarOf(t, file("f", "other"))
	for _, tc := range []struct {
		name   string
		spoil  func(r *registry, m *made)
		limits image.Limits
		err    string
	}{
		{"corrupt gzip", func(r *registry, m *made) {
			b := bytes.Clone(gzipped(t, good))
			b[len(b)/2] ^= 0xff
			m.manifest.Layers[1] = r.put(v1.MediaTypeImageLayerGzip, b)
		}, image.Limits{}, ""},
		{"truncated gzip", func(r *registry, m *made) {
			b := gzipped(t, good)
			m.manifest.Layers[1] = r.put(v1.MediaTypeImageLayerGzip, b[:len(b)-20])
		}, image.Limits{}, "it cannot be decompressed, push the image again: unexpected EOF"},
		{"garbage", func(r *registry, m *made) {
			m.manifest.Layers[1] = r.put(v1.MediaTypeImageLayerGzip, bytes.Repeat([]byte("garbage "), 1000))
		}, image.Limits{}, "invalid tar header"},
		{"truncated tar", func(r *registry, m *made) {
			m.manifest.Layers[1] = r.put(v1.MediaTypeImageLayer, good[:1586])
		}, image.Limits{}, "unexpected EOF"},
		{"other blob than its digest", func(r *registry, m *made) {
			r.blobs[m.manifest.Layers[1].Digest] = gzipped(t, other)
			m.manifest.Layers[1].Size = int64(len(gzipped(t, other)))
		}, image.Limits{}, "the blob that the registry sent has digest " + digest.FromBytes(gzipped(t, other)).String()},
		{"other content than its DiffID", func(r *registry, m *made) {
			m.manifest.Layers[1] = r.put(v1.MediaTypeImageLayerGzip, gzipped(t, other))
		}, image.Limits{}, "it unpacks to content " + digest.FromBytes(other).String()},
		{"escape", func(r *registry, m *made) {
			bad := tarOf(t, file("../f", "x"))
			m.manifest.Layers[1] = r.put(v1.MediaTypeImageLayerGzip, gzipped(t, bad))
			m.config.RootFS.DiffIDs[1] = digest.FromBytes(bad)
		}, image.Limits{}, `entry "../f": not a valid image: refused: ".." in name`},
		{"bomb", func(r *registry, m *made) {
			m.manifest.Layers[1] = r.put(v1.MediaTypeImageLayerGzip, gzipped(t, make([]byte, 1<<20)))
		}, image.Limits{Bytes: 1 << 19}, "unpacks to more than 524288 bytes"},
		{"foreign layer", func(_ *registry, m *made) {
			m.manifest.Layers[1].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		}, image.Limits{}, `is of type "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", which is not supported`},
		{"not an image", func(_ *registry, m *made) {
			m.manifest.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
		}, image.Limits{}, `"application/vnd.cncf.helm.config.v1+json": this is no container image`},
		{"fewer DiffIDs than layers", func(_ *registry, m *made) {
			m.config.RootFS.DiffIDs = m.config.RootFS.DiffIDs[:1]
		}, image.Limits{}, "configuration lists 1 layers, manifest 2"},
		{"no digest", func(_ *registry, m *made) {
			m.config.RootFS.DiffIDs[1] = "sha256:../../../etc"
		}, image.Limits{}, "configuration names layer"},
		{"old schema", func(_ *registry, m *made) {
			m.manifest.MediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
		}, image.Limits{}, `"application/vnd.docker.distribution.manifest.v1+prettyjws", which is not supported`},
		{"negative size", func(_ *registry, m *made) { m.manifest.Layers[1].Size = -5 }, image.Limits{}, "of -5 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRegistry()
			m := r.make(t, tarOf(t, file("lower", "")), good)
			tc.spoil(r, m)
			r.push(t, m, "latest")
			root := onTmpfs(t)
			s := openStore(t, root, image.Options{Limits: tc.limits})
			_, err := s.Pull(t.Context(), ref(t, "app"), r, image.PullOptions{Platform: amd64})
			if !errors.Is(err, image.ErrInvalid) || !strings.Contains(err.Error(), tc.err) ||
				!strings.HasPrefix(err.Error(), "pull "+registryName+"/app:latest: ") {
				t.Errorf("Pull = %v, want %q", err, tc.err)
			}
			if got := files(t, root); len(got) != 0 || len(s.List()) != 0 {
				t.Errorf("left: files %v, images %v", got, s.List())
			}
		})
	}
}

// TestPullWrongManifest holds that a manifest asked for by digest is that one.
func TestPullWrongManifest(t *testing.T) {
	r := newRegistry()
	desc := r.push(t, r.make(t, tarOf(t, file("f", ""))), "latest")
	r.blobs[desc.Digest] = append(r.blobs[desc.Digest], ' ')
	s := openStore(t, onTmpfs(t), image.Options{})
	_, err := s.Pull(t.Context(), ref(t, "app@"+desc.Digest.String()), r, image.PullOptions{Platform: amd64})
	if !errors.Is(err, image.ErrInvalid) || !strings.Contains(err.Error(), "content with digest") {
		t.Errorf("Pull = %v, want the wrong digest", err)
	}
}

func TestPullFullDisk(t *testing.T) {
	r := newRegistry()
	r.push(t, r.make(t, tarOf(t, file("f", string(noise(3<<20)))), tarOf(t, file("g", ""))), "latest")
	root := t.TempDir()
	if err := unix.Mount("berth-test", root, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	}()
	s := openStore(t, root, image.Options{})
	_, err := s.Pull(t.Context(), ref(t, "app"), r, image.PullOptions{Platform: amd64})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "the disk of "+root+" is full") {
		t.Errorf("Pull = %v, want a full disk", err)
	}
	if got := files(t, root); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	r.push(t, r.make(t, tarOf(t, file("f", "small"))), "latest")
	pull(t, s, r, "app")
}

// TestPullShared pulls images that share layers at the same time.
func TestPullShared(t *testing.T) {
	r := newRegistry()
	base, other := tarOf(t, file("base", string(noise(1<<20)))), tarOf(t, file("other", "x"))
	m := r.make(t, base, other)
	for i := range 4 {
		r.push(t, r.make(t, base, other, tarOf(t, file(fmt.Sprint(i), "own"))), fmt.Sprint(i))
	}
	root := onTmpfs(t)
	s := openStore(t, root, image.Options{})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), ref(t, fmt.Sprintf("app:%d", i%4)), r, image.PullOptions{Platform: amd64}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, l := range m.manifest.Layers {
		if n := r.asked(l.Digest); n != 1 {
			t.Errorf("layer %s was asked for %d times, want once", l.Digest, n)
		}
	}
	onlyComplete(t, root)
}

// TestPullGoesOn holds that one pull's end does not end another that waits for
// the same layer.
func TestPullGoesOn(t *testing.T) {
	r := newRegistry()
	r.push(t, r.make(t, tarOf(t, file("f", "x"))), "1", "2")
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	r.open = func(rctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
		if ctx.Err() == nil && r.asked(d) == 1 && d == r.layer(t, "1") {
			close(begun)
			<-rctx.Done()
			return nil, rctx.Err()
		}
		return r.get(d, offset, length)
	}
	s := openStore(t, onTmpfs(t), image.Options{})
	first := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, ref(t, "app:1"), r, image.PullOptions{Platform: amd64})
		first <- err
	}()
	<-begun
	waits := make(chan struct{}, 1)
	second := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), ref(t, "app:2"), r, image.PullOptions{Platform: amd64, Progress: func(e image.Event) {
			if e.Phase == image.Waiting {
				waits <- struct{}{}
			}
		}})
		second <- err
	}()
	<-waits
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("first pull = %v, want canceled", err)
	}
	if err := <-second; err != nil {
		t.Errorf("second pull = %v", err)
	}
}

func (r *registry) layer(t testing.TB, tag string) digest.Digest {
	t.Helper()
	m, err := image.ParseManifest(r.blobs[r.manifests[tag].Digest])
	if err != nil {
		t.Fatal(err)
	}
	return m.Layers[0].Digest
}

// TestPullResumes cuts a pull short and goes on with another store, as after a
// restart.
func TestPullResumes(t *testing.T) {
	r := newRegistry()
	data := noise(3*image.SegmentSize + 12345)
	r.push(t, r.make(t, tarOf(t, file("f", string(data)))), "latest")
	layer := r.layer(t, "latest")
	size := len(r.blobs[layer])
	root := onTmpfs(t)
	cut, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var sent int
	r.open = func(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
		body, err := r.get(d, offset, length)
		return &counted{body, ctx, func(n int) {
			mu.Lock()
			defer mu.Unlock()
			if d == layer {
				sent += n
			}
			if sent > size/2 {
				cancel()
			}
		}}, err
	}
	_, err := openStore(t, root, image.Options{Connections: 2}).Pull(cut, ref(t, "app"), r, image.PullOptions{Platform: amd64})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted pull = %v", err)
	}
	first := sent
	if first == 0 || first >= size {
		t.Fatalf("the interrupted pull read %d of %d bytes", first, size)
	}
	s := openStore(t, root, image.Options{})
	img := pull(t, s, r, "app")
	if second := sent - first; first+second > size+1<<20 {
		t.Errorf("blob of %d bytes: %d read before and %d after the restart", size, first, second)
	}
	dirs, _ := s.Layers(img.ID)
	if got, err := os.ReadFile(filepath.Join(dirs[0], "f")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("resumed content differs: %v", err)
	}
	onlyComplete(t, root)
}

// TestPullResumesDamaged goes on with a part that a power cut has spoiled.
func TestPullResumesDamaged(t *testing.T) {
	r := newRegistry()
	m := r.make(t, tarOf(t, file("f", string(noise(100<<10)))))
	r.push(t, m, "latest")
	root := onTmpfs(t)
	s := openStore(t, root, image.Options{})
	layer := m.manifest.Layers[0].Digest
	part := filepath.Join(root, "partial", "sha256-"+m.config.RootFS.DiffIDs[0].Encoded(), layer.Encoded(), "0")
	if err := os.MkdirAll(filepath.Dir(part), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(part, make([]byte, 50<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, s, r, "app")
	if n := r.asked(layer); n != 2 {
		t.Errorf("blob was asked for %d times, want twice: the rest, then all", n)
	}
}

// TestPullBadConnection has every way in which a connection fails in it.
func TestPullBadConnection(t *testing.T) {
	for _, tc := range []struct {
		name string
		body func(ctx context.Context, body io.ReadCloser) (io.ReadCloser, error)
		err  string // when it never gets better; "": it goes on
	}{
		{"refused at first", func(context.Context, io.ReadCloser) (io.ReadCloser, error) { return nil, unix.ECONNREFUSED }, ""},
		{"stalls", func(ctx context.Context, body io.ReadCloser) (io.ReadCloser, error) {
			return &stalling{io.LimitReader(body, 1000), ctx}, nil
		}, ""},
		{"breaks", func(_ context.Context, body io.ReadCloser) (io.ReadCloser, error) {
			return io.NopCloser(io.LimitReader(body, 1000)), nil
		}, ""},
		{"stalls for ever", func(ctx context.Context, _ io.ReadCloser) (io.ReadCloser, error) {
			return &stalling{strings.NewReader(""), ctx}, nil
		}, "gave up after 7 attempts: no byte arrived for 20s"},
		{"sends nothing", func(context.Context, io.ReadCloser) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("")), nil
		}, "bytes less than the manifest says"},
		{"answers no", func(context.Context, io.ReadCloser) (io.ReadCloser, error) { return nil, errors.New("denied") }, "denied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := onTmpfs(t)
			synctest.Test(t, func(t *testing.T) {
				r := newRegistry()
				m := r.make(t, tarOf(t, file("f", string(noise(200<<10)))))
				r.push(t, m, "latest")
				r.open = func(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
					body, err := r.get(d, offset, length)
					if err != nil || d != m.manifest.Layers[0].Digest || tc.err == "" && r.asked(d) > 3 {
						return body, err
					}
					return tc.body(ctx, body)
				}
				s := openStore(t, root, image.Options{})
				_, err := s.Pull(t.Context(), ref(t, "app"), r, image.PullOptions{Platform: amd64})
				if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
					t.Errorf("Pull = %v, want %q", err, tc.err)
				}
			})
		})
	}
}

// TestPullWithoutRange pulls from a registry that has only whole blobs, over
// connections that break.
func TestPullWithoutRange(t *testing.T) {
	root := onTmpfs(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry()
		m := r.make(t, tarOf(t, file("f", string(noise(2*image.SegmentSize+99)))))
		r.push(t, m, "latest")
		r.open = func(_ context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
			if offset > 0 || length >= 0 {
				return nil, fmt.Errorf("ranges: %w", errors.ErrUnsupported)
			}
			body, err := r.get(d, offset, length)
			return io.NopCloser(io.LimitReader(body, int64(r.asked(d))*image.SegmentSize)), err
		}
		pull(t, openStore(t, root, image.Options{}), r, "app")
	})
	onlyComplete(t, root)
}

func TestPullEvents(t *testing.T) {
	r := newRegistry()
	m := r.make(t, tarOf(t, file("f", string(noise(100<<10)))))
	desc := r.push(t, m, "latest")
	layer := m.manifest.Layers[0]
	s := openStore(t, onTmpfs(t), image.Options{})
	for _, want := range [][]image.Phase{
		{image.Resolved, image.Waiting, image.Downloading, image.Extracting, image.Verifying, image.Done},
		{image.Resolved, image.Waiting, image.Exists},
	} {
		var got []image.Phase
		if _, err := s.Pull(t.Context(), ref(t, "app"), r, image.PullOptions{Platform: amd64, Progress: func(e image.Event) {
			if e.Phase == image.Resolved && e.Layer != desc.Digest || e.Phase != image.Resolved && (e.Layer != layer.Digest || e.Total != layer.Size) {
				t.Errorf("event %+v, want layer %s of %d bytes", e, layer.Digest, layer.Size)
			}
			if !slices.Contains(got, e.Phase) { // downloading and extracting go on together
				got = append(got, e.Phase)
			}
		}}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("phases = %v, want %v", got, want)
		}
	}
}

// counted tells how many bytes were read, until ctx ends.
type counted struct {
	io.ReadCloser
	ctx  context.Context
	tell func(int)
}

func (c *counted) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, c.ctx.Err()
	}
	n, err := c.ReadCloser.Read(p)
	c.tell(n)
	return n, err
}

// stalling stands still at the end of its content until ctx ends.
type stalling struct {
	io.Reader
	ctx context.Context
}

func (s *stalling) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		<-s.ctx.Done()
		err = s.ctx.Err()
	}
	return n, err
}

func (s *stalling) Close() error { return nil }

// noise is content that does not compress.
func noise(n int) []byte {
	data := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	for i := 0; i < n; i += 4096 {
		_, _ = src.Read(data[i:min(n, i+4096)])
	}
	return data
}

// files lists the regular files and symbolic links of a store beside names and
// records.
func files(t testing.TB, root string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, path)
			found = append(found, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// onlyComplete checks that the store in root holds nothing half-made.
func onlyComplete(t testing.TB, root string) {
	t.Helper()
	for _, sub := range []string{"work", "partial"} {
		left, err := os.ReadDir(filepath.Join(root, sub))
		if err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v", sub, left, err)
		}
	}
	records, err := os.ReadDir(filepath.Join(root, "records"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if strings.HasPrefix(r.Name(), ".") {
			t.Errorf("records holds %s", r.Name())
		}
	}
}
