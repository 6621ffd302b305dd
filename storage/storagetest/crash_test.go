package storagetest_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/bolt"
	"berth.internal/storage/disk"
	"berth.internal/storage/kv"
	"github.com/opencontainers/go-digest"
)

// crashDir is the environment variable that makes this program the one that
// gets killed. It names the directory to work in.
const crashDir = "BERTH_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := pushForever(dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1) // only a signal ends it
	}
	os.Exit(m.Run())
}

func openBoth(dir string) (*disk.Store, *bolt.Index, error) {
	s, err := disk.Open(dir, disk.Options{})
	if err != nil {
		return nil, nil, err
	}
	x, err := bolt.Open(filepath.Join(dir, "index.db"), kv.Options{})
	return s, x, err
}

// pushForever pushes images from many goroutines and writes a line for each
// that was acknowledged: repository, tag.
func pushForever(dir string, out io.Writer) error {
	s, x, err := openBoth(dir)
	if err != nil {
		return err
	}
	errs := make(chan error)
	var mu sync.Mutex
	for i := range 8 {
		go func() {
			repo := fmt.Sprint("team/app-", i%3)
			for j := 0; ; j++ {
				tag := fmt.Sprintf("%d-%d-%d", os.Getpid(), i, j)
				if err := pushOne(s, x, repo, tag); err != nil {
					errs <- err
					return
				}
				mu.Lock()
				_, err := fmt.Fprintln(out, repo, tag)
				mu.Unlock()
				if err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	return <-errs
}

// pushOne pushes an image of three layers, of which one is small, one comes in
// two pieces with a saved session between, and one is everybody's.
func pushOne(s storage.Store, x storage.Index, repo, tag string) error {
	ctx, data := context.Background(), func(n int) []byte { return bytes.Repeat([]byte(tag+"\n"), n/len(tag)) }
	put := storage.BlobPut{Repo: repo, Grace: time.Hour}
	m := storage.Manifest{MediaType: "application/vnd.oci.image.manifest.v1+json"}
	for _, layer := range [][]byte{data(1000), data(200_000), bytes.Repeat([]byte("shared\n"), 20_000)} {
		up, err := s.Create(ctx, digest.SHA256)
		if err != nil {
			return err
		}
		if _, err := up.Write(layer[:len(layer)/2]); err != nil {
			return err
		}
		put.Session = ""
		if len(layer) > 150_000 {
			state, err := up.Save(ctx)
			if err != nil {
				return err
			}
			put.Session = "session-" + up.ID()
			if err := x.PutSession(ctx, storage.Session{ID: put.Session, Repo: repo, State: state}); err != nil {
				return err
			}
		}
		if _, err := up.Write(layer[len(layer)/2:]); err != nil {
			return err
		}
		c, err := storage.Commit(ctx, s, x, up, digest.FromBytes(layer), put)
		if err != nil {
			return err
		}
		m.References = append(m.References, storage.Reference{Digest: c.Digest})
	}
	body := fmt.Append(nil, "manifest of ", repo, tag)
	m.Content = storage.Content{Digest: digest.FromBytes(body), Size: int64(len(body)), Inline: body}
	return x.PutManifest(ctx, storage.ManifestPut{Repo: repo, Manifest: m, Tags: []string{tag, "latest"}, Rules: storage.Rules{Grace: time.Hour, Untagged: time.Hour, Dangling: time.Hour}})
}

// TestCrash kills a program that pushes, at random points, and looks at what it
// left: all that was acknowledged is there, and no byte is lost to sight.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	var acknowledged []string
	for range 4 {
		acknowledged = append(acknowledged, killAfter(t, dir, 1+rand.IntN(60))...)
		s, x, err := openBoth(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range acknowledged {
			repo, tag, _ := strings.Cut(line, " ")
			if err := pull(s, x, repo, tag); err != nil {
				t.Errorf("%s was acknowledged: %v", line, err)
			}
		}
		checkBytes(t, s, x)
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killAfter starts this program as one that pushes into dir, kills it after n
// lines, and returns all lines that came.
func killAfter(t *testing.T, dir string, n int) (lines []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for scan := bufio.NewScanner(out); scan.Scan(); {
		lines = append(lines, scan.Text())
		if len(lines) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); len(lines) < n {
		t.Fatalf("ended after %d of %d pushes: %v", len(lines), n, err)
	}
	return lines
}

// pull reads all that tag names.
func pull(s storage.Store, x storage.Index, repo, tag string) error {
	m, err := x.Tagged(context.Background(), repo, tag)
	if err != nil {
		return err
	}
	err = check(s, m.Content)
	for _, ref := range m.References {
		c, berr := x.Blob(context.Background(), repo, ref.Digest)
		if berr == nil {
			berr = check(s, c)
		}
		err = errors.Join(err, berr)
	}
	return err
}

// check reads c and hashes it.
func check(s storage.Store, c storage.Content) error {
	content := io.NopCloser(bytes.NewReader(c.Inline))
	if c.Key != "" {
		b, err := s.Open(context.Background(), c.Key)
		if err != nil {
			return err
		}
		content = b
	}
	got, err := c.Digest.Algorithm().FromReader(content)
	if err = errors.Join(err, content.Close()); err != nil {
		return err
	}
	if got != c.Digest {
		return fmt.Errorf("%s hashes to %s", c.Digest, got)
	}
	return nil
}

// checkBytes tells whether each key in s is named or an orphan, and that after
// Sweep only what is named or has a session is there.
func checkBytes(t *testing.T, s storage.Store, x storage.Index) {
	t.Helper()
	orphans, _, err := x.Orphans(t.Context(), time.Unix(1<<40, 0), "", 10_000)
	if err != nil {
		t.Fatal(err)
	}
	for key, err := range s.Keys(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if named(t, x, key) == slices.Contains(orphans, key) {
			t.Errorf("key %s: named %v, which is also what it is as an orphan", key, named(t, x, key))
		}
	}
	if _, err := storage.Sweep(t.Context(), s, x, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	for key, err := range s.Keys(t.Context()) {
		if err != nil || !named(t, x, key) {
			t.Errorf("after Sweep %s is there without a name (%v)", key, err)
		}
	}
	for id, err := range s.Uploads(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		session, err := x.Session(t.Context(), "session-"+id)
		if err != nil {
			t.Errorf("after Sweep upload %s is there without a session: %v", id, err)
			continue
		}
		up, err := s.Resume(t.Context(), session.State)
		if err != nil || up.Size() != session.State.Size {
			t.Errorf("resume what was saved: %v", err)
			continue
		}
		if err := errors.Join(up.Abort(), x.EndSession(t.Context(), session.ID)); err != nil {
			t.Error(err)
		}
	}
}

// named tells whether a repository holds the content at key, which on disk
// begins with its digest.
func named(t *testing.T, x storage.Index, key storage.Key) bool {
	t.Helper()
	d, _, _ := strings.Cut(string(key), ".")
	repos, err := x.Holders(t.Context(), digest.Digest(d), "", 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(repos) == 0 {
		return false
	}
	c, err := x.Blob(t.Context(), repos[0], digest.Digest(d))
	if err != nil {
		t.Fatal(err)
	}
	return c.Key == key
}
