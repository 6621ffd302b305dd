package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os/exec"
	"strings"
)

// serveExecFloor serves the least that an engine in Go can do that answers the two
// requests of an exec: it executes the command on this machine, in no container, with no
// user, no limit and no filter, and sends what it prints.
func serveExecFloor(ctx context.Context, socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: http.HandlerFunc(execFloor)}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func execFloor(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, "/start") {
		w.WriteHeader(http.StatusCreated)
		w.Write([]byte(`{"Id":"1"}`))
		return
	}
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	buffered.WriteString("HTTP/1.1 200 OK\r\n\r\n")
	buffered.Flush()
	cmd := exec.Command("/bin/busybox", "true")
	cmd.Stdout, cmd.Stderr = c, c
	if err := cmd.Run(); err != nil {
		c.Write([]byte(err.Error()))
	}
}
