package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
	"berth.internal/node/container/cgroup"
	"berth.internal/node/container/plan"
	"berth.internal/node/container/seccomp"
	"berth.internal/node/container/shim"
)

// Front makes containers for callers that keep their stdio and learn of their end
// themselves, as an OCI runtime's do: podman's conmon, a shell. No process of berth
// stays with them. The shim's program forks them and leaves. A Front is for one
// goroutine.
type Front struct {
	init    func() (*os.File, error) // the program, sealed
	host    plan.Host
	ahead   chan started // of the helper that Prepare started; nil: none, or it was taken
	leaving []*helper    // those that have done all they had to
}

// started is what has become of the start of a helper.
type started struct {
	h   *helper
	err error
}

// NewFront begins to prepare the program that forks, while its caller finds out what
// it is to fork. nil: this program itself, as in Config.Init.
func NewFront(prog []byte) *Front {
	f := &Front{
		init: sync.OnceValues(func() (*os.File, error) { return sealInit(prog) }),
		host: plan.Host{Dir: isDir, AppArmor: hasAppArmor(), SELinux: hasSELinux()},
	}
	go func() { _, _ = f.init() }() // Close waits for it
	return f
}

// Prepare begins to start the process that will do the first Create or Exec. dir is as
// in Detached.
func (f *Front) Prepare(dir string) {
	ahead := make(chan started, 1)
	f.ahead = ahead
	go func() {
		h, err := f.spawn(dir)
		ahead <- started{h, err}
	}()
}

// helper returns a process that waits for a request.
func (f *Front) helper(dir string) (*helper, error) {
	if f.ahead == nil {
		return f.spawn(dir)
	}
	s := <-f.ahead
	f.ahead = nil
	return s.h, s.err
}

// Close releases what NewFront and Prepare took, and returns when no process of ours
// is left beside the containers that were made: they belong to the next reaper then.
func (f *Front) Close() error {
	var errs []error
	if f.ahead != nil {
		if h, err := f.helper(""); err == nil {
			errs = append(errs, h.end(nil)) // without a request it has nothing to do
		}
	}
	for _, h := range f.leaving {
		errs = append(errs, h.end(nil))
	}
	f.leaving = nil
	if init, err := f.init(); err == nil {
		errs = append(errs, init.Close())
	}
	return errors.Join(errs...)
}

// Detached is a container to be made by a Front.
type Detached struct {
	// Spec is the container, Seccomp its filter. Root.Path is its root file system, an
	// absolute path.
	Spec    *specs.Spec
	Seccomp []byte
	// Cgroup is where all its processes are.
	Cgroup Cgroup
	// Dir is a directory that only root can enter, for sockets that exist for a moment.
	Dir string
	// Stdio are the standard streams of its first process, Files those that it gets from
	// number 3 on.
	Stdio [3]*os.File
	Files []*os.File
	// Start is a FIFO, open for reading and writing: the program is executed when a
	// byte comes. Report is one, open for both, that takes failures until then and the
	// end of file when the program is executed; Reports is the same, open for reading.
	// Create closes them.
	Start, Report, Reports *os.File
	// Terminal, with Spec.Process.Terminal, takes the place of Stdio.
	Terminal *TerminalSize
	// KeepKeyring leaves it the caller's session keyring.
	KeepKeyring bool
	// Paused is called when the container's namespaces and mounts are there, and its
	// root directory is not yet its own. Nil: it does not pause there.
	Paused func(pid int) error
}

// Create builds the container up to the point where its program is executed when
// Start says so. The caller has made the cgroup. After an error no process is left;
// else the one that made it leaves, which Close waits for.
func (f *Front) Create(ctx context.Context, d Detached) (made Made, err error) {
	host := f.host
	host.Cgroups = d.Cgroup.all.mounts
	p, err := plan.For(plan.Input{
		Spec: d.Spec, Seccomp: d.Seccomp, Host: host, Terminal: planned(d.Terminal), Cgroup: d.Cgroup.path,
		Detached: &plan.Detached{
			Pipe: pipes3(d.Stdio), Files: len(d.Files), Pause: d.Paused != nil, KeepKeyring: d.KeepKeyring,
		},
	})
	if err != nil {
		return made, err
	}
	h, err := f.helper(d.Dir)
	if err != nil {
		return made, err
	}
	defer func() {
		if err != nil {
			err = h.end(err)
		} else {
			f.leaving = append(f.leaving, h)
		}
	}()
	d.Cgroup.all.keepLimits(h.pid) // it may have been started while the cgroup was made
	create, programs := requestOf(p)
	create.ID, create.Cgroup, create.Detached = path.Base(d.Dir), d.Cgroup.Group, &shim.Detached{Pause: d.Paused != nil}
	files := append(append(d.Stdio[:], d.Start, d.Report, d.Reports), d.Files...)
	if err := send(ctx, h.c, shim.Request{Method: shim.MethodCreate, Create: &create}, programs, files...); err != nil {
		return made, err
	}
	// If the container dies, its reports end: as soon as nobody else has them open.
	for _, fifo := range []*os.File{d.Start, d.Report, d.Reports} {
		_ = fifo.Close()
	}
	resp, given, err := receive(ctx, h.c)
	if err == nil && d.Paused != nil {
		if err = d.Paused(resp.State.Pid); err == nil {
			resp, given, err = exchange(ctx, h.c, shim.Request{Method: shim.MethodGo}, nil)
		}
	}
	if err == nil && (d.Terminal != nil) != (len(given) == 1) {
		err = errors.New("no terminal came")
	}
	if err != nil {
		return made, err
	}
	made = Made{Pid: resp.State.Pid, Warnings: resp.State.Warnings}
	if d.Terminal != nil {
		made.Terminal = given[0]
	}
	return made, nil
}

// Made is a container that a Front made.
type Made struct {
	Pid      int      // of its first process
	Warnings []string // as State.Warnings
	Terminal *os.File // the master of its terminal, if it has one
}

// Seccomp compiles the filter of a spec; nil if it has none. Errors: ErrUnsupported.
func Seccomp(s *specs.Spec) ([]byte, error) {
	if s.Linux == nil {
		return nil, nil
	}
	by := filters{kernel: seccomp.Kernel{X32: hasX32()}}
	return by.compile(s.Linux.Seccomp)
}

// pipes3 reports which of the files the process's user must own to open them again
// by their names in /dev.
func pipes3(files [3]*os.File) (pipe [3]bool) {
	for i, f := range files {
		info, err := f.Stat()
		pipe[i] = err == nil && info.Mode()&fs.ModeNamedPipe != 0
	}
	return pipe
}

// Inside is a further process for a container that a Front made.
type Inside struct {
	// Spec is that of the container, Seccomp its filter.
	Spec    *specs.Spec
	Seccomp []byte
	// Process is executed as it is: capabilities, user … are all its own. Or Hook, with
	// all capabilities.
	Process *specs.Process
	Hook    *specs.Hook
	HookDir string // where it begins
	Cgroup  cgroup.Group
	Init    *os.File // a descriptor of the container's first process
	Dir     string   // as in Detached
	// Terminal, with Process.Terminal, takes the place of Stdio.
	Terminal *TerminalSize
	Stdio    [3]*os.File
	Files    []*os.File
	// Leave does not wait for its end: it becomes a child of the next reaper.
	Leave bool
}

// Forked is a process that a Front made.
type Forked struct {
	Pid     int
	Process *os.File // a descriptor of it
	// Terminal is the master of its terminal, if it has one.
	Terminal *os.File
	h        *helper
}

// Exec executes a further process in a container and returns when it runs. Errors:
// ErrNoCommand; ErrNotExecutable; ErrUnsupported.
func (f *Front) Exec(ctx context.Context, in Inside) (*Forked, error) {
	var p *plan.Exec
	var err error
	if in.Hook != nil {
		p, err = plan.ForHook(in.Spec, in.Hook, in.HookDir)
	} else {
		p, err = plan.ForExec(plan.ExecInput{
			Spec: in.Spec, Process: in.Process, Seccomp: in.Seccomp, Pipe: pipes3(in.Stdio), Files: len(in.Files), Host: f.host, Terminal: planned(in.Terminal),
		})
	}
	if err != nil {
		return nil, err
	}
	h, err := f.helper(in.Dir)
	if err != nil {
		return nil, err
	}
	prepare := p.Prepare.Encode()
	req := shim.Request{Method: shim.MethodExec, Exec: &shim.Exec{
		Enter: p.Enter, Share: p.Share, Send: p.Send, Master: p.Master, Prepare: len(prepare), Once: &shim.Once{Cgroup: in.Cgroup, Leave: in.Leave},
	}}
	files := append(append(in.Stdio[:], in.Init), in.Files...)
	resp, given, err := exchange(ctx, h.c, req, p.Child.Append(prepare), files...)
	if want := map[bool]int{false: 1, true: 2}[in.Terminal != nil]; err == nil && len(given) != want {
		err = errors.New("no descriptor of the process, or of its terminal, came")
	}
	if err != nil {
		return nil, h.end(err)
	}
	forked := &Forked{Pid: resp.Pid, Process: given[0], h: h}
	if in.Terminal != nil {
		forked.Terminal = given[1]
	}
	if in.Leave {
		_, _, _ = receive(ctx, h.c) // the answer says nothing more; after it the process is its caller's
		f.leaving = append(f.leaving, h)
	}
	return forked, nil
}

// Wait returns the exit code, 128 + n if signal n ended it.
func (p *Forked) Wait(ctx context.Context) (int, error) {
	resp, _, err := receive(ctx, p.h.c)
	if err == nil && resp.ExitCode == nil {
		err = errors.New("no exit code came")
	}
	if err = p.h.end(err); err != nil {
		return 0, fmt.Errorf("wait for process %d: %w", p.Pid, err)
	}
	return *resp.ExitCode, nil
}

// Signal sends a signal to the process.
func (p *Forked) Signal(sig syscall.Signal) error {
	return unix.PidfdSendSignal(int(p.Process.Fd()), sig, nil, 0)
}

// helper is a process of the shim's program that does one thing.
type helper struct {
	c    *shim.Conn
	pid  int
	says *os.File // its stderr, in memory
}

// spawn starts a helper, whose socket is in dir for a moment.
func (f *Front) spawn(dir string) (h *helper, err error) {
	init, err := f.init()
	if err != nil {
		return nil, err
	}
	name := filepath.Join(dir, fmt.Sprintf("fork-%d.sock", os.Getpid()))
	listener, err := shim.Listen(name)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	c, err := shim.Dial(name)
	if err := errors.Join(err, os.Remove(name)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeConn(c)
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	fd, err := unix.MemfdCreate("stderr", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	says := os.NewFile(uintptr(fd), "stderr")
	var files []uintptr
	for _, file := range shimFiles(null, says, listener, init) {
		files = append(files, file.Fd())
	}
	// os.StartProcess would fork another process first, to see what the kernel can do.
	pid, err := syscall.ForkExec(initPath, []string{shim.Name}, &syscall.ProcAttr{
		Dir: "/", Env: shim.Env(), Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", shim.Name, err), says.Close())
	}
	return &helper{c: c, pid: pid, says: says}, nil
}

// end returns when the helper is gone: what it leaves behind belongs to the next
// reaper then. err is what happened with it; what it said is added.
func (h *helper) end(err error) error {
	closeConn(h.c)
	werr := reap(h.pid)
	if gone(err) {
		last, _ := io.ReadAll(io.LimitReader(io.NewSectionReader(h.says, 0, 4<<10), 4<<10))
		err = fmt.Errorf("%s ended: %w: %s", shim.Name, err, last)
	}
	if err == nil {
		err = werr
	}
	_ = h.says.Close()
	return err
}

// reap waits for a child of this process.
func reap(pid int) error {
	for {
		_, err := unix.Wait4(pid, nil, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("wait4", err)
		}
	}
}

// Cgroup is where the processes of a container are, by a path from the top of the
// hierarchies.
type Cgroup struct {
	cgroup.Group
	all  hierarchies
	path string
}

// CgroupAt returns the cgroup at an absolute path, whether it is there or not.
func CgroupAt(p string) (Cgroup, error) {
	clean := strings.Trim(path.Clean("/"+p), "/")
	if clean == "" || len(clean) > 2048 || strings.ContainsAny(p, "\x00\n") || slices.Contains(strings.Split(p, "/"), "..") {
		return Cgroup{}, fmt.Errorf("cgroup path %q is not one below the top", p)
	}
	h, err := findHierarchies()
	if err != nil {
		return Cgroup{}, err
	}
	return Cgroup{Group: h.group(clean), all: h, path: clean}, nil
}

// Below returns the cgroup with what is at path below it in its place, which must be
// there, in the hierarchies of these controllers; none: in all.
func (c Cgroup) Below(controllers []string, path string) (Cgroup, error) {
	move := func(dir string) (string, error) {
		dir = filepath.Join(dir, path)
		if there, err := isDir(dir); err != nil || !there {
			return dir, errors.Join(err, unix.ENOTDIR)
		}
		return dir, nil
	}
	below := c
	below.Dirs = slices.Clone(c.Dirs)
	if c.all.only2 || len(controllers) == 0 {
		var err error
		if below.Unified != "" {
			if below.Unified, err = move(below.Unified); err != nil && c.all.only2 {
				return c, err
			} else if err != nil {
				below.Unified = c.Unified // what uses version 1 makes none there
			}
		}
		for i := range below.Dirs {
			if below.Dirs[i], err = move(below.Dirs[i]); err != nil {
				return c, err
			}
		}
		return below, nil
	}
	for _, name := range controllers {
		i := slices.Index(c.Dirs, c.all.dir(c.path, name))
		if i < 0 {
			return c, fmt.Errorf("unknown controller %s", name)
		}
		var err error
		if below.Dirs[i], err = move(c.Dirs[i]); err != nil {
			return c, err
		}
	}
	return below, nil
}

// Make makes the cgroup with these limits. Errors: ErrUnsupported.
func (c Cgroup) Make(r *specs.LinuxResources) error {
	list, err := settings(c.all.only2, r, r)
	if err != nil {
		return err
	}
	rules, err := deviceRules(allowed(r))
	if err != nil {
		return err
	}
	return c.all.make(c.path, list, rules)
}

// allowed adds to the device rules of a configuration what every container may use:
// others write "deny all" and mean it so.
func allowed(r *specs.LinuxResources) *specs.LinuxResources {
	if r == nil || len(r.Devices) == 0 {
		return r
	}
	with := *r
	with.Devices = slices.Concat(r.Devices, defaultDeviceRules()[1:]) // without the first, "deny all"
	return &with
}

// Update changes the limits before, and returns all that hold then, and what undoes
// it. After an error none is changed. Errors: ErrUnsupported.
func (c Cgroup) Update(before, change *specs.LinuxResources) (whole *specs.LinuxResources, undo func() error, err error) {
	return c.all.update(c.path, before, change)
}

// Freeze freezes all processes, and returns when they are.
func (c Cgroup) Freeze(ctx context.Context) error { return freeze(ctx, c.Group) }

// Stats returns what the processes have used.
func (c Cgroup) Stats() Stats { return c.all.measure(c.path) }

// AwaitExec reads what the first process of a container that a Front made reports
// after its Start, and returns when it has executed its program, whose name is
// command. Errors: ErrNoCommand, ErrNotExecutable.
func AwaitExec(reports io.Reader, command string) error {
	b := make([]byte, call.ReportSize)
	for {
		if _, err := io.ReadFull(reports, b); err != nil {
			return nil //nolint:nilerr // the end says that it has, or that it was killed
		}
		errno, warning := call.ReportErrno(b)
		switch {
		case warning:
		case errno == unix.ENOENT || errno == unix.ENOTDIR:
			return fmt.Errorf("%w: exec %q: %w", ErrNoCommand, command, errno)
		default:
			return fmt.Errorf("%w: exec %q: %w", ErrNotExecutable, command, errno)
		}
	}
}
