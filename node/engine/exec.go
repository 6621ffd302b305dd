package engine

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"berth.internal/internal/detach"
	"berth.internal/node/host"
)

// createExec answers POST /containers/{id}/exec: 201.
func (e *Engine) createExec(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecCreateRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	size, err := consoleSize(req.Tty, req.ConsoleSize)
	if err != nil {
		return err
	}
	keys, err := detach.Parse(req.DetachKeys)
	if err != nil {
		return invalid("Invalid detach keys (%s) provided: %v", req.DetachKeys, err)
	}
	id, err := e.host.CreateExec(r.Context(), idOf(r), host.ExecSpec{
		Args: req.Cmd, Env: req.Env, WorkingDir: req.WorkingDir, User: req.User,
		Attached: host.Attached{Stdin: req.AttachStdin, Stdout: req.AttachStdout, Stderr: req.AttachStderr},
		Tty:      req.Tty, Console: size, Privileged: req.Privileged, DetachKeys: keys,
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
	id := idOf(r)
	if size, err := consoleSize(req.Tty, req.ConsoleSize); err != nil {
		return err
	} else if size != (host.TerminalSize{}) {
		if err := e.host.SizeExec(id, size); err != nil {
			return err
		}
	}
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
	conn, err := hijack(w, r, streamType(r, x.Spec.Tty))
	if err != nil {
		return err
	}
	defer conn.Close()
	f := newOutput(conn, x.Spec.Tty)
	streams := host.Streams{}
	if x.Spec.Attached.Stdin {
		streams.Stdin = inputOf(conn, x.Spec.Tty, x.Spec.DetachKeys)
	}
	streams.Output = func(stderr bool, p []byte) error {
		if stderr && !x.Spec.Attached.Stderr || !stderr && !x.Spec.Attached.Stdout {
			return nil
		}
		return f.write(stderr, p)
	}
	err = e.host.StartExec(r.Context(), id, streams)
	if errors.Is(err, host.ErrDetached) {
		return nil // the process goes on
	}
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
	answer := container.ExecInspectResponse{
		ID: x.ID, Running: x.Running, ContainerID: x.Container, Pid: x.PID,
		OpenStdin: x.Spec.Attached.Stdin, OpenStdout: x.Spec.Attached.Stdout, OpenStderr: x.Spec.Attached.Stderr,
		ProcessConfig: &container.ExecProcessConfig{
			Entrypoint: x.Spec.Args[0], Arguments: append([]string{}, x.Spec.Args[1:]...), User: x.Spec.User, Privileged: &x.Spec.Privileged,
			Tty: x.Spec.Tty,
		},
		DetachKeys: x.Spec.DetachKeys,
	}
	if x.Started && !x.Running {
		answer.ExitCode = &x.ExitCode
	}
	return writeJSON(w, http.StatusOK, answer)
}

// consoleSize reads the size of a terminal as an exec has it.
func consoleSize(tty bool, size *[2]uint) (host.TerminalSize, error) {
	if size == nil || *size == [2]uint{} {
		return host.TerminalSize{}, nil
	}
	if !tty {
		return host.TerminalSize{}, invalid("ConsoleSize is set, and Tty is not")
	}
	return terminalSize(size[0], size[1])
}
