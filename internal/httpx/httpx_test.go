package httpx_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.internal/internal/httpx"
)

func render(w http.ResponseWriter, _ *http.Request, _ error) {
	w.WriteHeader(http.StatusTeapot)
}

// serve runs one request through Handle and Log and returns the answer, the
// log, and what was observed.
func serve(t *testing.T, h httpx.Handler) (*httptest.ResponseRecorder, string, *httpx.Recorder) {
	t.Helper()
	var logged bytes.Buffer
	var seen *httpx.Recorder
	log := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	front := httpx.Log(log, render, func(_ *http.Request, w *httpx.Recorder, _ time.Duration) { seen = w }, httpx.Handle(render, h))
	w := httptest.NewRecorder()
	cut := false
	func() {
		defer func() {
			if v := recover(); v != nil {
				err, ok := v.(error)
				cut = ok && errors.Is(err, http.ErrAbortHandler)
			}
		}()
		front.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/path", nil))
	}()
	if late := seen.Err != nil && seen.Status == http.StatusOK; cut != late {
		t.Errorf("the connection is cut: %v, after an error in the middle: %v", cut, late)
	}
	return w, logged.String(), seen
}

func TestOutcomes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		h      httpx.Handler
		status int
		log    []string
	}{
		{"success", func(w http.ResponseWriter, _ *http.Request) error {
			_, err := io.WriteString(w, "body")
			return err
		}, 200, []string{"level=DEBUG", "status=200", "size_bytes=4", "request_id="}},
		{"error", func(http.ResponseWriter, *http.Request) error { return errors.New("why") }, 418, []string{"level=INFO", "error=why"}},
		{"error after the answer began", func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusOK)
			return errors.New("too late")
		}, 200, []string{"level=ERROR", `error="too late"`}},
		{"client went away", func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusOK)
			return &net.OpError{Op: "write", Err: syscall.EPIPE}
		}, 200, []string{"level=INFO", "broken pipe"}},
		{"failure", func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusInternalServerError)
			return nil
		}, 500, []string{"level=ERROR"}},
		{"panic", func(http.ResponseWriter, *http.Request) error { panic("a bug") }, 418, []string{"a bug", "httpx_test.go"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, log, seen := serve(t, tc.h)
			if w.Code != tc.status || seen.Status != tc.status {
				t.Errorf("status %d, observed %d, want %d", w.Code, seen.Status, tc.status)
			}
			for _, want := range tc.log {
				if !strings.Contains(log, want) {
					t.Errorf("the log lacks %s: %s", want, log)
				}
			}
			if w.Header().Get("X-Request-Id") == "" {
				t.Error("no X-Request-Id")
			}
		})
	}
}

// fileSink is a response writer that takes whole readers, as that of a
// connection does to send files by sendfile.
type fileSink struct {
	*httptest.ResponseRecorder
	from io.Reader
}

func (f *fileSink) ReadFrom(r io.Reader) (int64, error) {
	f.from = r
	return io.Copy(f.ResponseRecorder, r)
}

func TestReadersArePassedOn(t *testing.T) {
	sink := &fileSink{ResponseRecorder: httptest.NewRecorder()}
	w := &httpx.Recorder{ResponseWriter: sink}
	file := strings.NewReader("a file")
	limited := io.LimitReader(file, 6)
	if n, err := io.Copy(struct{ io.Writer }{w}, limited); n != 6 || err != nil {
		t.Fatalf("io.Copy = %d, %v", n, err)
	}
	sink.from = nil
	if n, err := w.ReadFrom(limited); n != 0 || err != nil {
		t.Fatalf("ReadFrom = %d, %v", n, err)
	}
	if sink.from != limited {
		t.Error("the reader did not reach the connection's ReadFrom as it is")
	}
	if w.Bytes != 6 || w.Status != 200 {
		t.Errorf("recorded %d bytes, status %d", w.Bytes, w.Status)
	}
}
