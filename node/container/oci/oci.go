// Package oci is an OCI runtime in the sense of runtime-spec's runtime.md: it
// creates, starts, kills and deletes containers for engines of others, which keep a
// container's stdio and learn of its end themselves. No process of berth stays with
// a container; all that is known of it is in a directory.
//
// cmd/berth gives it runc's command line, under the name berth-oci.
package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
	"berth.internal/node/container/plan"
)

// Config says where a Runtime keeps its things.
type Config struct {
	// Root holds one directory per container.
	Root string
	// Init is the program that forks, as container.Config.Init.
	Init []byte
	// Log takes warnings. Nil discards them.
	Log *slog.Logger
}

// DefaultRoot is where containers are kept if nobody says otherwise. A reboot empties
// it.
const DefaultRoot = "/run/berth-oci"

// Runtime is an OCI runtime. Any number of them, also in several processes, can use
// one Config.
type Runtime struct {
	cfg Config
}

// Open returns a Runtime. The first container makes its directory.
func Open(cfg Config) (*Runtime, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("open the runtime's directory: %w", err)
	}
	cfg.Root = root
	return &Runtime{cfg: cfg}, nil
}

// Errors that callers tell apart.
var (
	ErrNotFound      = errors.New("container does not exist") // the words that podman looks for
	ErrExists        = errors.New("container with given ID already exists")
	ErrStatus        = errors.New("container is not in the state that this needs")
	ErrBadID         = errors.New("invalid container ID")
	ErrUnsupported   = plan.ErrUnsupported
	ErrNoCommand     = container.ErrNoCommand
	ErrNotExecutable = container.ErrNotExecutable
)

// Status is where a container is in its life.
type Status string

// What a container can be.
const (
	StatusCreating Status = "creating"
	StatusCreated  Status = "created"
	StatusRunning  Status = "running"
	StatusPaused   Status = "paused"
	StatusStopped  Status = "stopped"
)

// idCharacters is what others take, too.
const idCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-"

func checkID(id string) error {
	if len(id) == 0 || len(id) > 255 || strings.Trim(id, idCharacters) != "" || id == "." || id == ".." {
		return fmt.Errorf("%w %q: 1 to 255 letters, digits, '_', '+', '-' and '.'", ErrBadID, id)
	}
	return nil
}

// Names of files in a container's directory. goFile is there as long as the
// container's program was not asked for.
const (
	stateFile    = "state.json"
	newStateFile = "state.json.new"
	goFile       = "start"
	reportFile   = "report"
)

func (r *Runtime) path(id string, elem ...string) string {
	return filepath.Join(append([]string{r.cfg.Root, id}, elem...)...)
}

// State returns what is known of a container. Errors: ErrNotFound, ErrBadID.
func (r *Runtime) State(id string) (*State, error) {
	rec, err := r.read(id)
	if err != nil {
		return nil, err
	}
	return r.stateOf(rec)
}

// List returns the containers in the order of their ids. What cannot be read is left
// out, with a warning.
func (r *Runtime) List() ([]*State, error) {
	entries, err := os.ReadDir(r.cfg.Root) // sorted
	if errors.Is(err, fs.ErrNotExist) && r.cfg.Root == DefaultRoot {
		return nil, nil // there was none yet
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var list []*State
	for _, e := range entries {
		s, err := r.State(e.Name())
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrBadID) {
			continue
		}
		if err != nil {
			r.cfg.Log.Warn("container cannot be read", "container", e.Name(), "error", err)
			continue
		}
		list = append(list, s)
	}
	return list, nil
}

// Kill sends sig to the container's first process; a kill of a container that shares
// its pid namespace goes to all its processes, as does any signal with all. Errors:
// ErrNotFound; ErrStatus if it is stopped.
func (r *Runtime) Kill(id string, sig syscall.Signal, all bool) error {
	rec, err := r.read(id)
	if err != nil {
		return err
	}
	s, err := r.stateOf(rec)
	if err != nil {
		return err
	}
	if s.Status == StatusStopped && all { // what the first process left behind, if anything
		return signalAll(rec, sig)
	}
	all = all || sig == unix.SIGKILL && !ownPidNamespace(rec.Spec)
	if s.Status == StatusStopped && all {
		if pids, err := rec.Group.Pids(); err != nil || len(pids) > 0 {
			return errors.Join(err, signalAll(rec, sig))
		}
	}
	if s.Status != StatusCreated && s.Status != StatusRunning && s.Status != StatusPaused {
		return fmt.Errorf("%w: container not running", ErrStatus)
	}
	p, err := rec.open()
	if err != nil {
		return err
	}
	if p == nil {
		return fmt.Errorf("%w: container not running", ErrStatus)
	}
	defer p.Close()
	if err := unix.PidfdSendSignal(int(p.Fd()), sig, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%w: container not running", ErrStatus)
		}
		return fmt.Errorf("send signal %d: %w", sig, err)
	}
	if all {
		err = signalAll(rec, sig)
	}
	if sig == unix.SIGKILL {
		err = errors.Join(err, rec.Group.Thaw()) // the frozen do not die
	}
	return err
}

// signalAll sends a signal to all processes of the container's cgroup.
func signalAll(rec *record, sig syscall.Signal) error {
	pids, err := rec.Group.Pids()
	if err != nil {
		return fmt.Errorf("find processes: %w", err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("send signal %d to process %d: %w", sig, pid, err)
		}
	}
	return nil
}

func ownPidNamespace(s *specs.Spec) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace && n.Path == "" })
}

// killLimit is how long the kernel may take to end killed processes and to let go of
// their cgroup.
const killLimit = 10 * time.Second

// Delete removes a container that is stopped, or created and not started; with force
// any, and one that is not there is no error then. Errors: ErrNotFound; ErrStatus.
func (r *Runtime) Delete(ctx context.Context, id string, force bool) error {
	if err := checkID(id); err != nil {
		return err
	}
	release, err := r.lock(id)
	if errors.Is(err, ErrNotFound) && force {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	rec, err := r.read(id)
	if errors.Is(err, ErrNotFound) { // a creation that was broken off
		err = r.removeDir(id)
		if !force && err == nil {
			err = ErrNotFound
		}
		return err
	}
	if err != nil {
		return err
	}
	s, err := r.stateOf(rec)
	if err != nil {
		return err
	}
	if !force && (s.Status == StatusRunning || s.Status == StatusPaused) {
		return fmt.Errorf("%w: cannot delete container %s that is not stopped: %s", ErrStatus, id, s.Status)
	}
	return r.destroy(ctx, rec)
}

// destroy ends what is left of the container's processes and removes all that create
// made. The lock is held.
func (r *Runtime) destroy(ctx context.Context, rec *record) error {
	if p, err := rec.open(); err == nil && p != nil { // it may not be in its cgroup any more
		_ = unix.PidfdSendSignal(int(p.Fd()), unix.SIGKILL, nil, 0) // it may have ended
		_ = rec.Group.Thaw()
		awaitEnd(p)
		_ = p.Close()
	}
	if rec.Group.Remove(0) != nil { // usually nobody is in it any more, and need not be looked for
		if err := errors.Join(rec.Group.Kill(killLimit), rec.Group.Remove(killLimit)); err != nil {
			return err
		}
	}
	// The directory is what others find all this by, so it goes last.
	if err := r.removeDir(rec.ID); err != nil {
		return err
	}
	r.after(ctx, rec)
	return nil
}

// removeDir removes a container's directory, in which only files are that this
// package made.
func (r *Runtime) removeDir(id string) error {
	entries, err := os.ReadDir(r.path(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(r.path(id, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(r.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
