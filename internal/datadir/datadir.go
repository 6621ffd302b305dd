// Package datadir opens berth's data directory: it checks the version of what
// is written there and sees to it that one process at a time uses each part.
//
// The layout, the same for one process that does everything and for several:
//
//	<dir>/VERSION      the version of the layout, in decimal
//	<dir>/<part>/LOCK  held by the process that uses the part
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
)

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
// ErrLocked if another process has it; ErrVersion if a newer berth wrote dir.
func Open(dir, part string) (*Dir, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if err := checkVersion(dir); err != nil {
		return nil, fmt.Errorf("open data directory %s: %w", dir, err)
	}
	path := filepath.Join(dir, part)
	if err := durable.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	lock, err := takeLock(filepath.Join(path, "LOCK"))
	if err != nil {
		return nil, fmt.Errorf("open data directory %s: %w", path, err)
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
	v, err := strconv.Atoi(strings.TrimSpace(string(data)))
	switch {
	case err != nil || v < 1:
		return fmt.Errorf("VERSION holds %.20q, want %q", data, fmt.Sprintf("%d\n", version))
	case v > version:
		return fmt.Errorf("%w: its layout is version %d, this berth knows %d; use a berth as new as the one that wrote it", ErrVersion, v, version)
	}
	return nil
}

// takeLock locks the file at path for this process. The kernel gives the lock
// back when the process ends, however it ends.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
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
