package backup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"berth.internal/internal/datadir"
	"berth.internal/internal/durable"
	"berth.internal/storage"
)

// filling is what a directory is being filled by, as its data directory says.
const filling = "backup"

// ErrUnable is that of a registry whose drivers cannot be copied into a
// directory.
var ErrUnable = errors.New("this registry keeps its data where only the tools of that can back it up")

// Source is what a backup is made of.
type Source struct {
	storage.Drivers
	Data    string         // the data directory
	Hold    func() func()  // lets all bytes stay until the function that it returns is called
	Version string         // of berth
	Tell    func(Progress) // called often, and by several goroutines, one at a time
}

// Write makes a backup of src in dir, or makes the one that is there anew, of
// which it keeps the bytes that are still needed. At every moment dir is a
// complete backup, the old one or the new, or no backup yet.
//
// Errors: *DirError; ErrUnable. An error after which the report has a Time is
// about what was to be tidied up: the backup is complete.
func Write(ctx context.Context, src Source, dir string) (report Report, err error) {
	snapshotter, ok := src.Index.(storage.Snapshotter)
	if !ok || src.Opener.Index == nil || src.Opener.Store == nil {
		return report, ErrUnable
	}
	d, earlier, err := target(src.Data, dir)
	if err != nil {
		return report, err
	}
	registry, err := identity(ctx, src.Records)
	if err == nil && earlier != nil && earlier.Registry != registry {
		err = dirErrorf(nil, "%s holds a backup of another registry: name another directory", dir)
	}
	if err != nil {
		return report, errors.Join(err, d.Close())
	}
	defer func() {
		err = blame(errors.Join(err, d.Close()), dir, earlier)
	}()
	to, err := openStore(src.Opener, d.Path())
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := discard(ctx, to); err != nil {
		return report, err
	}

	release := src.Hold()
	defer release()
	src.Tell(Progress{Doing: "copying names and records"})
	now, err := src.Index.Now(ctx)
	if err != nil {
		return report, err
	}
	next := d.Path(nextIndex)
	if err := snapshot(ctx, snapshotter, src, next); err != nil {
		return report, err
	}
	index, err := openIndex(src.Opener, next)
	if err != nil {
		return report, err
	}
	c := &copying{
		index: index, from: src.Store, to: to, link: true, tell: src.Tell, report: &report,
		lost: func(context.Context, storage.Content, error) error { return nil },
	}
	if err := errors.Join(c.run(ctx), index.Close()); err != nil {
		return report, err
	}
	release()

	info := report.Info
	info.Format, info.Berth, info.Registry = format, src.Version, registry
	if info.SameDisk, err = sameMedium(src.Data, dir); err != nil {
		return report, err
	}
	if info.Index, info.IndexSize, err = hashFile(ctx, next); err != nil {
		return report, err
	}
	info.Time = now.UTC().Truncate(time.Second)
	if err := commit(d, dir, info); err != nil {
		return report, err
	}
	report.Info = info
	src.Tell(Progress{Doing: "removing what is no longer needed"})
	return report, c.clean(ctx)
}

// identity is the id of the registry whose records these are. It is made with the
// first backup.
func identity(ctx context.Context, records storage.Records) (string, error) {
	const key = "registry/id"
	id := rand.Text()
	for {
		record, err := records.Get(ctx, key)
		switch {
		case err == nil:
			return string(record.Value), nil
		case !storage.IsNotFound(err):
			return "", err
		}
		if _, err = records.Put(ctx, key, []byte(id), 0); err != nil && !errors.Is(err, storage.ErrConflict) {
			return "", err
		}
	}
}

// commit makes the backup of info the one that dir holds. Between its steps the
// index that BACKUP names is the next one, which Restore knows.
func commit(d *datadir.Dir, dir string, info Info) error {
	if err := durable.SyncDir(d.Path()); err != nil { // the next index is there before BACKUP leads to it
		return err
	}
	if err := info.write(dir); err != nil {
		return err
	}
	if err := durable.Rename(d.Path(nextIndex), d.Path(datadir.IndexFile)); err != nil {
		return err
	}
	return d.Done()
}

// snapshot copies the index to path.
func snapshot(ctx context.Context, from storage.Snapshotter, src Source, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	to := &roomy{File: f}
	if same, err := sameMedium(src.Data, path); err != nil || same {
		to.room = src.Store // the reserve is for the registry's own index
	}
	err = from.Snapshot(ctx, to)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(storage.Medium(err), os.Remove(path))
	}
	return nil
}

// roomy is a file that leaves the registry what it needs of the disk.
type roomy struct {
	*os.File
	room  storage.Store // nil: another disk
	until int64         // bytes for which there was room when the Store was last asked
	size  int64
}

func (r *roomy) Write(p []byte) (int, error) {
	const ahead = 16 << 20 // bytes
	if r.room != nil && r.size+int64(len(p)) > r.until {
		if err := storage.Room(r.room, storage.KindBlob, ahead); err != nil {
			return 0, err
		}
		r.until = r.size + ahead
	}
	n, err := r.File.Write(p)
	r.size += int64(n)
	return n, err
}

// sameMedium tells whether two paths are on one file system.
func sameMedium(a, b string) (bool, error) {
	var as, bs unix.Stat_t
	if err := errors.Join(unix.Stat(a, &as), unix.Stat(b, &bs)); err != nil {
		return false, err
	}
	return as.Dev == bs.Dev, nil
}

// target takes the directory dir for a backup of the data directory data, and
// says what backup is in it already.
func target(data, dir string) (*datadir.Dir, *Info, error) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return nil, nil, dirErrorf(nil, "name the directory in full, from / on")
	}
	inside, err := within(dir, data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, dirErrorf(err, "the server makes the backup on its own machine, and there is no directory %s there: make it, or mount the disk that has it", filepath.Dir(dir))
	case err != nil:
		return nil, nil, blame(err, dir, nil)
	case inside:
		return nil, nil, dirErrorf(nil, "%s is in the data directory, and would be lost with it: name another directory", dir)
	}
	var earlier *Info
	if _, err := os.Lstat(filepath.Join(dir, infoFile)); err == nil {
		// One that does not say what it is can be made anew all the same.
		if info, err := Read(dir); err == nil {
			earlier = &info
		}
		what, err := datadir.Unfinished(dir)
		if err == nil && what == "" {
			d, err := datadir.Open(dir, datadir.Registry)
			return d, earlier, blame(err, dir, earlier)
		}
	}
	d, err := datadir.Fill(dir, datadir.Registry, filling)
	if errors.Is(err, datadir.ErrNotEmpty) {
		return nil, nil, dirErrorf(err, "%s is not empty, and no backup of berth: name an empty directory, or a new one", dir)
	}
	return d, nil, blame(err, dir, nil)
}

// within tells whether the path dir, whose last element need not exist, is data
// or below it.
func within(dir, data string) (bool, error) {
	inside, err := os.Stat(data)
	if err != nil {
		return false, err
	}
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		real, err = filepath.EvalSymlinks(filepath.Dir(dir))
	}
	if err != nil {
		return false, err
	}
	for {
		info, err := os.Stat(real)
		if err != nil {
			return false, err
		}
		if os.SameFile(info, inside) {
			return true, nil
		}
		if real == "/" {
			return false, nil
		}
		real = filepath.Dir(real)
	}
}

// blame makes a DirError of an error that the directory dir is the cause of, as
// far as that can be told, and says what is left there.
func blame(err error, dir string, earlier *Info) error {
	if _, ok := errors.AsType[*DirError](err); ok || err == nil {
		return err
	}
	left := "there is no backup in it yet"
	if earlier != nil {
		left = fmt.Sprintf("the backup of %s in it is still complete", earlier.Time.Format(time.RFC3339))
	}
	switch {
	case errors.Is(err, storage.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		free := ""
		var disk unix.Statfs_t
		if unix.Statfs(dir, &disk) == nil {
			free = fmt.Sprintf(" (%s are free)", units.HumanSize(float64(disk.Bavail)*float64(disk.Bsize)))
		}
		return dirErrorf(err, "the disk of %s is full%s: free space on it and begin again, which goes on where this stopped, or name a directory on another disk; %s", dir, free, left)
	case errors.Is(err, fs.ErrPermission):
		return dirErrorf(err, "the user that the server runs as may not write to %s: give it to that user, or name another directory; %s", dir, left)
	case errors.Is(err, syscall.EROFS):
		return dirErrorf(err, "%s cannot be written by the server: its disk is mounted read-only, or the server's systemd unit lacks it in ReadWritePaths; %s", dir, left)
	case errors.Is(err, syscall.ENOTDIR):
		return dirErrorf(err, "%s is not a directory: name another", dir)
	case errors.Is(err, datadir.ErrLocked):
		return dirErrorf(err, "another berth is using %s: stop it, or name another directory", dir)
	case errors.Is(err, datadir.ErrVersion), errors.Is(err, datadir.ErrUnfinished):
		return dirErrorf(err, "%v", err)
	}
	return err
}
