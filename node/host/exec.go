package host

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
	"berth.internal/node/container/plan"
)

// execsKept is how many processes of exec a container remembers after their
// end, so that clients can still ask for their exit codes.
const execsKept = 64

// ExecSpec is a further process for a running container. What is empty is as of
// the container's own.
type ExecSpec struct {
	Args       []string
	Env        []string
	WorkingDir string
	User       string
	Attached   Attached
	Tty        bool                   // standard streams are a terminal
	Console    container.TerminalSize // its size at first
	Privileged bool                   // with all capabilities
	DetachKeys []byte                 // by which its client leaves; for the client's API only
}

// Exec is what there is to know about a process of exec.
type Exec struct {
	ID        string
	Container string
	Spec      ExecSpec
	Started   bool
	Running   bool
	PID       int // on the node, while it runs
	ExitCode  int // valid when it has started and does not run
}

// execution is a process of exec in memory. It does not outlive the agent: what
// it is for, a client that waits for it, does not either.
type execution struct {
	id   string
	ctr  *ctr
	spec ExecSpec

	begun chan struct{} // closed when it runs, or could not be run

	mu      sync.Mutex
	state   Exec
	process *container.Exec // once it runs
}

func (x *execution) running() bool { return x.snapshot().Running }

func (x *execution) snapshot() Exec {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.state
}

func (x *execution) update(change func(*Exec)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change(&x.state)
}

// CreateExec prepares a process for a running container; StartExec runs it.
// Errors: ErrNotFound; ErrConflict if the container does not run; ErrInvalid.
func (h *Host) CreateExec(ctx context.Context, ref string, spec ExecSpec) (string, error) {
	c, err := h.findBegun(ctx, ref)
	if err != nil {
		return "", err
	}
	switch {
	case len(spec.Args) == 0:
		return "", invalid("No exec command specified")
	case !c.running():
		return "", conflict("container %s is not running", c.rec.ID)
	case c.paused():
		return "", conflict("container %s is paused, unpause the container before exec", c.rec.ID)
	}
	x := &execution{id: newID(), ctr: c, spec: spec, begun: make(chan struct{})}
	x.state = Exec{ID: x.id, Container: c.rec.ID, Spec: spec}
	c.mu.Lock()
	c.execs = append(c.execs, x)
	dropped := c.dropExecs()
	c.mu.Unlock()
	h.mu.Lock()
	h.execs[x.id] = x
	for _, id := range dropped {
		delete(h.execs, id)
	}
	h.mu.Unlock()
	h.tell(c, "exec_create: "+strings.Join(spec.Args, " "), "execID", x.id)
	return x.id, nil
}

// Exec returns what is known of a process of exec. Errors: ErrNotFound.
func (h *Host) Exec(id string) (Exec, error) {
	x, err := h.execution(id)
	if err != nil {
		return Exec{}, err
	}
	return x.snapshot(), nil
}

func (h *Host) execution(id string) (*execution, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.execs[id]
	if x == nil {
		return nil, notFound("No such exec instance: %s", id)
	}
	return x, nil
}

// SizeExec sets the size that the terminal of a process of exec has when it
// starts. Errors: ErrNotFound; ErrInvalid if it has none.
func (h *Host) SizeExec(id string, size container.TerminalSize) error {
	x, err := h.execution(id)
	if err != nil {
		return err
	}
	if !x.spec.Tty {
		return invalid("exec %s has no terminal", id)
	}
	x.update(func(e *Exec) { e.Spec.Console = size })
	return nil
}

// StartExec runs a prepared process. With streams it returns when the process
// has ended and its output is read; without, when it runs. Errors: ErrNotFound;
// ErrConflict if it was started before or the container does not run;
// ErrInvalid if there is no such program or user.
func (h *Host) StartExec(ctx context.Context, id string, streams Streams) error {
	x, err := h.execution(id)
	if err != nil {
		return err
	}
	if !x.claim() {
		return conflict("exec %s has already run", id)
	}
	attached := streams.Output != nil || streams.Stdin != nil
	process, err := h.run(ctx, x, streams)
	close(x.begun)
	if err != nil {
		code := failureCode(err)
		if code == codeNotStarted { // as Docker has it of exec
			code = codeNotExecutable
		}
		x.update(func(e *Exec) { e.Running, e.ExitCode = false, code })
		return err
	}
	ended := make(chan struct{})
	h.begin(func(life context.Context) {
		defer close(ended)
		h.reap(life, x, process)
	})
	if !attached {
		return process.Streams.Close()
	}
	if x.spec.Tty {
		err = h.pumpTerminal(ctx, x, process, streams)
	} else {
		err = errors.Join(pump(ctx, &process.Streams, streams), process.Streams.Close())
	}
	if errors.Is(err, ErrDetached) {
		return err
	}
	if err := h.until(ctx, ended); err != nil {
		return err // the client has gone; the process goes on
	}
	return err
}

// pumpTerminal is pump for a process on a terminal. When its client leaves, by its keys
// or by closing the connection, somebody has to hold the terminal further, or the process
// would be hung up on: the node does. Errors: ErrDetached.
func (h *Host) pumpTerminal(ctx context.Context, x *execution, process *container.Exec, s Streams) error {
	gone, done := make(chan struct{}), make(chan error, 1)
	s.detach = sync.OnceFunc(func() { close(gone) })
	output := s.Output
	s.Output = func(stderr bool, p []byte) error {
		select {
		case <-gone:
		default:
			if output != nil && output(stderr, p) != nil {
				s.detach()
			}
		}
		return nil
	}
	var stay func() bool
	joined := make(chan struct{})
	h.begin(func(life context.Context) {
		life, cancel := context.WithCancel(life)
		defer cancel()
		stay = context.AfterFunc(ctx, cancel) // until its client has left
		close(joined)
		done <- errors.Join(pump(life, &process.Streams, s), process.Streams.Close())
	})
	<-joined
	select {
	case err := <-done:
		return err
	case <-gone:
		stay()
		h.tell(x.ctr, "exec_detach", "execID", x.id)
		return ErrDetached
	}
}

// claim reports whether the caller is the first to start it.
func (x *execution) claim() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	first := !x.state.Started
	x.state.Started, x.state.Running = true, true
	return first
}

// run starts the process in the runtime.
func (h *Host) run(ctx context.Context, x *execution, streams Streams) (*container.Exec, error) {
	c := x.ctr
	process, err := h.execProcess(x)
	if err != nil {
		return nil, err
	}
	wants := container.ExecSpec{Process: *process}
	wants.Stdin, wants.Stdout, wants.Stderr = streams.Stdin != nil, streams.Output != nil, streams.Output != nil && !x.spec.Tty
	if x.spec.Tty {
		size := x.snapshot().Spec.Console
		wants.Terminal = &size
	}
	started, err := h.opts.Runtime.Exec(ctx, c.rec.ID, wants)
	switch {
	case errors.Is(err, container.ErrStatus), errors.Is(err, container.ErrNotFound):
		return nil, conflict("container %s is not running", c.rec.ID)
	case err != nil:
		return nil, h.notExecuted(c, process, err)
	}
	x.update(func(e *Exec) { e.PID, x.process = started.Pid, started })
	h.tell(c, "exec_start: "+strings.Join(x.spec.Args, " "), "execID", x.id)
	return started, nil
}

// reap waits for the end of the process.
func (h *Host) reap(ctx context.Context, x *execution, process *container.Exec) {
	code, err := process.Wait(ctx)
	if err != nil && ctx.Err() == nil {
		h.opts.Log.Error("lost sight of a process of exec", "container", x.ctr.rec.ID, "exec", x.id, "error", err)
		code = 255
	}
	x.update(func(e *Exec) { e.Running, e.PID, e.ExitCode = false, 0, code })
	h.tell(x.ctr, "exec_die", append([]string{"execID", x.id}, exitAttr(code)...)...)
}

// execProcess says in the runtime's words what to run: like the container's
// first process, but for what the spec says.
func (h *Host) execProcess(x *execution) (*specs.Process, error) {
	rec, _ := x.ctr.now()
	lowers, err := h.opts.Images.Layers(digest.Digest(rec.ImageID))
	if err != nil {
		return nil, err
	}
	root := tree{x.ctr.path("upper")}
	for _, dir := range slices.Backward(lowers) {
		root = append(root, dir)
	}
	user, groups := x.spec.User, []string(nil)
	if user == "" {
		user, groups = rec.Spec.Process.User, rec.Spec.Process.Groups
	}
	acc, err := lookupUser(root.open, user, groups)
	if err != nil {
		return nil, err
	}
	p := container.DefaultSpec().Process
	if err := x.ctr.process(p, acc); err != nil {
		return nil, err
	}
	p.Args, p.Terminal = x.spec.Args, x.spec.Tty
	env := slices.Concat(rec.Spec.Process.Env, x.spec.Env)
	if x.spec.Tty {
		env = append([]string{terminalEnv}, env...)
	}
	p.Env = environ(rec.Spec.Hostname, acc, env)
	if x.spec.Privileged {
		caps := plan.Capabilities()
		if rec.Users == 0 {
			caps, _ = ownCapabilities()
		}
		p.Capabilities = capabilitiesOf(caps, acc)
		p.ApparmorProfile = AppArmorUnconfined
	}
	if x.spec.WorkingDir != "" {
		p.Cwd = x.spec.WorkingDir
	}
	return p, nil
}
