package socket

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
)

func TestLoop(t *testing.T) {
	l := NewLoop()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(b) // the client reads it
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	c := http.Client{Transport: &http.Transport{DialContext: l.Dial}}
	for range 3 {
		pr, pw := io.Pipe()
		go func() {
			_, err := pw.Write(make([]byte, 1<<20))
			pw.CloseWithError(err)
		}()
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://anywhere/", pr)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || n != 1<<20 {
			t.Errorf("%d bytes came back, %v", n, err)
		}
		_ = resp.Body.Close() // read to its end
	}
	c.CloseIdleConnections()
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve() = %v", err)
	}
	if _, err := l.Dial(t.Context(), "", ""); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial() after Close() = %v, want net.ErrClosed", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewLoop().Dial(ctx, "", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial() that nobody accepts = %v, want context.Canceled", err)
	}
}
