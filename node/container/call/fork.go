package call

import (
	"math"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Three functions of Go's runtime that package syscall forks with. Go keeps
// them reachable for programs that fork in ways syscall cannot (golang/go
// #67401).

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// cloneArgs is struct clone_args of clone3(2), up to what Linux 5.7 knows.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal uint64
	stack, stackSize, tls, setTID, setTIDSize     uint64
	cgroup                                        uint64
}

// Fork says how a child begins.
type Fork struct {
	Flags uint64 // CLONE_NEW*
	// Cgroup is a descriptor of the cgroup (version 2) that the child is born in;
	// 0: the one of this process.
	Cgroup int
	// Enter are descriptors of namespaces, or of a process, that this thread enters
	// for the moment of the fork: the child cannot itself, once it is in a user
	// namespace (network), or is not affected (pid).
	Enter []Namespace
	// Status takes the child's reports.
	Status int
	// Regs are the first registers of the child, all of them descriptors. It closes
	// all others but 0, 1 and 2: a socket of this process that lived on in the child
	// would hide this one's end.
	Regs []uintptr
}

// Namespace is one to enter and the way back.
type Namespace struct {
	FD   int
	Own  int // of the same kind, of this process
	Type int // CLONE_NEW*
}

// Start runs c in a new child. What becomes of it is reported on f.Status: a failure, after
// which the child exits; readiness; and nothing but the end of file once the
// child has executed another program. It returns the child's number and a
// descriptor of it. Only the child itself waits for anything.
func (f Fork) Start(c *Code) (pid, pidfd int, err error) {
	m := c.machine(f.Status, 0, f.Regs)
	fd := int32(-1)
	args := &cloneArgs{
		flags:      f.Flags | unix.CLONE_PIDFD,
		pidfd:      uint64(uintptr(unsafe.Pointer(&fd))),
		exitSignal: uint64(unix.SIGCHLD),
		cgroup:     uint64(f.Cgroup),
	}
	if f.Cgroup > 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
	}
	runtime.LockOSThread()
	n, errno, lost := fork(m, args, f.Enter, f.others())
	if !lost {
		runtime.UnlockOSThread()
	} // else the thread ends with its goroutine, and is of no use to others
	runtime.KeepAlive(c)
	runtime.KeepAlive(&fd)
	if errno != 0 {
		return 0, -1, errno
	}
	return int(n), int(fd), nil
}

// span is a range of descriptors, both ends included.
type span struct{ first, last uintptr }

// others returns the descriptors that the child closes.
func (f Fork) others() []span {
	keep := append([]uintptr{2, math.MaxUint32}, f.Regs...)
	slices.Sort(keep)
	var gaps []span
	for i, fd := range keep[1:] {
		if keep[i] >= 2 && fd > keep[i]+1 {
			gaps = append(gaps, span{keep[i] + 1, fd - 1})
		}
	}
	return gaps
}

// fork forks, and in the child runs m and exits. lost says that the way back
// out of a namespace failed.
//
//go:noinline
//go:norace
//go:nocheckptr
func fork(m *machine, args *cloneArgs, enter []Namespace, others []span) (pid uintptr, errno syscall.Errno, lost bool) {
	beforeFork()
	entered := 0
	for i := range enter {
		if _, _, errno = syscall.RawSyscall(unix.SYS_SETNS, uintptr(enter[i].FD), uintptr(enter[i].Type), 0); errno != 0 {
			break
		}
		entered++
	}
	if errno == 0 {
		pid, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
		if errno == 0 && pid == 0 {
			afterForkInChild()
			for i := range others {
				_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, others[i].first, others[i].last, 0)
			}
			at, e := m.run()
			m.tell(at, e)
			for {
				_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
			}
		}
	}
	for i := range entered {
		if _, _, e := syscall.RawSyscall(unix.SYS_SETNS, uintptr(enter[i].Own), uintptr(enter[i].Type), 0); e != 0 {
			lost = true
		}
	}
	afterFork()
	return pid, errno, lost
}
