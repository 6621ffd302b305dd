// Package call holds system calls as data. A Program is a list of them with
// registers for what they return and jumps for the errors they may give; it can
// be printed, compared, sent to another process and run. Fork runs one in a
// child that has never seen Go's scheduler, which is how a process gets into a
// container: Go itself cannot enter a user namespace, and starting Go twice per
// container would cost as much as all the rest.
//
// The encoding of programs is part of the shim's protocol: a newer agent writes
// programs that an older shim runs. docs/design/0003-node-state-and-shim.md says
// how both stay compatible.
package call

import (
	"fmt"
	"strings"
	"syscall"
)

// Reg is a register. It holds what a call returned, usually a descriptor.
type Reg uint16

// Limits of a program.
const (
	MaxOps      = 16384
	MaxRegs     = 8192
	MaxReceive  = 250 // descriptors in one message; the kernel's SCM_MAX_FD is 253
	maxBranches = 4
	maxArgs     = 6
)

// Calls that the kernel does not have.
const (
	nrFail    = -1 // fail with the error given as first argument
	nrReceive = -2 // receive descriptors: socket, count, first register
	nrReady   = -3 // report that this point is reached
	nrMode    = -4 // the mode of what a descriptor is of
	nrTree    = -5 // tree.Map: source, user namespace
)

// Program is a list of calls. They run in order until one fails with an error
// that has no branch.
type Program struct {
	ops    []*Op
	free   []Op  // memory for further ones: they are many and small
	args   []Arg // the same for their arguments
	labels []int
	regs   Reg
	lists  [][]string
}

// New returns an empty program whose first regs registers are set by whoever
// runs it.
func New(regs Reg) *Program { return &Program{regs: regs} }

// Reg returns a register that is not used yet.
func (p *Program) Reg() Reg {
	p.regs++
	return p.regs - 1
}

// Regs returns n neighbouring registers, the first of them.
func (p *Program) Regs(n int) Reg {
	p.regs += Reg(n)
	return p.regs - Reg(n)
}

// Label is a place in a program to jump to.
type Label int

// Next is the call that follows, whichever it is.
const Next Label = -1

// Label returns a new label, which Place puts somewhere.
func (p *Program) Label() Label {
	p.labels = append(p.labels, -1)
	return Label(len(p.labels) - 1)
}

// Place puts l before the call that is added next.
func (p *Program) Place(l Label) { p.labels[l] = len(p.ops) }

// target returns the index of the call that l stands for, seen from the call
// with index i. A label that was never placed is the end.
func (p *Program) target(l Label, i int) int {
	switch {
	case l == Next:
		return i + 1
	case p.labels[l] < 0:
		return len(p.ops)
	default:
		return p.labels[l]
	}
}

// Check returns an error if the program is larger than Load takes, or has
// strings that are not what the kernel would read.
func (p *Program) Check() error {
	if len(p.ops) > MaxOps || p.regs > MaxRegs {
		return fmt.Errorf("%d system calls with %d values, at most %d and %d are possible", len(p.ops), p.regs, MaxOps, MaxRegs)
	}
	for _, op := range p.ops {
		if len(op.branches) > maxBranches || len(op.args) > maxArgs {
			return fmt.Errorf("%s: %d branches and %d arguments, at most %d and %d are possible", op.what, len(op.branches), len(op.args), maxBranches, maxArgs)
		}
		for _, a := range op.args {
			if a.text && strings.IndexByte(a.data, 0) >= 0 {
				return fmt.Errorf("%q contains a zero byte", a.data)
			}
		}
	}
	return nil
}

// Mode adds a call whose result is the mode, as for chmod, of what fd is a descriptor
// of.
func (p *Program) Mode(fd Reg) *Op { return p.Call(nrMode, Get(fd)) }

// Tree adds a call whose result is a mount of what source is a descriptor of with all
// below it, mapped through the user namespace as far as that is possible: tree.Map. A
// forked child cannot make it.
func (p *Program) Tree(source, users Reg) *Op { return p.Call(nrTree, Get(source), Get(users)) }

// Op is one call.
type Op struct {
	nr       int
	args     []Arg
	out      Reg
	hasOut   bool
	least    uint32
	then     Label
	branches []branch
	what     string
	command  bool
}

// branch says what follows an error.
type branch struct {
	errno syscall.Errno // 0: any
	to    Label
	warn  bool
}

// Call adds the system call with number nr.
func (p *Program) Call(nr int, args ...Arg) *Op {
	if len(p.free) == 0 {
		p.free = make([]Op, 32)
	}
	if cap(p.args)-len(p.args) < len(args) {
		p.args = make([]Arg, 0, 128)
	}
	op, from := &p.free[0], len(p.args)
	p.free, p.args = p.free[1:], append(p.args, args...)
	op.nr, op.args, op.then = nr, p.args[from:len(p.args):len(p.args)], Next
	p.ops = append(p.ops, op)
	return op
}

// Fail adds a call that always fails with errno.
func (p *Program) Fail(errno syscall.Errno) *Op { return p.Call(nrFail, Int(int(errno))) }

// Receive adds a call that waits for n descriptors on the socket and puts them
// into first and the registers after it. The sender uses the same n, at most
// MaxReceive.
func (p *Program) Receive(socket, first Reg, n int) *Op {
	return p.Call(nrReceive, Get(socket), Int(n), Int(int(first)))
}

// Ready adds a call that reports to whoever forked the program that it came
// this far.
func (p *Program) Ready() *Op { return p.Call(nrReady) }

// To puts what the call returns into r.
func (o *Op) To(r Reg) *Op {
	o.out, o.hasOut = r, true
	return o
}

// AtLeast makes a result below n an error, EPIPE.
func (o *Op) AtLeast(n uint32) *Op {
	o.least = n
	return o
}

// Then goes on at l after success.
func (o *Op) Then(l Label) *Op {
	o.then = l
	return o
}

// On goes on at l after one of these errors.
func (o *Op) On(l Label, errnos ...syscall.Errno) *Op {
	for _, e := range errnos {
		o.branches = append(o.branches, branch{errno: e, to: l})
	}
	return o
}

// Warn goes on with the next call after any error, or one of these, and reports
// it as a warning.
func (o *Op) Warn(errnos ...syscall.Errno) *Op {
	if len(errnos) == 0 {
		errnos = []syscall.Errno{0}
	}
	for _, e := range errnos {
		o.branches = append(o.branches, branch{errno: e, to: Next, warn: true})
	}
	return o
}

// As says in words what the call attempts, for errors: "mount proc on /proc".
func (o *Op) As(what string) *Op {
	o.what = what
	return o
}

// Command marks a call that fails if the user's command cannot be executed, for
// Failure.Command.
func (o *Op) Command() *Op {
	o.command = true
	return o
}

// argKind is how an argument gets its value. The numbers are part of the
// encoding.
type argKind uint8

const (
	kindInt     argKind = iota // the number itself
	kindReg                    // what the register holds
	kindData                   // address of the bytes
	kindPatched                // address of the bytes, eight of which are first replaced by a register's value
	kindList                   // address of a list of addresses of strings, closed by zero
	kindFilter                 // address of a struct sock_fprog with these instructions
)

// Arg is an argument of a call.
type Arg struct {
	kind argKind
	text bool   // data is a string of the kernel's
	off  uint16 // kindPatched: position of the eight bytes
	n    uint64 // kindInt: number; kindReg, kindPatched: register; kindList: index in Program.lists
	data string
}

// Int is a number.
func Int(n int) Arg { return Arg{kind: kindInt, n: uint64(n)} }

// Get is what r holds when the call is made.
func Get(r Reg) Arg { return Arg{kind: kindReg, n: uint64(r)} }

// Str is the address of a string that ends with a zero byte. Check refuses one
// that has another zero byte, which the kernel would take for its end.
func Str(s string) Arg { return Arg{kind: kindData, data: s, text: true} }

// Data is the address of b. The kernel may write to it.
func Data(b []byte) Arg { return Arg{kind: kindData, data: string(b)} }

// Patched is the address of b, of which the eight bytes at off are the value of
// r when the call is made.
func Patched(b []byte, off int, r Reg) Arg {
	return Arg{kind: kindPatched, data: string(b), off: uint16(off), n: uint64(r)}
}

// List is the address of a list of strings, as execve takes them. It can be used
// in several calls of p.
func (p *Program) List(list []string) Arg {
	p.lists = append(p.lists, list)
	return Arg{kind: kindList, n: uint64(len(p.lists) - 1)}
}

// Filter is the address of a struct sock_fprog with these instructions, as
// seccomp takes it.
func Filter(bpf []byte) Arg { return Arg{kind: kindFilter, data: string(bpf)} }
