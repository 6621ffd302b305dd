package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// make makes the directory of a new container, and returns with its lock. Errors:
// ErrExists.
func (r *Runtime) make(id string) (release func(), err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.cfg.Root, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(r.path(id), 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, ErrExists
		}
		return nil, err
	}
	release, err = r.lock(id)
	if errors.Is(err, ErrNotFound) {
		return nil, errors.New("container was deleted while it was created")
	}
	return release, err
}

// lock waits until no other command changes the container, and keeps it so. The lock
// is one on its directory. Errors: ErrNotFound.
func (r *Runtime) lock(id string) (release func(), err error) {
	for {
		dir, err := r.openDir(id)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock container: %w", err), dir.Close())
		}
		// It may have been deleted, and made anew, meanwhile.
		same, err := r.isDir(id, dir)
		if err != nil {
			return nil, errors.Join(err, dir.Close())
		}
		if same {
			return func() { _ = dir.Close() }, nil
		}
		_ = dir.Close()
	}
}

// locked reports whether a command that changes the container is at work.
func (r *Runtime) locked(id string) bool {
	dir, err := r.openDir(id)
	if err != nil {
		return false
	}
	defer dir.Close()
	return errors.Is(unix.Flock(int(dir.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// openDir opens the directory of a container, which is no symbolic link.
func (r *Runtime) openDir(id string) (*os.File, error) {
	dir, err := os.OpenFile(r.path(id), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, ErrNotFound
	}
	return dir, err
}

// isDir reports whether dir is the directory of the container.
func (r *Runtime) isDir(id string, dir *os.File) (bool, error) {
	mine, err := dir.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(r.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, there), err
}
