package host

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/node/container"
	"berth.internal/node/container/shim"
	"berth.internal/node/image"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == shim.Name {
		os.Exit(shim.Main())
	}
	os.Exit(m.Run())
}

// node is a host on directories of its own, with one image: testImage, a busybox.
type node struct {
	*Host
	dir    string
	images *image.Store
	rt     *container.Runtime
}

const (
	testRegistry = "registry.test"
	testImage    = "box:1"
)

func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-host-*")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: dir}
	t.Cleanup(func() { n.clean(t) })
	n.open(t)
	if _, err := n.Pull(t.Context(), testImage, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	return n
}

// open opens the node, again if it was closed.
func (n *node) open(t *testing.T) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	var err error
	if n.images, err = image.Open(filepath.Join(n.dir, "images"), image.Options{Logger: log}); err != nil {
		t.Fatal(err)
	}
	n.rt, err = container.Open(container.Config{
		Root: filepath.Join(n.dir, "containers"), Run: filepath.Join(n.dir, "run"), CgroupParent: filepath.Base(n.dir), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Host, err = Open(t.Context(), Options{
		Dir: filepath.Join(n.dir, "host"), Node: "0123456789abcdef", Registry: testRegistry, Images: n.images, Source: box{}, Runtime: n.rt, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// shut closes the node. Its containers run on.
func (n *node) shut(t *testing.T) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := n.rt.Close(); err != nil {
		t.Error(err)
	}
	n.Host = nil
}

// reboot ends everything but what is on disk.
func (n *node) reboot(t *testing.T) {
	t.Helper()
	n.shut(t)
	for _, pid := range n.shims(t) {
		kill(t, pid)
	}
	if err := os.RemoveAll(filepath.Join(n.dir, "run")); err != nil {
		t.Fatal(err)
	}
}

func (n *node) clean(t *testing.T) {
	ctx := context.Background()
	if n.Host == nil {
		n.open(t)
	}
	for _, c := range n.List() {
		if err := n.Remove(ctx, c.ID, true); err != nil {
			t.Errorf("remove %s: %v", c.Name, err)
		}
	}
	n.shut(t)
	for _, pid := range n.shims(t) {
		t.Errorf("a shim is left: %d", pid)
	}
	if err := os.RemoveAll(n.dir); err != nil {
		t.Error(err)
	}
}

// shims returns the processes of the node's shims: those that have their log open.
func (n *node) shims(t *testing.T) (pids []int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/fd/2")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range dirs {
		to, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(to, n.dir) || filepath.Base(to) != "shim.log" {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(fd, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func kill(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// create makes a container of sh with that script.
func (n *node) create(t *testing.T, name, script string, change func(*Spec)) string {
	t.Helper()
	spec := Spec{Name: name, Image: testImage, Network: NetworkNone, Process: Process{Command: []string{"sh", "-c", script}}}
	if change != nil {
		change(&spec)
	}
	id, _, err := n.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (n *node) start(t *testing.T, name string) {
	t.Helper()
	if err := n.Start(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

func (n *node) state(t *testing.T, name string) State {
	t.Helper()
	c, err := n.Inspect(name)
	if err != nil {
		t.Fatal(err)
	}
	return c.State
}

// says returns when the container has written that line so many times.
func (n *node) says(t *testing.T, name, line string, times int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	heard := errors.New("heard")
	opts := LogOptions{Stdout: true, Follow: true, Tail: -1}
	err := n.Logs(ctx, name, opts, func(e LogEntry) error {
		if string(e.Text) == line+"\n" {
			times--
		}
		if times == 0 {
			return heard
		}
		return nil
	})
	if !errors.Is(err, heard) {
		t.Fatalf("%s does not say %q: %v", name, line, err)
	}
}

// await returns when an event of that action happened to a container of that name.
func (s *Subscription) await(t *testing.T, name, action string) Event {
	t.Helper()
	for {
		if e := s.next(t); e.Attributes["name"] == name && e.Action == action {
			return e
		}
	}
}

// next returns the next event.
func (s *Subscription) next(t *testing.T) Event {
	t.Helper()
	select {
	case e := <-s.Events:
		return e
	case <-time.After(20 * time.Second):
		t.Fatal("no event comes any more")
		return Event{}
	}
}

// box is a registry with one image.
type box struct{}

func (box) blobs() (manifest v1.Descriptor, blobs map[digest.Digest][]byte, err error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return manifest, nil, fmt.Errorf("the tests need a static busybox (apt-get install busybox-static): %w", err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	files := []*tar.Header{{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(busybox))}}
	for _, applet := range []string{"sh", "cat", "sleep", "echo", "id", "touch", "yes", "head", "tail", "grep", "dd"} {
		files = append(files, &tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"})
	}
	for _, h := range files {
		if err := w.WriteHeader(h); err != nil {
			return manifest, nil, err
		}
		if h.Size > 0 {
			if _, err := w.Write(busybox); err != nil {
				return manifest, nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return manifest, nil, err
	}
	blobs = map[digest.Digest][]byte{}
	put := func(kind string, data []byte) v1.Descriptor {
		d := digest.FromBytes(data)
		blobs[d] = data
		return v1.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	m.Layers = []v1.Descriptor{put(v1.MediaTypeImageLayer, layer.Bytes())}
	cfg := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{m.Layers[0].Digest}}}
	cfg.Config.Env = []string{"PATH=/bin"}
	data, err := json.Marshal(cfg)
	if err != nil {
		return manifest, nil, err
	}
	m.Config = put(v1.MediaTypeImageConfig, data)
	if data, err = json.Marshal(m); err != nil {
		return manifest, nil, err
	}
	return put(m.MediaType, data), blobs, nil
}

func (b box) Manifest(context.Context, string, string) (v1.Descriptor, []byte, error) {
	d, blobs, err := b.blobs()
	return d, blobs[d.Digest], err
}

func (b box) Blob(_ context.Context, _ string, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
	_, blobs, err := b.blobs()
	if err != nil {
		return nil, err
	}
	data := blobs[d][offset:]
	if length >= 0 {
		data = data[:length]
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}
