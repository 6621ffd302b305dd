package call

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"
)

// machine is a program made ready to run: everything in memory that will not
// move, nothing left to allocate. The fields that are addresses are numbers, so
// that running needs no write barrier; keep holds on to what they point at.
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
	oob    [24 + 4*MaxReceive]byte
	lists  []uintptr
	keep   []any
}

// rawOp is an Op for the machine.
type rawOp struct {
	nr       int
	arg      [maxArgs]uintptr
	inRegs   uint8          // bit i: argument i is the number of a register
	patch    unsafe.Pointer // eight bytes that take the value of patchReg; nil: none
	patchReg uintptr
	out      uintptr // register + 1; 0: none
	least    uintptr
	then     uint32
	branches uint32
	on       [maxBranches]rawBranch
}

type rawBranch struct {
	errno uintptr
	to    uint32
	warn  bool
}

// load makes p ready to run.
func (p *Program) load(status int, tag uint32, regs []uintptr) *machine {
	file := make([]uintptr, max(int(p.regs), len(regs), 1))
	copy(file, regs)
	ops := make([]rawOp, max(len(p.ops), 1))
	m := &machine{
		ops: unsafe.Pointer(unsafe.SliceData(ops)), n: uint32(len(p.ops)),
		regs: unsafe.Pointer(unsafe.SliceData(file)), status: uintptr(status), tag: tag,
		keep: []any{p, ops, file},
	}
	for _, list := range p.lists {
		m.loadList(list)
	}
	for i, op := range p.ops {
		raw := &ops[i]
		raw.nr, raw.least, raw.then = op.nr, uintptr(op.least), uint32(p.target(op.then, i))
		if op.hasOut {
			raw.out = uintptr(op.out) + 1
		}
		for j, br := range op.branches {
			raw.on[j] = rawBranch{errno: uintptr(br.errno), to: uint32(p.target(br.to, i)), warn: br.warn}
		}
		raw.branches = uint32(len(op.branches))
		for j, a := range op.args {
			m.loadArg(raw, j, a)
		}
	}
	return m
}

// loadArg sets argument j of raw.
func (m *machine) loadArg(raw *rawOp, j int, a Arg) {
	switch a.kind {
	case kindInt:
		raw.arg[j] = uintptr(a.n)
	case kindReg:
		raw.arg[j] = uintptr(a.n)
		raw.inRegs |= 1 << j
	case kindData, kindPatched:
		addr := m.bytes(a.data)
		raw.arg[j] = uintptr(unsafe.Pointer(&addr[0]))
		if a.kind == kindPatched {
			raw.patch, raw.patchReg = unsafe.Pointer(&addr[a.off]), uintptr(a.n)
		}
	case kindList:
		raw.arg[j] = m.lists[a.n]
	case kindFilter:
		// struct sock_fprog: 16 bits of length, padding, address. The length is in the
		// low bytes of the first word, where Go's processors with namespaces want it.
		fprog := []uintptr{uintptr(len(a.data) / 8), uintptr(unsafe.Pointer(&m.bytes(a.data)[0]))}
		m.keep = append(m.keep, fprog)
		raw.arg[j] = uintptr(unsafe.Pointer(unsafe.SliceData(fprog)))
	}
}

// loadList keeps the addresses of strings, closed by zero.
func (m *machine) loadList(list []string) {
	addrs := make([]uintptr, len(list)+1)
	for i, s := range list {
		addrs[i] = uintptr(unsafe.Pointer(&m.bytes([]byte(s))[0]))
	}
	m.keep = append(m.keep, addrs)
	m.lists = append(m.lists, uintptr(unsafe.Pointer(&addrs[0])))
}

// bytes returns a copy of b with a zero byte behind it, which stays.
func (m *machine) bytes(b []byte) []byte {
	c := make([]byte, len(b)+1)
	copy(c, b)
	m.keep = append(m.keep, c)
	return c
}

// Parts of the first word of a report; the rest of it is the index of the call.
// The second word is the error.
const (
	reportWarning = 1 << 31
	reportReady   = 1 << 30
	reportParent  = 1 << 29 // from the program that the forking process runs itself
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
			pc = op.then
			continue
		}
		found := false
		for i := uint32(0); i < op.branches; i++ {
			br := (*rawBranch)(unsafe.Add(unsafe.Pointer(&op.on), uintptr(i)*unsafe.Sizeof(rawBranch{})))
			if br.errno != 0 && br.errno != e {
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

// call makes one call.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) call(op *rawOp, pc uint32) (r, errno uintptr) {
	a := op.arg
	for i := uintptr(0); i < maxArgs; i++ {
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
	}
	if op.patch != nil {
		*(*uintptr)(op.patch) = *m.reg(op.patchReg)
	}
	for {
		r, _, e := syscall.RawSyscall6(uintptr(op.nr), a[0], a[1], a[2], a[3], a[4], a[5])
		if e != syscall.EINTR {
			return r, uintptr(e)
		}
	}
}

// receive puts n descriptors from the socket into registers.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (m *machine) receive(socket, n, first uintptr) (got, errno uintptr) {
	m.iov.Base = &m.octet[0]
	m.iov.Len = 1
	m.msg.Iov = &m.iov
	m.msg.Iovlen = 1
	m.msg.Control = &m.oob[0]
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
	for i := uintptr(0); i < n; i++ {
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
func (m *machine) tell(first uint32, errno uintptr) {
	*(*uint32)(unsafe.Pointer(&m.report)) = first | m.tag
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
func (p *Program) failure(i uint32, errno syscall.Errno) *Failure {
	f := &Failure{Errno: errno}
	if int(i) >= len(p.ops) {
		f.What = fmt.Sprintf("call %d", i)
		return f
	}
	op := p.ops[i]
	f.What, f.Command = op.what, op.command
	if f.What == "" {
		f.What = p.line(int(i))
	}
	return f
}

// Run runs the program in this process, on a thread of its own while it takes.
// The first registers are set to regs; all of them are returned, also after an
// error. Warnings go to the descriptor status, for Report to read.
func (p *Program) Run(status int, regs []uintptr) ([]uintptr, error) {
	m := p.load(status, reportParent, regs)
	runtime.LockOSThread()
	at, errno := m.run()
	runtime.UnlockOSThread()
	out := make([]uintptr, p.regs)
	copy(out, unsafe.Slice((*uintptr)(m.regs), len(out)))
	runtime.KeepAlive(m.keep)
	if errno != 0 {
		return out, p.failure(at, syscall.Errno(errno))
	}
	return out, nil
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
func ParseReport(b []byte, parent, child *Program) Report {
	first, errno := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
	if first&reportReady != 0 {
		return Report{Ready: true}
	}
	p := child
	if first&reportParent != 0 {
		p = parent
	}
	return Report{Warning: first&reportWarning != 0, Failure: p.failure(first&reportIndex, syscall.Errno(errno))}
}
