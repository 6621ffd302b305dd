package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
)

// Hooks are programs of whoever wrote the configuration: the administrator, or an
// engine. Images have none.

// checkHooks refuses hooks that could not be executed.
func checkHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	for name, list := range map[string][]specs.Hook{
		"prestart":      h.Prestart, //nolint:staticcheck // deprecated hooks are hooks
		"createRuntime": h.CreateRuntime, "createContainer": h.CreateContainer, "startContainer": h.StartContainer,
		"poststart": h.Poststart, "poststop": h.Poststop,
	} {
		for i, hook := range list {
			switch {
			case !filepath.IsAbs(hook.Path):
				return fmt.Errorf("hooks.%s[%d]: path %q is not absolute", name, i, hook.Path)
			case hook.Timeout != nil && *hook.Timeout <= 0:
				return fmt.Errorf("hooks.%s[%d]: timeout %d is not more than 0", name, i, *hook.Timeout)
			}
		}
	}
	return nil
}

// pausing reports whether something is done to the container while it is created:
// network devices are moved, or hooks run.
func pausing(s *specs.Spec) bool {
	h := hooksOf(s)
	return len(s.Linux.NetDevices)+len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0 //nolint:staticcheck // deprecated hooks are hooks
}

// hookState returns the state as hooks read it.
func (rec *record) hookState(status Status, pid int) ([]byte, error) {
	return json.Marshal(specs.State{
		Version: rec.Spec.Version, ID: rec.ID, Status: specs.ContainerState(status), Pid: pid, Bundle: rec.Bundle, Annotations: rec.Spec.Annotations,
	})
}

// createHooks runs those of create: the container is built, its root directory still
// the node's.
func (r *Runtime) createHooks(ctx context.Context, front *container.Front, rec *record) error {
	h := hooksOf(rec.Spec)
	if err := r.runtimeHooks(ctx, rec, "prestart", h.Prestart, StatusCreating); err != nil { //nolint:staticcheck // deprecated hooks are hooks
		return err
	}
	if err := r.runtimeHooks(ctx, rec, "createRuntime", h.CreateRuntime, StatusCreating); err != nil {
		return err
	}
	return r.containerHooks(ctx, front, rec, "createContainer", h.CreateContainer, StatusCreating)
}

// startHooks runs those that the container's program waits for.
func (r *Runtime) startHooks(ctx context.Context, rec *record) (err error) {
	list := hooksOf(rec.Spec).StartContainer
	if len(list) == 0 {
		return nil
	}
	front := container.NewFront(r.cfg.Init)
	defer func() { err = errors.Join(err, front.Close()) }()
	return r.containerHooks(ctx, front, rec, "startContainer", list, StatusCreated)
}

// after runs the hooks of a container that is gone. Their errors are warnings.
func (r *Runtime) after(ctx context.Context, rec *record) {
	for i, hook := range hooksOf(rec.Spec).Poststop {
		state, err := rec.hookState(StatusStopped, 0)
		if err == nil {
			err = runHook(ctx, hook, state, rec.Bundle)
		}
		if err != nil {
			r.cfg.Log.Warn("poststop hook failed", "container", rec.ID, "hook", i, "path", hook.Path, "error", err)
		}
	}
}

// runtimeHooks runs hooks in the namespaces of the runtime, up to the first that
// fails.
func (r *Runtime) runtimeHooks(ctx context.Context, rec *record, name string, list []specs.Hook, status Status) error {
	for i, hook := range list {
		state, err := rec.hookState(status, rec.Pid)
		if err == nil {
			err = runHook(ctx, hook, state, rec.Bundle)
		}
		if err != nil {
			return fmt.Errorf("error running %s hook #%d: %w (%s)", name, i, err, hook.Path)
		}
	}
	return nil
}

// maxHookOutput is how much of what a failed hook said is kept, in bytes.
const maxHookOutput = 4 << 10

// hookDrain is how long the output of a hook is waited for that has ended, or was
// killed: it may have left processes.
const hookDrain = time.Second

// runHook runs one hook on the node. Its environment is what the configuration says,
// nothing of ours.
func runHook(ctx context.Context, hook specs.Hook, state []byte, dir string) error {
	ctx, stop := hookContext(ctx, hook)
	defer stop()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, hook.Path)
	if len(hook.Args) > 0 {
		cmd.Args = hook.Args
	}
	cmd.Env = append([]string{}, hook.Env...) // nil would be this process's own
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(state)
	cmd.Stdout, cmd.Stderr = &limited{w: &out, left: maxHookOutput}, &limited{w: &out, left: maxHookOutput}
	cmd.WaitDelay = hookDrain
	err := cmd.Run()
	return hookError(ctx, hook, err, out.Bytes())
}

// hookContext ends when the hook's time is up.
func hookContext(ctx context.Context, hook specs.Hook) (context.Context, context.CancelFunc) {
	if hook.Timeout == nil {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(*hook.Timeout)*time.Second)
}

func hookError(ctx context.Context, hook specs.Hook, err error, output []byte) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("hook ran past the specified timeout of %ds", *hook.Timeout)
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it left somebody that holds its output
		return nil
	}
	if len(output) > 0 {
		err = fmt.Errorf("%w, output: %s", err, bytes.TrimSpace(output))
	}
	return err
}

// limited passes on the first bytes, and drops the rest.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	if _, err := l.w.Write(b[:n]); err != nil {
		return 0, err
	}
	return len(b), nil
}

// containerHooks runs hooks in the namespaces of the container, up to the first that
// fails.
func (r *Runtime) containerHooks(ctx context.Context, front *container.Front, rec *record, name string, list []specs.Hook, status Status) error {
	if len(list) == 0 {
		return nil
	}
	pid, err := namespacePid(rec.Pid)
	if err != nil {
		return err
	}
	state, err := rec.hookState(status, pid)
	if err != nil {
		return err
	}
	dir := "/"
	if status == StatusCreating {
		dir = rec.Spec.Root.Path // where the container's root file system is until it is the root
	}
	for i, hook := range list {
		if hook.Env == nil && status == StatusCreated && rec.Spec.Process != nil {
			hook.Env = runnable(rec.Spec).Process.Env // it begins where that process would
		}
		if err := r.containerHook(ctx, front, rec, hook, state, dir); err != nil {
			return fmt.Errorf("error running %s hook #%d: %w (%s)", name, i, err, hook.Path)
		}
	}
	return nil
}

// namespacePid returns the number that a process has in its own pid namespace.
func namespacePid(pid int) (int, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if list, ok := bytes.CutPrefix(line, []byte("NSpid:")); ok {
			fields := bytes.Fields(list)
			return strconv.Atoi(string(fields[len(fields)-1]))
		}
	}
	return pid, nil
}

// containerHook runs one hook inside.
func (r *Runtime) containerHook(ctx context.Context, front *container.Front, rec *record, hook specs.Hook, state []byte, dir string) error {
	ctx, stop := hookContext(ctx, hook)
	defer stop()
	process, err := rec.open()
	if err != nil {
		return err
	}
	if process == nil {
		return errors.New("the container's first process has ended")
	}
	defer process.Close()
	// In memory both, so that nobody waits for somebody who does not read or write.
	in, err := memory("state", state)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := memory("output", nil)
	if err != nil {
		return err
	}
	defer out.Close()
	forked, err := front.Exec(ctx, container.Inside{
		Spec: runnable(rec.Spec), Hook: &hook, HookDir: dir, Cgroup: rec.Group, Init: process, Dir: r.path(rec.ID), Stdio: [3]*os.File{in, out, out},
	})
	if err != nil {
		return err
	}
	defer forked.Process.Close()
	killed := make(chan struct{})
	letGo := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = forked.Signal(unix.SIGKILL)
	})
	code, err := forked.Wait(context.WithoutCancel(ctx))
	if !letGo() {
		<-killed // it needs the process's descriptor
	}
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d", code)
	}
	said := make([]byte, maxHookOutput)
	n, _ := out.ReadAt(said, 0) // less than that is the end
	return hookError(ctx, hook, err, said[:n])
}

// memory returns a file in memory, with that in it, to be read from the start.
func memory(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(content); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
