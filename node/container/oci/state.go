package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/cgroup"
)

// record is the file stateFile: what the next command must know of a container.
type record struct {
	Version   int          `json:"version"`
	ID        string       `json:"id"`
	Bundle    string       `json:"bundle"`
	Created   time.Time    `json:"created"`
	Pid       int          `json:"pid,omitempty"`        // 0: it is being created
	StartTime uint64       `json:"start_time,omitempty"` // of that process, as in /proc/<pid>/stat: numbers come again
	Cgroup    string       `json:"cgroup"`
	Group     cgroup.Group `json:"group"`
	Spec      *specs.Spec  `json:"spec"` // of the seccomp profile, its flags only
	Seccomp   []byte       `json:"seccomp,omitempty"`
	Owner     string       `json:"owner,omitempty"`
}

const recordVersion = 1

// maxState is how long a state file may be, in bytes.
const maxState = 32 << 20

// State is a container as its users see it: what the specification says, and what
// runc adds to it.
type State struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Pid         int               `json:"pid"`
	Status      Status            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

// read reads the record of a container. Errors: ErrNotFound, ErrBadID.
func (r *Runtime) read(id string) (*record, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(r.path(id, stateFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if len(bytes.Trim(data, "\x00")) == 0 { // what a power cut may leave of it, and nothing of the container
		return nil, ErrNotFound
	}
	rec := new(record)
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, fmt.Errorf("read state of container %s: %w", id, err)
	}
	if rec.Version != recordVersion || rec.ID != id || rec.Spec == nil || rec.Spec.Linux == nil || rec.Spec.Root == nil {
		return nil, fmt.Errorf("read state of container %s: it was written by another berth, or is damaged", id)
	}
	return rec, nil
}

// write writes the record of a container, in one step. It is not synced: no container
// outlives the machine, and what is left of it delete removes.
func (r *Runtime) write(rec *record) error {
	spec, linux := *rec.Spec, *rec.Spec.Linux
	if linux.Seccomp != nil { // compiled it is in rec.Seccomp
		linux.Seccomp = &specs.LinuxSeccomp{Flags: linux.Seccomp.Flags}
	}
	spec.Linux = &linux
	stored := *rec
	stored.Spec = &spec
	data, err := json.Marshal(stored)
	if err == nil {
		err = os.WriteFile(r.path(rec.ID, newStateFile), data, 0o600) // the lock is held
	}
	if err == nil {
		err = os.Rename(r.path(rec.ID, newStateFile), r.path(rec.ID, stateFile))
	}
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// stateOf looks what has become of the container.
func (r *Runtime) stateOf(rec *record) (*State, error) {
	s := &State{
		OCIVersion: rec.Spec.Version, ID: rec.ID, Bundle: rec.Bundle, Rootfs: rec.Spec.Root.Path, Created: rec.Created,
		Annotations: rec.Spec.Annotations, Owner: rec.Owner, Status: StatusStopped,
	}
	if rec.Pid == 0 {
		s.Status = StatusCreating
		if !r.locked(rec.ID) { // nobody is at it any more
			s.Status = StatusStopped
		}
		return s, nil
	}
	p, err := rec.open()
	if err != nil || p == nil {
		return s, err
	}
	_ = p.Close()
	s.Pid, s.Status = rec.Pid, StatusRunning
	switch _, err := os.Lstat(r.path(rec.ID, goFile)); {
	case rec.Group.Frozen():
		s.Status = StatusPaused
	case err == nil:
		s.Status = StatusCreated
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("look at the state: %w", err)
	}
	return s, nil
}

// open returns a descriptor of the container's first process; nil if it has ended,
// whoever has its number now.
func (rec *record) open() (*os.File, error) {
	if rec.Pid == 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(rec.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", rec.Pid, err)
	}
	// The descriptor is of one process for good; was it that one when it was opened?
	p := os.NewFile(uintptr(fd), "process")
	state, start, err := processState(rec.Pid)
	if err != nil || start != rec.StartTime || state == 'Z' || state == 'X' {
		_ = p.Close()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			err = nil
		}
		return nil, err
	}
	return p, nil
}

// processState returns a process's state and when it began, in ticks since boot.
func processState(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The name in parentheses may contain anything; what follows the last one is fields
	// 3 and on.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, 0, fmt.Errorf("no name in /proc/%d/stat", pid)
	}
	fields := bytes.Fields(b[i+1:])
	if len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("too few fields in /proc/%d/stat", pid)
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64) // field 22
	return fields[0][0], start, err
}

// awaitEnd returns when the process has ended, or killLimit is over.
func awaitEnd(p *os.File) {
	deadline := time.Now().Add(killLimit)
	for left := killLimit; left > 0; left = time.Until(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.Fd()), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
