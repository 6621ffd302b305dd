package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"berth.internal/client"
	"berth.internal/internal/durable"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// OCITarget is an OCI image layout in a directory to write to. What comes is
// kept in a directory beside it until Commit.
type OCITarget struct {
	dir, tag string
	staging  string
	exists   bool // dir is there already, as a layout or empty

	mu        sync.Mutex
	blobs     []string        // names in staging
	referrers []v1.Descriptor // to be listed in index.json
}

// CreateOCI begins to write an image to the layout in dir, which is made if it
// is not there; other images in it stay. An empty tag leaves the image without
// one.
func CreateOCI(dir, tag string) (*OCITarget, error) {
	t := &OCITarget{dir: filepath.Clean(dir), tag: tag}
	names, err := os.ReadDir(t.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case len(names) > 0:
		l := OCI{path: dir}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		l.files = directory{root}
		if err := errors.Join(l.readIndex(), root.Close()); err != nil {
			return nil, fmt.Errorf("%s is neither empty nor an image layout to add to: %w", dir, err)
		}
		t.exists = true
	default:
		t.exists = true
	}
	t.staging, err = os.MkdirTemp(filepath.Dir(t.dir), "."+filepath.Base(t.dir)+".tmp-*")
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Begin takes everything.
func (t *OCITarget) Begin(context.Context, v1.Descriptor, int) error { return nil }

// PutBlob takes a blob that the layout does not hold.
func (t *OCITarget) PutBlob(_ context.Context, d v1.Descriptor, open func(int64) (io.ReadCloser, error), progress func(int64)) (client.PushResult, error) {
	if info, err := os.Lstat(filepath.Join(t.dir, blobPath(d.Digest))); err == nil && info.Mode().IsRegular() && info.Size() == d.Size {
		return client.Existed, nil
	}
	return client.Uploaded, t.put(blobPath(d.Digest), func(w io.Writer) error { return copyVerified(w, d, open, progress) })
}

// put writes one file to the staging directory.
func (t *OCITarget) put(name string, write func(io.Writer) error) error {
	at := filepath.Join(t.staging, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.blobs = append(t.blobs, name)
	return nil
}

// PutManifest takes a manifest. One that has a subject will be in index.json,
// where referrers are looked for.
func (t *OCITarget) PutManifest(_ context.Context, d v1.Descriptor, body []byte) error {
	if subject(body) != "" {
		t.referrers = append(t.referrers, tagged(d, ""))
	}
	if _, err := os.Lstat(filepath.Join(t.dir, blobPath(d.Digest))); err == nil {
		return nil
	}
	return t.put(blobPath(d.Digest), func(w io.Writer) error {
		_, err := w.Write(body)
		return err
	})
}

// Commit moves everything to its place, the index last.
func (t *OCITarget) Commit(ctx context.Context, root v1.Descriptor, body []byte) error {
	if err := t.PutManifest(ctx, root, body); err != nil {
		return err
	}
	entries := slices.Concat(t.referrers, []v1.Descriptor{tagged(root, t.tag)})
	if !t.exists {
		return t.commitNew(entries)
	}
	return t.commitInto(entries)
}

func (t *OCITarget) commitNew(entries []v1.Descriptor) error {
	index, mark, err := write(enter(v1.Index{}, entries...))
	if err != nil {
		return err
	}
	if err := errors.Join(
		t.syncNames(),
		durable.WriteFile(filepath.Join(t.staging, v1.ImageLayoutFile), mark, 0o644),
		durable.WriteFile(filepath.Join(t.staging, v1.ImageIndexFile), index, 0o644),
		os.Chmod(t.staging, 0o755),
	); err != nil {
		return err
	}
	return durable.Rename(t.staging, t.dir)
}

// syncNames makes the names of all blobs durable in staging.
func (t *OCITarget) syncNames() error {
	done := map[string]bool{}
	for _, name := range t.blobs {
		for dir := filepath.Dir(name); !done[dir]; dir = filepath.Dir(dir) { // the last is "."
			done[dir] = true
			if err := durable.SyncDir(filepath.Join(t.staging, dir)); err != nil {
				return err
			}
		}
	}
	return nil
}

// commitInto adds to a layout that others may be adding to.
func (t *OCITarget) commitInto(entries []v1.Descriptor) error {
	lock, err := os.Open(t.dir)
	if err != nil {
		return err
	}
	defer lock.Close() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", t.dir, err)
	}
	var index v1.Index
	raw, err := os.ReadFile(filepath.Join(t.dir, v1.ImageIndexFile))
	if err == nil {
		index, err = parseIndex(raw)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", t.dir, err)
	}
	indexJSON, mark, err := write(enter(index, entries...))
	if err != nil {
		return err
	}
	for _, name := range t.blobs {
		to := filepath.Join(t.dir, name)
		if err := durable.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := durable.Rename(filepath.Join(t.staging, name), to); err != nil {
			return err
		}
	}
	if err := durable.WriteFile(filepath.Join(t.dir, v1.ImageLayoutFile), mark, 0o644); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(t.dir, v1.ImageIndexFile), indexJSON, 0o644)
}

// Close drops what was not committed.
func (t *OCITarget) Close() error { return os.RemoveAll(t.staging) }
