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
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container/plan"
	"berth.internal/node/container/shim"
)

// record is the file bundleFile: what a Runtime that is opened later must know
// of a container. It is not synced: after a power cut there is no container.
type record struct {
	Version int         `json:"version"`
	ID      string      `json:"id"`
	Created time.Time   `json:"created"`
	Spec    *specs.Spec `json:"spec"` // without the rules of the seccomp profile
	Seccomp []byte      `json:"seccomp,omitempty"`
	Rootfs  Rootfs      `json:"rootfs"`
	Log     string      `json:"log,omitempty"`

	// What else the container is begun again from, if it gets a restart policy later.
	Program   string        `json:"program,omitempty"` // hash of the shim's
	LogSize   int64         `json:"log_max_size,omitempty"`
	LogFiles  int           `json:"log_max_files,omitempty"`
	Stdin     bool          `json:"stdin,omitempty"`
	StdinOnce bool          `json:"stdin_once,omitempty"`
	Terminal  *TerminalSize `json:"terminal,omitempty"`
	Init      bool          `json:"init,omitempty"`

	Engine string `json:"engine,omitempty"` // which has made it
}

// bundle returns what the container was made of.
func (rec *record) bundle() Bundle {
	return Bundle{
		ID: rec.ID, Spec: rec.Spec, Rootfs: rec.Rootfs,
		Log:   LogConfig{Path: rec.Log, MaxSize: rec.LogSize, MaxFiles: rec.LogFiles},
		Stdin: rec.Stdin, StdinOnce: rec.StdinOnce, Terminal: rec.Terminal, Init: rec.Init,
	}
}

const recordVersion = 1

// Create builds b up to the point where only its program is missing, and starts
// its shim. Errors: ErrExists; ErrUnsupported; ErrInvalid. After an error nothing is left.
func (r *Runtime) Create(ctx context.Context, b Bundle) error {
	if _, err := r.create(ctx, b, false); err != nil {
		return fmt.Errorf("create container %s: %w", b.ID, err)
	}
	return nil
}

// Run is Create and Start in one, for a container that nobody wants to attach to, or to
// watch, before its program begins: a few turns between processes less. Until it
// returns nobody finds the container. Errors: ErrExists; ErrUnsupported; ErrInvalid;
// ErrNoCommand; ErrNotExecutable. After an error nothing is left.
func (r *Runtime) Run(ctx context.Context, b Bundle) (State, error) {
	defer r.provide()
	s, err := r.create(ctx, b, true)
	if err != nil {
		return State{}, fmt.Errorf("run container %s: %w", b.ID, err)
	}
	return s, nil
}

func (r *Runtime) create(ctx context.Context, b Bundle, begin bool) (_ State, err error) {
	if !idGrammar().MatchString(b.ID) {
		return State{}, errors.New("an id has 1 to 128 letters, digits, '_', '-' and '.', the first one a letter or digit")
	}
	release, ok := r.occupy(b.ID)
	if !ok {
		return State{}, ErrExists
	}
	defer release()
	if there, err := r.exists(b.ID); err != nil {
		return State{}, err
	} else if there {
		return State{}, ErrExists
	}
	if b.Spec == nil || b.Spec.Linux == nil {
		return State{}, errors.New("the bundle has no spec for Linux")
	}
	if b.Spec, err = resolve(b.Spec); err != nil {
		return State{}, err
	}
	bpf, err := r.filters.compile(b.Spec.Linux.Seccomp)
	if err != nil {
		return State{}, err
	}
	if err := errors.Join(b.Restart.check(), b.Log.check()); err != nil {
		return State{}, err
	}
	limits, err := settings(r.groups.only2, b.Spec.Linux.Resources, b.Spec.Linux.Resources)
	if err != nil {
		return State{}, err
	}
	rules, err := deviceRules(b.Spec.Linux.Resources)
	if err != nil {
		return State{}, err
	}
	cgroupAt := filepath.Join(r.cfg.CgroupParent, b.ID)
	if b.Cgroup != "" {
		if cgroupAt, err = r.chooseCgroup(b.Cgroup); err != nil {
			return State{}, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.remove(b.ID))
		}
	}()
	if b.Cgroup != "" {
		if err := r.noteCgroup(b.ID, cgroupAt); err != nil {
			return State{}, err
		}
	}
	grouped := make(chan error, 1)
	go func() { grouped <- r.groups.make(cgroupAt, limits, rules) }() // while the rest is made
	req, programs, err := r.request(b, bpf, cgroupAt)
	var s *newShim
	if err == nil {
		req.Cgroup = r.groups.group(cgroupAt)
		s, err = r.spawn(b, bpf, &req, programs)
	}
	if gerr := <-grouped; gerr != nil {
		if s != nil {
			_ = s.c.Close() // which ends the shim
		}
		return State{}, errors.Join(gerr, err)
	}
	if err != nil {
		return State{}, err
	}
	defer closeConn(s.c)
	resp, _, err := exchange(ctx, s.c, shim.Request{Method: shim.MethodCreate, Create: &req, Begin: begin}, programs)
	if err != nil {
		_ = s.proc.Kill()
		return State{}, r.explain(b.ID, err)
	}
	for _, w := range resp.State.Warnings {
		r.cfg.Log.Warn("container is created with less than asked", "container", b.ID, "warning", w)
	}
	return stateOf(resp.State), nil
}

// maxLogFiles is how many files a log has at most.
const maxLogFiles = 1000

// check returns an error if there is no such log.
func (l LogConfig) check() error {
	switch {
	case l.MaxSize < 0:
		return fmt.Errorf("log files of %d bytes", l.MaxSize)
	case l.MaxFiles < 0 || l.MaxFiles > maxLogFiles:
		return fmt.Errorf("%d log files, at most %d are possible", l.MaxFiles, maxLogFiles)
	}
	return nil
}

// request returns what a shim is asked to create, but for the cgroup, and the
// programs for it.
func (r *Runtime) request(b Bundle, bpf []byte, cgroupAt string) (shim.Create, []byte, error) {
	if b.Engine != "" {
		return r.engineRequest(b, cgroupAt)
	}
	p, err := plan.For(plan.Input{Spec: b.Spec, Rootfs: b.Rootfs, Stdin: b.Stdin, Seccomp: bpf, Host: r.host, Terminal: planned(b.Terminal), Init: b.Init, Cgroup: cgroupAt})
	if err != nil {
		return shim.Create{}, nil, invalid{err}
	}
	req, programs := requestOf(p)
	req.ID, req.Bundle, req.Init, req.Stdin, req.StdinOnce = b.ID, r.path(b.ID), b.Init, b.Stdin, b.StdinOnce
	req.Log, req.LogSize, req.LogFiles = b.Log.Path, b.Log.MaxSize, b.Log.MaxFiles
	req.Restart = shim.Restart{Policy: string(b.Restart.Policy), Max: b.Restart.Max}
	return req, programs, nil
}

// requestOf returns a plan as a shim takes it, and the programs for it.
func requestOf(p *plan.Create) (shim.Create, []byte) {
	prepare := p.Prepare.Encode()
	return shim.Create{
		Flags: p.Flags, UIDMap: p.UIDMap, GIDMap: p.GIDMap, NetNS: p.NetNS, Join: joins(p.Join), ProcDir: p.Proc, Users: users(p.Users), OOM: p.OOM, Send: p.Send, Null: p.Null,
		Prepare: len(prepare), Devpts: p.Devpts, Master: p.Master, Peer: p.Peer,
	}, p.Child.Append(prepare)
}

// explain adds to an error of a shim that is gone what it said last.
func (r *Runtime) explain(id string, err error) error {
	if !gone(err) {
		return err
	}
	f, ferr := os.Open(r.path(id, shimLogFile))
	if ferr != nil {
		return err
	}
	defer f.Close()
	last, _ := io.ReadAll(io.LimitReader(f, 4<<10))
	return fmt.Errorf("the container's shim ended: %w: %s", err, last)
}

// spawn writes down what the container is and gives it a shim. After an error remove
// undoes what is left.
func (r *Runtime) spawn(b Bundle, bpf []byte, req *shim.Create, programs []byte) (s *newShim, err error) {
	if err := os.Mkdir(r.path(b.ID), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if b.Restart.Policy != RestartNo || b.Engine != "" { // whose config is kept nowhere else
		if err := shim.WritePlan(r.path(b.ID, shim.PlanFile), *req, programs); err != nil {
			return nil, fmt.Errorf("write the plan of restarts: %w", err)
		}
	}
	if err := r.writeBundle(b, bpf); err != nil {
		return nil, err
	}
	if s, err = r.takeShim(); err != nil {
		return nil, err
	}
	if err := r.give(s, b.ID); err != nil {
		return nil, errors.Join(err, s.forget())
	}
	return s, nil
}

// writeBundle writes the record of a new container.
func (r *Runtime) writeBundle(b Bundle, bpf []byte) error {
	spec, linux := *b.Spec, *b.Spec.Linux
	spec.Linux = &linux
	if linux.Seccomp != nil {
		linux.Seccomp = &specs.LinuxSeccomp{Flags: linux.Seccomp.Flags}
	}
	data, err := json.Marshal(record{
		Version: recordVersion, ID: b.ID, Created: time.Now().UTC(), Spec: &spec, Seccomp: bpf, Rootfs: b.Rootfs, Log: b.Log.Path,
		LogSize: b.Log.MaxSize, LogFiles: b.Log.MaxFiles, Stdin: b.Stdin, StdinOnce: b.StdinOnce,
		Program: r.program, Terminal: b.Terminal, Init: b.Init, Engine: b.Engine,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(r.path(b.ID, bundleFile), data, 0o600)
}

// readRecord reads the record of a container. Errors: ErrNotFound.
func (r *Runtime) readRecord(id string) (*record, error) {
	if there, err := r.exists(id); err != nil {
		return nil, err
	} else if !there {
		return nil, ErrNotFound
	}
	data, err := os.ReadFile(r.path(id, bundleFile))
	if err != nil {
		return nil, err
	}
	rec := new(record)
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, fmt.Errorf("read %s: %w", r.path(id, bundleFile), err)
	}
	if rec.Version != recordVersion {
		return nil, fmt.Errorf("container was made by another berth (bundle version %d, this is %d)", rec.Version, recordVersion)
	}
	return rec, nil
}

// knownRecord is a record that was read, and the file it was read from.
type knownRecord struct {
	*record
	file fs.FileInfo
}

// maxKnown is how many records are kept in memory, some 20 KiB each.
const maxKnown = 64

// record returns what readRecord does, and the same again as long as the file is the
// same one: who runs a command in a container once, does so often. The caller does not
// change it. Errors: ErrNotFound.
func (r *Runtime) record(id string) (*record, error) {
	file, err := os.Stat(r.path(id, bundleFile)) // which is replaced if it changes
	r.mu.Lock()
	known, ok := r.known[id]
	r.mu.Unlock()
	if ok && err == nil && os.SameFile(file, known.file) && file.ModTime().Equal(known.file.ModTime()) {
		return known.record, nil
	}
	rec, rerr := r.readRecord(id)
	if rerr != nil || err != nil {
		return rec, rerr
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= maxKnown {
		clear(r.known)
	}
	r.known[id] = knownRecord{rec, file}
	return rec, nil
}

// forgetRecord is for a container that is removed: the next one of its name may get the same
// file again.
func (r *Runtime) forgetRecord(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, id)
}
