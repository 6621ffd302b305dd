// Package backup copies all that a registry keeps into a directory while the
// registry serves, and back. A backup is a data directory with a file BACKUP:
//
//	<dir>/BACKUP                  what it is, as JSON: see Info
//	<dir>/VERSION                 as in every data directory
//	<dir>/registry/index.db       names and records as of one moment
//	<dir>/registry/index.db.next  those of the backup that is being made
//	<dir>/registry/blobs/...      bytes, under the keys of the registry
//
// The reasons are in docs/design/0010-backup.md.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"berth.internal/internal/datadir"
	"berth.internal/internal/durable"
	"berth.internal/storage"
)

const (
	infoFile  = "BACKUP"
	nextIndex = datadir.IndexFile + ".next"
	format    = 1
	maxInfo   = 1 << 20 // bytes of BACKUP

	page    = 200 // contents read from an index at once
	workers = 4   // blobs on their way at once
	named   = 100 // damaged contents that are named
)

// Info is what the file BACKUP says. Sizes are in bytes.
type Info struct {
	Format    int           `json:"format"`
	Time      time.Time     `json:"time"`     // of the data
	Berth     string        `json:"berth"`    // version that made it
	Registry  string        `json:"registry"` // id of the registry: another's must not replace it
	IndexSize int64         `json:"index_size_bytes"`
	Index     digest.Digest `json:"index_digest"`
	Blobs     int64         `json:"blobs"` // files of the store
	Bytes     int64         `json:"size_bytes"`
	Linked    int64         `json:"linked"`    // of the blobs: the same bytes on the disk as the registry's
	SameDisk  bool          `json:"same_disk"` // it is on the file system of the registry
	Damaged   int64         `json:"damaged"`   // blobs that the registry had lost, which are not in it
}

// Report is what was done.
type Report struct {
	Info
	New      int64     // blobs that were not there before
	NewBytes int64     // bytes of those
	Removed  int64     // blobs of an earlier backup that nothing names any more
	Damage   []Damaged // the first hundred
}

// Damaged is content without its bytes.
type Damaged struct {
	Digest digest.Digest
	Why    string
}

// Progress is how far it is.
type Progress struct {
	Doing       string // for people
	Done, Total int64  // bytes
}

// DirError says what is wrong with a directory that was named, and what to do.
type DirError struct {
	Says string
	Err  error
}

func (e *DirError) Error() string { return e.Says }

func (e *DirError) Unwrap() error { return e.Err }

// dirErrorf makes a DirError because of err.
func dirErrorf(err error, format string, args ...any) error {
	return &DirError{Says: fmt.Sprintf(format, args...), Err: err}
}

// Is tells whether the directory dir is a backup, or was to be one.
func Is(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, infoFile))
	what, _ := datadir.Unfinished(dir) // if that cannot be read, dir cannot be opened
	return err == nil || what == filling
}

// Read returns what BACKUP in dir says. Errors: *DirError if dir is no backup, or
// one that is not complete.
func Read(dir string) (Info, error) {
	var info Info
	f, err := os.Open(filepath.Join(dir, infoFile))
	if err == nil {
		defer f.Close()
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(f, maxInfo)); err == nil {
			err = json.Unmarshal(data, &info)
		}
	}
	what, uerr := datadir.Unfinished(dir)
	switch {
	case uerr != nil && !errors.Is(uerr, fs.ErrNotExist):
		return info, dirErrorf(uerr, "the backup %s cannot be read: %v", dir, uerr)
	case what == filling:
		return info, dirErrorf(datadir.ErrUnfinished, "%s is an unfinished backup: berth admin backup %s goes on with it; restore another one", dir, dir)
	case errors.Is(err, fs.ErrNotExist):
		return info, dirErrorf(err, "%s is no backup of berth: it has no file %s", dir, infoFile)
	case errors.Is(err, fs.ErrPermission):
		return info, dirErrorf(err, "the backup %s is not yours to read: try again with sudo", dir)
	case err != nil:
		return info, dirErrorf(err, "%s cannot be read: %v", filepath.Join(dir, infoFile), err)
	case info.Format > format:
		return info, dirErrorf(nil, "the backup %s was made by berth %s in a format that this one does not know: use a berth as new", dir, info.Berth)
	case info.Format < 1 || info.Index.Validate() != nil:
		return info, dirErrorf(nil, "%s is damaged: restore another backup", filepath.Join(dir, infoFile))
	}
	return info, nil
}

// write puts BACKUP into dir.
func (i Info) write(dir string) error {
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, infoFile), append(data, '\n'), 0o600)
}

// copying moves the bytes of all that an index names from a Store to another.
type copying struct {
	index storage.Index
	from  storage.Store
	to    storage.Importer
	link  bool
	check bool // also the bytes that are not copied
	tell  func(Progress)
	lost  func(context.Context, storage.Content, error) error // told of content that has no bytes, one at a time

	seed maphash.Seed
	keep map[uint64]struct{} // hashes of keys: two that are the same keep too much, never too little

	mu     sync.Mutex
	report *Report
	done   int64 // bytes
}

// run copies. The report is complete if there is no error.
func (c *copying) run(ctx context.Context) error {
	c.seed, c.keep = maphash.MakeSeed(), map[uint64]struct{}{}
	var total int64
	if err := c.contents(ctx, func(content storage.Content) error {
		c.keep[maphash.String(c.seed, string(content.Key))] = struct{}{}
		total += content.Size
		return nil
	}); err != nil {
		return err
	}
	c.tell(Progress{Doing: "copying", Total: total})
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	err := c.contents(inner, func(content storage.Content) error {
		group.Go(func() error { return c.one(inner, content, total) })
		return nil
	})
	// What ended inner is the first error of a worker.
	if worked := group.Wait(); worked != nil {
		return worked
	}
	if err == nil {
		err = c.to.Sync(ctx)
	}
	return err
}

// contents calls do for all content whose bytes are in a Store.
func (c *copying) contents(ctx context.Context, do func(storage.Content) error) error {
	var after digest.Digest
	for {
		list, err := c.index.Contents(ctx, after, page)
		if err != nil {
			return fmt.Errorf("read the copy of the index: %w", err)
		}
		for _, content := range list {
			if content.Key == "" {
				continue
			}
			if err := do(content); err != nil {
				return err
			}
		}
		if len(list) < page {
			return nil
		}
		after = list[len(list)-1].Digest
	}
}

// one copies one content.
func (c *copying) one(ctx context.Context, content storage.Content, total int64) error {
	did, err := c.to.Import(ctx, content, c.from, c.link)
	if err == nil && c.check && (did.Linked || !did.New) {
		err = c.verify(ctx, content)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done += content.Size
	c.tell(Progress{Doing: "copying", Done: c.done, Total: total})
	switch {
	case err == nil:
		c.report.Blobs++
		c.report.Bytes += content.Size
		if did.Linked {
			c.report.Linked++
		}
		if did.New {
			c.report.New++
			c.report.NewBytes += content.Size
		}
		return nil
	case storage.IsNotFound(err), errors.Is(err, storage.ErrMismatch):
		c.report.Damaged++
		why := "its bytes are damaged"
		if storage.IsNotFound(err) {
			why = "its bytes are gone"
		}
		if len(c.report.Damage) < named {
			c.report.Damage = append(c.report.Damage, Damaged{content.Digest, why})
		}
		return c.lost(ctx, content, err)
	}
	return err
}

// verify reads the bytes of content in the new place, and takes them away if they
// are not what they should be.
func (c *copying) verify(ctx context.Context, content storage.Content) error {
	blob, err := c.to.Open(ctx, content.Key)
	if err != nil {
		return err
	}
	defer blob.Close()
	verifier := content.Digest.Verifier()
	if _, err := io.Copy(verifier, reader{ctx, blob}); err != nil {
		return fmt.Errorf("read %s: %w", content.Key, storage.Medium(err))
	}
	if !verifier.Verified() {
		return errors.Join(fmt.Errorf("%s: %w", content.Key, storage.ErrMismatch), c.to.Delete(ctx, content.Key))
	}
	return nil
}

// reader ends with ctx.
type reader struct {
	ctx context.Context //nolint:containedctx // it lives as long as one call
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// clean removes what the index does not name, and what an interrupted copy has
// left.
func (c *copying) clean(ctx context.Context) error {
	for key, err := range c.to.Keys(ctx) {
		if err != nil {
			return err
		}
		if _, ok := c.keep[maphash.String(c.seed, string(key))]; ok {
			continue
		}
		if err := c.to.Delete(ctx, key); err != nil {
			return err
		}
		c.report.Removed++
	}
	return discard(ctx, c.to)
}

// discard removes half copies.
func discard(ctx context.Context, s storage.Store) error {
	for id, err := range s.Uploads(ctx) {
		if err == nil {
			err = s.Discard(ctx, id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// openIndex opens the copy of an index.
func openIndex(opener storage.Opener, path string) (storage.Index, error) {
	x, err := opener.Index(path)
	if err != nil {
		return nil, fmt.Errorf("open the copy of the index: %w", err)
	}
	return x, nil
}

// openStore opens the Store that takes the bytes.
func openStore(opener storage.Opener, dir string) (storage.Importer, error) {
	s, err := opener.Store(dir)
	if err != nil {
		return nil, err
	}
	to, ok := s.(storage.Importer)
	if !ok {
		return nil, errors.Join(errors.New("the store takes no bytes of another"), s.Close())
	}
	return to, nil
}

// hashFile returns what is in the file at path.
func hashFile(ctx context.Context, path string) (digest.Digest, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	d := digest.SHA256.Digester()
	n, err := io.Copy(d.Hash(), reader{ctx, f})
	return d.Digest(), n, err
}
