package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/internal/durable"
	"berth.internal/node/container/shim"
)

// killLimit is how long the kernel may take to end killed processes and to let
// go of their cgroup.
const killLimit = 10 * time.Second

// exchange sends a request and returns the answer. An error of the shim becomes
// one of this package's.
func exchange(ctx context.Context, c *shim.Conn, req shim.Request, blob []byte, files ...*os.File) (shim.Response, []*os.File, error) {
	if err := send(ctx, c, req, blob, files...); err != nil {
		return shim.Response{}, nil, err
	}
	return receive(ctx, c)
}

// send sends a request.
func send(ctx context.Context, c *shim.Conn, req shim.Request, blob []byte, files ...*os.File) error {
	req.Version = shim.Version
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.Send(req, blob, files...); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	return nil
}

// receive receives an answer.
func receive(ctx context.Context, c *shim.Conn) (shim.Response, []*os.File, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var resp shim.Response
	_, files, err := c.Receive(&resp)
	if err != nil {
		return resp, nil, errors.Join(ctx.Err(), err)
	}
	if resp.Error == nil {
		return resp, files, nil
	}
	kind := map[string]error{
		shim.CodeStatus: ErrStatus, shim.CodeUnknown: ErrUnsupported,
		shim.CodeNoCommand: ErrNoCommand, shim.CodeNotExecutable: ErrNotExecutable,
	}[resp.Error.Code]
	switch {
	case resp.Error.Code == shim.CodeInvalid:
		return resp, files, invalid{errors.New(resp.Error.Message)}
	case kind == nil:
		return resp, files, errors.New(resp.Error.Message)
	}
	return resp, files, fmt.Errorf("%w: %s", kind, resp.Error.Message)
}

// closeConn closes a connection on which nothing is under way.
func closeConn(c *shim.Conn) { _ = c.Close() }

// ask sends a request to the shim of a container.
func (r *Runtime) ask(ctx context.Context, id string, req shim.Request) (shim.Response, error) {
	c, err := shim.Dial(r.socket(id))
	if err != nil {
		return shim.Response{}, err
	}
	defer closeConn(c)
	resp, _, err := exchange(ctx, c, req, nil)
	return resp, err
}

// gone reports whether an error means that there is no shim.
func gone(err error) bool {
	for _, e := range []error{io.EOF, fs.ErrNotExist, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// command asks a shim that must be there for something.
func (r *Runtime) command(ctx context.Context, what, id string, req shim.Request) (shim.Response, error) {
	resp, err := shim.Response{}, ErrNotFound
	there, xerr := r.exists(id)
	switch {
	case xerr != nil:
		err = xerr
	case there && !r.isBusy(id):
		if resp, err = r.ask(ctx, id, req); err != nil && gone(err) {
			err = r.stopped(ctx, id)
		}
	}
	if err != nil {
		return resp, fmt.Errorf("%s container %s: %w", what, id, err)
	}
	return resp, nil
}

// stopped returns the error of an operation on a container without a shim.
func (r *Runtime) stopped(ctx context.Context, id string) error {
	if _, err := r.State(ctx, id); err != nil {
		return err
	}
	return fmt.Errorf("%w: it is stopped", ErrStatus)
}

// Start executes the program of a created container and returns when it runs, with
// its state then.
// Errors: ErrNotFound; ErrStatus if it was started before; ErrNoCommand and
// ErrNotExecutable, after which the container is stopped with exit code 127 or
// 126.
func (r *Runtime) Start(ctx context.Context, id string) (State, error) {
	defer r.provide()
	resp, err := r.command(ctx, "start", id, shim.Request{Method: shim.MethodStart})
	return stateOf(resp.State), err
}

// Kill sends sig to the container's first process. SIGKILL also lets a paused
// container go on, to its end; other signals wait until it is resumed. Errors: ErrNotFound;
// ErrStatus if it is stopped.
func (r *Runtime) Kill(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := r.command(ctx, "kill", id, shim.Request{Method: shim.MethodKill, Kill: &shim.Kill{Signal: int(sig)}})
	if err == nil && sig == syscall.SIGKILL {
		// Frozen, it or what it waits for would not end (version 1), or not begin again.
		if err := r.group(id).Thaw(); err != nil {
			return fmt.Errorf("kill container %s: %w", id, err)
		}
	}
	return err
}

// State returns what is known of a container. Errors: ErrNotFound.
func (r *Runtime) State(ctx context.Context, id string) (State, error) {
	return r.state(ctx, id, shim.Request{Method: shim.MethodState})
}

// Wait returns when the container has stopped for good, at once if it has
// already. Errors: ErrNotFound.
func (r *Runtime) Wait(ctx context.Context, id string) (State, error) {
	return r.state(ctx, id, shim.Request{Method: shim.MethodWait})
}

// state asks the shim, or if there is none, the exit record.
func (r *Runtime) state(ctx context.Context, id string, req shim.Request) (State, error) {
	method := req.Method
	there, err := r.exists(id)
	if err != nil {
		return State{}, fmt.Errorf("%s container %s: %w", method, id, err)
	}
	if !there || r.isBusy(id) {
		return State{}, fmt.Errorf("%s container %s: %w", method, id, ErrNotFound)
	}
	if s, ok := r.readExit(id); ok {
		return s, nil
	}
	resp, err := r.ask(ctx, id, req)
	if err == nil && resp.State != nil && resp.State.Status == "" {
		err = io.EOF // its agent died before it brought a container, and so it ends, too
	}
	if err == nil {
		s := stateOf(resp.State)
		s.Paused = s.Status == StatusRunning && r.group(id).Frozen()
		return s, nil
	}
	if !gone(err) {
		return State{}, fmt.Errorf("%s container %s: %w", method, id, err)
	}
	if s, ok := r.readExit(id); ok {
		return s, nil
	}
	if there, err := r.exists(id); err == nil && !there {
		return State{}, fmt.Errorf("%s container %s: %w", method, id, ErrNotFound) // deleted meanwhile
	}
	s, err := r.lost(id)
	if err != nil {
		return State{}, fmt.Errorf("%s container %s: %w", method, id, err)
	}
	return s, nil
}

// readExit reads the exit record.
func (r *Runtime) readExit(id string) (State, bool) {
	data, err := os.ReadFile(r.path(id, shim.ExitFile))
	if err != nil {
		return State{}, false
	}
	s := new(shim.State)
	if err := json.Unmarshal(data, s); err != nil {
		return State{}, false // as good as none
	}
	return stateOf(s), true
}

func stateOf(s *shim.State) State {
	if s == nil {
		return State{}
	}
	st := State{
		ID: s.ID, Status: Status(s.Status), Pid: s.Pid, Created: s.Created, Started: s.Started, Finished: s.Finished,
		Run: s.Run, Next: s.Next,
		ExitCode: s.ExitCode, Signal: s.Signal, OOMKilled: s.OOMKilled, Error: s.Error, Warnings: s.Warnings,
	}
	if s.Run == 0 && !s.Started.IsZero() {
		st.Run = 1 // its shim is too old to count
	}
	if s.Last != nil {
		last := Exit(*s.Last)
		st.Last = &last
	}
	return st
}

// lost stops a container whose shim is gone without an exit record: nobody
// could say any more how it ends.
func (r *Runtime) lost(id string) (State, error) {
	if err := r.awaitShim(id); err != nil {
		return State{}, err
	}
	if s, ok := r.readExit(id); ok {
		return s, nil
	}
	if err := r.group(id).Kill(killLimit); err != nil {
		return State{}, err
	}
	s := &shim.State{
		Version: shim.Version, ID: id, Status: shim.StatusStopped, Finished: time.Now().UTC(),
		ExitCode: shim.ExitSignal + int(unix.SIGKILL), Signal: int(unix.SIGKILL),
		Error: "the container's shim ended without an exit record (killed, or the machine stopped); its processes were killed",
	}
	if rec, err := r.readRecord(id); err == nil {
		s.Created = rec.Created
	}
	if last, ok := r.readLast(id); ok {
		s.Run, s.Started, s.Last, s.Warnings = last.Run, last.Started, last.Last, last.Warnings
	}
	data, err := json.Marshal(s)
	if err != nil {
		return State{}, err
	}
	if err := durable.WriteFile(r.path(id, shim.ExitFile), append(data, '\n'), 0o600); err != nil {
		return State{}, err
	}
	r.cfg.Log.Warn("container lost its shim and was killed", "container", id)
	return stateOf(s), nil
}

// awaitShim returns when no shim of the container is left. It holds a lock on its
// log from the moment it is started. A shim without a container ends by itself.
func (r *Runtime) awaitShim(id string) error {
	f, err := os.Open(r.path(id, shimLogFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for deadline := time.Now().Add(2 * killLimit); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("the container's shim does not end")
		}
		time.Sleep(200 * time.Microsecond) // usually it is just about to
	}
}

// Delete removes a container that is stopped, between two runs, or created and
// never started, with all that the Runtime made for it: processes, cgroup, socket, bundle. What the
// Bundle named (Rootfs, Log) stays. A container that is not there is no error.
// Errors: ErrStatus if it is running.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if err := r.delete(ctx, id); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return nil
}

func (r *Runtime) delete(ctx context.Context, id string) error {
	if !idGrammar().MatchString(id) {
		return nil
	}
	s, err := r.State(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	case s.Status == StatusRunning:
		return fmt.Errorf("%w: it is running", ErrStatus)
	case s.Status == StatusRestarting:
		if err := r.endRestarts(ctx, id); err != nil {
			return err
		}
	case s.Status == StatusCreated:
		if err := r.Kill(ctx, id, syscall.SIGKILL); err != nil && !errors.Is(err, ErrStatus) {
			return err
		}
		if _, err := r.Wait(ctx, id); err != nil {
			return err
		}
	}
	release, ok := r.occupy(id)
	if !ok {
		return fmt.Errorf("%w: it is being created or deleted", ErrStatus)
	}
	defer release()
	changed, err := r.change(ctx, id) // those who change it end first, and others find that it is busy
	if err != nil {
		return err
	}
	defer changed()
	return r.remove(id)
}

// remove removes what is left of a container that has no shim, or one that is
// about to end. All of it is tried.
func (r *Runtime) remove(id string) error {
	defer r.forgetRecord(id)
	group := r.group(id)
	var errs []error
	left := group.Remove(0) != nil // usually nobody is in it any more, and need not be looked for
	if left {
		errs = append(errs, group.Kill(killLimit))
	}
	errs = append(errs, r.awaitShim(id))
	if left {
		errs = append(errs, group.Remove(killLimit))
	}
	names := []string{
		r.socket(id), r.path(id, shim.ExitFile), r.path(id, shim.LastFile), r.path(id, shim.PlanFile),
		r.path(id, shim.PlanFile+".new"), r.path(id, shimLogFile), r.path(id, cgroupFile),
	}
	// A crash may have left temporary files of the records.
	for _, record := range []string{shim.ExitFile, shim.LastFile, bundleFile} {
		stray, _ := filepath.Glob(r.path(id, "."+record+".tmp-*"))
		names = append(names, stray...)
	}
	for _, name := range append(names, r.path(id, bundleFile)) {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// Somebody else may keep things in the same directory.
	if err := unix.Rmdir(r.path(id)); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("remove %s: %w", r.path(id), err))
	}
	return errors.Join(errs...)
}
