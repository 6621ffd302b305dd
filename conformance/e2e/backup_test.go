package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestBackupUnderLoad makes backups into one directory, one after another, while
// eight clients push and delete and the collector takes away what it can, and
// restores each: what was answered before it began is in it, and all that is in
// it is whole. Then the server is killed in the middle of one, and the backup
// before can be restored; and the next one is complete again.
func TestBackupUnderLoad(t *testing.T) {
	const clients, backups, kills = 8, 3, 2
	berth := binary(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for name, place := range map[string]string{"linked": t.TempDir(), "copied": otherDisk(t)} {
		t.Run(name, func(t *testing.T) {
			r := &backedUp{
				t: t, berth: berth, config: filepath.Join(t.TempDir(), "berth.yaml"),
				data: filepath.Join(t.TempDir(), "data"), dir: filepath.Join(place, "backup"),
			}
			config := "grace: 500ms\ntrash: 0s\ncollect:\n  interval: 5ms\n  rate: 10000\n  untagged: true\n  untagged_grace: 10ms\n"
			if err := os.WriteFile(r.config, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			for round := range 1 + kills {
				server := serveAt(t, berth, r.data, "--config", r.config)
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				var warm sync.WaitGroup
				for i := range clients {
					warm.Add(1)
					c := &backupClient{backedUp: r, pusher: pusher{
						record: &record{blobs: map[digest.Digest]string{}, tried: map[digest.Digest][]string{}},
						t:      t, url: server.url, repo: fmt.Sprintf("load/c%d", i), name: fmt.Sprintf("r%d", round),
						random: rand.New(rand.NewPCG(seed, uint64(round*clients+i))), answered: func() {},
					}}
					wg.Go(func() { c.work(ctx, warm.Done) })
				}
				warm.Wait()
				if round == 0 {
					for range backups {
						r.check(r.backUp())
					}
				} else {
					want := r.killInBackup(server, int(seed%5)*(round-1))
					r.check(want)
				}
				cancel()
				wg.Wait()
				if round == 0 {
					if err := server.stop(syscall.SIGTERM); err != nil {
						t.Error(err)
					}
					continue
				}
				server = serveAt(t, berth, r.data, "--config", r.config)
				r.check(r.backUp())
				if err := server.stop(syscall.SIGTERM); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// otherDisk is a directory on another file system than that of t.TempDir.
func otherDisk(t *testing.T) string {
	t.Helper()
	parent := "/dev/shm"
	if os.Getenv("GOTMPDIR") == parent {
		parent = "/var/tmp"
	}
	dir, err := os.MkdirTemp(parent, "berth-backup")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// backedUp is a registry, and the directory of its backups.
type backedUp struct {
	t                        *testing.T
	berth, config, data, dir string

	mu       sync.Mutex
	pushed   map[string][]byte // manifests by path, answered with 201
	deleting map[string]bool   // paths for which a DELETE was sent
	restores int
	last     map[string][]byte // what the last complete backup must hold, unless it was deleted meanwhile
}

// backupClient pushes images to a repository of its own, and deletes some.
type backupClient struct {
	*backedUp
	pusher
}

// work pushes until ctx ends or the server is gone, and calls warm when there is
// something to back up.
func (c *backupClient) work(ctx context.Context, warm func()) {
	warm = sync.OnceFunc(warm)
	defer warm()
	for n := 0; ctx.Err() == nil; n++ {
		if n == 8 {
			warm()
		}
		if path := c.image(ctx, n); path != "" && n%2 == 0 {
			c.mu.Lock()
			c.deleting[path] = true
			body := c.pushed[path]
			c.mu.Unlock()
			target := "/v2/" + c.repo + "/manifests/" + digest.FromBytes(body).String()
			if c.do(ctx, http.MethodDelete, target, "", nil) == nil && ctx.Err() == nil {
				return // the server was killed
			}
		}
	}
}

// image pushes an image: a layer that others push as well, and one of its own. It
// returns its path, or nothing if it was not taken: a layer may have been
// collected before the manifest came.
func (c *backupClient) image(ctx context.Context, n int) string {
	shared := bytes.Repeat([]byte{byte(n % 5)}, 100<<10)
	own := c.bytes([]int{3 << 10, 80 << 10, 200 << 10}[n%3])
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for i, data := range [][]byte{[]byte("{}"), shared, own} {
		d, ok := c.blob(ctx, data)
		if !ok {
			return ""
		}
		if i == 0 {
			m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: d, Size: int64(len(data))}
			continue
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: int64(len(data))})
	}
	body, err := json.Marshal(m)
	if err != nil {
		c.pusher.t.Error(err)
		return ""
	}
	path := fmt.Sprintf("/v2/%s/manifests/%s-%d", c.repo, c.name, n)
	if c.do(ctx, http.MethodPut, path, v1.MediaTypeImageManifest, body) == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pushed == nil {
		c.pushed, c.deleting = map[string][]byte{}, map[string]bool{}
	}
	c.pushed[path] = body
	return path
}

// acknowledged is what a backup that begins now must hold, unless it is deleted
// before that has ended.
func (r *backedUp) acknowledged() map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.pushed)
}

// undeleted is what of all nobody wants to delete.
func (r *backedUp) undeleted(all map[string][]byte) map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := maps.Clone(all)
	maps.DeleteFunc(left, func(path string, _ []byte) bool { return r.deleting[path] })
	return left
}

// run runs berth, and returns what it writes and whether it failed.
func (r *backedUp) run(args ...string) (string, error) {
	out, err := exec.CommandContext(r.t.Context(), r.berth, args...).CombinedOutput()
	return string(out), err
}

// backUp makes a backup and returns what must be in it.
func (r *backedUp) backUp() map[string][]byte {
	r.t.Helper()
	before := r.acknowledged()
	out, err := r.run("admin", "backup", r.dir, "--data", r.data)
	if err != nil {
		r.t.Fatalf("berth admin backup: %v\n%s", err, out)
	}
	r.last = r.undeleted(before)
	r.t.Logf("%s%d manifests must be in it", out, len(r.last))
	return r.last
}

// blobsIn lists the files of blobs in a data directory.
func blobsIn(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "registry", "blobs", "*", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// killInBackup kills the server in the middle of a backup, when that has brought
// so many more blobs, and returns what must
// be in the one that is there then.
func (r *backedUp) killInBackup(server *running, more int) map[string][]byte {
	r.t.Helper()
	before := r.acknowledged()
	done := make(chan error, 1)
	go func() {
		_, err := r.run("admin", "backup", r.dir, "--data", r.data)
		done <- err
	}()
	// The next index comes first, then the blobs, some of which we wait for.
	there := len(blobsIn(r.t, r.dir))
	next := filepath.Join(r.dir, "registry", "index.db.next")
	begun := func() bool {
		_, err := os.Stat(next)
		return err == nil && len(blobsIn(r.t, r.dir)) >= there+more
	}
	for end := time.Now().Add(patience); !begun() && len(done) == 0; runtime.Gosched() {
		if time.Now().After(end) {
			r.t.Fatal("no backup was begun")
		}
	}
	if err := server.stop(syscall.SIGKILL); err != nil {
		r.t.Error(err)
	}
	err := <-done
	_, left := os.Stat(next)
	r.t.Logf("killed after %d blobs: the backup ended with %v; the next index is there: %t", len(blobsIn(r.t, r.dir))-there, err, left == nil)
	if err == nil {
		r.last = r.undeleted(before) // it was faster
		return r.last
	}
	// What the killed one would have held may be deleted since; what it must hold is
	// what was there before it and still is.
	return r.undeleted(r.last)
}

// check restores the backup, serves it, and holds it against what must be in it.
func (r *backedUp) check(must map[string][]byte) {
	r.t.Helper()
	r.restores++
	data := filepath.Join(r.t.TempDir(), fmt.Sprint("restored", r.restores))
	if out, err := r.run("admin", "restore", r.dir, "--data", data); err != nil {
		r.t.Errorf("berth admin restore: %v\n%s", err, out)
		return
	}
	server := serveAt(r.t, r.berth, data)
	if out, err := r.run("admin", "fsck", "--deep", "--data", data); err != nil {
		r.t.Errorf("berth admin fsck --deep of restored data: %v\n%s", err, out)
	}
	for path, body := range must {
		resp, got, err := ask(r.t.Context(), http.MethodGet, server.url+path, "", nil)
		if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(got, body) {
			r.t.Errorf("%s was answered with 201 before the backup began, and is not in it: %v, %q", path, err, got)
		}
	}
	pulled := r.pullAll(server.url)
	if pulled < len(must) || pulled == 0 {
		r.t.Errorf("%d tags were restored, want at least %d", pulled, len(must))
	}
	r.t.Logf("restored %d tags, each whole", pulled)
	if err := server.stop(syscall.SIGTERM); err != nil {
		r.t.Error(err)
	}
	if err := os.RemoveAll(data); err != nil {
		r.t.Error(err)
	}
}

// pullAll pulls every tag in full and returns how many there are.
func (r *backedUp) pullAll(url string) (tags int) {
	r.t.Helper()
	get := func(path string) []byte {
		resp, body, err := ask(r.t.Context(), http.MethodGet, url+path, "", nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			r.t.Errorf("GET %s of restored data: %v, %s", path, err, body)
		}
		return body
	}
	var catalog struct{ Repositories []string }
	var err error
	if list := get("/v2/_catalog?n=1000"); len(list) > 0 {
		err = json.Unmarshal(list, &catalog)
	}
	for _, repo := range catalog.Repositories {
		var list struct{ Tags []string }
		err = errors.Join(err, json.Unmarshal(get("/v2/"+repo+"/tags/list"), &list))
		for _, tag := range list.Tags {
			tags++
			var m v1.Manifest
			err = errors.Join(err, json.Unmarshal(get("/v2/"+repo+"/manifests/"+tag), &m))
			for _, b := range slices.Concat([]v1.Descriptor{m.Config}, m.Layers) {
				if got := get("/v2/" + repo + "/blobs/" + b.Digest.String()); digest.FromBytes(got) != b.Digest {
					r.t.Errorf("%s:%s: %s has %d bytes that hash to %s", repo, tag, b.Digest, len(got), digest.FromBytes(got))
				}
			}
		}
	}
	if err != nil {
		r.t.Error(err)
	}
	return tags
}
