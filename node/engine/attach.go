package engine

import (
	"context"
	"errors"
	"net/http"

	"berth.internal/internal/detach"
	"berth.internal/node/host"
)

// attachContainer answers POST /containers/{id}/attach: the connection carries
// the container's output in frames, or that of its terminal as it is, and the
// client's input.
//
// What the container writes after this was answered is never missed; with logs
// also what it wrote before.
func (e *Engine) attachContainer(w http.ResponseWriter, r *http.Request) error {
	opts := host.AttachOptions{
		Stdin: boolean(r, "stdin"), Stdout: boolean(r, "stdout"), Stderr: boolean(r, "stderr"),
		Logs: boolean(r, "logs"), Stream: boolean(r, "stream"),
	}
	keys, err := detach.Parse(r.FormValue("detachKeys"))
	if err != nil {
		return invalid("Invalid detach keys (%s) provided: %v", r.FormValue("detachKeys"), err)
	}
	c, err := e.host.Inspect(idOf(r))
	if err != nil {
		return err
	}
	a, err := e.host.Attach(r.Context(), c.ID, opts)
	if err != nil {
		return err
	}
	conn, err := hijack(w, r, streamType(r, c.Spec.Tty))
	if err != nil {
		nobody, gone := context.WithCancel(r.Context())
		gone()
		return errors.Join(err, a.Run(nobody, host.Streams{}))
	}
	defer conn.Close()
	streams := host.Streams{Output: newOutput(conn, c.Spec.Tty).write}
	if opts.Stdin {
		streams.Stdin = inputOf(conn, c.Spec.Tty, keys)
	}
	if err := a.Run(r.Context(), streams); err != nil && !errors.Is(err, host.ErrDetached) {
		e.log.Debug("attach ended early", "container", idOf(r), "error", err)
	}
	conn.closeWrite()
	return nil
}
