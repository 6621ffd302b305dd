package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
	"berth.internal/node/container/cgroup"
)

// ExecOptions is a further process for a container.
type ExecOptions struct {
	ID            string
	Process       *specs.Process
	PidFile       string
	ConsoleSocket string
	PidfdSocket   string   // takes a descriptor of the process; "": none
	Cgroups       []string // below the container's, as "path" or, on cgroup version 1, "controller,...:path"
	Stdio         [3]*os.File
	Files         []*os.File // descriptors that the process gets from number 3 on
	Detach        bool       // do not wait for its end
	IgnorePaused  bool       // in a paused container it begins when that goes on
	// Signals are passed on to the process while it is waited for. Running is called
	// when it has run for a moment: it is for what would make short commands longer. Nil:
	// it is not.
	Signals <-chan os.Signal
	Running func()

	own [3]*os.File // Stdio, once a terminal took their place
}

// Process returns what the container's own process is, to make another like it.
func (r *Runtime) Process(id string) (*specs.Process, error) {
	rec, err := r.read(id)
	if err != nil {
		return nil, err
	}
	if rec.Spec.Process == nil {
		return nil, errors.New("the container has no process in its config.json")
	}
	return rec.Spec.Process, nil
}

// Exec runs a further process in a container and returns its exit code, 128 + n if
// signal n ended it. Errors: ErrNotFound; ErrStatus; ErrNoCommand;
// ErrNotExecutable; ErrUnsupported.
func (r *Runtime) Exec(ctx context.Context, o ExecOptions) (code int, err error) {
	front := container.NewFront(r.cfg.Init)
	defer func() { err = errors.Join(err, front.Close()) }()
	rec, err := r.read(o.ID)
	if err != nil {
		return 0, err
	}
	s, err := r.stateOf(rec)
	switch {
	case err != nil:
		return 0, err
	case s.Status == StatusPaused && !o.IgnorePaused:
		return 0, fmt.Errorf("%w: cannot exec in a paused container (use --ignore-paused to override)", ErrStatus)
	case s.Status == StatusStopped || s.Status == StatusCreating:
		return 0, fmt.Errorf("%w: cannot exec in a container that is %s", ErrStatus, s.Status)
	}
	front.Prepare(r.path(o.ID))
	if err := checkConsole(o.Process, o.ConsoleSocket, !o.Detach && o.ConsoleSocket == ""); err != nil {
		return 0, err
	}
	process, err := rec.open()
	if err != nil {
		return 0, err
	}
	if process == nil {
		return 0, fmt.Errorf("%w: cannot exec in a stopped container", ErrStatus)
	}
	defer process.Close()
	group, err := rec.below(o.Cgroups)
	if err != nil {
		return 0, err
	}
	o.Process = complete(o.Process, rec.Spec.Root.Path)
	terminal := terminalOf(o.Process)
	if terminal != nil {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return 0, err
		}
		defer null.Close()
		o.Stdio, o.own = [3]*os.File{null, null, null}, o.Stdio
	}
	forked, err := front.Exec(ctx, container.Inside{
		Spec: runnable(rec.Spec), Seccomp: rec.Seccomp, Process: o.Process, Cgroup: group, Init: process, Dir: r.path(o.ID),
		Stdio: o.Stdio, Files: o.Files, Leave: o.Detach, Terminal: terminal,
	})
	if err != nil {
		return 0, err
	}
	defer forked.Process.Close()
	r.cfg.Log.Debug("process is executed", "container", o.ID, "pid", forked.Pid)
	var c *console
	if terminal != nil && o.ConsoleSocket != "" {
		err = errors.Join(sendFile(o.ConsoleSocket, consoleName, forked.Terminal), forked.Terminal.Close())
	} else if terminal != nil {
		c, err = connect(forked.Terminal, o.own)
	}
	if err == nil && o.PidfdSocket != "" {
		err = sendFile(o.PidfdSocket, pidfdName, forked.Process)
	}
	if err == nil && o.PidFile != "" {
		err = writePid(o.PidFile, forked.Pid)
	}
	if err != nil {
		return 0, errors.Join(err, forked.Signal(unix.SIGKILL))
	}
	if o.Detach {
		return 0, nil
	}
	stop := passOn(o.Signals, o.Running, forked.Process, c)
	code, err = forked.Wait(ctx)
	stop()
	if c != nil {
		c.close()
	}
	return code, err
}

// below returns the container's cgroup, or those below it that were chosen, which must
// be there.
func (rec *record) below(chosen []string) (cgroup.Group, error) {
	group, err := container.CgroupAt(rec.Cgroup)
	if err != nil || len(chosen) == 0 {
		return rec.Group, err
	}
	for _, c := range chosen {
		controllers, path, ok := strings.Cut(c, ":")
		if !ok {
			controllers, path = "", c
		}
		if path == "" || slices.Contains(strings.Split(path, "/"), "..") {
			return rec.Group, fmt.Errorf("bad sub cgroup path %q: it is not one below the container's", c)
		}
		if group, err = group.Below(strings.FieldsFunc(controllers, func(r rune) bool { return r == ',' }), path); err != nil {
			return rec.Group, fmt.Errorf("bad sub cgroup path %q: %w", c, err)
		}
	}
	return group.Group, nil
}

// moment is how long a process runs before Running is called.
const moment = 10 * time.Millisecond

// passOn passes signals on to a process, and calls running if that is not nil, until
// what it returns is called. That the terminal has another size is told to c, if there
// is one.
func passOn(signals <-chan os.Signal, running func(), process *os.File, c *console) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		over := time.NewTimer(moment)
		defer over.Stop()
		for {
			select {
			case <-done:
				return
			case <-over.C:
				if running != nil {
					running()
				}
			case sig, ok := <-signals:
				if !ok {
					signals = nil
				} else if sig == unix.SIGWINCH && c != nil {
					c.resize()
				} else if s, ok := sig.(syscall.Signal); ok {
					_ = unix.PidfdSendSignal(int(process.Fd()), s, nil, 0) // it may have ended
				}
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// RunOptions are what run adds to create.
type RunOptions struct {
	CreateOptions
	Detach bool // return when the program runs
	// NoSubreaper leaves what the container leaves behind to somebody else.
	NoSubreaper bool
	Keep        bool // do not delete the container when it has stopped
	// Signals and Running are as in ExecOptions.
	Signals <-chan os.Signal
	Running func()
}

// Run creates and starts a container, waits for its end, and returns its exit code,
// 128 + n if signal n ended it. Errors are those of Create and Start, after which
// nothing is left.
func (r *Runtime) Run(ctx context.Context, o RunOptions) (int, error) {
	if o.NoSubreaper && !o.Detach {
		return 0, errors.New("who waits for a container is its reaper")
	}
	if !o.Detach { // then this process is who learns of its end
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return 0, fmt.Errorf("become the container's reaper: %w", err)
		}
	}
	var c *console
	if !o.Detach && o.ConsoleSocket == "" {
		o.console = func(master *os.File) (err error) {
			c, err = connect(master, o.Stdio)
			return err
		}
	}
	rec, release, err := r.create(ctx, o.CreateOptions)
	if err != nil {
		if c != nil {
			c.close()
		}
		return 0, err
	}
	err = r.start(ctx, rec)
	release()
	if err != nil {
		if c != nil {
			c.close()
		}
		return 0, errors.Join(err, r.Delete(context.WithoutCancel(ctx), o.ID, true))
	}
	if o.Detach {
		return 0, nil
	}
	code, err := await(rec.Pid, o, c)
	if !o.Keep {
		err = errors.Join(err, r.Delete(context.WithoutCancel(ctx), o.ID, true))
	}
	return code, err
}

// await waits for the container's first process, which is this process's child by
// now.
func await(pid int, o RunOptions, c *console) (int, error) {
	if c != nil {
		defer c.close()
	}
	fd, err := unix.PidfdOpen(pid, 0) // nobody else reaps it, so the number is its own
	if err != nil {
		return 0, fmt.Errorf("wait for the container: %w", err)
	}
	process := os.NewFile(uintptr(fd), "process")
	defer process.Close()
	defer passOn(o.Signals, o.Running, process, c)()
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for the container: %w", err)
		}
		if ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return ws.ExitStatus(), nil
	}
}

// Pids returns the processes of a container, as the node numbers them. Errors:
// ErrNotFound.
func (r *Runtime) Pids(id string) ([]int, error) {
	rec, err := r.read(id)
	if err != nil {
		return nil, err
	}
	return rec.Group.Pids()
}
