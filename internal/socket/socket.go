// Package socket has unix sockets whose mode is right from the first moment,
// and whose path may be as long as that of any file.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path that the kernel takes for a socket, in bytes
// (unix(7)).
const maxPath = 107

var (
	ErrInUse     = errors.New("another process serves it")
	ErrNotSocket = errors.New("it is there and no socket")
)

// Listen takes the unix socket at path, in a directory that is there, and gives
// it mode before anybody can see it. A socket that a dead process left behind
// is replaced. Close removes it. Errors: ErrInUse, ErrNotSocket.
func Listen(ctx context.Context, path string, mode os.FileMode) (net.Listener, error) {
	l, err := listen(ctx, path, mode)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	return l, nil
}

func listen(ctx context.Context, path string, mode os.FileMode) (_ net.Listener, err error) {
	if err := free(ctx, path); err != nil {
		return nil, err
	}
	// Bound under another name, in a directory that only we can enter. Its name
	// is fixed, so that what a crash leaves of it does not pile up.
	private := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.RemoveAll(private); err != nil {
		return nil, err
	}
	if err := os.Mkdir(private, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	bound := filepath.Join(private, "s")
	short, release, err := shorten(bound)
	if err != nil {
		return nil, err
	}
	defer release.Close()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", short)
	if err != nil {
		return nil, cause(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it will have another path
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := os.Chmod(bound, mode); err != nil {
		return nil, err
	}
	made, err := os.Lstat(bound)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(bound, path); err != nil {
		return nil, err
	}
	return &listener{Listener: l, path: path, made: made}, nil
}

// free checks that nobody serves path, and that nothing else is there.
func free(ctx context.Context, path string) error {
	conn, err := Dial(ctx, path)
	switch {
	case err == nil:
		conn.Close()
		return ErrInUse
	case errors.Is(err, syscall.EAGAIN): // it listens, with a full queue
		return ErrInUse
	case errors.Is(err, syscall.ECONNREFUSED): // a file that is no socket refuses, too
		if info, err := os.Lstat(path); err != nil || info.Mode().Type() != os.ModeSocket {
			return ErrNotSocket
		}
		return nil
	case errors.Is(err, os.ErrNotExist):
		return nil
	}
	return err
}

// Dial connects to the unix socket at path. Errors: os.ErrNotExist,
// syscall.ECONNREFUSED if nobody serves it, os.ErrPermission.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	short, release, err := shorten(path)
	if err != nil {
		return nil, fmt.Errorf("connect to socket %s: %w", path, err)
	}
	defer release.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", short)
	if err != nil {
		return nil, fmt.Errorf("connect to socket %s: %w", path, cause(err))
	}
	return conn, nil
}

// shorten returns a path to the socket that the kernel takes: one that is too
// long leads through a descriptor of its directory, which release closes.
func shorten(path string) (short string, release io.Closer, err error) {
	if len(path) <= maxPath {
		return path, io.NopCloser(nil), nil
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), dir, nil
}

// cause takes the address off an error of package net: it may be a shortened
// one.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

// listener removes its path when it is closed, unless somebody put another
// socket there. Closing it again does nothing.
type listener struct {
	net.Listener
	path string
	made os.FileInfo
	once sync.Once
}

func (l *listener) Close() (err error) {
	l.once.Do(func() {
		if now, gone := os.Lstat(l.path); gone == nil && os.SameFile(now, l.made) {
			err = os.Remove(l.path)
		}
		err = errors.Join(err, l.Listener.Close())
	})
	return err
}
