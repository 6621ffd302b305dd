package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/oci"
	"berth.internal/node/image"
)

// TestMain is also the process that TestCrash kills.
func TestMain(m *testing.M) {
	if url := os.Getenv("BERTH_TEST_PULL_FROM"); url != "" {
		if err := child(url, os.Getenv("BERTH_TEST_STORE")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(url, dir string) error {
	s, err := image.Open(dir, image.Options{})
	if err != nil {
		return err
	}
	_, err = s.Pull(context.Background(), oci.Reference{Registry: registryName, Repository: "app"}, remote(url), image.PullOptions{Platform: amd64})
	return err
}

// remote is a registry over HTTP as serve makes one.
type remote string

func (r remote) Manifest(ctx context.Context, _, ref string) (v1.Descriptor, []byte, error) {
	resp, err := r.get(ctx, "manifests/"+ref, "")
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return v1.Descriptor{MediaType: v1.MediaTypeImageManifest}, data, err
}

func (r remote) Blob(ctx context.Context, _ string, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
	rng := fmt.Sprintf("bytes=%d-", offset)
	if length >= 0 {
		rng += strconv.FormatInt(offset+length-1, 10)
	}
	resp, err := r.get(ctx, "blobs/"+d.String(), rng)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (r remote) get(ctx context.Context, path, rng string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, string(r)+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	resp, err := http.DefaultClient.Do(req)
	if err == nil && resp.StatusCode >= 300 {
		resp.Body.Close()
		err = errors.New(resp.Status)
	}
	return resp, err
}

// serve answers for r. After the given number of bytes it calls full, once.
func serve(t *testing.T, r *registry, sent *atomic.Int64, limit int64, full func()) remote {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.answer(&counting{w, sent, limit, full}, req)
	}))
	t.Cleanup(srv.Close)
	return remote(srv.URL)
}

func (r *registry) answer(w http.ResponseWriter, req *http.Request) {
	kind, name, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/"), "/")
	d := digest.Digest(name)
	if kind == "manifests" {
		d = r.manifests[name].Digest
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(r.blobs[d]))
}

type counting struct {
	http.ResponseWriter
	sent  *atomic.Int64
	limit int64
	full  func()
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	if after := c.sent.Add(int64(n)); after >= c.limit && after-int64(n) < c.limit {
		c.full()
	}
	return n, err
}

// TestCrash kills a process in the middle of a pull, at several points, and
// pulls again with what it left.
func TestCrash(t *testing.T) {
	r := newRegistry()
	m := r.make(t, tarOf(t, file("a", string(noise(5<<20)))), tarOf(t, file("b", string(noise(image.SegmentSize+5<<20)))))
	r.push(t, m, "latest")
	var size int64
	for _, l := range m.manifest.Layers {
		size += l.Size
	}
	root := onTmpfs(t)
	var total int64
	for percent := int64(10); percent < 100; percent += 20 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		started := make(chan struct{})
		var sent atomic.Int64
		url := serve(t, r, &sent, (size-total)*percent/100, func() {
			<-started
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		})
		cmd.Env = append(os.Environ(), "BERTH_TEST_PULL_FROM="+string(url), "BERTH_TEST_STORE="+root)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		close(started)
		if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Fatalf("killed at %d %%: %v", percent, err)
		}
		s := openStore(t, root, image.Options{})
		if list := s.List(); len(list) != 0 {
			t.Fatalf("killed at %d %%: image %v is there", percent, list)
		}
		if left, err := os.ReadDir(filepath.Join(root, "work")); err != nil || len(left) > 0 {
			t.Fatalf("killed at %d %%: work holds %v, %v", percent, left, err)
		}
		total = arrived(t, root)
	}
	if total == 0 {
		t.Fatal("nothing of five interrupted pulls was kept")
	}
	var sent atomic.Int64
	s := openStore(t, root, image.Options{})
	img := pull(t, s, serve(t, r, &sent, size*2, func() {}), "app")
	if sent.Load() > size-total+64<<10 {
		t.Errorf("the last pull read %d bytes, though %d of %d had arrived", sent.Load(), total, size)
	}
	dirs, err := s.Layers(img.ID)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b"} {
		info, err := os.Stat(filepath.Join(dirs[i], name))
		if err != nil || info.Size() < 5<<20 {
			t.Errorf("layer %d: %v, %v", i, info, err)
		}
	}
	onlyComplete(t, root)
}

// arrived returns the bytes of blobs that root has in parts.
func arrived(t *testing.T, root string) (n int64) {
	t.Helper()
	for _, name := range files(t, root) {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}
