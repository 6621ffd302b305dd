package server

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wire2 is a connection over HTTP/2 of a client that does as the test wants.
type wire2 struct {
	*http2.Framer
	mu   sync.Mutex // of writes, once follow runs
	t    *testing.T
	conn net.Conn
	hdr  bytes.Buffer
	enc  *hpack.Encoder
}

// dial2 connects and greets. window is what the client lets the server send on a
// stream.
func dial2(t *testing.T, addr string, window uint32) *wire2 {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	w := &wire2{Framer: http2.NewFramer(c, c), t: t, conn: c}
	w.enc = hpack.NewEncoder(&w.hdr)
	w.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}); err != nil {
		t.Fatal(err)
	}
	return w
}

// header encodes the header of a request.
func (w *wire2) header(method, path string, more ...string) []byte {
	w.hdr.Reset()
	fields := append([]string{":method", method, ":scheme", "https", ":authority", "a", ":path", path}, more...)
	for i := 0; i < len(fields); i += 2 {
		if err := w.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			w.t.Fatal(err)
		}
	}
	return bytes.Clone(w.hdr.Bytes())
}

func (w *wire2) ask(stream uint32, end bool, header []byte) {
	w.t.Helper()
	if err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: header, EndStream: end, EndHeaders: true}); err != nil {
		w.t.Fatal(err)
	}
}

// follow answers pings and settings until the stream or the connection ends, and
// returns what happened: a status, "reset", "goaway" or "closed".
func (w *wire2) follow(stream uint32, pings bool) string {
	status := ""
	for {
		f, err := w.ReadFrame()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				w.t.Fatalf("the stream is still there, status %q", status)
			}
			return strings.TrimSpace(status + " closed")
		}
		w.mu.Lock()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = w.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if pings && !f.IsAck() {
				err = w.WritePing(true, f.Data)
			}
		}
		w.mu.Unlock()
		if err != nil { // as if it had been read
			return strings.TrimSpace(status + " closed")
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == stream {
				status = f.PseudoValue("status")
			}
			if f.StreamEnded() {
				return status
			}
		case *http2.DataFrame:
			if f.StreamEnded() && f.StreamID == stream {
				return status
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == stream {
				return strings.TrimSpace(status + " reset")
			}
		}
	}
}

// TestSlowClients2 is TestSlowClients over HTTP/2, where a connection can be busy
// and a stream stand still.
func TestSlowClients2(t *testing.T) {
	cfg := pairIn(t.TempDir())
	pair(t, cfg, 1, time.Hour)
	s, _ := newServer(t, func(c *Config) { c.TLS = cfg })
	s.patience = patience{header: time.Second, body: time.Second, idle: 2 * time.Second, ping: time.Second}
	addr := onTLS(t, s)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	post := func(path string, body []byte) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+addr+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close() // it is empty
		return resp.Header.Get("Location")
	}
	large := bytes.Repeat([]byte("berth"), 1<<20)
	var blob string
	eventually(t, func() bool { c, err := net.Dial("tcp", addr); return err == nil && c.Close() == nil })
	blob = post("/v2/a/blobs/uploads/?digest="+digest.FromBytes(large).String(), large)

	const stream, window = 1, 1 << 20
	octets := []string{"content-type", "application/octet-stream"}
	for _, tc := range []struct {
		name   string
		window uint32
		do     func(w *wire2)
		pings  bool
		want   string // what happens begins with
	}{
		{"a body that does not come", window, func(w *wire2) {
			w.ask(stream, false, w.header("PATCH", post("/v2/a/blobs/uploads/", nil), append(octets, "content-length", "100")...))
		}, true, "400"},
		{"a body that stops", window, func(w *wire2) {
			w.ask(stream, false, w.header("PATCH", post("/v2/a/blobs/uploads/", nil), octets...))
			if err := w.WriteData(stream, false, []byte("hello")); err != nil {
				w.t.Error(err)
			}
		}, true, "400"},
		{"a body that nobody reads", window, func(w *wire2) {
			w.ask(stream, false, w.header("GET", "/v2/", "content-length", "100"))
		}, true, "200"},
		{"an answer that is not taken", 1000, func(w *wire2) {
			w.ask(stream, true, w.header("GET", blob))
		}, true, "200 reset"},
		{"a short answer that is not taken", 1, func(w *wire2) {
			w.ask(stream, true, w.header("GET", "/v2/_catalog"))
		}, true, "200 reset"},
		{"a header that does not end", window, func(w *wire2) {
			if err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: w.header("GET", "/v2/"), EndStream: true}); err != nil {
				w.t.Error(err)
			}
		}, false, "closed"},
		{"nothing at all", window, func(*wire2) {}, true, "closed"},
		{"no answer to a ping", 1000, func(w *wire2) {
			w.ask(stream, false, w.header("PATCH", post("/v2/a/blobs/uploads/", nil), octets...))
		}, false, ""},
		{"a header that is too large", window, func(w *wire2) {
			header := w.header("GET", "/v2/", "x-a", strings.Repeat("b", 80<<10))
			first := header[:16<<10]
			if err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: true}); err != nil {
				w.t.Error(err)
			}
			for rest := header[len(first):]; len(rest) > 0; {
				n := min(len(rest), 16<<10)
				if err := w.WriteContinuation(stream, n == len(rest), rest[:n]); err != nil {
					return // it has closed the connection already
				}
				rest = rest[n:]
			}
		}, true, "closed"},
		{"headers without end", window, func(w *wire2) {
			if err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: w.header("GET", "/v2/"), EndStream: true}); err != nil {
				w.t.Error(err)
			}
			w.hdr.Reset()
			if err := w.enc.WriteField(hpack.HeaderField{Name: "x-a", Value: strings.Repeat("b", 1000), Sensitive: true}); err != nil {
				w.t.Error(err)
			}
			for range 10_000 {
				if w.WriteContinuation(stream, false, w.hdr.Bytes()) != nil {
					return
				}
			}
		}, true, "closed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := dial2(t, addr, tc.window)
			tc.do(w)
			if got := w.follow(stream, tc.pings); !strings.HasPrefix(got, tc.want) {
				t.Errorf("what happens is %q, want %q", got, tc.want)
			}
		})
	}

	// A body that drips gets through.
	w := dial2(t, addr, window)
	w.ask(stream, false, w.header("PATCH", post("/v2/a/blobs/uploads/", nil), octets...))
	ticker := time.NewTicker(150 * time.Millisecond)
	defer ticker.Stop()
	for i := range 12 {
		<-ticker.C
		if err := w.WriteData(stream, i == 11, []byte{'x'}); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.follow(stream, true); got != "202" {
		t.Errorf("a body that drips = %q, want 202", got)
	}
	// So does an answer that is taken slowly: 32 KiB within the time.
	quick := time.NewTicker(50 * time.Millisecond)
	defer quick.Stop()
	w = dial2(t, addr, 10_000)
	w.ask(stream, true, w.header("GET", blob, "range", "bytes=0-409999"))
	taken := make(chan error, 1)
	go func() {
		for range 40 {
			<-quick.C
			w.mu.Lock()
			err := errors.Join(w.WriteWindowUpdate(stream, 10_000), w.WriteWindowUpdate(0, 10_000))
			w.mu.Unlock()
			if err != nil {
				taken <- err
				return
			}
		}
		taken <- nil
	}()
	if got := w.follow(stream, true); got != "206" {
		t.Errorf("an answer that is taken slowly = %q, want 206", got)
	}
	if err := <-taken; err != nil {
		t.Error(err)
	}
}

// TestAnswerNotTaken asks for more than the sockets hold and takes nothing of it,
// over HTTP/1.1.
func TestAnswerNotTaken(t *testing.T) {
	s, _ := newServer(t, nil)
	s.patience = patience{header: time.Second, body: time.Second, idle: time.Second, ping: time.Second}
	addr := onTLS(t, s)
	large := bytes.Repeat([]byte("berth"), 4<<20)
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr+"/v2/a/blobs/uploads/?digest="+digest.FromBytes(large).String(), bytes.NewReader(large))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close() // it is empty
	d := net.Dialer{}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", resp.Header.Get("Location")); err != nil {
		t.Fatal(err)
	}
	// The request has ended when the server has counted it.
	eventually(t, func() bool {
		return strings.Contains(get(t, s.Handler(), "GET", "/metrics", "").Body.String(), `berth_http_requests_total{code="200",endpoint="blobs",method="GET"} 1`)
	})
}
