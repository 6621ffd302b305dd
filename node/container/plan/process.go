package plan

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
	"berth.internal/node/container/seccomp"
)

// DefaultPath is where commands are looked for by a process without PATH.
const DefaultPath = call.DefaultPath

// lastSignal is the largest number of a signal (_NSIG).
const lastSignal = 64

// launch says how a process begins.
type launch struct {
	proc        *specs.Process
	seccomp     []byte
	flags       int     // SECCOMP_FILTER_FLAG_*
	labels      []label // see labels
	caps        uint64  // capabilities that can be given
	linux       *specs.Linux
	root        call.Reg // the root directory, open
	gate        func()   // adds what it waits for before execve; nil: nothing
	files       int      // descriptors it gets from number 3 on, in registers from childRegs on
	keepKeyring bool
	init        call.Reg // the program that is to execute the process's command; 0: none
	terminal    call.Reg // its stdio, which is this then; 0: registers Stdin, Stdout and Stderr are
}

// process adds what makes the child the process of l: everything between a built
// container and execve.
func process(c *call.Program, l launch) error {
	proc, root := l.proc, l.root
	if err := checkProcess(proc); err != nil {
		return err
	}
	stdioAndSignals(c, l.terminal)
	// Not the keys of who started the node. A kernel without keys is as good.
	if !l.keepKeyring {
		c.Call(unix.SYS_KEYCTL, call.Int(unix.KEYCTL_JOIN_SESSION_KEYRING), call.Int(0)).On(call.Next, unix.ENOSYS).As("make a session keyring")
	}

	cwd := c.Reg()
	what := "enter working directory " + proc.Cwd
	c.Call(unix.SYS_OPENAT2, call.Get(root), call.Str("."+proc.Cwd),
		openHow(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS), call.Int(sizeofOpenHow)).To(cwd).As(what)
	c.Call(unix.SYS_FCHDIR, call.Get(cwd)).As(what)
	umask := 0o022
	if proc.User.Umask != nil {
		umask = int(*proc.User.Umask)
	}
	c.Call(unix.SYS_UMASK, call.Int(umask))

	if err := personality(c, l.linux.Personality); err != nil {
		return err
	}
	if err := memoryPolicy(c, l.linux.MemoryPolicy); err != nil {
		return err
	}
	apply(c, l.labels)
	for i := range l.files {
		c.Call(unix.SYS_DUP3, call.Get(childRegs+call.Reg(i)), call.Int(3+i), call.Int(0)).As("pass descriptors on")
	}
	status := Status
	if l.init != 0 {
		l.init, status = above(c, l.init), above(c, Status)
	}
	// Before a filter that does not know the call; nothing that follows leaves a
	// descriptor open.
	c.Call(unix.SYS_CLOSE_RANGE, call.Int(3+l.files), call.Int(1<<32-1), call.Int(unix.CLOSE_RANGE_CLOEXEC)).As("close descriptors")
	lowerFiles(c, proc)
	filter := func() {
		what := "load the seccomp filter"
		if flags := l.linux.Seccomp; l.flags != 0 && flags != nil {
			what += fmt.Sprintf(" with flags %s", flags.Flags) // which the kernel may not know
		}
		c.Call(unix.SYS_SECCOMP, call.Int(unix.SECCOMP_SET_MODE_FILTER), call.Int(l.flags), call.Filter(l.seccomp)).As(what)
	}
	if len(l.seccomp) > 0 && !proc.NoNewPrivileges {
		filter() // needs the capabilities that go next
	}
	identity(c, proc, l.caps)
	if proc.NoNewPrivileges {
		c.Call(unix.SYS_PRCTL, call.Int(unix.PR_SET_NO_NEW_PRIVS), call.Int(1), call.Int(0), call.Int(0), call.Int(0)).As("set no_new_privs")
		if len(l.seccomp) > 0 {
			filter()
		}
	}
	if l.gate != nil {
		l.gate()
	}
	if l.init != 0 {
		c.ExecuteInit(l.init, status, proc.Args, proc.Env)
		return nil
	}
	c.Execute(proc.Args, proc.Env)
	return nil
}

// above returns a register with a copy of a descriptor, whose number is none that an
// init is given.
func above(c *call.Program, r call.Reg) call.Reg {
	to := c.Reg()
	c.Call(unix.SYS_FCNTL, call.Get(r), call.Int(unix.F_DUPFD_CLOEXEC), call.Int(call.InitStatus+1)).To(to).As("prepare the container's init")
	return to
}

// wait waits for a word from the shim, or whoever may give it, and fails if the
// shim is gone.
func wait(c *call.Program, from call.Reg) {
	c.Call(unix.SYS_READ, call.Get(from), call.Data(make([]byte, 1)), call.Int(1)).AtLeast(1).As("wait for the shim")
}

// stdioAndSignals connects the standard streams, or a terminal if that is not 0, and
// sets all signals to what they do by default.
func stdioAndSignals(c *call.Program, terminal call.Reg) {
	for i, fd := range []call.Reg{Stdin, Stdout, Stderr} {
		if terminal != 0 {
			fd = terminal
		}
		c.Call(unix.SYS_DUP3, call.Get(fd), call.Int(i), call.Int(0)).As("connect stdio")
	}
	if terminal != 0 {
		c.Call(unix.SYS_IOCTL, call.Int(0), call.Int(unix.TIOCSCTTY), call.Int(0)).As("make the terminal that of the session")
	}
	// What the shim ignores, and who started the node: the fork resets only what Go
	// handles.
	for sig := 1; sig <= lastSignal; sig++ {
		if sig != int(unix.SIGKILL) && sig != int(unix.SIGSTOP) {
			c.Call(unix.SYS_RT_SIGACTION, call.Int(sig), call.Data(make([]byte, 32)), call.Int(0), call.Int(8))
		}
	}
	c.Call(unix.SYS_RT_SIGPROCMASK, call.Int(unix.SIG_SETMASK), call.Data(make([]byte, 8)), call.Int(0), call.Int(8))
}

// lookUp fails if the process's command cannot be there, before anybody relies on
// the process. What execve says later is what counts.
func lookUp(c *call.Program, proc *specs.Process) {
	found := c.Label()
	names, what := []string{proc.Args[0]}, "exec: "+strconv.Quote(proc.Args[0])
	if !strings.Contains(proc.Args[0], "/") {
		names = nil
		for _, dir := range call.SearchPath(proc.Env) {
			names = append(names, dir+"/"+proc.Args[0])
		}
		what += ": executable file not found in $PATH" // the words that podman looks for
	}
	denied := c.Label()
	for pass := range 2 {
		for _, name := range names {
			op := c.Call(unix.SYS_FACCESSAT2, call.Int(unix.AT_FDCWD), call.Str(name), call.Int(unix.X_OK), call.Int(unix.AT_EACCESS)).
				On(call.Next, unix.ENOENT, unix.ENOTDIR).Then(found)
			if pass == 0 {
				op.On(call.Next, unix.EACCES)
			} else {
				op.On(denied, unix.EACCES)
			}
			op.On(found, 0) // a filter may refuse the question
		}
	}
	c.Fail(unix.ENOENT).Command().As(what)
	c.Place(denied)
	c.Fail(unix.EACCES).Command().As(what)
	c.Place(found)
}

// Exec is the plan of a further process of a container.
type Exec struct {
	Enter   []int // CLONE_NEW* of namespaces that the shim enters for the fork
	Share   bool  // see call.Fork
	Prepare *call.Program
	Send    []call.Reg // of Prepare, what the child receives instead of a word
	Master  call.Reg   // of Prepare: the terminal; 0: none
	Child   *call.Program
}

// ExecInput is what the plan of a further process is made from.
type ExecInput struct {
	Spec    *specs.Spec // of the container
	Process *specs.Process
	Seccomp []byte
	Host    Host
	Pipe    [3]bool // which of its stdio are pipes
	Files   int     // descriptors that it gets from number 3 on
	// Terminal is the size of the terminal that its stdio is, nil if it has none.
	Terminal *Terminal
}

// ForExec makes the plan of a further process. Errors: ErrUnsupported.
func ForExec(in ExecInput) (*Exec, error) {
	s, proc := in.Spec, in.Process
	if err := checkProcess(proc); err != nil {
		return nil, err
	}
	if err := needTerminal(proc, in.Terminal, s.Mounts); err != nil {
		return nil, err
	}
	ns, err := namespacesOf(s)
	if err != nil {
		return nil, err
	}
	if err := inMappings(s, proc.User); err != nil {
		return nil, err
	}
	parent, child := call.New(parentRegs), call.New(childRegs+call.Reg(in.Files))
	giveStdio(parent, proc, s.Linux.UIDMappings, s.Linux.GIDMappings, in.Pipe)
	where, err := affinityOf(proc, s.Process)
	if err != nil {
		return nil, err
	}
	where.initial(child)

	lsm, err := labels(child, in.Host, proc)
	if err != nil {
		return nil, err
	}
	flags, err := seccomp.Flags(s.Linux.Seccomp)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	exec := &Exec{Enter: ns.enter(), Share: ns.shares(), Prepare: parent, Child: child}
	l := launch{proc: proc, seccomp: in.Seccomp, flags: flags, labels: lsm, caps: in.Host.caps(ns), linux: s.Linux, files: in.Files}
	// The shim of an earlier version gives the word after the fork, this one before it.
	if in.Terminal != nil {
		var peer call.Reg
		exec.Master, peer = openTerminal(parent, Devpts, *in.Terminal, hostID(s.Linux.UIDMappings, proc.User.UID))
		exec.Send = []call.Reg{peer}
		l.terminal = child.Reg()
		child.Receive(Sync, l.terminal, 1).As("receive the terminal from the shim")
	} else {
		wait(child, Sync)
	}
	where.final(child)
	if err := resources(child, call.Int(0), proc); err != nil {
		return nil, err
	}
	adjustOOM(child, proc.OOMScoreAdj)
	child.Call(unix.SYS_SETNS, call.Get(Init), call.Int(ns.inside())).As("enter the container's namespaces")
	child.Call(unix.SYS_SETSID).As("begin a session")
	l.root = child.Reg()
	child.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/"), call.Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC), call.Int(0)).To(l.root).
		As("open the container's root directory")
	if err := process(child, l); err != nil {
		return nil, err
	}
	if err := child.Check(); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	return exec, nil
}

// adjustOOM adds what sets how readily the kernel kills the process that makes the calls.
// To lower it needs a capability that the node may not have.
func adjustOOM(c *call.Program, score *int) {
	if score == nil {
		return
	}
	text := strconv.Itoa(*score)
	what := "set oom_score_adj to " + text
	file := c.Reg()
	c.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/proc/self/oom_score_adj"), call.Int(unix.O_WRONLY|unix.O_CLOEXEC), call.Int(0)).To(file).As(what)
	c.Call(unix.SYS_WRITE, call.Get(file), call.Str(text), call.Int(len(text))).Warn().As(what)
	c.Call(unix.SYS_CLOSE, call.Get(file))
}

// ForHook makes the plan of a hook that runs in the namespaces of the container with
// this spec, with all the capabilities that these have to give. It begins in dir, or
// in the root directory if that cannot be entered.
func ForHook(s *specs.Spec, hook *specs.Hook, dir string) (*Exec, error) {
	ns, err := namespacesOf(s)
	if err != nil {
		return nil, err
	}
	parent, child := call.New(parentRegs), call.New(childRegs)
	wait(child, Sync) // as in ForExec
	child.Call(unix.SYS_SETNS, call.Get(Init), call.Int(ns.inside())).As("enter the container's namespaces")
	child.Call(unix.SYS_SETSID).As("begin a session")
	if ns.user {
		child.Call(unix.SYS_SETRESGID, call.Int(0), call.Int(0), call.Int(0)).As("become group 0 of the user namespace")
		child.Call(unix.SYS_SETRESUID, call.Int(0), call.Int(0), call.Int(0)).As("become user 0 of the user namespace")
	}
	stdioAndSignals(child, 0)
	child.Call(unix.SYS_CHDIR, call.Str("/")).As("enter the root directory")
	child.Call(unix.SYS_CHDIR, call.Str(dir)).On(call.Next, 0)
	child.Call(unix.SYS_UMASK, call.Int(0o022))
	child.Call(unix.SYS_CLOSE_RANGE, call.Int(3), call.Int(1<<32-1), call.Int(unix.CLOSE_RANGE_CLOEXEC)).As("close descriptors")
	args := hook.Args
	if len(args) == 0 {
		args = []string{hook.Path}
	}
	child.Call(unix.SYS_EXECVE, call.Str(hook.Path), child.List(args), child.List(hook.Env)).Command().As("execute hook " + hook.Path)
	if err := child.Check(); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	return &Exec{Enter: ns.enter(), Share: ns.shares(), Prepare: parent, Child: child}, nil
}
