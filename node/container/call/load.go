package call

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Code is a program made ready to run: everything in memory that will not move,
// nothing left to allocate.
type Code struct {
	ops   []rawOp
	what  []uint32 // where the words for each call are in blob
	regs  []uintptr
	lists []uintptr // addresses of lists of strings
	blob  []byte
	keep  []any // what numbers in ops and lists are the addresses of

	mapped []byte // what ops and what are in, if Free gives it back
}

// rawOp is an Op ready to be made.
type rawOp struct {
	nr       int
	arg      [maxArgs]uintptr
	patch    unsafe.Pointer // eight bytes that take the value of patchReg; nil: none
	patchReg uintptr
	out      uintptr // register + 1; 0: none
	least    uintptr
	then     uint32
	inRegs   uint8 // bit i: argument i is the number of a register
	branches uint8
	command  bool
	on       [maxBranches]rawBranch
}

type rawBranch struct {
	errno uint16
	warn  bool
	to    uint32
}

// errEncoding is all that can be said of a program that Encode did not write.
var errEncoding = errors.New("damaged program")

// Load reads what Encode wrote. It keeps b, and the kernel may write to it when
// the program runs, which it can once.
func Load(b []byte) (*Code, error) {
	return load(b, func(c *Code, n uint64) error {
		c.ops, c.what = make([]rawOp, n), make([]uint32, n)
		return nil
	})
}

// Map is Load into memory that the garbage collector does not know, which Free
// gives back.
func Map(b []byte) (*Code, error) {
	return load(b, func(c *Code, n uint64) (err error) {
		if n == 0 {
			return nil
		}
		ops := n * uint64(unsafe.Sizeof(rawOp{}))
		c.mapped, err = unix.Mmap(-1, 0, int(ops+4*n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return fmt.Errorf("memory for a program: %w", err)
		}
		c.ops = unsafe.Slice((*rawOp)(unsafe.Pointer(&c.mapped[0])), n)
		c.what = unsafe.Slice((*uint32)(unsafe.Pointer(&c.mapped[ops])), n)
		return nil
	})
}

// Free gives back what Map took. The program is not used again. Nil has nothing.
func (c *Code) Free() {
	if c != nil && c.mapped != nil {
		mapped := c.mapped
		c.ops, c.what, c.mapped = nil, nil, nil
		_ = unix.Munmap(mapped)
	}
}

func load(b []byte, room func(c *Code, n uint64) error) (*Code, error) {
	if len(b) == 0 {
		return nil, errEncoding
	}
	if b[0] != Version {
		return nil, fmt.Errorf("program has version %d, this is version %d", b[0], Version)
	}
	d := &decoder{b: b, at: 1}
	c := &Code{blob: b}
	c.regs = make([]uintptr, max(d.uvarint(MaxRegs), 1)) // at least one, so that there is a last one
	for range d.uvarint(1 << 16) {
		if !d.bad {
			c.loadList(d)
		}
	}
	n := d.uvarint(MaxOps)
	if n > uint64(len(b)) {
		return nil, errEncoding
	}
	if err := room(c, n); err != nil {
		return nil, err
	}
	for i := range c.ops {
		c.loadOp(d, i)
	}
	if d.bad || d.at < len(b) {
		c.Free()
		return nil, errEncoding
	}
	return c, nil
}

// loadList reads a list of strings.
func (c *Code) loadList(d *decoder) {
	n := d.uvarint(uint64(len(d.b)))
	list := make([]uintptr, 0, n+1)
	for range n {
		if d.bad {
			return
		}
		list = append(list, address(d.bytes()))
	}
	list = append(list, 0)
	c.keep = append(c.keep, list)
	c.lists = append(c.lists, uintptr(unsafe.Pointer(unsafe.SliceData(list))))
}

// address returns where b is: always a place in the encoded program, which does
// not move, and where a zero byte follows.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// loadOp reads one call.
func (c *Code) loadOp(d *decoder, i int) {
	n, regs := uint64(len(c.ops)), uint64(len(c.regs))
	op := &c.ops[i]
	op.nr = int(int32(d.varint()))
	c.what[i] = uint32(d.at)
	d.bytes()
	op.out = uintptr(d.uvarint(regs))
	op.least = uintptr(d.uvarint(1 << 31))
	op.then = uint32(d.uvarint(n))
	op.command = d.uvarint(1) == 1
	op.branches = uint8(d.uvarint(maxBranches))
	for j := range op.branches {
		op.on[j] = rawBranch{errno: uint16(d.uvarint(1 << 15)), to: uint32(d.uvarint(n)), warn: d.uvarint(1) == 1}
	}
	args := d.uvarint(maxArgs)
	for j := range args {
		c.loadArg(d, op, j)
	}
	switch op.nr {
	case nrFail:
		d.bad = d.bad || args != 1 || op.inRegs != 0
	case nrReceive:
		d.bad = d.bad || args != 3 || op.inRegs != 1 || op.arg[1] > MaxReceive || op.arg[2] > MaxRegs || op.arg[1]+op.arg[2] > uintptr(regs)
	case nrMode:
		d.bad = d.bad || args != 1
	case nrTree:
		d.bad = d.bad || args != 2
	case nrReady:
	default:
		d.bad = d.bad || op.nr < 0
	}
}

// loadArg reads argument j of op.
func (c *Code) loadArg(d *decoder, op *rawOp, j uint64) {
	last := uint64(len(c.regs) - 1)
	switch argKind(d.uvarint(uint64(kindFilter))) {
	case kindInt:
		op.arg[j] = uintptr(d.uvarint(1<<64 - 1))
	case kindReg:
		op.arg[j] = uintptr(d.uvarint(last))
		op.inRegs |= 1 << j
	case kindData:
		op.arg[j] = address(d.bytes())
	case kindPatched:
		op.patchReg = uintptr(d.uvarint(last))
		off := d.uvarint(1 << 12)
		data := d.bytes()
		if off+8 > uint64(len(data)) {
			d.bad = true
			return
		}
		op.arg[j], op.patch = address(data), unsafe.Pointer(&data[off])
	case kindList:
		k := d.uvarint(1 << 16)
		if k >= uint64(len(c.lists)) {
			d.bad = true
			return
		}
		op.arg[j] = c.lists[k]
	case kindFilter:
		data := d.bytes()
		if len(data)%8 != 0 || len(data) > 8<<12 {
			d.bad = true
			return
		}
		// struct sock_fprog: 16 bits of length, padding, address. The length is in the
		// low bytes of the first word, where all processors with this package want it.
		fprog := []uintptr{uintptr(len(data) / 8), address(data)}
		c.keep = append(c.keep, fprog)
		op.arg[j] = uintptr(unsafe.Pointer(unsafe.SliceData(fprog)))
	}
}

// text returns what the call with index i attempts, in words.
func (c *Code) text(i int) string {
	d := &decoder{b: c.blob, at: int(c.what[i])}
	if s := d.bytes(); len(s) > 0 {
		return string(s)
	}
	return fmt.Sprintf("call %d (%s)", i, name(c.ops[i].nr))
}

// decoder reads an encoded program. After the first error it returns zeros.
type decoder struct {
	b   []byte
	at  int
	bad bool
}

func (d *decoder) fail() { d.bad, d.at = true, len(d.b) }

func (d *decoder) uvarint(limit uint64) uint64 {
	n, size := binary.Uvarint(d.b[d.at:])
	if size <= 0 || n > limit {
		d.fail()
		return 0
	}
	d.at += size
	return n
}

func (d *decoder) varint() int64 {
	n, size := binary.Varint(d.b[d.at:])
	if size <= 0 {
		d.fail()
		return 0
	}
	d.at += size
	return n
}

// bytes returns a string, behind which there is a zero byte.
func (d *decoder) bytes() []byte {
	n := d.uvarint(uint64(len(d.b)))
	rest := d.b[d.at:]
	if d.bad || n+1 > uint64(len(rest)) || rest[n] != 0 {
		d.fail()
		return nil
	}
	d.at += int(n) + 1
	return rest[:n:n]
}
