package call

import (
	"encoding/binary"
	"slices"
)

// Version is that of the encoding. It changes when an older Load would
// misunderstand what a newer Encode writes.
const Version = 1

// Encode returns the program in the form that Load reads.
func (p *Program) Encode() []byte { return p.Append(nil) }

// Append appends the program in the form that Load reads to b.
func (p *Program) Append(b []byte) []byte {
	b = append(slices.Grow(b, 50*len(p.ops)), Version) // what most need
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
func appendString(b []byte, s string) []byte {
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
