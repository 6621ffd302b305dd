package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"berth.internal/internal/detach"
)

// terminal is the user's terminal while a process in a container has it. Without
// one, where input or output is something else, all of it does nothing.
type terminal struct {
	in, out *os.File // nil: not a terminal
	before  *term.State
}

// openTerminal finds the user's terminal. stdin says whether the process reads it.
func openTerminal(std stdio, stdin bool) (*terminal, error) {
	t := new(terminal)
	if f, ok := std.in.(*os.File); ok && stdin && term.IsTerminal(int(f.Fd())) {
		t.in = f
	}
	if f, ok := std.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		t.out = f
	}
	if stdin && t.in == nil {
		return nil, misuse(errors.New("--tty with --interactive: stdin is not a terminal; leave --tty out"))
	}
	return t, nil
}

// size returns the terminal's size, zero if there is none.
func (t *terminal) size() client.ConsoleSize {
	for _, f := range []*os.File{t.out, t.in} {
		if f == nil {
			continue
		}
		if w, h, err := term.GetSize(int(f.Fd())); err == nil {
			return client.ConsoleSize{Height: uint(h), Width: uint(w)}
		}
	}
	return client.ConsoleSize{}
}

// raw lets every key pass to the process. restore undoes it, also when it is called
// again.
func (t *terminal) raw() (restore func(), err error) {
	if t.in == nil {
		return func() {}, nil
	}
	fd := int(t.in.Fd())
	if t.before, err = term.MakeRaw(fd); err != nil {
		return nil, fmt.Errorf("prepare the terminal: %w", err)
	}
	return func() { _ = term.Restore(fd, t.before) }, nil // the terminal may be gone
}

// follow calls resize with the terminal's size now and whenever it changes, until ctx
// ends. It returns at once.
func (t *terminal) follow(ctx context.Context, resize func(client.ConsoleSize)) {
	if t.size() == (client.ConsoleSize{}) {
		return
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		defer signal.Stop(changed)
		for {
			resize(t.size())
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// deadly are the signals that end berth while a terminal is not as it was.
var deadly = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}

// dying is the end by a signal, as a shell shows it.
func dying(sig os.Signal) error {
	n := sig.(syscall.Signal)
	return &exit{code: 128 + int(n), err: fmt.Errorf("ended by %s; what runs goes on", unix.SignalName(n))}
}

// session is a process in a container, or a container, that has the user's terminal.
type session struct {
	std    stdio
	term   *terminal
	keys   []byte // by which its user leaves
	stdin  bool
	resize func(context.Context, client.ConsoleSize) error
}

// errLeft says that the user has left with the keys.
var errLeft = errors.New("left")

// run moves bytes between the terminal and conn until the process closes it. start, if
// there is one, starts the process once everything is ready. The terminal is as before
// when it returns. Errors: errLeft.
func (s *session) run(ctx context.Context, conn client.HijackedResponse, start func() error) error {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, deadly...)
	defer signal.Stop(signals)
	restore, err := s.term.raw()
	if err != nil {
		return err
	}
	defer restore()
	left, copied := make(chan struct{}), make(chan error, 1)
	if s.stdin {
		// A read of the terminal cannot be interrupted: it ends with the process.
		go func() {
			_, err := io.Copy(conn.Conn, detach.NewReader(s.std.in, s.keys))
			if errors.Is(err, detach.ErrDetached) {
				close(left)
				return
			}
			_ = conn.CloseWrite() // what fails here fails the other direction, too
		}()
	}
	go func() {
		_, err := io.Copy(s.std.out, conn.Reader)
		copied <- err
	}()
	if start != nil {
		if err := start(); err != nil {
			return err
		}
	}
	s.term.follow(ctx, func(size client.ConsoleSize) {
		_ = s.resize(ctx, size) // it may have ended; a wrong size is no reason to end it
	})
	select {
	case err := <-copied:
		return err
	case <-left:
		return errLeft
	case sig := <-signals:
		return dying(sig)
	}
}
