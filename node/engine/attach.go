package engine

import (
	"context"
	"errors"
	"net/http"

	"berth.internal/node/host"
)

// attachContainer answers POST /containers/{id}/attach: the connection carries
// the container's output in frames, and the client's input.
//
// What the container writes after this was answered is never missed; with logs
// also what it wrote before.
func (e *Engine) attachContainer(w http.ResponseWriter, r *http.Request) error {
	opts := host.AttachOptions{
		Stdin: boolean(r, "stdin"), Stdout: boolean(r, "stdout"), Stderr: boolean(r, "stderr"),
		Logs: boolean(r, "logs"), Stream: boolean(r, "stream"),
	}
	a, err := e.host.Attach(r.Context(), idOf(r), opts)
	if err != nil {
		return err
	}
	conn, err := hijack(w, r, streamType(r))
	if err != nil {
		nobody, gone := context.WithCancel(r.Context())
		gone()
		return errors.Join(err, a.Run(nobody, host.Streams{}))
	}
	defer conn.Close()
	f := frames{to: conn}
	streams := host.Streams{Output: f.write}
	if opts.Stdin {
		streams.Stdin = conn
	}
	if err := a.Run(r.Context(), streams); err != nil {
		e.log.Debug("attach ended early", "container", idOf(r), "error", err)
	}
	conn.closeWrite()
	return nil
}
