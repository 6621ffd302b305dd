package shim

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// TerminalSize is that of a terminal in characters.
type TerminalSize struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// terminal is what the shim keeps of the container's terminals.
type terminal struct {
	pts    *os.File // the file system they are in; nil: the container has none
	master *os.File // of the container's own; nil: it has none
	// peer keeps the container's end open as long as its first process lives: that may
	// close the terminal and open it again.
	peer *os.File
}

// keepTerminal takes copies of what the first program made of terminals: regs are
// its registers.
func (s *shim) keepTerminal(regs []uintptr) (err error) {
	for _, keep := range []struct {
		reg call.Reg
		f   **os.File
	}{{s.Devpts, &s.term.pts}, {s.Master, &s.term.master}, {s.Peer, &s.term.peer}} {
		if keep.reg != 0 {
			if *keep.f, err = copyOf(regs, keep.reg); err != nil {
				return err
			}
		}
	}
	return nil
}

// closeMade closes the descriptors in registers, but for the first ones, which are
// given.
func closeMade(regs, given []uintptr) {
	for _, fd := range regs[min(len(given), len(regs)):] {
		if fd != call.Closed {
			_ = unix.Close(int(fd))
		}
	}
}

// copyOf returns a copy of the descriptor in a register.
func copyOf(regs []uintptr, r call.Reg) (*os.File, error) {
	fd, err := registered(regs, r)
	if err != nil {
		return nil, err
	}
	return duplicate(uintptr(fd))
}

// duplicate returns another descriptor of what fd is one of.
func duplicate(fd uintptr) (*os.File, error) {
	n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep a descriptor: %w", err)
	}
	return os.NewFile(uintptr(n), "kept"), nil
}

// registered returns the descriptor in a register.
func registered(regs []uintptr, r call.Reg) (int, error) {
	if int(r) >= len(regs) {
		return -1, errors.New("damaged program")
	}
	return int(regs[r]), nil
}

// useTerminal makes the container's terminal its standard streams on this side.
func (s *shim) useTerminal() (err error) {
	s.outs = [2]*os.File{s.term.master, nil}
	s.err.ended = true
	if s.Stdin {
		s.stdin, err = duplicate(s.term.master.Fd())
	}
	return err
}

// terminals returns a descriptor of the file system of the container's terminals.
// s.mu is held.
func (s *shim) terminals() (*os.File, error) {
	if s.term.pts == nil {
		return nil, failf(CodeFailed, "container has no file system for terminals")
	}
	return duplicate(s.term.pts.Fd())
}

// resize sets the size of the container's terminal.
func (s *shim) resize(size TerminalSize) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state.Status != StatusCreated && s.state.Status != StatusRunning:
		return failf(CodeStatus, "container is %s", s.state.Status)
	case s.term.master == nil:
		return failf(CodeStatus, "container has no terminal")
	}
	err := SetSize(s.term.master, size)
	if errors.Is(err, os.ErrClosed) {
		return failf(CodeStatus, "container is about to stop")
	}
	return err
}

// SetSize sets the size of a terminal by its master. Errors: os.ErrClosed.
func SetSize(master *os.File, size TerminalSize) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if raw.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
	}) != nil {
		serr = os.ErrClosed
	}
	if serr != nil {
		return fmt.Errorf("set the size of the terminal: %w", serr)
	}
	return nil
}

// release closes the descriptors in registers.
func release(regs []uintptr, which []call.Reg) {
	for _, r := range which {
		if fd, err := registered(regs, r); err == nil && fd > 0 {
			_ = unix.Close(fd)
		}
	}
}

// send gives the child the descriptors in registers of the first program.
func send(sync *os.File, regs []uintptr, which []call.Reg) error {
	fds := make([]int, len(which))
	for i, r := range which {
		fd, err := registered(regs, r)
		if err != nil {
			return err
		}
		fds[i] = fd
	}
	for i := 0; i < len(fds); i += call.MaxReceive {
		part := fds[i:min(i+call.MaxReceive, len(fds))]
		if err := unix.Sendmsg(int(sync.Fd()), []byte{0}, unix.UnixRights(part...), nil, unix.MSG_NOSIGNAL); err != nil {
			return fmt.Errorf("give the container its parts: %w", err)
		}
	}
	return nil
}
