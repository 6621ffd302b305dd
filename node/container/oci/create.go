package oci

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
	"berth.internal/node/container/netdev"
)

// CreateOptions is a container to be created.
type CreateOptions struct {
	ID     string
	Bundle string // directory with a config.json
	// PidFile takes the number of the container's first process; "": none.
	PidFile string
	// ConsoleSocket is where the terminal's master goes if process.terminal is set.
	ConsoleSocket string
	// PidfdSocket takes a descriptor of the first process; "": none.
	PidfdSocket  string
	Stdio        [3]*os.File
	Files        []*os.File // descriptors that the process gets from number 3 on
	Listeners    int        // how many of Files are sockets that it shall serve (LISTEN_FDS)
	NoNewKeyring bool

	// console takes the terminal's master instead of ConsoleSocket.
	console func(master *os.File) error
}

// Create makes a container of a bundle, up to where only its program is missing.
// Errors: ErrExists; ErrBadID; ErrUnsupported; ErrNoCommand; ErrNotExecutable. After
// an error nothing is left, and poststop hooks have run if others had.
func (r *Runtime) Create(ctx context.Context, o CreateOptions) error {
	_, release, err := r.create(ctx, o)
	if err == nil {
		release()
	}
	return err
}

// create is Create, which returns with the container's lock.
func (r *Runtime) create(ctx context.Context, o CreateOptions) (rec *record, release func(), err error) {
	front := container.NewFront(r.cfg.Init)
	if release, err = r.make(o.ID); err != nil {
		return nil, nil, errors.Join(err, front.Close())
	}
	front.Prepare(r.path(o.ID))
	c := &creation{r: r, o: o, front: front}
	if err := errors.Join(c.run(ctx), front.Close()); err != nil {
		err = errors.Join(err, c.undo(context.WithoutCancel(ctx)))
		release()
		return nil, nil, err
	}
	c.devices.Close() // from here on they live as long as the container's network namespace
	return c.rec, release, nil
}

// record describes the container that is to be created.
func (c *creation) record() (*record, error) {
	bundle, spec, err := readBundle(c.o.Bundle)
	if err != nil {
		return nil, err
	}
	if err := checkConsole(spec.Process, c.o.ConsoleSocket, c.o.console != nil); err != nil {
		return nil, err
	}
	listening(spec, c.o.Listeners)
	return &record{
		Version: recordVersion, ID: c.o.ID, Bundle: bundle, Created: time.Now().UTC(), Spec: spec, Cgroup: c.r.cgroupPath(spec, c.o.ID),
		Owner: owner(),
	}, nil
}

// owner returns who calls the runtime.
func owner() string {
	u, err := user.Current()
	if err != nil {
		return strconv.Itoa(os.Getuid())
	}
	return u.Username
}

// cgroupPath returns where the container's processes are. A relative path, which the
// specification leaves to the runtime, is one below the default's.
func (r *Runtime) cgroupPath(s *specs.Spec, id string) string {
	if r.cfg.Root != DefaultRoot { // another runtime's containers may have the same ids
		h := fnv.New32a()
		_, _ = h.Write([]byte(r.cfg.Root)) // it never fails
		id = fmt.Sprintf("%08x-%s", h.Sum32(), id)
	}
	switch p := s.Linux.CgroupsPath; {
	case p == "":
		return path.Join(defaultCgroup, id)
	case path.IsAbs(p):
		return p
	default:
		return path.Join(defaultCgroup, p)
	}
}

const defaultCgroup = "/berth-oci"

// creation is a container while it is made.
type creation struct {
	r       *Runtime
	o       CreateOptions
	front   *container.Front
	rec     *record // once its configuration was read
	devices *netdev.Moved
	group   bool // the cgroup is made
	pidFile bool // is written
}

func (c *creation) run(ctx context.Context) (err error) {
	if c.rec, err = c.record(); err != nil {
		return err
	}
	r, rec := c.r, c.rec
	cgroup, err := container.CgroupAt(rec.Cgroup)
	if err != nil {
		return err
	}
	rec.Group = cgroup.Group
	if rec.Seccomp, err = container.Seccomp(rec.Spec); err != nil {
		return err
	}
	if pids, err := rec.Group.Pids(); err != nil {
		return err
	} else if len(pids) > 0 {
		return fmt.Errorf("container's cgroup is not empty: %d process(es) found in %s", len(pids), rec.Cgroup)
	}
	if rec.Group.Frozen() { // what begins in there never begins
		return fmt.Errorf("container's cgroup unexpectedly frozen: %s", rec.Cgroup)
	}
	if err := r.write(rec); err != nil { // from here on delete finds all
		return err
	}
	c.group = true
	if err := cgroup.Make(rec.Spec.Linux.Resources); err != nil {
		return err
	}
	d := container.Detached{
		Spec: runnable(rec.Spec), Seccomp: rec.Seccomp, Cgroup: cgroup, Dir: r.path(rec.ID), Stdio: c.o.Stdio, Files: c.o.Files, KeepKeyring: c.o.NoNewKeyring,
		Terminal: terminalOf(rec.Spec.Process),
	}
	if d.Start, d.Report, d.Reports, err = r.fifos(rec.ID); err != nil {
		return err
	}
	defer closeFiles(d.Start, d.Report, d.Reports)
	if pausing(rec.Spec) {
		d.Paused = func(pid int) error { return c.paused(ctx, pid) }
	}
	if d.Terminal != nil {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer null.Close()
		d.Stdio = [3]*os.File{null, null, null}
	}
	r.cfg.Log.Debug("container is built", "container", rec.ID, "bundle", rec.Bundle, "cgroup", rec.Cgroup)
	made, err := c.front.Create(ctx, d)
	if err != nil {
		return err
	}
	r.cfg.Log.Debug("container is created", "container", rec.ID, "pid", made.Pid)
	if made.Terminal != nil {
		if err := c.giveTerminal(made.Terminal); err != nil {
			return err
		}
	}
	for _, w := range made.Warnings {
		r.cfg.Log.Warn("container is created with less than asked", "container", rec.ID, "warning", w)
	}
	if err := rec.identify(made.Pid); err != nil {
		return err
	}
	if err := r.write(rec); err != nil {
		return err
	}
	if c.o.PidfdSocket != "" {
		if err := sendProcess(c.o.PidfdSocket, rec); err != nil {
			return err
		}
	}
	return c.writePid(made.Pid)
}

// paused does what is done to a container that is built and has not entered its root
// directory.
func (c *creation) paused(ctx context.Context, pid int) (err error) {
	if err := c.rec.identify(pid); err != nil {
		return err
	}
	if devices := c.rec.Spec.Linux.NetDevices; len(devices) > 0 {
		if c.devices, err = netdev.Move(pid, devices); err != nil {
			return err
		}
	}
	return c.r.createHooks(ctx, c.front, c.rec)
}

// sendProcess gives a descriptor of the container's first process to who listens.
func sendProcess(socket string, rec *record) error {
	p, err := rec.open()
	if err != nil {
		return err
	}
	if p == nil {
		return errors.New("the container's first process has ended")
	}
	defer p.Close()
	return sendFile(socket, pidfdName, p)
}

// giveTerminal gives the terminal to who is to have it.
func (c *creation) giveTerminal(master *os.File) error {
	if c.o.console != nil {
		return c.o.console(master)
	}
	defer master.Close()
	return sendFile(c.o.ConsoleSocket, consoleName, master)
}

// listening tells the process of the sockets it is given, as sd_listen_fds(3) reads
// it.
func listening(s *specs.Spec, n int) {
	if n > 0 && s.Process != nil {
		s.Process.Env = append(s.Process.Env, "LISTEN_FDS="+strconv.Itoa(n), "LISTEN_PID=1")
	}
}

// runnable returns the spec with its process as it is executed; without one, with one
// that start refuses: it may be left out until then.
func runnable(s *specs.Spec) *specs.Spec {
	with := *s
	if s.Process == nil {
		with.Process = &specs.Process{Cwd: "/", Args: []string{"/"}}
	} else {
		with.Process = complete(s.Process, s.Root.Path)
	}
	return &with
}

// identify keeps what tells the process from later ones with its number.
func (rec *record) identify(pid int) error {
	_, start, err := processState(pid)
	if err != nil {
		return fmt.Errorf("look at the container's first process: %w", err)
	}
	rec.Pid, rec.StartTime = pid, start
	return nil
}

// fifos makes and opens those by which start talks to the container's first process.
func (r *Runtime) fifos(id string) (start, report, reports *os.File, err error) {
	defer func() {
		if err != nil {
			closeFiles(start, report, reports)
		}
	}()
	for _, name := range []string{goFile, reportFile} {
		if err := unix.Mkfifo(r.path(id, name), 0o600); err != nil {
			return nil, nil, nil, fmt.Errorf("make %s: %w", name, err)
		}
	}
	// Open for both, they wait for nobody.
	if start, err = openFIFO(r.path(id, goFile), unix.O_RDWR); err != nil {
		return start, nil, nil, err
	}
	if report, err = openFIFO(r.path(id, reportFile), unix.O_RDWR); err != nil {
		return start, report, nil, err
	}
	reports, err = openFIFO(r.path(id, reportFile), unix.O_RDONLY)
	return start, report, reports, err
}

// openFIFO opens a FIFO in a way that its reads and writes wait.
func openFIFO(name string, flags int) (*os.File, error) {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// writePid writes the pid file, in one step.
func (c *creation) writePid(pid int) error {
	if c.o.PidFile == "" {
		return nil
	}
	err := writePid(c.o.PidFile, pid)
	c.pidFile = err == nil
	return err
}

func writePid(name string, pid int) error {
	tmp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name))
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_SYNC, 0o644)
	if err == nil {
		_, err = f.WriteString(strconv.Itoa(pid))
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(tmp, name)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
	}
	if err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	return nil
}

// undo removes what was made.
func (c *creation) undo(ctx context.Context) error {
	if c.pidFile {
		_ = os.Remove(c.o.PidFile)
	}
	if !c.group {
		return c.r.removeDir(c.o.ID)
	}
	err := c.devices.Undo() // before hooks look for them
	return errors.Join(err, c.r.destroy(ctx, c.rec))
}
