package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// listen takes the unix socket at path, which root and the group docker may
// use: who can speak to it is root of this machine. A socket that a dead node
// left behind is replaced, one that answers is not.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of the socket: %w", err)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		conn.Close()
		return nil, fmt.Errorf("the socket %s is in use by another node: stop that, or choose another with --socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		// A file that is no socket refuses, too.
		if info, err := os.Lstat(path); err != nil || info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s is there and no socket: choose another path with --socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%s is not a socket that could be replaced: %w", path, err)
	}
	// The mode is right from the first moment: bound under another name, in a
	// directory that only root can enter.
	private, err := os.MkdirTemp(filepath.Dir(path), ".berth-")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer os.RemoveAll(private)
	bound := filepath.Join(private, "s")
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", bound)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	err = os.Chmod(bound, 0o660)
	if group, lookup := user.LookupGroup("docker"); err == nil && lookup == nil {
		if gid, bad := strconv.Atoi(group.Gid); bad == nil {
			err = os.Chown(bound, 0, gid)
		}
	}
	if err == nil {
		err = os.Rename(bound, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return &socket{Listener: l, path: path}, nil
}

// socket removes its path when it is closed.
type socket struct {
	net.Listener
	path string
}

func (s *socket) Close() error {
	return errors.Join(os.Remove(s.path), s.Listener.Close())
}
