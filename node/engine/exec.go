package engine

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"berth.internal/node/host"
)

// createExec answers POST /containers/{id}/exec: 201.
func (e *Engine) createExec(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecCreateRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	switch {
	case req.Tty:
		return unsupported("Tty is not supported yet; leave -t out")
	case req.Privileged:
		return unsupported("Privileged is not supported yet; leave --privileged out")
	case req.DetachKeys != "":
		return unsupported("DetachKeys is not supported without a terminal")
	}
	id, err := e.host.CreateExec(r.Context(), idOf(r), host.ExecSpec{
		Args: req.Cmd, Env: req.Env, WorkingDir: req.WorkingDir, User: req.User,
		Attached: host.Attached{Stdin: req.AttachStdin, Stdout: req.AttachStdout, Stderr: req.AttachStderr},
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

// startExec answers POST /exec/{id}/start: 200 at once if detached, else the
// connection carries the output in frames, and the client's input, until the
// process has ended.
func (e *Engine) startExec(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecStartRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if req.Tty {
		return unsupported("Tty is not supported yet; leave -t out")
	}
	id := idOf(r)
	if req.Detach {
		if err := e.host.StartExec(r.Context(), id, host.Streams{}); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	x, err := e.host.Exec(id)
	if err != nil {
		return err
	}
	if x.Started {
		return &failure{http.StatusConflict, fmt.Sprintf("exec %s has already run", id)}
	}
	conn, err := hijack(w, r, streamType(r))
	if err != nil {
		return err
	}
	defer conn.Close()
	f := frames{to: conn}
	streams := host.Streams{}
	if x.Spec.Attached.Stdin {
		streams.Stdin = conn
	}
	streams.Output = func(stderr bool, p []byte) error {
		if stderr && !x.Spec.Attached.Stderr || !stderr && !x.Spec.Attached.Stdout {
			return nil
		}
		return f.write(stderr, p)
	}
	err = e.host.StartExec(r.Context(), id, streams)
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		// The head is out: the client reads the reason as output, as with
		// Docker, and the code from the exec.
		_ = f.write(true, []byte(err.Error()+"\r\n")) // the client may be gone
	}
	conn.closeWrite()
	return nil
}

// inspectExec answers GET /exec/{id}/json: 200.
func (e *Engine) inspectExec(w http.ResponseWriter, r *http.Request) error {
	x, err := e.host.Exec(idOf(r))
	if err != nil {
		return err
	}
	no := false
	answer := container.ExecInspectResponse{
		ID: x.ID, Running: x.Running, ContainerID: x.Container, Pid: x.PID,
		OpenStdin: x.Spec.Attached.Stdin, OpenStdout: x.Spec.Attached.Stdout, OpenStderr: x.Spec.Attached.Stderr,
		ProcessConfig: &container.ExecProcessConfig{
			Entrypoint: x.Spec.Args[0], Arguments: append([]string{}, x.Spec.Args[1:]...), User: x.Spec.User, Privileged: &no,
		},
	}
	if x.Started && !x.Running {
		answer.ExitCode = &x.ExitCode
	}
	return writeJSON(w, http.StatusOK, answer)
}
