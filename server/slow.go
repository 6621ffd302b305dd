package server

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// patience is how long clients may take.
type patience struct {
	header time.Duration // for the header of a request, all of it
	body   time.Duration // for the next byte of a body
	idle   time.Duration // between requests
}

var usualPatience = patience{header: 20 * time.Second, body: time.Minute, idle: 3 * time.Minute}

// limitBodies cuts off clients whose bodies make no progress, so that they do not
// hold a connection, a file and an upload for ever. A slow body may take as long
// as it likes.
func limitBodies(most time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			b := &body{ReadCloser: r.Body, control: http.NewResponseController(w), most: most}
			b.extend(time.Now()) // also for a body that nobody reads: the server does, after the answer
			r.Body = b
		}
		next.ServeHTTP(w, r)
	})
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
