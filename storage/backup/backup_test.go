package backup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/datadir"
	"berth.internal/storage"
	"berth.internal/storage/backup"
	"berth.internal/storage/bolt"
	"berth.internal/storage/disk"
	"berth.internal/storage/gc"
	"berth.internal/storage/kv"
)

func opener() storage.Opener {
	return storage.Opener{
		Index: func(path string) (storage.Index, error) { return bolt.Open(path, kv.Options{}) },
		Store: func(dir string) (storage.Store, error) { return disk.Open(dir, disk.Options{}) },
	}
}

// registry is a data directory that is open.
type registry struct {
	backup.Source
	t         *testing.T
	collector *gc.Collector
	rules     storage.Rules
}

func open(t *testing.T, dir string) *registry {
	t.Helper()
	d, err := datadir.Open(dir, datadir.Registry)
	if err != nil {
		t.Fatal(err)
	}
	index, err := bolt.Open(d.Path(datadir.IndexFile), kv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	store, err := disk.Open(d.Path(), disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(store.Close(), index.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
	r := &registry{t: t, rules: storage.Rules{Grace: time.Millisecond, Untagged: time.Millisecond, Dangling: time.Millisecond}}
	r.Drivers = storage.Drivers{Store: store, Index: index, Records: index, Opener: opener()}
	r.collector = gc.New(store, index, gc.Config{
		Interval: time.Millisecond, Rate: 100000,
		Policy: storage.ReviewPolicy{Untagged: true, Rules: r.rules},
	}, slog.New(slog.DiscardHandler))
	r.Data, r.Version, r.Hold, r.Tell = dir, "test", r.collector.Hold, func(backup.Progress) {}
	return r
}

// push stores an image of one layer and one config and tags it.
func (r *registry) push(ctx context.Context, repo, tag string, layer []byte) error {
	refs := make([]storage.Reference, 0, 2)
	for _, data := range [][]byte{layer, []byte("config of " + tag)} {
		up, err := r.Store.Create(ctx, digest.SHA256)
		if err != nil {
			return err
		}
		if _, err := up.Write(data); err != nil {
			return errors.Join(err, up.Abort())
		}
		d := digest.FromBytes(data)
		if _, err := storage.Commit(ctx, r.Store, r.Index, up, d, storage.BlobPut{Repo: repo, Grace: 50 * time.Millisecond}); err != nil {
			return err
		}
		refs = append(refs, storage.Reference{Digest: d})
	}
	body, err := json.Marshal(refs)
	if err != nil {
		return err
	}
	return r.Index.PutManifest(ctx, storage.ManifestPut{
		Repo: repo, Tags: []string{tag}, Rules: r.rules,
		Manifest: storage.Manifest{
			Content:   storage.Content{Digest: digest.FromBytes(body), Size: int64(len(body)), Inline: body},
			MediaType: "application/vnd.oci.image.manifest.v1+json", References: refs,
		},
	})
}

func (r *registry) mustPush(repo, tag string, layer []byte) {
	r.t.Helper()
	if err := r.push(r.t.Context(), repo, tag, layer); err != nil {
		r.t.Fatal(err)
	}
}

// whole checks that all that the index names is there with the right bytes, and
// nothing else, and returns the tags.
func (r *registry) whole() []string {
	r.t.Helper()
	ctx := r.t.Context()
	if problems, _, err := r.Index.Check(ctx, "", math.MaxInt); err != nil || len(problems) > 0 {
		r.t.Errorf("Check = %v\n%s", err, strings.Join(problems, "\n"))
	}
	contents, err := r.Index.Contents(ctx, "", math.MaxInt)
	if err != nil {
		r.t.Fatal(err)
	}
	keys := map[storage.Key]bool{}
	for _, c := range contents {
		data := c.Inline
		if c.Key != "" {
			keys[c.Key] = true
			data = r.read(c.Key)
		}
		if int64(len(data)) != c.Size || digest.FromBytes(data) != c.Digest {
			r.t.Errorf("content %s of %d bytes has %d other ones", c.Digest, c.Size, len(data))
		}
	}
	if _, err := storage.Sweep(ctx, r.Store, r.Index, slog.New(slog.DiscardHandler)); err != nil {
		r.t.Errorf("Sweep = %v", err)
	}
	for key := range r.Store.Keys(ctx) {
		if !keys[key] {
			r.t.Errorf("%s is there, and has no name", key)
		}
	}
	var tags []string
	repos, err := r.Index.Repositories(ctx, "", math.MaxInt)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, repo := range repos {
		names, err := r.Index.Tags(ctx, repo, "", math.MaxInt)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, tag := range names {
			m, err := r.Index.Tagged(ctx, repo, tag)
			if err != nil {
				r.t.Errorf("tag %s:%s: %v", repo, tag, err)
			}
			for _, ref := range m.References {
				if _, err := r.Index.Blob(ctx, repo, ref.Digest); err != nil {
					r.t.Errorf("tag %s:%s needs %s: %v", repo, tag, ref.Digest, err)
				}
			}
			tags = append(tags, repo+":"+tag)
		}
	}
	return tags
}

func (r *registry) read(key storage.Key) []byte {
	r.t.Helper()
	blob, err := r.Store.Open(r.t.Context(), key)
	if err != nil {
		r.t.Errorf("open %s: %v", key, err)
		return nil
	}
	defer blob.Close()
	data, err := io.ReadAll(blob)
	if err != nil {
		r.t.Errorf("read %s: %v", key, err)
	}
	return data
}

func (r *registry) backUp(dir string) backup.Report {
	r.t.Helper()
	report, err := backup.Write(r.t.Context(), r.Source, dir)
	if err != nil {
		r.t.Fatalf("backup: %v", err)
	}
	return report
}

func restore(t *testing.T, from, data string, link bool) (backup.Report, error) {
	t.Helper()
	return backup.Restore(t.Context(), backup.Restoration{
		Opener: opener(), From: from, Data: data, Link: link, Tell: func(backup.Progress) {},
	})
}

// restored is what a backup comes to.
func restored(t *testing.T, from string) *registry {
	t.Helper()
	data := filepath.Join(t.TempDir(), "restored")
	report, err := restore(t, from, data, false)
	if err != nil || report.Damaged > 0 {
		t.Fatalf("restore: %v, %d damaged", err, report.Damaged)
	}
	return open(t, data)
}

func layer(seed uint64, size int) []byte {
	b := make([]byte, size)
	random := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// places are a directory on the file system of data, and one on another.
func places(t *testing.T) map[string]string {
	t.Helper()
	other, err := os.MkdirTemp("/dev/shm", "backup")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(other) })
	return map[string]string{"linked": t.TempDir(), "copied": other}
}

func TestBackupAndRestore(t *testing.T) {
	for name, place := range places(t) {
		t.Run(name, func(t *testing.T) {
			linked := int64(0)
			r := open(t, filepath.Join(t.TempDir(), "data"))
			dir := filepath.Join(place, "backup")
			r.mustPush("a", "1", layer(1, 100_000))
			r.mustPush("a", "2", layer(2, 300_000))
			if _, err := r.Records.Put(t.Context(), "users/ann", []byte("ann"), 0); err != nil {
				t.Fatal(err)
			}
			first := r.backUp(dir)
			if name == "linked" {
				linked = 2
			}
			if first.New != 2 || first.NewBytes != 400_000 || first.Blobs != 2 || first.Linked != linked || first.Removed != 0 || first.SameDisk != (linked > 0) {
				t.Errorf("first backup = %+v", first)
			}
			info, err := backup.Read(dir)
			if err != nil || info != first.Info || info.Berth != "test" || info.Registry == "" || time.Since(info.Time) > time.Minute {
				t.Errorf("BACKUP says %+v, %v; the report %+v", info, err, first.Info)
			}

			// What is new is added, what is gone goes, what was there stays.
			r.mustPush("b", "1", layer(3, 200_000))
			if err := r.Index.DeleteManifest(t.Context(), "a", r.tagged("a", "1"), r.rules); err != nil {
				t.Fatal(err)
			}
			r.collectUntil(2)
			second := r.backUp(dir)
			if second.New != 1 || second.NewBytes != 200_000 || second.Blobs != 2 || second.Removed != 1 || second.Linked != linked {
				t.Errorf("second backup = %+v", second)
			}
			modes(t, dir)

			back := restored(t, dir)
			if got := back.whole(); !slices.Equal(got, []string{"a:2", "b:1"}) {
				t.Errorf("restored are %q", got)
			}
			if rec, err := back.Records.Get(t.Context(), "users/ann"); err != nil || string(rec.Value) != "ann" {
				t.Errorf("restored record = %q, %v", rec.Value, err)
			}
			// The restored registry goes on, also with the same backup.
			back.mustPush("c", "1", layer(4, 100_000))
			if third := back.backUp(dir); third.New != 1 || third.Blobs != 3 {
				t.Errorf("backup of what was restored = %+v", third)
			}
		})
	}
}

func (r *registry) tagged(repo, tag string) digest.Digest {
	r.t.Helper()
	m, err := r.Index.Tagged(r.t.Context(), repo, tag)
	if err != nil {
		r.t.Fatal(err)
	}
	return m.Digest
}

// collectUntil collects until the Store holds n keys.
func (r *registry) collectUntil(n int) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		if _, err := r.collector.Round(r.t.Context(), nil); err != nil {
			r.t.Fatal(err)
		}
		keys := 0
		for range r.Store.Keys(r.t.Context()) {
			keys++
		}
		if keys == n {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("the store has %d keys, want %d", keys, n)
		}
	}
}

// modes checks that nobody else may look into a backup.
func modes(t *testing.T, dir string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestUnderLoad makes backups one after another while clients push, move tags
// and delete, and the collector takes away what it can at once.
func TestUnderLoad(t *testing.T) {
	for name, place := range places(t) {
		t.Run(name, func(t *testing.T) {
			r := open(t, filepath.Join(t.TempDir(), "data"))
			dir := filepath.Join(place, "backup")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() { r.collector.Run(ctx) })
			var pushed sync.WaitGroup
			for i := range 8 {
				pushed.Add(1)
				wg.Go(func() {
					once := sync.OnceFunc(pushed.Done)
					defer once()
					for n := 0; ctx.Err() == nil; n++ {
						repo, tag := fmt.Sprint("repo", i%4), fmt.Sprintf("%d-%d", i, n%5)
						err := r.push(ctx, repo, tag, layer(uint64(i*1000+n%7), 70_000+n%7))
						if err == nil && n%3 == 0 {
							err = r.Index.DeleteTag(ctx, repo, tag, r.rules)
						}
						if _, ok := errors.AsType[*storage.MissingError](err); ok {
							err = nil // collected before the manifest came
						}
						if err != nil && ctx.Err() == nil && !storage.IsNotFound(err) {
							t.Errorf("push: %v", err)
							return
						}
						if n > 10 {
							once()
						}
					}
				})
			}
			pushed.Wait()
			for range 3 {
				report := r.backUp(dir)
				t.Logf("%d blobs, %d new, %d removed, %d linked", report.Blobs, report.New, report.Removed, report.Linked)
				if report.Damaged > 0 || report.Blobs == 0 {
					t.Errorf("backup = %+v", report)
				}
				if tags := restored(t, dir).whole(); len(tags) == 0 {
					t.Error("nothing was restored")
				}
			}
			cancel()
			wg.Wait()
		})
	}
}

// TestHold has a collector at work in the worst moment: after the names were
// copied and before the bytes are.
func TestHold(t *testing.T) {
	for _, held := range []bool{true, false} {
		r := open(t, filepath.Join(t.TempDir(), "data"))
		r.mustPush("a", "1", layer(1, 100_000))
		if !held {
			r.Hold = func() func() { return func() {} }
		}
		var once sync.Once
		r.Tell = func(p backup.Progress) {
			if p.Doing != "copying" {
				return
			}
			once.Do(func() {
				if err := r.Index.DeleteManifest(t.Context(), "a", r.tagged("a", "1"), r.rules); err != nil {
					t.Error(err)
				}
				for end := time.Now().Add(5 * time.Second); ; {
					result, err := r.collector.Round(t.Context(), nil)
					if err != nil || result.Held || result.Deleted > 0 || time.Now().After(end) {
						t.Logf("%+v, %v", result, err)
						return
					}
				}
			})
		}
		dir := filepath.Join(t.TempDir(), "backup")
		report := r.backUp(dir)
		if lost := report.Damaged > 0; lost == held {
			t.Errorf("held %t: backup = %+v", held, report)
		}
		if held {
			if got := restored(t, dir).whole(); !slices.Equal(got, []string{"a:1"}) {
				t.Errorf("restored are %q", got)
			}
			r.collectUntil(0)
		}
	}
}

// TestInterrupted ends a backup at each of its steps. The one before is there
// until the next is complete.
func TestInterrupted(t *testing.T) {
	errPower := errors.New("interrupted")
	for _, first := range []bool{true, false} {
		for step := 1; ; step++ {
			r := open(t, filepath.Join(t.TempDir(), "data"))
			dir := filepath.Join(t.TempDir(), "backup")
			r.mustPush("a", "1", layer(1, 100_000))
			if !first {
				r.backUp(dir)
			}
			r.mustPush("a", "2", layer(2, 100_000))
			ctx, cancel := context.WithCancelCause(t.Context())
			told := 0
			r.Tell = func(backup.Progress) {
				if told++; told == step {
					cancel(errPower)
				}
			}
			report, err := backup.Write(ctx, r.Source, dir)
			cancel(nil)
			if told < step {
				break // a backup has no more steps
			}
			if err == nil {
				t.Fatalf("step %d: the backup went on", step)
			}
			want := []string{"a:1"}
			if !report.Time.IsZero() {
				want = []string{"a:1", "a:2"}
			}
			if first && report.Time.IsZero() {
				if _, err := restore(t, dir, filepath.Join(t.TempDir(), "x"), false); !errors.Is(err, datadir.ErrUnfinished) {
					t.Errorf("step %d: restore of an unfinished backup = %v", step, err)
				}
				if _, err := datadir.Open(dir, datadir.Registry); !errors.Is(err, datadir.ErrUnfinished) {
					t.Errorf("step %d: open of an unfinished backup = %v", step, err)
				}
			} else if got := restored(t, dir).whole(); !slices.Equal(got, want) {
				t.Errorf("step %d: restored are %q, want %q", step, got, want)
			}
			r.Tell = func(backup.Progress) {}
			r.backUp(dir)
			if got := restored(t, dir).whole(); !slices.Equal(got, []string{"a:1", "a:2"}) {
				t.Errorf("step %d: restored afterwards are %q", step, got)
			}
		}
	}
}

// TestInterruptedAtTheEnd has the index that BACKUP names still beside the one of
// the backup before.
func TestInterruptedAtTheEnd(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "data"))
	dir := filepath.Join(t.TempDir(), "backup")
	index := filepath.Join(dir, "registry", "index.db")
	r.mustPush("a", "1", layer(1, 100_000))
	r.backUp(dir)
	before, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	r.mustPush("a", "2", layer(2, 100_000))
	r.backUp(dir)
	if err := os.Rename(index, index+".next"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(index, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := restored(t, dir).whole(); !slices.Equal(got, []string{"a:1", "a:2"}) {
		t.Errorf("restored are %q", got)
	}
	if err := os.Remove(index + ".next"); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(t, dir, filepath.Join(t.TempDir(), "x"), false); err == nil || !strings.Contains(err.Error(), "was changed after the backup was made") {
		t.Errorf("restore with the index of another backup = %v", err)
	}
}

// TestRestoreInterrupted ends a restore at each of its steps, and does it again.
func TestRestoreInterrupted(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "data"))
	dir := filepath.Join(t.TempDir(), "backup")
	r.mustPush("a", "1", layer(1, 100_000))
	r.mustPush("a", "2", layer(2, 100_000))
	r.backUp(dir)
	for step := 1; ; step++ {
		data := filepath.Join(t.TempDir(), "data")
		ctx, cancel := context.WithCancel(t.Context())
		told := 0
		_, err := backup.Restore(ctx, backup.Restoration{Opener: opener(), From: dir, Data: data, Link: step%2 == 0, Tell: func(backup.Progress) {
			if told++; told == step {
				cancel()
			}
		}})
		cancel()
		if told < step {
			return
		}
		if err != nil {
			if _, err := datadir.Open(data, datadir.Registry); !errors.Is(err, datadir.ErrUnfinished) {
				t.Errorf("step %d: open of an unfinished restore = %v", step, err)
			}
			if _, err := restore(t, dir, data, false); err != nil {
				t.Errorf("step %d: restore again = %v", step, err)
			}
		}
		if got := open(t, data).whole(); !slices.Equal(got, []string{"a:1", "a:2"}) {
			t.Errorf("step %d: restored are %q", step, got)
		}
	}
}

// TestDamage loses bytes in the registry, and then in the backup.
func TestDamage(t *testing.T) {
	for name, place := range places(t) {
		t.Run(name, func(t *testing.T) {
			r := open(t, filepath.Join(t.TempDir(), "data"))
			dir := filepath.Join(place, "backup")
			r.mustPush("a", "1", layer(1, 100_000))
			r.mustPush("a", "2", layer(2, 100_000))
			damaged, gone := digest.FromBytes(layer(1, 100_000)), digest.FromBytes(layer(2, 100_000))
			files := func(root string, d digest.Digest) string {
				found, err := filepath.Glob(filepath.Join(root, "registry", "blobs", "sha256", d.Encoded()[:2], d.Encoded()+".*"))
				if err != nil || len(found) != 1 {
					t.Fatalf("files of %s in %s: %q, %v", d, root, found, err)
				}
				return found[0]
			}
			if err := os.Remove(files(r.Data, gone)); err != nil {
				t.Fatal(err)
			}
			report := r.backUp(dir)
			if report.Damaged != 1 || report.Damage[0].Digest != gone || report.Blobs != 1 {
				t.Errorf("backup without bytes = %+v", report)
			}
			if err := os.WriteFile(files(dir, damaged), layer(9, 100_000), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, link := range []bool{false, true} {
				data := filepath.Join(place, fmt.Sprint("restored", link))
				report, err := restore(t, dir, data, link)
				if err != nil || report.Damaged != 2 || report.Blobs != 0 {
					t.Errorf("restore of damage = %+v, %v", report, err)
				}
				back := open(t, data)
				for _, d := range []digest.Digest{damaged, gone} {
					_, err := back.Index.Blob(t.Context(), "a", d)
					if _, ok := errors.AsType[*storage.QuarantinedError](err); !ok {
						t.Errorf("restored %s = %v, want it quarantined", d, err)
					}
				}
				back.mustPush("a", "1", layer(1, 100_000)) // heals
				back.mustPush("a", "2", layer(2, 100_000))
				if got := back.whole(); !slices.Equal(got, []string{"a:1", "a:2"}) {
					t.Errorf("healed are %q", got)
				}
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	root := t.TempDir()
	r := open(t, filepath.Join(root, "data"))
	r.mustPush("a", "1", layer(1, 100_000))
	full := filepath.Join(root, "full")
	for _, dir := range []string{full, filepath.Join(full, "a")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(root, "data", "registry"), filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	other := open(t, filepath.Join(root, "other"))
	other.backUp(filepath.Join(root, "others"))
	for _, tc := range []struct{ dir, want string }{
		{"backup", "name the directory in full"},
		{root + "/a/../b", "name the directory in full"},
		{filepath.Join(root, "data"), "is in the data directory"},
		{filepath.Join(root, "data", "registry", "x"), "is in the data directory"},
		{filepath.Join(root, "link", "x"), "is in the data directory"},
		{filepath.Join(root, "none", "x"), "there is no directory " + filepath.Join(root, "none") + " there"},
		{full, "is not empty, and no backup"},
		{root, "is not empty, and no backup"},
		{filepath.Join(root, "others"), "a backup of another registry"},
		{filepath.Join(root, "data", "VERSION", "x"), "is not a directory"},
	} {
		_, err := backup.Write(t.Context(), r.Source, tc.dir)
		if _, ok := errors.AsType[*backup.DirError](err); !ok || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("backup to %s = %v, want %q", tc.dir, err, tc.want)
		}
	}
	dir := filepath.Join(root, "backup")
	r.backUp(dir)
	for _, tc := range []struct{ from, data, want string }{
		{full, "x", "is no backup of berth"},
		{filepath.Join(root, "none"), "x", "is no backup of berth"},
		{dir, "full", "is not empty: nothing is restored over"},
		{dir, "data", "is not empty: nothing is restored over"},
		{dir, "none/x", "there is no directory"},
	} {
		_, err := restore(t, tc.from, filepath.Join(root, tc.data), false)
		if _, ok := errors.AsType[*backup.DirError](err); !ok || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("restore of %s to %s = %v, want %q", tc.from, tc.data, err, tc.want)
		}
	}
	unable := r.Source
	unable.Opener = storage.Opener{}
	if _, err := backup.Write(t.Context(), unable, dir); !errors.Is(err, backup.ErrUnable) {
		t.Errorf("backup without an opener = %v", err)
	}
}

// fullStore is a Store on a disk that fills up.
type fullStore struct {
	*disk.Store
	room int
}

func (s *fullStore) Import(ctx context.Context, c storage.Content, from storage.Store, link bool) (storage.Imported, error) {
	if s.room--; s.room < 0 {
		return storage.Imported{}, fmt.Errorf("import: %w", storage.Medium(syscall.ENOSPC))
	}
	return s.Store.Import(ctx, c, from, link)
}

func TestFullDisk(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "data"))
	dir := filepath.Join(t.TempDir(), "backup")
	r.mustPush("a", "1", layer(1, 100_000))
	for _, left := range []string{"there is no backup in it yet", "in it is still complete"} {
		limited := r.Source
		limited.Opener.Store = func(dir string) (storage.Store, error) {
			s, err := disk.Open(dir, disk.Options{})
			return &fullStore{s, 0}, err
		}
		_, err := backup.Write(t.Context(), limited, dir)
		if !errors.Is(err, storage.ErrNoSpace) || !strings.Contains(err.Error(), "is full (") || !strings.Contains(err.Error(), left) {
			t.Errorf("backup to a full disk = %v, want %q", err, left)
		}
		r.backUp(dir)
	}
}

// TestSessions restores a registry in which an upload was under way.
func TestSessions(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "data"))
	up, err := r.Store.Create(t.Context(), digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := up.Write(bytes.Repeat([]byte("x"), 100_000)); err != nil {
		t.Fatal(err)
	}
	state, err := up.Save(t.Context())
	if err == nil {
		err = errors.Join(up.Close(), r.Index.PutSession(t.Context(), storage.Session{ID: "session", Repo: "a", State: state}))
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "backup")
	r.backUp(dir)
	back := restored(t, dir)
	back.whole() // sweeps
	s, err := back.Index.Session(t.Context(), "session")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := back.Store.Resume(t.Context(), s.State); !storage.IsNotFound(err) {
		t.Errorf("Resume of an upload that was not backed up = %v", err)
	}
}
