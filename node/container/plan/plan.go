// Package plan turns a container in the terms of OCI runtime-spec 1.3 into
// system calls, in the order in which they are made. It looks at nothing but its
// arguments, so the same container gives the same plan on any machine, and
// tests need no privileges.
//
// The calls are made by the container's shim: a first program in the shim
// itself, with the node's privileges, makes what needs them (the root file
// system, devices, binds) as mounts that are attached nowhere; a second one in
// the forked child builds the container from these and from what its own
// namespaces allow it. When the child touches the first path inside of the root
// file system, the node's file system is already gone from its view.
package plan

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
	"berth.internal/node/container/seccomp"
)

// ErrUnsupported is wrapped by errors about what a spec asks for and berth does
// not do.
var ErrUnsupported = errors.New("not supported")

func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrUnsupported)...)
}

// Registers that the shim sets before it runs a program.
const (
	Stdin  call.Reg = iota // the container's ends of its stdio
	Stdout                 //
	Stderr                 //

	// Of the child.
	Sync   // socket to the shim: descriptors, and the word to go on
	Status // pipe to the shim: call.Report
	Init   // of Exec only: descriptor of the container's first process
	// Of it, and of a detached container, follow the descriptors for the process.

	childRegs
)

// Go is of a detached container: the FIFO that start writes to.
const Go = Init

// More registers of the program that the shim itself runs.
const (
	Child      = Sync   // number of the child
	UserNS     = Status // the child's user namespace
	NetNS      = Init   // network namespace of Linux.Namespaces with a path
	ChildFD    = Init + 1
	IPCNS      = Init + 2 // as NetNS; so these:
	CgroupNS   = Init + 3
	TimeNS     = Init + 4
	Proc       = Init + 5 // directory /proc/<child>, if Create.Proc
	Devpts     = UserNS   // of Exec with a terminal: what Create.Devpts was
	parentRegs = Proc + 1
)

// Rootfs is an overlay of directories.
type Rootfs struct {
	Lowers []string `json:"lowers,omitempty"` // read-only layers, the bottom one first; one at least
	Upper  string   `json:"upper,omitempty"`  // takes what the container writes; "": it cannot write
	Work   string   `json:"work,omitempty"`   // empty directory on the file system of Upper
}

// Input is what a plan is made from.
type Input struct {
	Spec    *specs.Spec
	Rootfs  Rootfs
	Stdin   bool   // standard input is a pipe
	Seccomp []byte // Spec.Linux.Seccomp as BPF instructions
	Host    Host
	// Terminal is the size of the terminal that is standard input and output, nil if
	// these are pipes.
	Terminal *Terminal
	// Init makes the shim's program the first process, which executes the command.
	Init bool
	// Cgroup is the path of the container's cgroup below the top of each hierarchy: all
	// that a container without a cgroup namespace of its own sees. "": it sees the node's.
	Cgroup string
	// Detached is a container that is left to its caller: the descriptors it gets
	// come from there, as does the word to start, and the root file system is
	// Spec.Root.Path as it is on disk. Nil: it has a shim.
	Detached *Detached
}

// Detached says what is different if a container has no shim.
type Detached struct {
	Pipe  [3]bool // which of its stdio are pipes, or a terminal
	Files int     // descriptors that its process gets from number 3 on
	// Pause stops the child where hooks want to look at it: all is mounted at the
	// root file system's path, and that is not the root directory yet.
	Pause bool
	// KeepKeyring leaves it the session keyring of its caller.
	KeepKeyring bool
}

// Host is what a plan needs to know of the node.
type Host struct {
	Cgroups []Cgroup // hierarchies, for mounts of type cgroup
	// OverlayByName says that the kernel takes the layers of an overlay by name
	// only, not by descriptor (before Linux 6.13).
	OverlayByName bool
	// SignedIDs says that devpts reads numbers of groups as signed ones, of 64 bits
	// that must fit into 32 (before Linux 6.14).
	SignedIDs bool
	// AppArmor and SELinux say which security modules the kernel runs.
	AppArmor, SELinux bool
	// Kernel is its version, such as 6 and 14.
	Kernel [2]int
	// NoCaps are capabilities that the node's own processes do not have, bit by number.
	// A container without a user namespace cannot have them either.
	NoCaps uint64
	// NoNamespaces are CLONE_NEW* that the kernel does not have.
	NoNamespaces uint64
	// Dir reports whether the source of a bind is a directory.
	Dir func(path string) (bool, error)
}

// caps returns the capabilities that can be given to a process in ns.
func (h Host) caps(ns namespaces) uint64 {
	if ns.user {
		return ^uint64(0)
	}
	return ^h.NoCaps
}

// Cgroup is a mounted hierarchy. Controllers are the options that mount it;
// none at all for version 2.
type Cgroup struct {
	Name        string // directory below /sys/fs/cgroup; "" if it is mounted there itself
	Controllers []string
}

// Create is the plan of a container.
type Create struct {
	Flags   uint64 // of clone3
	UIDMap  string // for /proc/<child>/uid_map; "": no user namespace
	GIDMap  string
	NetNS   string  // path of the network namespace to enter; "": none
	Join    []Join  // further namespaces to enter
	Proc    bool    // Prepare needs the child's directory of /proc
	Users   []Users // user namespaces that Prepare needs, in registers after all others
	OOM     *int    // for /proc/<child>/oom_score_adj
	Prepare *call.Program
	Send    []call.Reg // of Prepare, what the child receives
	Null    call.Reg   // of Prepare, the container's /dev/null, open; 0: none
	// Devpts, of Prepare, is the file system of the container's terminals, and Master
	// and Peer are the ends of the one that it has. 0: none.
	Devpts, Master, Peer call.Reg
	Child                *call.Program
}

// For makes the plan of a container. Errors: ErrUnsupported.
func For(in Input) (*Create, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	ns, err := namespacesOf(in.Spec)
	if err != nil {
		return nil, err
	}
	for _, n := range in.Spec.Linux.Namespaces {
		if cloneFlags[n.Type]&in.Host.NoNamespaces != 0 {
			return nil, unsupported("%s namespace on this kernel", n.Type)
		}
	}
	users, err := mountUsers(in.Spec)
	if err != nil {
		return nil, err
	}
	b := &builder{
		Input: in, ns: ns, spec: in.Spec,
		users: users, parent: call.New(parentRegs + call.Reg(len(users))), child: call.New(childRegs + call.Reg(in.files())),
	}
	if err := b.build(); err != nil {
		return nil, err
	}
	if err := errors.Join(b.parent.Check(), b.child.Check()); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	create := &Create{
		Flags: ns.flags &^ unix.CLONE_NEWCGROUP, NetNS: ns.netPath, Join: ns.join, OOM: in.Spec.Process.OOMScoreAdj,
		Prepare: b.parent, Send: b.send, Null: b.null, Child: b.child, Devpts: b.devpts, Master: b.master, Peer: b.peer,
	}
	for _, maps := range users {
		create.Users = append(create.Users, Users{UIDMap: maps.uids, GIDMap: maps.gids})
	}
	if ns.offsets != "" {
		create.Flags &^= unix.CLONE_NEWTIME // the child makes it: with its first process in it, no offset can be set any more
		create.Proc = true
	}
	if ns.flags&unix.CLONE_NEWUSER != 0 {
		create.UIDMap, create.GIDMap = idMap(in.Spec.Linux.UIDMappings), idMap(in.Spec.Linux.GIDMappings)
	}
	return create, nil
}

// Users are the mappings of a user namespace, for mounts.
type Users struct {
	UIDMap string `json:"uid_map"`
	GIDMap string `json:"gid_map"`
}

// builder makes both programs side by side.
type builder struct {
	Input
	ns                   namespaces
	spec                 *specs.Spec
	parent               *call.Program
	child                *call.Program
	send                 []call.Reg        // registers of parent …
	base                 call.Reg          // … that become this register of child, and those after it
	root                 call.Reg          // of child: the root directory
	dev                  call.Reg          // of child: the file system of /dev
	time                 call.Reg          // of child: see giveTime
	null                 call.Reg          // of parent: /dev/null, open …
	nullHere             call.Reg          // … and of child
	terminal             call.Reg          // of child: its terminal; 0: none
	init                 call.Reg          // of child: the shim's program; 0: none
	devpts, master, peer call.Reg          // of parent: see Create
	bound                map[int][]mounted // made by the shim, by the index of the spec's mount
	users                []idMaps          // of mounts; their user namespaces are in parent's registers from parentRegs on
	devKind              int               // devOwn, devBound or devNone
	nodes                []mounted         // of child: devices that are mounts of their own
	nulls                []call.Reg        // of child: a /dev/null for each masked path; nil: there is one in dev
	mounts               []mounted
	seal                 []mounted // to be made read-only when all is mounted
	at                   call.Reg  // of child: for steps that open something …
	next                 call.Reg  // … and something else
}

// mounted is a mount on its way to its place: in the child, attached nowhere
// yet.
type mounted struct {
	reg       call.Reg
	dest      string
	dir       bool // the target is a directory, otherwise a file
	noSymlink bool // the target must be there itself

	like   bool   // it gets the mode of the target …
	copyUp bool   // … and shows what is in it
	attrs  uint64 // MOUNT_ATTR_* of what copyUp makes
}

func (b *builder) build() error {
	// What is sent is known only after the mounts were seen, but received first.
	b.base = b.child.Regs(b.mostSent())
	b.at, b.next = b.child.Reg(), b.child.Reg()
	if err := b.limits(); err != nil {
		return err
	}
	b.enterIDs()
	if err := b.rootfs(); err != nil {
		return err
	}
	if err := b.devices(); err != nil {
		return err
	}
	if err := b.binds(); err != nil {
		return err
	}
	if err := b.terminals(); err != nil {
		return err
	}
	b.leaveIDs()
	if b.Init {
		b.giveInit()
	}
	if err := b.foreignMounts(); err != nil {
		return err
	}
	b.giveTime()

	lsm, err := labels(b.child, b.Host, b.spec.Process)
	if err != nil {
		return err
	}
	flags, err := seccomp.Flags(b.spec.Linux.Seccomp)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	b.begin()
	if err := b.kernelMounts(); err != nil {
		return err
	}
	if b.Detached != nil && b.Detached.Pause {
		b.pause()
	} else {
		b.attachRoot("/proc") // a directory on every node; that it was covered ends with the old root
		b.pivot()
		b.attachMounts()
	}
	b.console()
	if err := b.network(); err != nil {
		return err
	}
	if err := b.sysctls(); err != nil {
		return err
	}
	b.readonlyPaths()
	b.maskedPaths()
	b.makeDir(b.spec.Process.Cwd)
	b.spreadRoot()
	if b.spec.Root != nil && b.spec.Root.Readonly {
		b.child.Call(unix.SYS_MOUNT_SETATTR, call.Get(b.root), call.Str(""), call.Int(unix.AT_EMPTY_PATH),
			mountAttr(unix.MOUNT_ATTR_RDONLY, 0, 0), call.Int(sizeofMountAttr)).As("make the root file system read-only")
	}
	b.hostnames()
	if !b.Stdin && b.Detached == nil && !b.spec.Process.Terminal {
		b.child.Call(unix.SYS_DUP3, call.Get(b.nullHere), call.Get(Stdin), call.Int(unix.O_CLOEXEC)).As("connect stdin")
	}
	l := b.launch()
	l.labels, l.flags, l.caps, l.linux = lsm, flags, b.Host.caps(b.ns), b.spec.Linux
	return process(b.child, l)
}

// launch says how the container's first process begins.
func (b *builder) launch() launch {
	l := launch{proc: b.spec.Process, seccomp: b.Seccomp, root: b.root, terminal: b.terminal, init: b.init, gate: func() {
		b.child.Ready()
		wait(b.child, Sync)
	}}
	if d := b.Detached; d != nil {
		l.files, l.keepKeyring = d.Files, d.KeepKeyring
		l.gate = func() {
			lookUp(b.child, b.spec.Process)
			b.child.Ready()
			wait(b.child, Go)
		}
	}
	return l
}

// files counts the descriptors that the process gets from number 3 on.
func (in *Input) files() int {
	if in.Detached == nil {
		return 0
	}
	return in.Detached.Files
}

// mostSent is how many registers the child receives at most.
func (b *builder) mostSent() int {
	n := 6 + len(b.spec.Mounts) // root, /dev, /dev/null, the time namespace, the terminal, the init
	for _, m := range b.spec.Mounts {
		if m.Type == "cgroup" || m.Type == "cgroup2" {
			n += len(b.Host.Cgroups)
		}
	}
	return n + len(b.spec.Linux.Devices) + len(defaultDevices()) + len(b.spec.Linux.MaskedPaths) // see cloneDevices
}

// giveInit gives the child the program of the shim itself.
func (b *builder) giveInit() {
	r := b.parent.Reg()
	b.parent.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/proc/self/exe"), call.Int(unix.O_PATH|unix.O_CLOEXEC), call.Int(0)).To(r).
		As("open the shim's own program")
	b.init = b.give(r)
}

// give makes the child receive r of the parent's program, and returns its
// register there.
func (b *builder) give(r call.Reg) call.Reg {
	b.send = append(b.send, r)
	return b.base + call.Reg(len(b.send)-1)
}

// begin is the child's start, up to the point where its ids are what they will
// be while it builds.
func (b *builder) begin() {
	c := b.child
	for i := 0; i < len(b.send); i += call.MaxReceive {
		c.Receive(Sync, b.base+call.Reg(i), min(len(b.send)-i, call.MaxReceive)).As("receive the container's parts from the shim")
	}
	if b.ns.user {
		c.Call(unix.SYS_SETRESGID, call.Int(0), call.Int(0), call.Int(0)).As("become group 0 of the user namespace")
		c.Call(unix.SYS_SETRESUID, call.Int(0), call.Int(0), call.Int(0)).As("become user 0 of the user namespace")
	}
	resetAffinity(c)
	c.Call(unix.SYS_SETSID).As("begin a session")
	c.Call(unix.SYS_UMASK, call.Int(0))
	if b.ns.flags&unix.CLONE_NEWCGROUP != 0 {
		c.Call(unix.SYS_UNSHARE, call.Int(unix.CLONE_NEWCGROUP)).As("make the cgroup namespace")
	}
	b.enterTime()
	c.Call(unix.SYS_MOUNT_SETATTR, call.Int(unix.AT_FDCWD), call.Str("/"), call.Int(unix.AT_RECURSIVE),
		mountAttr(0, 0, unix.MS_PRIVATE), call.Int(sizeofMountAttr)).As("make all mounts private")
}

// attachRoot attaches the root file system somewhere, which must be before it can
// be the root.
func (b *builder) attachRoot(at string) *call.Op {
	return b.child.Call(unix.SYS_MOVE_MOUNT, call.Get(b.root), call.Str(""), call.Int(unix.AT_FDCWD), call.Str(at),
		call.Int(unix.MOVE_MOUNT_F_EMPTY_PATH)).As("attach the root file system at " + at)
}

func (b *builder) attachMounts() {
	for _, m := range b.mounts {
		b.attach(m)
	}
	b.attachDevices()
}

// pause lets hooks see the container before it has its root directory: at its
// place on the node, or where the user namespace's root may not go, at /sys.
// All mounts are attached beneath the root's descriptor in any case.
func (b *builder) pause() {
	c := b.child
	hidden, attached := c.Label(), c.Label()
	b.attachRoot(b.spec.Root.Path).On(hidden, unix.EACCES).Then(attached)
	c.Place(hidden)
	b.attachRoot("/sys") // not at /proc, which hooks need
	c.Place(attached)
	b.attachMounts()
	c.Ready()
	wait(c, Sync)
	b.pivot()
}

// pivot makes the root file system the root directory and lets go of the node's.
func (b *builder) pivot() {
	c := b.child
	c.Call(unix.SYS_FCHDIR, call.Get(b.root)).As("enter the root file system")
	c.Call(unix.SYS_PIVOT_ROOT, call.Str("."), call.Str(".")).As("make it the root")
	c.Call(unix.SYS_UMOUNT2, call.Str("."), call.Int(unix.MNT_DETACH)).As("let go of the node's root")
	c.Call(unix.SYS_CHDIR, call.Str("/")).As("enter the new root")
}

// hostnames sets the names of the UTS namespace.
func (b *builder) hostnames() {
	if name := b.spec.Hostname; name != "" {
		b.child.Call(unix.SYS_SETHOSTNAME, call.Str(name), call.Int(len(name))).As("set the hostname to " + name)
	}
	if name := b.spec.Domainname; name != "" {
		b.child.Call(unix.SYS_SETDOMAINNAME, call.Str(name), call.Int(len(name))).As("set the domain name to " + name)
	}
}

// sysctls sets those that belong to the container's namespaces.
func (b *builder) sysctls() error {
	var keys []string
	for k := range b.spec.Linux.Sysctl {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if len(keys) == 0 {
		return nil
	}
	proc := slices.IndexFunc(b.mounts, func(m mounted) bool { return m.dest == "/proc" })
	if proc < 0 {
		return unsupported("sysctls of a container without a mount at /proc")
	}
	for _, k := range keys {
		if err := b.ns.owns(k, b.Host.Kernel); err != nil {
			return err
		}
		f := b.child.Reg()
		value := b.spec.Linux.Sysctl[k]
		what := "set sysctl " + k + " to " + value
		name := "sys/" + sysctlPath(k)
		b.child.Call(unix.SYS_OPENAT2, call.Get(b.mounts[proc].reg), call.Str(name),
			openHow(unix.O_WRONLY|unix.O_CLOEXEC, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS), call.Int(sizeofOpenHow)).To(f).As(what)
		b.child.Call(unix.SYS_WRITE, call.Get(f), call.Str(value), call.Int(len(value))).As(what)
		b.child.Call(unix.SYS_CLOSE, call.Get(f))
	}
	return nil
}

// sysctlPath returns the file of a sysctl. With a slash in its name, slashes
// separate and dots belong to the parts, as in sysctl(8).
func sysctlPath(name string) string {
	if strings.Contains(name, "/") {
		return path.Clean(name)
	}
	return strings.ReplaceAll(name, ".", "/")
}
