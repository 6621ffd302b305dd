package call

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Functions of Go's runtime that package syscall forks and waits with. Go keeps
// them reachable for programs that do so in ways syscall cannot (golang/go
// #67401).

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

//go:linkname enterSyscall runtime.entersyscall
func enterSyscall()

//go:linkname exitSyscall runtime.exitsyscall
func exitSyscall()

// rawClone makes the call clone or clone3. A child that shares this process's memory
// may return from it first.
func rawClone(trap, a1, a2, a3 uintptr) (pid, errno uintptr)

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
	// Tasks are descriptors of the files "tasks" of cgroups (version 1) that the child puts itself
	// into first. For a process that writes to "cgroup.procs" of another one the kernel
	// waits until no processor can be in the middle of a fork, some 8 ms; for a
	// single thread that moves itself it does not.
	Tasks []int
	// Enter are descriptors of namespaces, or of a process, that this thread enters
	// for the moment of the fork: the child cannot itself, once it is in a user
	// namespace (network), or is not affected (pid).
	Enter []Namespace
	// User is a descriptor of a user namespace in which the child is born, and in which
	// its new namespaces are; 0: this process's.
	User int
	// Share lets the child use this process's memory, until it has executed another program or
	// has ended: Start returns then. Nothing is copied, neither then nor page by page when
	// one of the two writes. Not for what a kernel refuses to a process whose memory
	// is another one's, too: to enter a namespace of time. Not with User.
	Share bool
	// Status takes the child's reports. What these count is ahead by Ahead.
	Status, Ahead int
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
// descriptor of it. Without Share only the child itself waits for anything.
func (f Fork) Start(c *Code) (pid, pidfd int, err error) {
	m := c.machine(f.Status, uint32(f.Ahead), f.Regs)
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
	if f.Share {
		// Without VFORK a lack of memory in the child's cgroup could end this process as well: the
		// kernel kills all that share the memory of its victim.
		args.flags |= unix.CLONE_VM | unix.CLONE_VFORK
	}
	var h *helper
	if f.User > 0 {
		if h, err = newHelper(f.User, args, &fd); err != nil {
			return 0, -1, err
		}
	}
	runtime.LockOSThread()
	n, errno, lost := fork(m, args, h, f.Enter, f.Tasks, f.others())
	if !lost {
		runtime.UnlockOSThread()
	} // else the thread ends with its goroutine, and is of no use to others
	runtime.KeepAlive(c)
	runtime.KeepAlive(&fd)
	if h != nil {
		return h.result(int(n), errno)
	}
	if errno != 0 {
		return 0, -1, errno
	}
	return int(n), int(fd), nil
}

// helper is a process that stands between this one and the child for a moment: a
// process with several threads, as all of Go's, cannot enter a user namespace. It
// shares its descriptors with this process, and the child becomes its sibling.
type helper struct {
	user   uintptr
	args   cloneArgs
	out    uintptr // pipe that takes word
	pipe   [2]int
	pidfd  unsafe.Pointer // of an int32
	word   [2]uint64      // error, descriptor of the child
	wordAt unsafe.Pointer
}

func newHelper(user int, child *cloneArgs, pidfd *int32) (*helper, error) {
	h := &helper{user: uintptr(user), pidfd: unsafe.Pointer(pidfd)}
	if err := unix.Pipe2(h.pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	h.out, h.wordAt = uintptr(h.pipe[1]), unsafe.Pointer(&h.word)
	h.args = cloneArgs{flags: unix.CLONE_FILES, exitSignal: uint64(unix.SIGCHLD)}
	child.flags |= unix.CLONE_PARENT
	child.exitSignal = 0 // the helper's
	return h, nil
}

// result waits for the helper, and returns what it made.
func (h *helper) result(pid int, errno syscall.Errno) (child, pidfd int, err error) {
	defer unix.Close(h.pipe[0])
	defer unix.Close(h.pipe[1])
	if errno != 0 {
		return 0, -1, errno
	}
	for {
		// Somebody else may have waited for it, which is as good.
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	b := make([]byte, 16)
	if n, err := unix.Read(h.pipe[0], b); err != nil || n != len(b) {
		return 0, -1, fmt.Errorf("the process that enters the user namespace ended: %w", err)
	}
	if e := syscall.Errno(binary.NativeEndian.Uint64(b)); e != 0 {
		return 0, -1, fmt.Errorf("enter the user namespace: %w", e)
	}
	pidfd = int(int32(binary.NativeEndian.Uint64(b[8:])))
	if child, err = pidOf(pidfd); err != nil {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		return 0, -1, errors.Join(err, unix.Close(pidfd))
	}
	return child, pidfd, nil
}

// pidOf returns the number of a process: the helper may see another one, in a pid
// namespace.
func pidOf(pidfd int) (int, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, errors.New("the kernel does not tell the number of a process")
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

// fork forks the child, tells of it and exits; it returns in the child.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (h *helper) fork(args *cloneArgs) {
	_, _, errno := syscall.RawSyscall(unix.SYS_SETNS, h.user, unix.CLONE_NEWUSER, 0)
	if errno == 0 {
		var pid uintptr
		pid, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
		if errno == 0 && pid == 0 {
			return
		}
	}
	h.word[0], h.word[1] = uint64(errno), uint64(*(*int32)(h.pidfd))
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, h.out, uintptr(h.wordAt), unsafe.Sizeof(h.word))
	for {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// fork forks, and in the child runs m and exits. lost says that the way back
// out of a namespace failed.
//
//go:noinline
//go:norace
//go:nocheckptr
func fork(m *machine, args *cloneArgs, h *helper, enter []Namespace, tasks []int, others []span) (pid uintptr, errno syscall.Errno, lost bool) {
	shared := args.flags&unix.CLONE_VFORK != 0
	if shared {
		enterSyscall() // who knows how long it takes: others shall go on
	}
	beforeFork()
	entered := 0
	for i := range enter {
		if _, _, errno = syscall.RawSyscall(unix.SYS_SETNS, uintptr(enter[i].FD), uintptr(enter[i].Type), 0); errno != 0 {
			break
		}
		entered++
	}
	if errno == 0 {
		pid, errno = clone(m, args, h, tasks, others)
	}
	for i := range entered {
		if _, _, e := syscall.RawSyscall(unix.SYS_SETNS, uintptr(enter[i].Own), uintptr(enter[i].Type), 0); e != 0 {
			lost = true
		}
	}
	afterFork()
	if shared {
		exitSyscall()
	}
	return pid, errno, lost
}

// clone is the part of fork whose place on the stack belongs to the child: if they
// share it, the parent finds nothing there but what rawClone returned to it, and
// returns at once.
//
//go:noinline
//go:nosplit
//go:norace
//go:nocheckptr
func clone(m *machine, args *cloneArgs, h *helper, tasks []int, others []span) (pid uintptr, errno syscall.Errno) {
	first := args
	if h != nil {
		first = &h.args
	}
	var e uintptr
	if first.flags&^(unix.CLONE_VM|unix.CLONE_VFORK) == unix.CLONE_PIDFD {
		// A filter of system calls that looks at flags lets this one pass.
		pid, e = rawClone(unix.SYS_CLONE, uintptr(first.flags|first.exitSignal), 0, uintptr(first.pidfd))
	} else {
		pid, e = rawClone(unix.SYS_CLONE3, uintptr(unsafe.Pointer(first)), unsafe.Sizeof(*first), 0)
	}
	if e != 0 || pid != 0 {
		return pid, syscall.Errno(e)
	}
	afterForkInChild()
	if h != nil {
		h.fork(args) // goes on in the child
	}
	for i := range tasks {
		m.octet[0] = '0' // whoever writes
		if _, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(tasks[i]), uintptr(unsafe.Pointer(&m.octet)), 1); e != 0 {
			m.write(reportCgroup, uintptr(e))
			_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
		}
	}
	for i := range others {
		_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, others[i].first, others[i].last, 0)
	}
	at, failed := m.run()
	m.tell(at, failed)
	for {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
	}
}
