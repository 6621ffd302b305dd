package call

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// Version is that of the encoding. It changes when an older Decode would
// misunderstand what a newer Encode writes.
const Version = 1

// Encode returns the program in the form that Decode reads.
func (p *Program) Encode() []byte {
	b := []byte{Version}
	b = binary.AppendUvarint(b, uint64(p.regs))
	b = binary.AppendUvarint(b, uint64(len(p.lists)))
	for _, list := range p.lists {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, s := range list {
			b = appendString(b, s)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(p.ops)))
	for i, op := range p.ops {
		b = binary.AppendVarint(b, int64(op.nr))
		b = appendString(b, op.what)
		out := uint64(0)
		if op.hasOut {
			out = uint64(op.out) + 1
		}
		b = binary.AppendUvarint(b, out)
		b = binary.AppendUvarint(b, uint64(op.least))
		b = binary.AppendUvarint(b, uint64(p.target(op.then, i)))
		b = append(b, flag(op.command), byte(len(op.branches)))
		for _, br := range op.branches {
			b = binary.AppendUvarint(b, uint64(br.errno))
			b = binary.AppendUvarint(b, uint64(p.target(br.to, i)))
			b = append(b, flag(br.warn))
		}
		b = append(b, byte(len(op.args)))
		for _, a := range op.args {
			b = a.append(b)
		}
	}
	return b
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// appendString appends s and a zero byte, so that its address in the encoded
// program can be given to the kernel.
func appendString[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(append(b, s...), 0)
}

func (a Arg) append(b []byte) []byte {
	b = append(b, byte(a.kind))
	switch a.kind {
	case kindInt, kindReg, kindList:
		b = binary.AppendUvarint(b, a.n)
	case kindData, kindFilter:
		b = appendString(b, a.data)
	case kindPatched:
		b = binary.AppendUvarint(b, a.n)
		b = binary.AppendUvarint(b, uint64(a.off))
		b = appendString(b, a.data)
	}
	return b
}

// errEncoding is all that can be said of a program that Encode did not write.
var errEncoding = errors.New("damaged program")

// decoder reads an encoded program. After the first error it returns zeros.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint(limit uint64) uint64 {
	n, size := binary.Uvarint(d.b)
	if size <= 0 || n > limit {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) varint() int64 {
	n, size := binary.Varint(d.b)
	if size <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[size:]
	return n
}

// bytes returns a string without its zero byte, which stays behind it.
func (d *decoder) bytes() []byte {
	n := d.uvarint(uint64(len(d.b)))
	if d.bad || n+1 > uint64(len(d.b)) || d.b[n] != 0 {
		d.bad, d.b = true, nil
		return []byte{0}[:0]
	}
	s := d.b[:n:n]
	d.b = d.b[n+1:]
	return s
}

// list returns a list of strings.
func (d *decoder) list() []string {
	var list []string
	for range d.uvarint(uint64(len(d.b))) {
		if d.bad {
			break
		}
		list = append(list, string(d.bytes()))
	}
	return list
}

// Decode reads what Encode wrote. The program keeps b and the kernel may write
// to it.
func Decode(b []byte) (*Program, error) {
	if len(b) == 0 {
		return nil, errEncoding
	}
	if b[0] != Version {
		return nil, fmt.Errorf("program has version %d, this is version %d", b[0], Version)
	}
	d := &decoder{b: b[1:]}
	p := &Program{regs: max(Reg(d.uvarint(MaxRegs)), 1)} // at least one, so that there is a last one
	for range d.uvarint(1 << 16) {
		if !d.bad {
			p.lists = append(p.lists, d.list())
		}
	}
	n := int(d.uvarint(MaxOps))
	for range n {
		if op := d.op(p, n); !d.bad {
			p.ops = append(p.ops, op)
		}
	}
	if d.bad || len(d.b) > 0 {
		return nil, errEncoding
	}
	return p, nil
}

// label returns a label at the call with index i.
func (p *Program) label(i uint64) Label {
	p.labels = append(p.labels, int(i))
	return Label(len(p.labels) - 1)
}

// op reads one call. n is the number of calls in the program.
func (d *decoder) op(p *Program, n int) *Op {
	op := &Op{nr: int(int32(d.varint())), what: string(d.bytes())}
	if out := d.uvarint(uint64(p.regs)); out > 0 {
		op.out, op.hasOut = Reg(out-1), true
	}
	op.least = uint32(d.uvarint(1 << 31))
	op.then = p.label(d.uvarint(uint64(n)))
	op.command = d.uvarint(1) == 1
	for range d.uvarint(maxBranches) {
		br := branch{errno: syscall.Errno(d.uvarint(1 << 15)), to: p.label(d.uvarint(uint64(n)))}
		br.warn = d.uvarint(1) == 1
		op.branches = append(op.branches, br)
	}
	for range d.uvarint(maxArgs) {
		op.args = append(op.args, d.arg(p))
	}
	switch {
	case op.nr < nrReady, op.nr == nrFail && len(op.args) != 1:
		d.bad = true
	case op.nr == nrReceive:
		a := op.args
		d.bad = d.bad || len(a) != 3 || a[0].kind != kindReg || a[1].kind != kindInt || a[2].kind != kindInt ||
			a[1].n > MaxReceive || a[2].n > MaxRegs || a[1].n+a[2].n > uint64(p.regs)
	}
	return op
}

func (d *decoder) arg(p *Program) Arg {
	a := Arg{kind: argKind(d.uvarint(uint64(kindFilter)))}
	switch a.kind {
	case kindInt:
		a.n = d.uvarint(1<<64 - 1)
	case kindReg:
		a.n = d.uvarint(uint64(p.regs - 1))
	case kindData:
		a.data = d.bytes()
	case kindFilter:
		if a.data = d.bytes(); len(a.data)%8 != 0 || len(a.data) > 8<<15 {
			d.bad = true
		}
	case kindPatched:
		a.n = d.uvarint(uint64(p.regs - 1))
		a.off = uint16(d.uvarint(1 << 12))
		if a.data = d.bytes(); int(a.off)+8 > len(a.data) {
			d.bad = true
		}
	case kindList:
		if a.n = d.uvarint(1 << 16); a.n >= uint64(len(p.lists)) {
			d.bad = true
		}
	}
	return a
}
