package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/datadir"
	"berth.internal/internal/durable"
	"berth.internal/storage"
)

// restoring is what a directory is being filled by.
const restoring = "restore"

// Restoration is what is to be restored.
type Restoration struct {
	Opener storage.Opener
	From   string         // the backup
	Data   string         // the data directory to make
	Link   bool           // do not copy bytes where both are on one file system
	Tell   func(Progress) // as in Source
}

// Restore makes a data directory of a backup, which it does not change, and
// verifies every byte. Content whose bytes the backup does not have as they were
// is quarantined in the new index, so that who pushes it again heals it; all else
// is restored. Until it has come to its end nobody can serve the directory, and
// only the same can be done again. Errors: *DirError.
func Restore(ctx context.Context, r Restoration) (report Report, err error) {
	info, err := Read(r.From)
	if err != nil {
		return report, err
	}
	from, err := datadir.Read(r.From, datadir.Registry)
	if err != nil {
		return report, dirErrorf(err, "the backup cannot be read: %v", err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	d, err := datadir.Fill(r.Data, datadir.Registry, restoring)
	if err != nil {
		return report, refused(err, r.Data)
	}
	defer func() { err = full(errors.Join(err, d.Close()), r.Data) }()

	source, err := r.Opener.Store(from.Path())
	if err != nil {
		return report, fmt.Errorf("open the backup: %w", err)
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	to, err := openStore(r.Opener, d.Path())
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := discard(ctx, to); err != nil {
		return report, err
	}

	r.Tell(Progress{Doing: "copying names and records"})
	next := d.Path(nextIndex)
	if err := copyIndex(ctx, from, info, next); err != nil {
		return report, err
	}
	index, err := openIndex(r.Opener, next)
	if err != nil {
		return report, err
	}
	c := &copying{
		index: index, from: source, to: to, link: r.Link, check: true, tell: r.Tell, report: &report,
		lost: func(ctx context.Context, content storage.Content, why error) error {
			_, err := index.Quarantine(ctx, content, "the backup that was restored did not have its bytes: "+why.Error())
			return err
		},
	}
	if err := errors.Join(c.run(ctx), index.Close()); err != nil {
		return report, err
	}
	if err := c.clean(ctx); err != nil { // of another backup that was not restored to its end
		return report, err
	}
	if err := durable.Rename(next, d.Path(datadir.IndexFile)); err != nil {
		return report, err
	}
	if err := d.Done(); err != nil {
		return report, err
	}
	report.Time, report.Berth, report.Index, report.IndexSize = info.Time, info.Berth, info.Index, info.IndexSize
	return report, nil
}

// copyIndex copies the index of the backup to path, and knows it by its digest:
// a backup that was interrupted at its very end has the right one beside that of
// the backup before.
func copyIndex(ctx context.Context, from *datadir.Dir, info Info, path string) error {
	var tried []error
	for _, name := range []string{datadir.IndexFile, nextIndex} {
		got, err := copyFile(ctx, from.Path(name), path)
		switch {
		case err == nil && got == info.Index:
			return nil
		case err == nil:
			tried = append(tried, fmt.Errorf("%s is not what it was when the backup was made", from.Path(name)))
		case errors.Is(err, fs.ErrNotExist) && name == nextIndex:
		default:
			return err
		}
	}
	return dirErrorf(errors.Join(tried...), "%s was changed after the backup was made, or is damaged: restore another backup", from.Path(datadir.IndexFile))
}

// copyFile copies a file and returns what it held.
func copyFile(ctx context.Context, from, to string) (digest.Digest, error) {
	r, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	d := digest.SHA256.Digester()
	_, err = io.Copy(io.MultiWriter(w, d.Hash()), reader{ctx, r})
	if err == nil {
		err = w.Sync()
	}
	return d.Digest(), errors.Join(err, w.Close())
}

// refused explains why dir cannot be made a data directory.
func refused(err error, dir string) error {
	switch {
	case errors.Is(err, datadir.ErrLocked):
		return dirErrorf(err, "another berth is using %s: stop it, or name another directory with --data", dir)
	case errors.Is(err, datadir.ErrNotEmpty):
		return dirErrorf(err, "%s is not empty: nothing is restored over what is there; name another directory with --data, or move that away", dir)
	case errors.Is(err, fs.ErrNotExist):
		return dirErrorf(err, "there is no directory %s to make %s in: make it, or mount the disk that has it", filepath.Dir(dir), filepath.Base(dir))
	case errors.Is(err, fs.ErrPermission):
		return dirErrorf(err, "%s is not yours to write: try again with sudo, or name another directory with --data", dir)
	}
	return full(err, dir)
}

// full explains that a disk is.
func full(err error, dir string) error {
	if errors.Is(err, storage.ErrNoSpace) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return dirErrorf(err, "the disk of %s is full: free space on it and begin again, which goes on where this stopped", dir)
	}
	return err
}
