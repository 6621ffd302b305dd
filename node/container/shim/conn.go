package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a message, in bytes.
const (
	MaxMessage = 64 << 10
	MaxBlob    = 16 << 20
	maxFiles   = 64
)

// Conn is a connection between agent and shim, on a unix stream socket. A
// message is the length of its JSON and of its blob, four bytes each in network
// order, and then these; descriptors travel with the first byte.
type Conn struct {
	f *os.File
}

// NewConn takes over a connected socket.
func NewConn(fd int) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Conn{f: os.NewFile(uintptr(fd), "shim")}, nil
}

// Dial connects to the shim that listens at path, however long that is.
func Dial(path string) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	err = atSocket(path, func(name string) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: name}) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to shim at %s: %w", path, err), unix.Close(fd))
	}
	return NewConn(fd)
}

// Listen returns a descriptor that listens at path.
func Listen(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	err = atSocket(path, func(name string) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: name}) })
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", path, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// atSocket calls fn with a name for path that is short enough for the kernel,
// which takes 107 bytes.
func atSocket(path string, fn func(name string) error) error {
	if len(path) < 108 {
		return fn(path)
	}
	i := len(path) - 1
	for i > 0 && path[i] != '/' {
		i--
	}
	dir, err := unix.Open(path[:i+1], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return fn(fmt.Sprintf("/proc/self/fd/%d/%s", dir, path[i+1:]))
}

// Close ends the connection.
func (c *Conn) Close() error { return c.f.Close() }

// SetDeadline makes Send and Receive fail with os.ErrDeadlineExceeded after t.
func (c *Conn) SetDeadline(t time.Time) error { return c.f.SetDeadline(t) }

// Send sends v as JSON, with a blob and descriptors that may be empty.
func (c *Conn) Send(v any, blob []byte, files ...*os.File) error {
	msg, err := message(v, blob)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	n, serr := 0, error(nil)
	err = raw.Write(func(fd uintptr) bool {
		n, serr = unix.SendmsgN(int(fd), msg, oob, nil, unix.MSG_NOSIGNAL)
		return !errors.Is(serr, unix.EAGAIN)
	})
	if err = errors.Join(err, serr); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if n < len(msg) {
		if _, err := c.f.Write(msg[n:]); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// message returns v and blob as a message.
func message(v any, blob []byte) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(body) > MaxMessage || len(blob) > MaxBlob {
		return nil, fmt.Errorf("message of %d + %d bytes is too long", len(body), len(blob))
	}
	msg := binary.BigEndian.AppendUint32(make([]byte, 0, 8+len(body)+len(blob)), uint32(len(body)))
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(blob)))
	return append(append(msg, body...), blob...), nil
}

// Receive reads a message into v. The blob is memory that the garbage collector
// does not know: freeBlob gives it back. At the end of the connection it returns
// io.EOF.
func (c *Conn) Receive(v any) (blob []byte, files []*os.File, err error) {
	head := make([]byte, 8)
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	raw, err := c.f.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var n, oobn int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, rerr = unix.Recvmsg(int(fd), head, oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(rerr, unix.EAGAIN)
	})
	if err = errors.Join(err, rerr); err != nil {
		return nil, nil, fmt.Errorf("receive: %w", err)
	}
	if n == 0 {
		return nil, nil, io.EOF
	}
	if files, err = filesOf(oob[:oobn]); err != nil {
		return nil, nil, err
	}
	if blob, err = body(c.f, head, n, v); err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return blob, files, nil
}

// body reads what follows the first n bytes of head.
func body(from io.Reader, head []byte, n int, v any) ([]byte, error) {
	if _, err := io.ReadFull(from, head[n:]); err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	size, blobSize := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:])
	if size > MaxMessage || blobSize > MaxBlob {
		return nil, fmt.Errorf("receive: message of %d + %d bytes is too long", size, blobSize)
	}
	text := make([]byte, size)
	_, err := io.ReadFull(from, text)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	if blobSize == 0 {
		return nil, nil
	}
	blob, err := unix.Mmap(-1, 0, int(blobSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	if _, err := io.ReadFull(from, blob); err != nil {
		freeBlob(blob)
		return nil, fmt.Errorf("receive: %w", err)
	}
	return blob, nil
}

// freeBlob gives back what Receive returned, as it was.
func freeBlob(blob []byte) {
	if blob != nil {
		_ = unix.Munmap(blob)
	}
}

// filesOf returns the descriptors of a control message.
func filesOf(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("receive descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
