package container

import (
	"context"
	"errors"
	"fmt"
	"os"

	"berth.internal/node/container/plan"
	"berth.internal/node/container/shim"
)

// pipes are the two ends of streams: ours for the caller, theirs for the shim.
type pipes struct {
	ours   Streams
	theirs []*os.File
}

// openPipes makes a pipe for each stream chosen, except for stdin if the shim
// has it already.
func openPipes(o AttachOptions, stdin bool) (p pipes, err error) {
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if o.Stdin && stdin {
		theirs, ours, err := os.Pipe()
		if err != nil {
			return p, err
		}
		p.ours.Stdin, p.theirs = ours, append(p.theirs, theirs)
	}
	if o.Stdout {
		ours, theirs, err := os.Pipe()
		if err != nil {
			return p, err
		}
		p.ours.Stdout, p.theirs = ours, append(p.theirs, theirs)
	}
	if o.Stderr {
		ours, theirs, err := os.Pipe()
		if err != nil {
			return p, err
		}
		p.ours.Stderr, p.theirs = ours, append(p.theirs, theirs)
	}
	return p, nil
}

// sent closes this process's copies of the shim's ends.
func (p *pipes) sent() {
	for _, f := range p.theirs {
		_ = f.Close()
	}
	p.theirs = nil
}

func (p *pipes) close() {
	p.sent()
	_ = p.ours.Close()
}

// Attach connects to the streams of a container that is not stopped. Before
// Start, no byte of output is missed. The log has everything in any case.
// Errors: ErrNotFound; ErrStatus, also for Stdin if the container has none or
// its only input was taken (StdinOnce).
func (r *Runtime) Attach(ctx context.Context, id string, opts AttachOptions) (*Streams, error) {
	s, err := r.attach(ctx, id, opts)
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", id, err)
	}
	return s, nil
}

func (r *Runtime) attach(ctx context.Context, id string, opts AttachOptions) (*Streams, error) {
	c, err := r.dial(ctx, id)
	if err != nil {
		return nil, err
	}
	defer closeConn(c)
	p, err := openPipes(opts, false)
	if err != nil {
		return nil, err
	}
	_, files, err := exchange(ctx, c, shim.Request{
		Method: shim.MethodAttach,
		Attach: &shim.Attach{Stdin: opts.Stdin, Stdout: opts.Stdout, Stderr: opts.Stderr},
	}, nil, p.theirs...)
	p.sent()
	if err == nil && opts.Stdin && len(files) != 1 {
		err = errors.New("the shim sent no standard input")
	}
	if err != nil {
		p.close()
		return nil, r.orStopped(ctx, id, err)
	}
	if opts.Stdin {
		p.ours.Stdin = shim.Pollable(files[0])
	}
	return &p.ours, nil
}

// dial connects to the shim of a container that must not be stopped.
func (r *Runtime) dial(ctx context.Context, id string) (*shim.Conn, error) {
	there, err := r.exists(id)
	if err != nil {
		return nil, err
	}
	if !there || r.isBusy(id) {
		return nil, ErrNotFound
	}
	c, err := shim.Dial(r.socket(id))
	if err != nil {
		return nil, r.orStopped(ctx, id, err)
	}
	return c, nil
}

// orStopped turns the error of a shim that is gone into one that says so.
func (r *Runtime) orStopped(ctx context.Context, id string, err error) error {
	if gone(err) {
		return r.stopped(ctx, id)
	}
	return err
}

// Exec is a process started by Runtime.Exec.
type Exec struct {
	Streams
	Pid int // on the node

	id       string
	c        *shim.Conn
	terminal []terminalEnd // of its terminal, if it has one
}

// Exec runs a further process in a running container and returns when it runs.
// Errors: ErrNotFound; ErrStatus, also if it is paused; ErrNoCommand; ErrNotExecutable;
// ErrUnsupported.
func (r *Runtime) Exec(ctx context.Context, id string, spec ExecSpec) (*Exec, error) {
	e, err := r.exec(ctx, id, spec)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return e, nil
}

func (r *Runtime) exec(ctx context.Context, id string, spec ExecSpec) (*Exec, error) {
	rec, err := r.record(id)
	if err != nil {
		return nil, err
	}
	if r.group(id).Frozen() {
		return nil, fmt.Errorf("%w: it is paused", ErrStatus)
	}
	c, err := r.dial(ctx, id)
	if err != nil {
		return nil, err
	}
	req, blob, err := r.execRequest(rec, spec)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	asked := req.Exec.Attach
	p, err := openPipes(AttachOptions{Stdin: asked.Stdin, Stdout: asked.Stdout, Stderr: asked.Stderr}, true)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	resp, files, err := exchange(ctx, c, req, blob, p.theirs...)
	p.sent()
	e := &Exec{Streams: p.ours, Pid: resp.Pid, id: id, c: c}
	if err == nil && spec.Terminal != nil {
		err = e.connect(spec.AttachOptions, files)
	}
	if err != nil {
		p.close()
		_ = c.Close()
		return nil, r.orStopped(ctx, id, err)
	}
	return e, nil
}

// execRequest returns what the container's shim is asked to execute.
func (r *Runtime) execRequest(rec *record, spec ExecSpec) (shim.Request, []byte, error) {
	if rec.Engine != "" {
		return engineExec(spec)
	}
	method, pipes := shim.MethodExec, spec.AttachOptions
	if spec.Terminal != nil {
		method, pipes = shim.MethodExecTerminal, AttachOptions{}
	}
	ep, err := plan.ForExec(plan.ExecInput{
		Spec: rec.Spec, Process: &spec.Process, Seccomp: rec.Seccomp, Host: r.host,
		Pipe: [3]bool{pipes.Stdin, pipes.Stdout, pipes.Stderr}, Terminal: planned(spec.Terminal),
	})
	if err != nil {
		return shim.Request{}, nil, err
	}
	prepare := ep.Prepare.Encode()
	return shim.Request{Method: method, Exec: &shim.Exec{
		Attach: shim.Attach{Stdin: pipes.Stdin, Stdout: pipes.Stdout, Stderr: pipes.Stderr},
		Enter:  ep.Enter, Share: ep.Share, Prepare: len(prepare), Send: ep.Send, Master: ep.Master,
	}}, ep.Child.Append(prepare), nil
}

// Wait returns the exit code, 128 + n if signal n ended it. The process goes on
// if ctx ends. Call it once.
func (e *Exec) Wait(ctx context.Context) (int, error) {
	defer closeConn(e.c)
	resp, _, err := receive(ctx, e.c)
	if err == nil && resp.ExitCode == nil {
		err = errors.New("the shim sent no exit code")
	}
	if err != nil {
		return 0, fmt.Errorf("wait for process %d of container %s: %w", e.Pid, e.id, err)
	}
	return *resp.ExitCode, nil
}

// Close closes the streams and gives up on the exit code. The process goes on,
// as far as it can without them.
func (e *Exec) Close() error { return errors.Join(e.Streams.Close(), e.c.Close()) }
