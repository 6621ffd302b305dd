// Package datadir opens berth's data directory: it checks the version of what
// is written there and sees to it that one process at a time uses each part.
//
// The layout, the same for one process that does everything and for several:
//
//	<dir>/VERSION            the version of the layout, in decimal
//	<dir>/<part>/LOCK        held by the process that uses the part
//	<dir>/registry/index.db  names and records
//	<dir>/UNFINISHED         there while the directory is being filled; says by what
package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"berth.internal/internal/durable"
)

// version is the layout that this program reads and writes.
const version = 1

var (
	ErrLocked  = errors.New("another berth is using it")
	ErrVersion = errors.New("written by a newer berth")

	// ErrNotEmpty is that of a directory that somebody uses for something else.
	ErrNotEmpty = errors.New("it is not empty")
	// ErrUnfinished is that of a directory that was not filled to the end.
	ErrUnfinished = errors.New("unfinished")
)

// IndexFile is the name of the index in the registry's part.
const IndexFile = "index.db"

// unfinished is the file that marks a directory that is being filled.
const unfinished = "UNFINISHED"

// The parts of a data directory.
const (
	Registry = "registry"
	Node     = "node"
)

// Dir is one part of a data directory, held by this process.
type Dir struct {
	path string
	lock *os.File
}

// Open makes <dir>/<part>, and dir itself with its VERSION, where they are
// missing, and takes the part for this process until Close. Only the owner may
// look inside: layers hold set-uid programs and blobs are private. Errors:
// ErrLocked if another process has it; ErrVersion if a newer berth wrote dir;
// ErrUnfinished if it was not filled to the end.
func Open(dir, part string) (*Dir, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	switch what, err := Unfinished(dir); {
	case err != nil:
		return nil, fmt.Errorf("open data directory: %w", err)
	case what != "":
		return nil, fmt.Errorf("open data directory %s: it holds a %s that did not come to its end: %w; do that again, or remove the directory", dir, what, ErrUnfinished)
	}
	return open(dir, part)
}

// open is Open of a directory that is there.
func open(dir, part string) (*Dir, error) {
	if err := checkVersion(dir); err != nil {
		return nil, fmt.Errorf("open data directory %s: %w", dir, err)
	}
	path := filepath.Join(dir, part)
	if err := durable.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	lock, err := takeLock(filepath.Join(path, "LOCK"), os.O_CREATE|os.O_RDWR, syscall.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("open data directory %s: %w", path, err)
	}
	return &Dir{path: path, lock: lock}, nil
}

// Fill takes part of the directory dir, which must be absent or empty, to be
// filled by what, a "backup" or a "restore". Until Done nobody can open it; but
// Fill can, for the same, to go on. The directory above dir must be there.
// Errors: ErrNotEmpty; ErrUnfinished if something else was to fill dir; those of
// Open.
func Fill(dir, part, what string) (*Dir, error) {
	d, err := fill(dir, part, what)
	if err != nil {
		return nil, fmt.Errorf("make data directory %s: %w", dir, err)
	}
	return d, nil
}

func fill(dir, part, what string) (*Dir, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil { // its name is durable then
		return nil, err
	}
	before, err := Unfinished(dir)
	if err == nil && before == "" {
		if err = empty(dir); err == nil {
			err = durable.WriteFile(filepath.Join(dir, unfinished), []byte(what+"\n"), 0o600)
		}
	}
	switch {
	case err != nil:
		return nil, err
	case before != "" && before != what:
		return nil, fmt.Errorf("it holds a %s that did not come to its end: %w; do that again, or remove the directory", before, ErrUnfinished)
	}
	return open(dir, part)
}

// empty refuses a directory that holds more than what a file system makes.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); name != "lost+found" && !strings.HasPrefix(name, "."+unfinished+".tmp-") {
			return fmt.Errorf("%w: there is %q in it", ErrNotEmpty, name)
		}
	}
	return nil
}

// Done says that the directory that Fill took is filled. What it holds must be
// durable.
func (d *Dir) Done() error {
	dir := filepath.Dir(d.path)
	if err := os.Remove(filepath.Join(dir, unfinished)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(dir)
}

// Unfinished says what began to fill the directory dir and did not come to its
// end; empty if nothing did.
func Unfinished(dir string) (what string, err error) {
	data, err := os.ReadFile(filepath.Join(dir, unfinished))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(fmt.Sprintf("%.40s", data)), err
}

// Read takes part of the directory dir for reading, and changes nothing, so that
// it may be on a medium that cannot be written. Errors: those of Open, but of a
// directory that is not there an fs.ErrNotExist.
func Read(dir, part string) (*Dir, error) {
	d, err := read(dir, part)
	if err != nil {
		return nil, fmt.Errorf("read data directory %s: %w", dir, err)
	}
	return d, nil
}

func read(dir, part string) (*Dir, error) {
	what, err := Unfinished(dir)
	if err != nil {
		return nil, err
	}
	if what != "" {
		return nil, fmt.Errorf("it holds a %s that did not come to its end: %w", what, ErrUnfinished)
	}
	data, err := os.ReadFile(filepath.Join(dir, "VERSION"))
	if err == nil {
		err = knows(data)
	}
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, part)
	lock, err := takeLock(filepath.Join(path, "LOCK"), os.O_RDONLY, syscall.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return &Dir{path: path, lock: lock}, nil
}

// Path returns the absolute path of something in the part.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// Close gives the part back. It must come after the last use of a file in it.
func (d *Dir) Close() error { return d.lock.Close() }

// checkVersion reads dir/VERSION, or writes it in a new directory.
func checkVersion(dir string) error {
	// VERSION is written before any part, so that a part without it is another
	// program's, or has lost what says how to read it. Looking for parts first
	// keeps that true while another process makes the directory.
	found := ""
	for _, part := range []string{Registry, Node} {
		if _, err := os.Lstat(filepath.Join(dir, part)); err == nil {
			found = part
		}
	}
	file := filepath.Join(dir, "VERSION")
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if found != "" {
			return fmt.Errorf("it holds %q but no VERSION: not a data directory of berth, or damaged; name another directory", found)
		}
		return durable.WriteFile(file, fmt.Appendf(nil, "%d\n", version), 0o600)
	}
	if err != nil {
		return err
	}
	return knows(data)
}

// knows refuses a VERSION that is none, or of a layout that this program does
// not know.
func knows(data []byte) error {
	v, err := strconv.Atoi(strings.TrimSpace(string(data)))
	switch {
	case err != nil || v < 1:
		return fmt.Errorf("VERSION holds %.20q, want %q", data, fmt.Sprintf("%d\n", version))
	case v > version:
		return fmt.Errorf("%w: its layout is version %d, this berth knows %d; use a berth as new as the one that wrote it", ErrVersion, v, version)
	}
	return nil
}

// takeLock locks the file at path, opened with flags, for this process. The
// kernel gives the lock back when the process ends, however it ends.
func takeLock(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err == nil {
		return f, nil
	}
	_ = f.Close() // nothing was written
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w; stop it, or name another directory", ErrLocked)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}
