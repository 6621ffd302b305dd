package server

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long clients may take.
type patience struct {
	header time.Duration // for the header of a request, all of it
	body   time.Duration // for the next byte of a body
	idle   time.Duration // between requests
	ping   time.Duration // over HTTP/2, without a word; then it is asked, and has half of it to answer
}

var usualPatience = patience{header: 20 * time.Second, body: time.Minute, idle: 3 * time.Minute, ping: 30 * time.Second}

// limitBodies cuts off clients whose bodies make no progress, and over HTTP/2 those
// that do not take their answers, so that they do not hold a connection, a file and an
// upload for ever. A slow body may take as long as it likes.
func limitBodies(most time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 {
			a := &reply{ResponseWriter: w, control: http.NewResponseController(w), most: most}
			defer a.end()
			w = a
		}
		if r.ContentLength != 0 {
			b := &body{ReadCloser: r.Body, control: http.NewResponseController(w), most: most}
			b.extend(time.Now()) // also for a body that nobody reads: the server does, after the answer
			r.Body = b
		}
		next.ServeHTTP(w, r)
	})
}

// reply is an answer over HTTP/2 that its client must take. It does not if it gives the
// stream no window: the connection goes on meanwhile, so that no timeout of it ends
// that. Over HTTP/1.1 the kernel ends the connection: see takeAnswers.
type reply struct {
	http.ResponseWriter
	control *http.ResponseController
	most    time.Duration
	timer   *time.Timer // nil: nothing was written

	mu      sync.Mutex
	writing bool
}

func (a *reply) Write(p []byte) (int, error) {
	a.set(true)
	defer a.set(false)
	if a.timer == nil {
		a.timer = time.AfterFunc(a.most, a.cut)
	} else {
		a.timer.Reset(a.most)
	}
	defer a.timer.Stop()
	return a.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (a *reply) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *reply) set(writing bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writing = writing
}

// cut ends the stream, if a write still waits.
func (a *reply) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.writing {
		_ = a.control.SetWriteDeadline(time.Now()) // an error means that it has ended
	}
}

// end is for what net/http still holds and sends by itself.
func (a *reply) end() {
	if a.timer != nil {
		_ = a.control.SetWriteDeadline(time.Now().Add(a.most)) // an error means that it has ended
	}
}

// takeAnswers makes the kernel end c when its other end has taken nothing for most,
// however it answers: sendfile hides from us how far it is. An error means that c is
// none of TCP, or of a kind that knows no such thing (MPTCP).
func takeAnswers(c net.Conn, most time.Duration) error {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return errors.ErrUnsupported
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(most.Milliseconds()))
	})
	return errors.Join(err, os.NewSyscallError("setsockopt TCP_USER_TIMEOUT", failed))
}

// body is one that must make progress.
type body struct {
	io.ReadCloser
	control *http.ResponseController
	most    time.Duration
	last    time.Time // when the deadline was set
}

// extend sets the deadline anew. An error means that the connection knows none,
// as in tests without one.
func (b *body) extend(now time.Time) {
	b.last = now
	_ = b.control.SetReadDeadline(now.Add(b.most))
}

func (b *body) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(b.last) > b.most/60 {
		b.extend(now)
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		// From now on the server listens whether the client goes away, for as long
		// as the work takes.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
