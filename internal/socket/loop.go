package socket

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Loop is a listener that only its own process reaches, by Dial: its connections
// are pairs of sockets without a name. Make it with NewLoop.
type Loop struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// NewLoop returns a listener that nobody has dialed yet.
func NewLoop() *Loop { return &Loop{conns: make(chan net.Conn), closed: make(chan struct{})} }

// Dial connects to who accepts. Its last two arguments are for net/http, and say
// nothing. Errors: net.ErrClosed; ctx's.
func (l *Loop) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there, err := pair()
	if err != nil {
		return nil, fmt.Errorf("connect within the process: %w", err)
	}
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		err = net.ErrClosed
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	_, _ = here.Close(), there.Close() // nothing was sent
	return nil, err
}

// Accept waits for the next who dials.
func (l *Loop) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and Dial; connections live on.
func (l *Loop) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr says that there is none.
func (l *Loop) Addr() net.Addr { return &net.UnixAddr{Name: "this process", Net: "unix"} }

// pair returns two connections, each the other's end.
func pair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "loop")
		c, cerr := net.FileConn(f) // a copy
		_ = f.Close()              // ours is not needed any more
		if cerr != nil {
			err = cerr
		}
		conns[i] = c
	}
	if err != nil {
		for _, c := range conns {
			if c != nil {
				_ = c.Close() // it was never used
			}
		}
		return nil, nil, err
	}
	return conns[0], conns[1], nil
}
