package call

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/tree"
)

// machine runs a program. The fields that are addresses are numbers or point to
// what Code keeps, so that running needs no write barrier.
type machine struct {
	ops    unsafe.Pointer // of n rawOps
	n      uint32
	regs   unsafe.Pointer // of uintptrs
	status uintptr        // descriptor that takes reports
	tag    uint32         // added to the index in reports
	report [8]byte
	msg    syscall.Msghdr
	iov    syscall.Iovec
	octet  [8]byte
	empty  [8]byte // the path ""
	oob    [24 + 4*MaxReceive]byte

	// tree makes the one call that takes more than a forked child can do. Nil there.
	tree func(source, users uintptr) (fd, errno uintptr)
}

// machine makes the program ready, with its first registers set.
func (c *Code) machine(status int, tag uint32, regs []uintptr) *machine {
	copy(c.regs, regs)
	m := &machine{
		ops: unsafe.Pointer(unsafe.SliceData(c.ops)), n: uint32(len(c.ops)),
		regs: unsafe.Pointer(unsafe.SliceData(c.regs)), status: uintptr(status), tag: tag,
	}
	m.iov = syscall.Iovec{Base: &m.octet[0], Len: 1}
	m.msg = syscall.Msghdr{Iov: &m.iov, Iovlen: 1, Control: &m.oob[0]}
	return m
}

// Parts of the first word of a report; the rest of it is the index of the call.
// The second word is the error.
const (
	reportWarning = 1 << 31
	reportReady   = 1 << 30
	reportParent  = 1 << 29 // from the program that the forking process runs itself
	reportCgroup  = 1 << 28 // no call failed, but one of Fork.Tasks
	reportIndex   = 1<<16 - 1
)

// run runs the program. It returns the index of the call that failed and its
// error, which is 0 if none did.
//
// It runs in a forked child, too: all of it and of what it calls must do
// without growing the stack, allocating, write barriers and checks of pointers.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) run() (at uint32, errno uintptr) {
	for pc := uint32(0); pc < m.n; {
		op := (*rawOp)(unsafe.Add(m.ops, uintptr(pc)*unsafe.Sizeof(rawOp{})))
		r, e := m.call(op, pc)
		if e == 0 && r < op.least {
			e = uintptr(syscall.EPIPE)
		}
		if e == 0 {
			if op.out != 0 {
				*m.reg(op.out - 1) = r
			}
			if op.nr == syscall.SYS_CLOSE && op.inRegs&1 != 0 {
				*m.reg(op.arg[0]) = Closed
			}
			pc = op.then
			continue
		}
		found := false
		for i := uintptr(0); i < uintptr(op.branches); i++ {
			br := (*rawBranch)(unsafe.Add(unsafe.Pointer(&op.on), i*unsafe.Sizeof(rawBranch{})))
			if br.errno != 0 && uintptr(br.errno) != e {
				continue
			}
			if br.warn {
				m.tell(pc|reportWarning, e)
			}
			pc, found = br.to, true
			break
		}
		if !found {
			return pc, e
		}
	}
	return 0, 0
}

//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) reg(i uintptr) *uintptr {
	return (*uintptr)(unsafe.Add(m.regs, i*unsafe.Sizeof(uintptr(0))))
}

// maxRenames is how often a path is looked up again that was renamed meanwhile.
const maxRenames = 10_000

const sysOpenat2 = 437 // the same everywhere

// call makes one call.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) call(op *rawOp, pc uint32) (r, errno uintptr) {
	a := op.arg
	for i := range uintptr(maxArgs) {
		if op.inRegs&(1<<i) != 0 {
			a[i] = *m.reg(a[i])
		}
	}
	switch op.nr {
	case nrFail:
		return 0, a[0]
	case nrReady:
		m.tell(pc|reportReady, 0)
		return 0, 0
	case nrReceive:
		return m.receive(a[0], a[1], a[2])
	case nrMode:
		return m.mode(a[0])
	case nrTree:
		if m.tree == nil {
			return 0, uintptr(syscall.ENOSYS)
		}
		return m.tree(a[0], a[1])
	}
	if op.patch != nil {
		*(*uintptr)(op.patch) = *m.reg(op.patchReg)
	}
	for tries := 0; ; tries++ {
		r, _, e := syscall.RawSyscall6(uintptr(op.nr), a[0], a[1], a[2], a[3], a[4], a[5])
		// With ".." in a link, somebody's rename anywhere on the machine makes openat2 give
		// up: who renames all the time shall not keep containers from being made.
		if e != syscall.EINTR && (e != syscall.EAGAIN || op.nr != sysOpenat2 || tries == maxRenames) {
			return r, uintptr(e)
		}
	}
}

// mode returns the permissions of what fd is a descriptor of.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) mode(fd uintptr) (mode, errno uintptr) {
	// What receive uses is large enough for struct statx.
	_, _, e := syscall.RawSyscall6(unix.SYS_STATX, fd, uintptr(unsafe.Pointer(&m.empty)), unix.AT_EMPTY_PATH, unix.STATX_MODE, uintptr(unsafe.Pointer(&m.oob)), 0)
	if e != 0 {
		return 0, uintptr(e)
	}
	return uintptr(*(*uint16)(unsafe.Add(unsafe.Pointer(&m.oob), unsafe.Offsetof(unix.Statx_t{}.Mode)))) & 0o7777, 0
}

// receive puts n descriptors from the socket into registers.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) receive(socket, n, first uintptr) (got, errno uintptr) {
	m.msg.Controllen = uint64(16 + (4*n+7)/8*8)
	for {
		r, _, e := syscall.RawSyscall(syscall.SYS_RECVMSG, socket, uintptr(unsafe.Pointer(&m.msg)), syscall.MSG_CMSG_CLOEXEC)
		if e == syscall.EINTR {
			continue
		}
		if e != 0 {
			return 0, uintptr(e)
		}
		if r == 0 || n > 0 && uintptr(m.msg.Controllen) < 16+4*n || m.msg.Flags&syscall.MSG_CTRUNC != 0 {
			return 0, uintptr(syscall.EPIPE) // the other side is gone, or sent something else
		}
		break
	}
	for i := range n {
		fd := *(*int32)(unsafe.Add(unsafe.Pointer(&m.oob), 16+4*i))
		*m.reg(first + i) = uintptr(fd)
	}
	return n, 0
}

// tell writes a report.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) tell(first uint32, errno uintptr) { m.write(first+m.tag, errno) }

// write writes the words of a report.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) write(first uint32, errno uintptr) {
	*(*uint32)(unsafe.Pointer(&m.report)) = first
	*(*uint32)(unsafe.Add(unsafe.Pointer(&m.report), 4)) = uint32(errno)
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, m.status, uintptr(unsafe.Pointer(&m.report)), uintptr(len(m.report)))
}

// Failure is the error of a program: which call failed, and how.
type Failure struct {
	What    string
	Errno   syscall.Errno
	Command bool // the user's command could not be executed
}

func (f *Failure) Error() string { return f.What + ": " + f.Errno.Error() }
func (f *Failure) Unwrap() error { return f.Errno }

// failure puts the error of the call with index i into words.
func (c *Code) failure(i uint32, errno syscall.Errno) *Failure {
	if int(i) >= len(c.ops) {
		return &Failure{What: fmt.Sprintf("call %d", i), Errno: errno}
	}
	return &Failure{What: c.text(int(i)), Errno: errno, Command: c.ops[i].command}
}

// Closed is in a register whose descriptor was closed, or that nothing was put
// into.
const Closed = ^uintptr(0)

// Run runs the program in this process, on a thread of its own while it takes.
// The first registers are set to regs; all of them are returned, also after an
// error. Warnings go to the descriptor status, for ParseReport to read.
func (c *Code) Run(status int, regs []uintptr) ([]uintptr, error) {
	m := c.machine(status, reportParent, regs)
	m.tree = mapTree
	for i := len(regs); i < len(c.regs); i++ {
		c.regs[i] = Closed
	}
	var at uint32
	var errno uintptr
	over := make(chan struct{})
	go func() {
		defer close(over)
		runtime.LockOSThread()
		if at, errno = m.run(); errno == 0 {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine: it may have other ids or namespaces by now
	}()
	<-over
	runtime.KeepAlive(c)
	if errno != 0 {
		return c.regs, c.failure(at, syscall.Errno(errno))
	}
	return c.regs, nil
}

// mapTree is tree.Map as a call.
func mapTree(source, users uintptr) (fd, errno uintptr) {
	made, err := tree.Map(int(source), int(users))
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return 0, uintptr(e)
	}
	if err != nil {
		return 0, uintptr(syscall.EIO)
	}
	return uintptr(made), 0
}

// Report is something that a running program said of itself.
type Report struct {
	Ready   bool     // Program.Ready was reached
	Warning bool     // Failure did not stop it
	Failure *Failure // nil if Ready
}

// ReportSize is the size in bytes of what is written to status at a time.
const ReportSize = 8

// ParseReport reads what was written to status. parent and child are the
// programs that may have written it.
func ParseReport(b []byte, parent, child *Code) Report {
	first, errno := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
	if first&reportReady != 0 {
		return Report{Ready: true}
	}
	if first&reportCgroup != 0 {
		return Report{Failure: &Failure{What: "enter the cgroup", Errno: syscall.Errno(errno)}}
	}
	c := child
	if first&reportParent != 0 {
		c = parent
	}
	return Report{Warning: first&reportWarning != 0, Failure: c.failure(first&reportIndex, syscall.Errno(errno))}
}

// ReportErrno reads the error of a report without the program that made it. warning
// says that it went on.
func ReportErrno(b []byte) (errno syscall.Errno, warning bool) {
	first := binary.NativeEndian.Uint32(b)
	return syscall.Errno(binary.NativeEndian.Uint32(b[4:])), first&(reportWarning|reportReady) != 0
}
