package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/plan"
	"berth.internal/node/container/shim"
)

// planned is size as a plan takes it.
func planned(size *TerminalSize) *plan.Terminal {
	if size == nil {
		return nil
	}
	return &plan.Terminal{Rows: size.Rows, Columns: size.Columns}
}

// Resize sets the size of the container's terminal. Errors: ErrNotFound; ErrStatus
// if it is stopped or has none.
func (r *Runtime) Resize(ctx context.Context, id string, size TerminalSize) error {
	_, err := r.command(ctx, "resize the terminal of", id, shim.Request{Method: shim.MethodResize, Resize: &size})
	return err
}

// Resize sets the size of the process's terminal. Errors: ErrStatus if it has none,
// or if it was closed.
func (e *Exec) Resize(size TerminalSize) error {
	err := fmt.Errorf("%w: it has no terminal", ErrStatus)
	for _, end := range e.terminal {
		if err = shim.SetSize(end.File, size); !errors.Is(err, os.ErrClosed) {
			break
		}
		err = fmt.Errorf("%w: its terminal is closed", ErrStatus)
	}
	if err != nil {
		return fmt.Errorf("resize the terminal of process %d of container %s: %w", e.Pid, e.id, err)
	}
	return nil
}

// terminalEnd is a copy of the master of a terminal. When the last one is closed,
// the terminal hangs up.
type terminalEnd struct{ *os.File }

// Read reads what was written to the terminal.
func (t terminalEnd) Read(b []byte) (int, error) {
	n, err := t.File.Read(b)
	if errors.Is(err, unix.EIO) { // nobody holds the other side any more
		err = io.EOF
	}
	return n, err
}

// WriteTo hides that of os.File, which knows no end but that of files.
func (t terminalEnd) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{t})
}

// connect gives the process's streams what was chosen of its terminal. Output that
// nobody has chosen is thrown away.
func (e *Exec) connect(chosen AttachOptions, files []*os.File) error {
	if len(files) != 1 {
		return errors.New("the shim sent no terminal")
	}
	end := terminalEnd{shim.Pollable(files[0])}
	e.terminal = []terminalEnd{end}
	if chosen.Stdin { // before end can be closed: a process may end at once
		fd, err := copyDescriptor(end.File)
		if err != nil {
			_ = end.Close()
			return err
		}
		in := terminalEnd{os.NewFile(uintptr(fd), "terminal")}
		e.Stdin, e.terminal = in, append(e.terminal, in)
	}
	if chosen.Stdout {
		e.Stdout = end
		return nil
	}
	go func() { // ends with the terminal, as the process in it does
		_, _ = end.WriteTo(io.Discard)
		_ = end.Close()
	}()
	return nil
}

// copyDescriptor returns another descriptor of what f is.
func copyDescriptor(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(cerr, err)
}
