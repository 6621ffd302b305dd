package transfer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth.internal/client"
	"berth.internal/client/layout"
	"berth.internal/client/registrytest"
	"berth.internal/client/transfer"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func dial(t *testing.T, address string) *client.Registry {
	t.Helper()
	r, err := client.New(client.Options{Registry: address})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func remote(r *client.Registry, repo, ref string) *transfer.Remote {
	return &transfer.Remote{Registry: r, Repository: repo, Reference: ref}
}

// image makes an image for the architecture whose only file says what.
func image(t *testing.T, architecture, what string) transfer.Source {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "what"), []byte(what), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := layout.Build(t.Context(), layout.Recipe{
		Path: dir, Platform: v1.Platform{OS: "linux", Architecture: architecture}, Time: time.Unix(0, 0),
		Config: v1.ImageConfig{Entrypoint: []string{"/what"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func copyTo(t *testing.T, dst transfer.Target, src transfer.Source, o transfer.Options) transfer.Result {
	t.Helper()
	o.Parallel = max(o.Parallel, 4)
	res, err := transfer.Copy(t.Context(), dst, src, o)
	for _, end := range []any{src, dst} {
		if c, ok := end.(io.Closer); ok {
			err = errors.Join(err, c.Close())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// tool runs another project's program.
func tool(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q (apt-get install %s): %v\n%s", args, args[0], err, stderr.String())
	}
	return strings.TrimSpace(out.String())
}

// TestRoundTrip moves an image through every kind of file and back.
func TestRoundTrip(t *testing.T) {
	r := dial(t, registrytest.Docker(t))
	pushed := copyTo(t, remote(r, "a", "1"), image(t, "amd64", "hello"), transfer.Options{})
	if pushed.Blobs[client.Uploaded] != 2 || pushed.Bytes == 0 {
		t.Errorf("a first push moved %v, %d bytes, want 2 blobs", pushed.Blobs, pushed.Bytes)
	}
	if again := copyTo(t, remote(r, "a", "2"), image(t, "amd64", "hello"), transfer.Options{}); again.Blobs[client.Existed] != 2 || again.Root.Digest != pushed.Root.Digest {
		t.Errorf("a second push of the same files moved %v and made %s of %s", again.Blobs, again.Root.Digest, pushed.Root.Digest)
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, tc := range []struct {
		name   string
		target func() (transfer.Target, error)
		source func() (transfer.Source, error)
	}{
		{
			"oci", func() (transfer.Target, error) { return layout.CreateOCI(at("oci"), "1") },
			func() (transfer.Source, error) { return layout.OpenOCI(at("oci"), "1") },
		},
		{
			"oci-archive", func() (transfer.Target, error) { return layout.CreateOCIArchive(at("oci.tar"), "1") },
			func() (transfer.Source, error) { return layout.OpenOCIArchive(at("oci.tar"), "") },
		},
		{
			"docker-archive", func() (transfer.Target, error) { return layout.CreateDocker(at("docker.tar"), "app:1") },
			func() (transfer.Source, error) { return layout.OpenDocker(at("docker.tar"), "app:1") },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 { // the second time over the first
				dst, err := tc.target()
				copyTo(t, must(t, dst, err), remote(r, "a", "1"), transfer.Options{})
			}
			src, err := tc.source()
			back := copyTo(t, remote(r, "back/"+tc.name, "1"), must(t, src, err), transfer.Options{})
			if back.Root.Digest != pushed.Root.Digest {
				t.Errorf("%s came back as %s", pushed.Root.Digest, back.Root.Digest)
			}
		})
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 {
		t.Errorf("beside the three targets there is %v, %v", left, err)
	}
}

// TestSkopeoAndPodman has them read what berth writes, and the other way round.
func TestSkopeoAndPodman(t *testing.T) {
	host := registrytest.Docker(t)
	r := dial(t, host)
	copyTo(t, remote(r, "a", "1"), image(t, "amd64", "hello"), transfer.Options{})
	dir := t.TempDir()
	skopeo := func(t *testing.T, from, to string) {
		t.Helper()
		tool(t, "skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", from, to)
	}
	// podman's layers are compressed with gzip by this copy.
	skopeo(t, "docker://"+host+"/a:1", "oci:"+dir+"/gzip:1")
	podman := func(t *testing.T, args ...string) {
		t.Helper()
		tool(t, append([]string{"podman", "--root", dir + "/podman", "--runroot", dir + "/run", "--storage-driver", "vfs"}, args...)...)
	}
	podman(t, "pull", "-q", "--tls-verify=false", host+"/a:1")
	podman(t, "save", "-q", "--format", "docker-archive", "-o", dir+"/podman-docker.tar", host+"/a:1")
	podman(t, "save", "-q", "--format", "oci-archive", "-o", dir+"/podman-oci.tar", host+"/a:1")
	skopeo(t, "docker://"+host+"/a:1", "docker-archive:"+dir+"/skopeo-docker.tar:app:1")
	skopeo(t, "docker://"+host+"/a:1", "oci-archive:"+dir+"/skopeo-oci.tar:1")
	for _, tc := range []struct {
		name string
		open func() (transfer.Source, error)
	}{
		{"oci", func() (transfer.Source, error) { return layout.OpenOCI(dir+"/gzip", "1") }},
		{"podman-docker", func() (transfer.Source, error) { return layout.OpenDocker(dir+"/podman-docker.tar", "1") }},
		{"podman-oci", func() (transfer.Source, error) { return layout.OpenOCIArchive(dir+"/podman-oci.tar", "") }},
		{"skopeo-docker", func() (transfer.Source, error) { return layout.OpenDocker(dir+"/skopeo-docker.tar", "app:1") }},
		{"skopeo-oci", func() (transfer.Source, error) { return layout.OpenOCIArchive(dir+"/skopeo-oci.tar", "1") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src, err := tc.open()
			copyTo(t, remote(r, "b/"+tc.name, "1"), must(t, src, err), transfer.Options{})
			for kind, begin := range map[string]func(at string) (transfer.Target, error){
				"oci":            func(at string) (transfer.Target, error) { return layout.CreateOCI(at, "1") },
				"oci-archive":    func(at string) (transfer.Target, error) { return layout.CreateOCIArchive(at, "1") },
				"docker-archive": func(at string) (transfer.Target, error) { return layout.CreateDocker(at, "app:1") },
			} {
				at := filepath.Join(dir, tc.name+"-"+kind)
				dst, err := begin(at)
				copyTo(t, must(t, dst, err), remote(r, "b/"+tc.name, "1"), transfer.Options{})
				ref := kind + ":" + at
				if kind != "docker-archive" {
					ref += ":1"
				}
				if got := tool(t, "skopeo", "inspect", "--config", "--format", "{{.Config.Entrypoint}} {{len .RootFS.DiffIDs}}", ref); got != "[/what] 1" {
					t.Errorf("skopeo finds %q in %s, want [/what] 1", got, kind)
				}
				skopeo(t, ref, "dir:"+at+".copy") // verifies all digests
				if kind != "oci" {
					podman(t, "load", "-q", "-i", at) // unpacks the layers
				}
			}
		})
	}
}

// index pushes an index of images for some architectures.
func index(t *testing.T, r *client.Registry, repo, tag string, architectures ...string) v1.Descriptor {
	t.Helper()
	x := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	for _, a := range architectures {
		res := copyTo(t, remote(r, repo, a), image(t, a, a), transfer.Options{})
		d := res.Root
		d.Platform = &v1.Platform{OS: "linux", Architecture: a}
		x.Manifests = append(x.Manifests, d)
	}
	body, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(body)
	if _, err := r.PushManifest(t.Context(), repo, tag, v1.MediaTypeImageIndex, body); err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: d, Size: int64(len(body))}
}

func TestPlatforms(t *testing.T) {
	r := dial(t, registrytest.Docker(t))
	root := index(t, r, "a", "1", "amd64", "arm64")
	for _, tc := range []struct {
		name, ref, platform string
		want                string // tag of the same image, or a part of the error
		blobs               int
	}{
		{"all", "1", "", "1", 4},
		{"one", "1", "linux/arm64", "arm64", 2},
		{"another name", "1", "linux/aarch64", "arm64", 2},
		{"none", "1", "linux/riscv64", "there is no image for linux/riscv64; platforms here: linux/amd64, linux/arm64", 0},
		{"variant", "1", "linux/arm64/v9", "there is no image for linux/arm64/v9", 0},
		{"an image", "amd64", "linux/amd64", "amd64", 2},
		{"another image", "amd64", "linux/arm64", "platforms here: linux/amd64", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := transfer.Options{Parallel: 2}
			if tc.platform != "" {
				p, err := transfer.ParsePlatform(tc.platform)
				if err != nil {
					t.Fatal(err)
				}
				o.Platform = &p
			}
			dst := create(t, filepath.Join(t.TempDir(), "oci"))
			defer closing(t, dst)
			res, err := transfer.Copy(t.Context(), dst, remote(r, "a", tc.ref), o)
			if tc.blobs == 0 {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("Copy = %v, want %s", err, tc.want)
				}
				return
			}
			want, werr := r.Resolve(t.Context(), "a", tc.want)
			if err := errors.Join(err, werr); err != nil || res.Root.Digest != want.Digest || res.Blobs[client.Uploaded] != tc.blobs {
				t.Errorf("Copy = %s and %v, %v, want %s and %d blobs", res.Root.Digest, res.Blobs, err, want.Digest, tc.blobs)
			}
		})
	}
	docker, err := layout.CreateDocker(filepath.Join(t.TempDir(), "d.tar"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, docker)
	if _, err := transfer.Copy(t.Context(), docker, remote(r, "a", "1"), transfer.Options{}); err == nil || !strings.Contains(err.Error(), "choose one with --platform") {
		t.Errorf("an index to a docker-archive = %v", err)
	}
	if _, err := transfer.Copy(t.Context(), remote(r, "b", digest.FromString("").String()), remote(r, "a", "1"), transfer.Options{}); err == nil || !strings.Contains(err.Error(), "the image has digest "+root.Digest.String()) {
		t.Errorf("a push under the digest of something else = %v", err)
	}
}

func TestMountWithinRegistry(t *testing.T) {
	r := dial(t, registrytest.Docker(t))
	index(t, r, "a", "1", "amd64", "arm64")
	dst := remote(r, "b", "1")
	dst.MountFrom = "a"
	if res := copyTo(t, dst, remote(r, "a", "1"), transfer.Options{}); res.Blobs[client.Mounted] != 4 || res.Bytes != 0 {
		t.Errorf("a copy within a registry moved %d bytes: %v, want 4 mounts", res.Bytes, res.Blobs)
	}
}

// TestReferrers takes a signature along, over files and back.
func TestReferrers(t *testing.T) {
	r := dial(t, registrytest.Docker(t))
	root := copyTo(t, remote(r, "a", "1"), image(t, "amd64", "hello"), transfer.Options{}).Root
	sign(t, r, "a", root)
	dir := t.TempDir()
	for name, ends := range map[string]struct {
		create func() (transfer.Target, error)
		open   func() (transfer.Source, error)
	}{
		"oci": {
			func() (transfer.Target, error) { return layout.CreateOCI(dir+"/oci", "1") },
			func() (transfer.Source, error) { return layout.OpenOCI(dir+"/oci", "") },
		},
		"archive": {
			func() (transfer.Target, error) { return layout.CreateOCIArchive(dir+"/oci.tar", "1") },
			func() (transfer.Source, error) { return layout.OpenOCIArchive(dir+"/oci.tar", "") },
		},
	} {
		dst, err := ends.create()
		copyTo(t, must(t, dst, err), remote(r, "a", "1"), transfer.Options{Referrers: true})
		src, err := ends.open()
		copyTo(t, remote(r, "b/"+name, "1"), must(t, src, err), transfer.Options{Referrers: true})
		var got []string
		for d, err := range r.Referrers(t.Context(), "b/"+name, root.Digest, "") {
			got = append(got, d.ArtifactType)
			if err != nil {
				t.Error(err)
			}
		}
		if !slices.Equal(got, []string{"text/signature"}) {
			t.Errorf("%s: the referrers are %q, want one signature", name, got)
		}
	}
}

// sign pushes a manifest that refers to d.
func sign(t *testing.T, r *client.Registry, repo string, d v1.Descriptor) {
	t.Helper()
	empty := v1.DescriptorEmptyJSON
	_, err := r.PushBlob(t.Context(), repo, empty, func(int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(empty.Data)), nil
	}, client.PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"text/signature","config":{"mediaType":%q,"digest":%q,"size":2},"layers":[],"subject":{"mediaType":%q,"digest":%q,"size":%d}}`,
		v1.MediaTypeImageManifest, empty.MediaType, empty.Digest, d.MediaType, d.Digest, d.Size)
	if _, err := r.PushManifest(t.Context(), repo, digest.FromString(body).String(), v1.MediaTypeImageManifest, []byte(body)); err != nil {
		t.Fatal(err)
	}
}

// TestPullResumes cuts the line in the middle of every other blob's answer.
func TestPullResumes(t *testing.T) {
	host := registrytest.Docker(t)
	copyTo(t, remote(dial(t, host), "a", "1"), image(t, "amd64", strings.Repeat("hello ", 100_000)), transfer.Options{})
	var answers atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	proxy.ModifyResponse = func(resp *http.Response) error {
		if strings.Contains(resp.Request.URL.Path, "/blobs/") && resp.Request.Method == http.MethodGet && answers.Add(1)%2 == 1 {
			resp.Body = struct {
				io.Reader
				io.Closer
			}{io.LimitReader(resp.Body, resp.ContentLength/2), resp.Body}
		}
		return nil
	}
	srv := httptest.NewServer(proxy)
	defer srv.Close()
	dst, err := layout.CreateOCIArchive(filepath.Join(t.TempDir(), "a.tar"), "1")
	copyTo(t, must(t, dst, err), remote(dial(t, srv.URL), "a", "1"), transfer.Options{})
	if answers.Load() < 4 {
		t.Errorf("%d answers for 2 blobs: the line was not cut", answers.Load())
	}
}

// lying is a source that says its blobs are other bytes.
type lying struct{ transfer.Source }

func (l lying) Blob(context.Context, v1.Descriptor, int64) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("lies")), nil
}

func TestWrongContent(t *testing.T) {
	r := dial(t, registrytest.Docker(t))
	dir := t.TempDir()
	for name, begin := range map[string]func() (transfer.Target, error){
		"registry":       func() (transfer.Target, error) { return remote(r, "a", "1"), nil },
		"oci":            func() (transfer.Target, error) { return layout.CreateOCI(dir+"/a", "1") },
		"oci-archive":    func() (transfer.Target, error) { return layout.CreateOCIArchive(dir+"/b", "1") },
		"docker-archive": func() (transfer.Target, error) { return layout.CreateDocker(dir+"/c", "1") },
	} {
		dst, err := begin()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := transfer.Copy(t.Context(), dst, lying{image(t, "amd64", "x")}, transfer.Options{}); err == nil {
			t.Errorf("%s took wrong content", name)
		}
		if c, ok := dst.(io.Closer); ok {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("there is still %v, %v", left, err)
	}
	if _, err := r.Resolve(t.Context(), "a", "1"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("the tag is there: %v", err)
	}
}

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "Linux/x86_64": "linux/amd64", "linux/aarch64/v8": "linux/arm64/v8",
		"linux": "", "": "", "linux/": "", "a/b/c/d": "",
	} {
		p, err := transfer.ParsePlatform(in)
		if (err == nil) != (want != "") || err == nil && transfer.FormatPlatform(p) != want {
			t.Errorf("ParsePlatform(%q) = %s, %v, want %q", in, transfer.FormatPlatform(p), err, want)
		}
	}
}

func create(t *testing.T, at string) *layout.OCITarget {
	t.Helper()
	dst, err := layout.CreateOCI(at, "1")
	if err != nil {
		t.Fatal(err)
	}
	return dst
}

func closing(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
