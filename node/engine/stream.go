package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/moby/moby/api/pkg/stdcopy"

	"berth.internal/internal/detach"
	"berth.internal/node/host"
)

// The content types of a container's output.
const (
	rawStream   = "application/vnd.docker.raw-stream"
	multiplexed = "application/vnd.docker.multiplexed-stream"
)

// frames writes output in the frames that clients of a container without
// terminal expect: stream, three zero bytes, length of the payload as 32 bits
// big-endian, payload.
type frames struct {
	to  io.Writer
	buf []byte
}

func (f *frames) write(stderr bool, payload []byte) error {
	if len(payload) == 0 {
		return nil
	}
	stream := byte(stdcopy.Stdout)
	if stderr {
		stream = byte(stdcopy.Stderr)
	}
	f.buf = append(f.buf[:0], stream, 0, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(f.buf[4:], uint32(len(payload)))
	f.buf = append(f.buf, payload...)
	_, err := f.to.Write(f.buf) // one write: a frame is never torn by another stream's
	return err
}

// flushWriter sends every write at once.
type flushWriter struct {
	http.ResponseWriter
	flush func() error
}

func newFlushWriter(w http.ResponseWriter) *flushWriter {
	return &flushWriter{w, http.NewResponseController(w).Flush}
}

func (f *flushWriter) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = f.flush()
	}
	return n, err
}

// hijacked is a connection that a client has turned into a stream, with what
// was read of it beforehand.
type hijacked struct {
	net.Conn
	from io.Reader
}

func (h *hijacked) Read(p []byte) (int, error) { return h.from.Read(p) }

// closeWrite tells the client that no more output comes, while it may still
// send.
func (h *hijacked) closeWrite() {
	if c, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // the client may be gone
	}
}

// hijack takes over the connection and answers as the client asked: with 101 if
// it wants to upgrade, as all since API 1.22 do, else with 200.
func hijack(w http.ResponseWriter, r *http.Request, contentType string) (*hijacked, error) {
	upgrade := r.Header.Get("Upgrade") != ""
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n\r\n"
	if upgrade {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n" +
			"Api-Version: " + w.Header().Get("Api-Version") + "\r\n\r\n"
	}
	if _, err := io.WriteString(conn, head); err != nil {
		conn.Close()
		return nil, fmt.Errorf("answer on the connection: %w", err)
	}
	// From the connection itself: the server's reader would cancel the request's
	// context when the client ends its input, which is not the end of the output.
	early, err := rw.Peek(rw.Reader.Buffered())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	return &hijacked{Conn: conn, from: io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn)}, nil
}

// streamType returns the content type of a container's output: of frames, by the
// version and what the client accepts, or as a terminal has it.
func streamType(r *http.Request, tty bool) string {
	if versionOf(r) >= version(1_42) && !tty {
		return multiplexed
	}
	return rawStream
}

// output writes what a process writes, as its client reads it.
type output interface {
	write(stderr bool, payload []byte) error
}

// newOutput returns frames, or of a terminal the bytes as they are.
func newOutput(to io.Writer, tty bool) output {
	if tty {
		return raw{to}
	}
	return &frames{to: to}
}

type raw struct{ to io.Writer }

func (r raw) write(_ bool, payload []byte) error {
	_, err := r.to.Write(payload)
	return err
}

// inputOf returns what a client sends. From a terminal it ends with host.ErrDetached
// at the keys by which its user leaves.
func inputOf(conn *hijacked, tty bool, keys []byte) host.Input {
	if !tty {
		return conn
	}
	return &leaving{hijacked: conn, from: detach.NewReader(conn, keys)}
}

type leaving struct {
	*hijacked
	from io.Reader
}

func (l *leaving) Read(p []byte) (int, error) {
	n, err := l.from.Read(p)
	if errors.Is(err, detach.ErrDetached) {
		err = host.ErrDetached
	}
	return n, err
}
