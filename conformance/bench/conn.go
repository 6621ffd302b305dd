package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// conn is one keep-alive connection that speaks just enough HTTP/1.1 to load a
// registry. Client and server share the machine, so every microsecond that the
// client takes is one the server does not get; net/http's client takes more
// than the servers under test.
type conn struct {
	c net.Conn
	r *bufio.Reader
	w *bufio.Writer

	header string // of every request: lines, each ended by CRLF
}

// answer is the head of a response. Its body has been read and dropped.
type answer struct {
	status   int
	location string
	size     int64 // bytes of body
}

const requestTimeout = 2 * time.Minute

func dial(addr string) (*conn, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &conn{c: c, r: bufio.NewReaderSize(c, 256<<10), w: bufio.NewWriterSize(c, 64<<10)}, nil
}

func (c *conn) Close() error { return c.c.Close() }

// do sends one request and reads the whole answer. header holds further header
// lines, each ended by CRLF. A status other than want is an error.
func (c *conn) do(method, path, header string, body []byte, want int) (answer, error) {
	if err := c.c.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return answer{}, err
	}
	fmt.Fprintf(c.w, "%s %s HTTP/1.1\r\nHost: registry\r\n%s%s", method, path, c.header, header)
	if body != nil || method == "POST" || method == "PUT" {
		fmt.Fprintf(c.w, "Content-Length: %d\r\n", len(body))
	}
	c.w.WriteString("\r\n")
	c.w.Write(body)
	if err := c.w.Flush(); err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	a, err := c.read(method == "HEAD")
	if err != nil {
		return a, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if a.status != want {
		return a, fmt.Errorf("%s %s = %d, want %d", method, path, a.status, want)
	}
	return a, nil
}

// read takes one response off the connection.
func (c *conn) read(head bool) (answer, error) {
	var a answer
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return a, err
	}
	if len(line) < 12 {
		return a, fmt.Errorf("status line %q", line)
	}
	if a.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return a, fmt.Errorf("status line %q", line)
	}
	length, chunked := int64(0), false
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return a, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		key, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(key, []byte("Content-Length")):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return a, err
			}
		case bytes.EqualFold(key, []byte("Transfer-Encoding")):
			chunked = bytes.EqualFold(bytes.TrimSpace(value), []byte("chunked"))
		case bytes.EqualFold(key, []byte("Location")):
			a.location = string(bytes.TrimSpace(value))
		}
	}
	if head || a.status == 204 || a.status == 304 {
		return a, nil
	}
	if chunked {
		a.size, err = c.dropChunks()
		return a, err
	}
	for n := length; n > 0; { // Discard takes an int and copies nothing
		step, err := c.r.Discard(int(min(n, 1<<30)))
		n -= int64(step)
		if err != nil {
			return a, err
		}
	}
	a.size = length
	return a, nil
}

func (c *conn) dropChunks() (int64, error) {
	text := textproto.NewReader(c.r)
	var total int64
	for {
		line, err := text.ReadLine()
		if err != nil {
			return total, err
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseInt(size, 16, 64)
		if err != nil {
			return total, fmt.Errorf("chunk size %q", line)
		}
		if n == 0 {
			_, err := text.ReadLine()
			return total, err
		}
		if _, err := io.CopyN(io.Discard, c.r, n+2); err != nil {
			return total, err
		}
		total += n
	}
}

// path returns what of a Location goes into a request line.
func path(location string) string {
	if _, rest, ok := strings.Cut(location, "://"); ok {
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			return rest[i:]
		}
	}
	return location
}
