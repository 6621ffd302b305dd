package plan

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// DefaultPath is where commands are looked for by a process without PATH.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lastSignal is the largest number of a signal (_NSIG).
const lastSignal = 64

// process adds what makes the child the process proc: everything between a built
// container and execve. With gate it reports when it is ready for that, and
// waits for the shim's word. root is the root directory, open.
func process(c *call.Program, proc *specs.Process, seccomp []byte, root call.Reg, gate bool) error {
	if err := checkProcess(proc); err != nil {
		return err
	}
	for i, fd := range []call.Reg{Stdin, Stdout, Stderr} {
		c.Call(unix.SYS_DUP3, call.Get(fd), call.Int(i), call.Int(0)).As("connect stdio")
	}
	// What the shim ignores, and who started the node: the fork resets only what Go
	// handles.
	for sig := 1; sig <= lastSignal; sig++ {
		if sig != int(unix.SIGKILL) && sig != int(unix.SIGSTOP) {
			c.Call(unix.SYS_RT_SIGACTION, call.Int(sig), call.Data(make([]byte, 32)), call.Int(0), call.Int(8))
		}
	}
	c.Call(unix.SYS_RT_SIGPROCMASK, call.Int(unix.SIG_SETMASK), call.Data(make([]byte, 8)), call.Int(0), call.Int(8))
	// Not the keys of who started the node. A kernel without keys is as good.
	c.Call(unix.SYS_KEYCTL, call.Int(unix.KEYCTL_JOIN_SESSION_KEYRING), call.Int(0)).On(call.Next, unix.ENOSYS).As("make a session keyring")

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

	filter := func() {
		c.Call(unix.SYS_SECCOMP, call.Int(unix.SECCOMP_SET_MODE_FILTER), call.Int(0), call.Filter(seccomp)).As("load the seccomp filter")
	}
	if len(seccomp) > 0 && !proc.NoNewPrivileges {
		filter() // needs the capabilities that go next
	}
	if err := identity(c, proc); err != nil {
		return err
	}
	if proc.NoNewPrivileges {
		c.Call(unix.SYS_PRCTL, call.Int(unix.PR_SET_NO_NEW_PRIVS), call.Int(1), call.Int(0), call.Int(0), call.Int(0)).As("set no_new_privs")
		if len(seccomp) > 0 {
			filter()
		}
	}
	if gate {
		c.Ready()
		wait(c)
	}
	c.Call(unix.SYS_CLOSE_RANGE, call.Int(3), call.Int(1<<32-1), call.Int(unix.CLOSE_RANGE_CLOEXEC)).As("close descriptors")
	execute(c, proc)
	return nil
}

// wait waits for a word from the shim, and fails if the shim is gone.
func wait(c *call.Program) {
	c.Call(unix.SYS_READ, call.Get(Sync), call.Data(make([]byte, 1)), call.Int(1)).AtLeast(1).As("wait for the shim")
}

// identity gives up capabilities and becomes the process's user.
func identity(c *call.Program, proc *specs.Process) error {
	caps := proc.Capabilities
	if caps == nil {
		caps = &specs.LinuxCapabilities{}
	}
	var sets [5]uint64
	for i, names := range [][]string{caps.Effective, caps.Permitted, caps.Inheritable, caps.Bounding, caps.Ambient} {
		for _, name := range names {
			n := slices.Index(capabilities, name)
			if n < 0 {
				return fmt.Errorf("unknown capability %q", name)
			}
			sets[i] |= 1 << n
		}
	}
	effective, permitted, inheritable, bounding, ambient := sets[0], sets[1], sets[2], sets[3], sets[4]
	known := c.Label()
	for n := range 64 {
		if bounding&(1<<n) == 0 {
			c.Call(unix.SYS_PRCTL, call.Int(unix.PR_CAPBSET_DROP), call.Int(n), call.Int(0), call.Int(0), call.Int(0)).
				On(known, unix.EINVAL).As("drop a capability from the bounding set") // beyond the last one
		}
	}
	c.Place(known)
	c.Call(unix.SYS_PRCTL, call.Int(unix.PR_SET_KEEPCAPS), call.Int(1), call.Int(0), call.Int(0), call.Int(0))
	var groups []byte
	for _, g := range proc.User.AdditionalGids {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	user := proc.User
	c.Call(unix.SYS_SETGROUPS, call.Int(len(user.AdditionalGids)), call.Data(groups)).As("set supplementary groups")
	c.Call(unix.SYS_SETRESGID, call.Int(int(user.GID)), call.Int(int(user.GID)), call.Int(int(user.GID))).As(fmt.Sprintf("become group %d", user.GID))
	c.Call(unix.SYS_SETRESUID, call.Int(int(user.UID)), call.Int(int(user.UID)), call.Int(int(user.UID))).As(fmt.Sprintf("become user %d", user.UID))
	header := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	header = binary.NativeEndian.AppendUint32(header, 0)
	var data []byte
	for shift := 0; shift < 64; shift += 32 {
		for _, set := range []uint64{effective, permitted, inheritable} {
			data = binary.NativeEndian.AppendUint32(data, uint32(set>>shift))
		}
	}
	c.Call(unix.SYS_CAPSET, call.Data(header), call.Data(data)).As("set capabilities")
	for n := range 64 {
		if ambient&(1<<n) != 0 {
			c.Call(unix.SYS_PRCTL, call.Int(unix.PR_CAP_AMBIENT), call.Int(unix.PR_CAP_AMBIENT_RAISE), call.Int(n), call.Int(0), call.Int(0)).
				As("raise ambient capability " + capabilities[n])
		}
	}
	return nil
}

// execute executes the process's command, looked for in its PATH as execvp(3)
// does: a file that may not be executed counts only if there is no other.
func execute(c *call.Program, proc *specs.Process) {
	args, env := c.List(proc.Args), c.List(proc.Env)
	name := proc.Args[0]
	if strings.Contains(name, "/") {
		c.Call(unix.SYS_EXECVE, call.Str(name), args, env).Command().As("execute " + name)
		return
	}
	search := DefaultPath
	for _, kv := range proc.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	dirs := strings.Split(search, ":")
	if name == "" {
		dirs = nil
	}
	for pass := range 2 {
		for _, dir := range dirs {
			if dir == "" {
				dir = "."
			}
			op := c.Call(unix.SYS_EXECVE, call.Str(dir+"/"+name), args, env).On(call.Next, unix.ENOENT, unix.ENOTDIR).Command().As("execute " + dir + "/" + name)
			if pass == 0 {
				op.On(call.Next, unix.EACCES)
			}
		}
	}
	c.Fail(unix.ENOENT).Command().As(fmt.Sprintf("find %q in PATH", name))
}

// Exec is the plan of a further process of a container.
type Exec struct {
	OOM     *int
	Enter   []int // CLONE_NEW* of namespaces that the shim enters for the fork
	Prepare *call.Program
	Child   *call.Program
}

// ForExec makes the plan of a process of the container with this spec. pipe says
// which of its stdio are pipes. Errors: ErrUnsupported.
func ForExec(s *specs.Spec, proc *specs.Process, seccomp []byte, pipe [3]bool) (*Exec, error) {
	if err := checkProcess(proc); err != nil {
		return nil, err
	}
	ns, err := namespacesOf(s)
	if err != nil {
		return nil, err
	}
	if hostID(s.Linux.UIDMappings, proc.User.UID) < 0 || hostID(s.Linux.GIDMappings, proc.User.GID) < 0 {
		return nil, fmt.Errorf("user %d:%d is outside of the container's user namespace", proc.User.UID, proc.User.GID)
	}
	parent, child := call.New(parentRegs), call.New(childRegs)
	adopt(parent, proc, s.Linux.UIDMappings, s.Linux.GIDMappings, pipe)

	wait(child) // until it is in the container's cgroup
	var enter []int
	if ns.flags&unix.CLONE_NEWPID != 0 {
		enter = append(enter, unix.CLONE_NEWPID) // concerns children only
	}
	if ns.netPath != "" {
		enter = append(enter, unix.CLONE_NEWNET) // belongs to the node, not to the container's user namespace
	}
	child.Call(unix.SYS_SETNS, call.Get(Init), call.Int(int(ns.flags&^unix.CLONE_NEWPID))).As("enter the container's namespaces")
	child.Call(unix.SYS_SETSID).As("begin a session")
	root := child.Reg()
	child.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/"), call.Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC), call.Int(0)).To(root).
		As("open the container's root directory")
	if err := process(child, proc, seccomp, root, false); err != nil {
		return nil, err
	}
	if err := child.Check(); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	return &Exec{OOM: proc.OOMScoreAdj, Enter: enter, Prepare: parent, Child: child}, nil
}
