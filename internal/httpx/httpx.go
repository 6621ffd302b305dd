// Package httpx has handlers that return errors, and the log of requests.
package httpx

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// Handler answers a request or says why it could not. An error after the first
// byte of the answer cannot be shown to the client any more: it is logged, and
// the connection is cut, so that the client does not take what it has for all.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Render writes err as the answer, in the way of its API.
type Render func(w http.ResponseWriter, r *http.Request, err error)

// Handle makes h a http.Handler. It is the one place where failures are
// written.
func Handle(render Render, h Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		if rec, ok := w.(*Recorder); ok {
			rec.Err = err
			if rec.Status != 0 {
				rec.cut = true
				return
			}
		}
		if h, ok := errors.AsType[*headed](err); ok {
			for _, value := range h.values {
				w.Header().Add(h.key, value)
			}
		}
		render(w, r, err)
	})
}

// headed is an error whose answer has a header of its own.
type headed struct {
	error
	key    string
	values []string
}

func (h *headed) Unwrap() error { return h.error }

// WithHeader returns err, whose answer is to have the header key with each of the
// values.
func WithHeader(err error, key string, values ...string) error {
	return &headed{error: err, key: key, values: values}
}

// Recorder is a response writer that remembers what went out. It passes on
// ReadFrom, so that files still go out by sendfile, and Flush and Hijack.
type Recorder struct {
	http.ResponseWriter
	ID     string // of the request
	Status int    // zero until the header is written
	Bytes  int64  // of the body
	Err    error  // what the handler returned
	Broken error  // why the body is not all there: the client's reason, or its source's
	cut    bool   // the answer had begun when Err came

	// BeforeAnswer, if it is not nil, is called once, with Status and Err set, before
	// the client gets the first byte of the answer.
	BeforeAnswer func()

	// Note is for who sets BeforeAnswer, Who for who finds out who sent the request. A
	// context with them for each would cost more than finding out.
	Note, Who any
}

// WriteHeader sends the header.
func (w *Recorder) WriteHeader(status int) {
	if w.Status == 0 && status >= 200 {
		w.answer(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *Recorder) Write(p []byte) (int, error) {
	w.begin()
	n, err := w.ResponseWriter.Write(p)
	w.wrote(int64(n), err)
	return n, err
}

func (w *Recorder) wrote(n int64, err error) {
	w.Bytes += n
	if w.Broken == nil {
		w.Broken = err
	}
}

// ReadFrom sends all of r: by sendfile, if r is a file and the connection is
// not encrypted.
func (w *Recorder) ReadFrom(r io.Reader) (int64, error) {
	w.begin()
	n, err := io.Copy(w.ResponseWriter, r)
	w.wrote(n, err)
	return n, err
}

// Flush sends what is buffered.
func (w *Recorder) Flush() {
	w.begin()
	_ = http.NewResponseController(w.ResponseWriter).Flush() // unsupported: nothing is buffered
}

// Hijack hands the connection to the caller.
func (w *Recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.begin()
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// Unwrap is for http.ResponseController.
func (w *Recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *Recorder) begin() {
	if w.Status == 0 {
		w.answer(http.StatusOK)
	}
}

func (w *Recorder) answer(status int) {
	w.Status = status
	if w.BeforeAnswer != nil {
		w.BeforeAnswer()
	}
}

// recorderKey is the key of a request's Recorder in its context.
type recorderKey struct{}

// RecorderOf returns the recorder of the request that ctx belongs to, or nil.
func RecorderOf(ctx context.Context) *Recorder {
	rec, _ := ctx.Value(recorderKey{}).(*Recorder)
	return rec
}

// RequestID returns the id of the request that ctx belongs to, or "".
func RequestID(ctx context.Context) string {
	if rec := RecorderOf(ctx); rec != nil {
		return rec.ID
	}
	return ""
}

// Observe is told of every request after its end.
type Observe func(r *http.Request, w *Recorder, took time.Duration)

// Log gives each request an id, sent back as X-Request-Id, logs it when it has
// ended, and turns a panic of the handler into an error 500 by render. Requests
// that succeed, or ask for what is not there, are logged at level debug, those
// that the server failed, also in the middle of an answer, at level error, and
// the others at level info.
func Log(log *slog.Logger, render Render, observe Observe, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		id := rand.Text()[:16]
		w.Header().Set("X-Request-Id", id)
		rec := &Recorder{ResponseWriter: w, ID: id}
		r = r.WithContext(context.WithValue(r.Context(), recorderKey{}, rec))
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
				rec.Err = &Panic{Value: p}
				if rec.Status == 0 {
					render(rec, r, rec.Err)
				}
			}
			rec.begin() // a handler that says nothing means 200
			took := time.Since(began)
			observe(r, rec, took)
			level := slog.LevelDebug
			switch {
			case rec.Status >= 500, rec.cut && !gone(r, rec.Err):
				level = slog.LevelError
			case rec.Status == http.StatusNotFound:
			case rec.Status >= 400 || rec.Err != nil:
				level = slog.LevelInfo
			}
			if rec.cut {
				defer panic(http.ErrAbortHandler)
			}
			if !log.Enabled(r.Context(), level) {
				return
			}
			attrs := []slog.Attr{
				slog.String("request_id", id), slog.String("method", r.Method), slog.String("path", r.URL.EscapedPath()),
				slog.Int("status", rec.Status), slog.Int64("size_bytes", rec.Bytes), slog.Float64("took_seconds", took.Seconds()),
				slog.String("remote", r.RemoteAddr), slog.String("agent", r.UserAgent()),
			}
			if rec.Err != nil {
				attrs = append(attrs, slog.Any("error", rec.Err))
			}
			log.LogAttrs(r.Context(), level, "request", attrs...)
		}()
		next.ServeHTTP(rec, r)
	})
}

// gone tells whether an answer broke off because its client went away.
func gone(r *http.Request, err error) bool {
	if r.Context().Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		return true
	}
	for _, errno := range []syscall.Errno{syscall.EPIPE, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.ETIMEDOUT} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
