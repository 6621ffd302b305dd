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

	"berth.internal/internal/socket"
)

// listen takes the unix socket at path, which root and the group docker may
// use: who can speak to it is root of this machine. A socket that a dead node
// left behind is replaced, one that answers is not.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of the socket: %w", err)
	}
	l, err := socket.Listen(ctx, path, 0o600)
	switch {
	case errors.Is(err, socket.ErrInUse):
		return nil, fmt.Errorf("the socket %s is in use by another node: stop that, or choose another with --socket", path)
	case errors.Is(err, socket.ErrNotSocket):
		return nil, fmt.Errorf("%s is there and no socket: choose another path with --socket", path)
	case err != nil:
		return nil, err
	}
	if err := share(path); err != nil {
		return nil, errors.Join(fmt.Errorf("let others use the socket %s: %w", path, err), l.Close())
	}
	return l, nil
}

// share lets the group of the socket use it: docker, where there is one.
func share(path string) error {
	if group, err := user.LookupGroup("docker"); err == nil {
		if gid, err := strconv.Atoi(group.Gid); err == nil {
			if err := os.Chown(path, 0, gid); err != nil {
				return err
			}
		}
	}
	return os.Chmod(path, 0o660)
}
