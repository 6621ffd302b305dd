package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// terminalOf returns the size of the terminal that a process asks for, nil if it asks
// for none.
func terminalOf(p *specs.Process) *container.TerminalSize {
	if p == nil || !p.Terminal {
		return nil
	}
	size := new(container.TerminalSize)
	if c := p.ConsoleSize; c != nil {
		size.Rows, size.Columns = uint16(min(c.Height, 1<<16-1)), uint16(min(c.Width, 1<<16-1))
	}
	return size
}

// checkConsole refuses a terminal that nobody would get, and a socket that would get
// none.
func checkConsole(p *specs.Process, socket string, foreground bool) error {
	terminal := p != nil && p.Terminal
	switch {
	case terminal && socket == "" && !foreground:
		return errors.New("cannot allocate tty if berth-oci will detach without setting console socket")
	case socket != "" && (!terminal || foreground):
		return errors.New("cannot use console socket if berth-oci will not detach or allocate tty")
	}
	return nil
}

// sendFile gives a descriptor, by the name, to whoever listens on a socket of a
// caller's.
func sendFile(socket, name string, f *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("send %s: %w", name, err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return fmt.Errorf("send %s: connect to %s: %w", name, socket, err)
	}
	if err := unix.Sendmsg(fd, []byte(name), unix.UnixRights(int(f.Fd())), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("send %s to %s: %w", name, socket, err)
	}
	return nil
}

// Names by which descriptors are sent.
const (
	consoleName = "/dev/ptmx"
	pidfdName   = "pidfd"
)

// console connects the terminal of a process to that of this one.
type console struct {
	master *os.File
	tty    *os.File // this process's own, nil: it has none
	was    *unix.Termios
	output chan struct{} // closed when no more of it comes
}

// connect begins to carry input and output.
func connect(master *os.File, stdio [3]*os.File) (*console, error) {
	// A copy whose reads can be given up.
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = errors.Join(unix.SetNonblock(fd, true), master.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the terminal: %w", err)
	}
	c := &console{master: os.NewFile(uintptr(fd), "terminal"), output: make(chan struct{})}
	if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil { // of the other side
		t.Oflag &^= unix.ONLCR // that is for this process's terminal to do, if it has one
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
	if was, err := unix.IoctlGetTermios(int(stdio[0].Fd()), unix.TCGETS); err == nil {
		c.tty, c.was = stdio[0], was
		if err := unix.IoctlSetTermios(int(c.tty.Fd()), unix.TCSETS, raw(*was)); err != nil {
			return nil, errors.Join(fmt.Errorf("make the terminal raw: %w", err), c.master.Close())
		}
		c.resize()
	}
	go func() { _, _ = io.Copy(c.master, stdio[0]) }() // until there is no more input, or this process ends
	go func() {
		defer close(c.output)
		_, _ = io.Copy(stdio[1], struct{ io.Reader }{c.master}) // ends with EIO when nobody has the other side open
	}()
	return c, nil
}

// raw returns settings by which every byte of input goes through, as cfmakeraw(3).
func raw(t unix.Termios) *unix.Termios {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return &t
}

// resize gives the process's terminal the size of this one's.
func (c *console) resize() {
	if c.tty == nil {
		return
	}
	if size, err := unix.IoctlGetWinsize(int(c.tty.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(c.master.Fd()), unix.TIOCSWINSZ, size) // it may have hung up
	}
}

// consoleDrain is how long the rest of the output is waited for: somebody whom the
// process left behind may hold the terminal.
const consoleDrain = time.Second

// close ends the connection when the process has ended.
func (c *console) close() {
	_ = c.master.SetReadDeadline(time.Now().Add(consoleDrain))
	<-c.output
	if c.tty != nil {
		_ = unix.IoctlSetTermios(int(c.tty.Fd()), unix.TCSETS, c.was) // the terminal may be gone
	}
	_ = c.master.Close()
}
