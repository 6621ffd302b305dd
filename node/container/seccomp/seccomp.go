// Package seccomp compiles a seccomp profile in the terms of the OCI
// runtime-spec (config-linux.md, "Seccomp") to the BPF program that the kernel
// runs before each system call. It does in Go what others do with libseccomp,
// and finds the rule of a call by bisection.
package seccomp

//go:generate go run generate.go

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrUnsupported is wrapped by errors about what a profile asks for and is not
// done.
var ErrUnsupported = errors.New("not supported")

// architecture is one of those that a processor runs programs of.
type architecture struct {
	audit uint32 // AUDIT_ARCH_*
	calls map[string]uint32
}

// x32Bit marks calls of the x32 ABI, which shares its architecture's number
// with x86-64.
const x32Bit = 0x40000000

// architectures are those of this processor that a profile may name, but for x32,
// which is none of its own.
func architectures() map[specs.Arch]architecture {
	if runtime.GOARCH == "arm64" {
		return map[specs.Arch]architecture{
			specs.ArchAARCH64: {unix.AUDIT_ARCH_AARCH64, arm64Calls()},
			specs.ArchARM:     {unix.AUDIT_ARCH_ARM, armCalls()},
		}
	}
	return map[specs.Arch]architecture{
		specs.ArchX86_64: {unix.AUDIT_ARCH_X86_64, amd64Calls()},
		specs.ArchX86:    {unix.AUDIT_ARCH_I386, i386Calls()},
	}
}

// native is this processor's own architecture, in every filter.
func native() specs.Arch {
	if runtime.GOARCH == "arm64" {
		return specs.ArchAARCH64
	}
	return specs.ArchX86_64
}

// Offsets in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// Limits of a profile.
const (
	maxNames      = 1 << 14 // names of calls in all entries
	maxConditions = 1 << 12 // in all entries, for each name
)

// Kernel is what a filter is compiled for.
type Kernel struct {
	// X32 says that the kernel runs programs of the x32 ABI. Otherwise its calls give
	// ENOSYS, as they would from the kernel.
	X32 bool
}

// Compile returns the instructions of the profile's filter, as struct
// sock_filter. A call that is newer than all the profile knows gives ENOSYS
// instead of an error of the default action, so that programs fall back to what
// is older. Names of calls that this kernel's processor does not have mean
// nothing. The profile's flags are not part of the filter: see Flags. Errors:
// ErrUnsupported.
func Compile(p *specs.LinuxSeccomp, k Kernel) ([]byte, error) {
	if _, err := Flags(p); err != nil {
		return nil, err
	}
	if err := checkSize(p); err != nil {
		return nil, err
	}
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	known := architectures()
	arches := []specs.Arch{native()}
	for _, a := range p.Architectures {
		if _, ok := known[a]; ok && !slices.Contains(arches, a) {
			arches = append(arches, a)
		}
	}
	x32 := k.X32 && native() == specs.ArchX86_64 && slices.Contains(p.Architectures, specs.ArchX32)
	prog := program{load(offArch)}
	for _, name := range arches {
		body, err := filter(p, known[name], x32, fallback)
		if err != nil {
			return nil, err
		}
		prog = append(prog, jumpIf(unix.BPF_JEQ, known[name].audit, 1, 0), jump(len(body)))
		prog = append(prog, body...)
	}
	prog = append(prog, ret(unix.SECCOMP_RET_KILL_PROCESS)) // a program of another architecture
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp filter has %d instructions, the kernel takes %d", len(prog), unix.BPF_MAXINSNS)
	}
	return prog.bytes(), nil
}

// action returns the value that a filter returns for an action.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	value := uint32(unix.EPERM)
	if errno != nil {
		value = uint32(*errno) & unix.SECCOMP_RET_DATA
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | value, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | value, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	default:
		return 0, fmt.Errorf("seccomp action %q: %w", a, ErrUnsupported)
	}
}

// rule is what is done if all conditions hold.
type rule struct {
	conditions []specs.LinuxSeccompArg
	action     uint32
}

// Flags returns those of the profile as SECCOMP_FILTER_FLAG_*, for seccomp(2).
// Errors: ErrUnsupported.
func Flags(p *specs.LinuxSeccomp) (int, error) {
	if p == nil {
		return 0, nil
	}
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return 0, fmt.Errorf("seccomp listener %q: %w", p.ListenerPath, ErrUnsupported)
	}
	flags := 0
	for _, f := range p.Flags {
		switch f {
		case flagTSync: // of one thread, which is all there is
			flags |= unix.SECCOMP_FILTER_FLAG_TSYNC
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return 0, fmt.Errorf("seccomp flag %q: %w", f, ErrUnsupported)
		}
	}
	return flags, nil
}

// flagTSync is in the runtime-spec, but not in its Go package.
const flagTSync specs.LinuxSeccompFlag = "SECCOMP_FILTER_FLAG_TSYNC"

// checkSize refuses what would take too long to compile.
func checkSize(p *specs.LinuxSeccomp) error {
	names, conditions := 0, 0
	for _, s := range p.Syscalls {
		names += len(s.Names)
		conditions += len(s.Names) * len(s.Args)
	}
	if names > maxNames || conditions > maxConditions {
		return fmt.Errorf("seccomp profile has %d names of calls with %d conditions, at most %d and %d are possible", names, conditions, maxNames, maxConditions)
	}
	return nil
}

// filter returns the instructions for one architecture, those of x32 included if
// asked for.
func filter(p *specs.LinuxSeccomp, arch architecture, x32 bool, fallback uint32) (program, error) {
	ranges, err := spans(p, arch.calls, 0, fallback)
	if err != nil {
		return nil, err
	}
	switch {
	case arch.audit != unix.AUDIT_ARCH_X86_64:
	case x32:
		more, err := spans(p, x32Calls(arch.calls), x32Bit, fallback)
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, more...)
	default:
		ranges = append(ranges, span{x32Bit, program{ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))}})
	}
	return append(program{load(offNumber)}, bisect(ranges)...), nil
}

// x32Calls are the system calls of the x32 ABI without their bit: those of x86-64,
// but for calls with structures of another size (arch/x86/entry/syscalls).
func x32Calls(amd64 map[string]uint32) map[string]uint32 {
	calls := maps.Clone(amd64)
	for i, name := range []string{
		"rt_sigaction", "rt_sigreturn", "ioctl", "readv", "writev", "recvfrom", "sendmsg", "recvmsg", "execve", "ptrace", "rt_sigpending",
		"rt_sigtimedwait", "rt_sigqueueinfo", "sigaltstack", "timer_create", "mq_notify", "kexec_load", "waitid", "set_robust_list",
		"get_robust_list", "vmsplice", "move_pages", "preadv", "pwritev", "rt_tgsigqueueinfo", "recvmmsg", "sendmmsg", "process_vm_readv",
		"process_vm_writev", "setsockopt", "getsockopt", "io_setup", "io_submit", "execveat", "preadv2", "pwritev2",
	} {
		calls[name] = uint32(512 + i)
	}
	return calls
}

// spans returns what is done with the calls of one table, all of which have first
// added to their numbers.
func spans(p *specs.LinuxSeccomp, calls map[string]uint32, first, fallback uint32) ([]span, error) {
	rules := map[uint32][]rule{}
	newest := uint32(0)
	for _, s := range p.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range s.Names {
			nr, ok := calls[name]
			if !ok {
				continue
			}
			newest = max(newest, nr)
			rules[nr] = append(rules[nr], split(s.Args, act)...)
		}
	}
	var ranges []span
	add := func(from uint32, body program) {
		if n := len(ranges); n > 0 && slices.Equal(ranges[n-1].body, body) {
			return
		}
		ranges = append(ranges, span{from, body})
	}
	for nr := range newest + 1 {
		body, err := decide(rules[nr], fallback)
		if err != nil {
			return nil, err
		}
		add(first+nr, body)
	}
	beyond := fallback
	if fallback&unix.SECCOMP_RET_ACTION_FULL != unix.SECCOMP_RET_ALLOW && fallback&unix.SECCOMP_RET_ACTION_FULL != unix.SECCOMP_RET_LOG {
		beyond = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	add(first+newest+1, program{ret(beyond)})
	return ranges, nil
}

// split returns the rules of an entry. Conditions on different arguments must
// all hold; of several on the same argument one is enough, as in runc.
func split(args []specs.LinuxSeccompArg, act uint32) []rule {
	seen := map[uint]bool{}
	for _, a := range args {
		if seen[a.Index] {
			var alternatives []rule
			for _, a := range args {
				alternatives = append(alternatives, rule{[]specs.LinuxSeccompArg{a}, act})
			}
			return alternatives
		}
		seen[a.Index] = true
	}
	return []rule{{args, act}}
}

// decide returns what is done for one call: the first rule that holds, those
// without conditions last, and else the fallback.
func decide(rules []rule, fallback uint32) (program, error) {
	var body program
	last := fallback
	for _, r := range slices.Backward(rules) {
		if len(r.conditions) == 0 {
			last = r.action
		}
	}
	for _, r := range rules {
		if len(r.conditions) == 0 || r.action == last {
			continue
		}
		test := program{ret(r.action)}
		for _, c := range slices.Backward(r.conditions) {
			var err error
			if test, err = condition(c, test); err != nil {
				return nil, err
			}
		}
		body = append(body, test...)
	}
	return append(body, ret(last)), nil
}

// span is a range of numbers up to the next one's, with the same instructions.
type span struct {
	from uint32
	body program
}

// bisect returns the instructions that find the range of the number in the
// accumulator. The kernel translates all of them for each process, so what is done
// for several ranges is there once, wherever jumps reach.
func bisect(spans []span) program {
	if prog, ok := compact(spans); ok {
		return prog
	}
	mid := len(spans) / 2
	low, high := bisect(spans[:mid]), bisect(spans[mid:])
	var prog program
	if len(low) <= maxJump {
		prog = program{jumpIf(unix.BPF_JGE, spans[mid].from, len(low), 0)}
	} else {
		prog = program{jumpIf(unix.BPF_JGE, spans[mid].from, 0, 1), jump(len(low))}
	}
	return append(append(prog, low...), high...)
}

// maxJump is how many instructions jumpIf can skip.
const maxJump = 255

// compact returns a tree of comparisons, followed by each body once. ok says that all
// jumps reach.
func compact(spans []span) (prog program, ok bool) {
	if len(spans) > maxJump {
		return nil, false
	}
	prog, ok = make(program, len(spans)-1), true
	var bodies []program
	var at []int // where they begin
	end := len(prog)
	for _, s := range spans {
		if slices.ContainsFunc(bodies, func(b program) bool { return slices.Equal(b, s.body) }) {
			continue
		}
		bodies, at = append(bodies, s.body), append(at, end)
		end += len(s.body)
	}
	next := 0 // of the comparisons
	// tree returns where what decides on the spans begins.
	var tree func(spans []span) int
	tree = func(spans []span) int {
		if len(spans) == 1 {
			return at[slices.IndexFunc(bodies, func(b program) bool { return slices.Equal(b, spans[0].body) })]
		}
		here, mid := next, len(spans)/2
		next++
		no := tree(spans[:mid]) - here - 1
		yes := tree(spans[mid:]) - here - 1
		if ok = ok && max(no, yes) <= maxJump; ok {
			prog[here] = jumpIf(unix.BPF_JGE, spans[mid].from, yes, no)
		}
		return here
	}
	tree(spans)
	for _, b := range bodies {
		prog = append(prog, b...)
	}
	return prog, ok
}

// program is a list of instructions.
type program []unix.SockFilter

func (p program) bytes() []byte {
	var b []byte
	for _, in := range p {
		b = binary.NativeEndian.AppendUint16(b, in.Code)
		b = append(b, in.Jt, in.Jf)
		b = binary.NativeEndian.AppendUint32(b, in.K)
	}
	return b
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func ret(value uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
}

func and(mask uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}
}

// jump skips n instructions.
func jump(n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}
}

// jumpIf skips yes or no instructions, each at most 255.
func jumpIf(op uint16, k uint32, yes, no int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: uint8(yes), Jf: uint8(no), K: k}
}

// condition returns instructions that go on with then if c holds, and else skip
// it.
func condition(c specs.LinuxSeccompArg, then program) (program, error) {
	if c.Index > 5 {
		return nil, fmt.Errorf("seccomp condition on argument %d, a call has 6", c.Index)
	}
	low := uint32(offArgs + 8*c.Index) // both processors are little-endian
	high := low + 4
	value, mask := c.Value, ^uint64(0)
	if c.Op == specs.OpMaskedEqual {
		mask, value = c.Value, c.ValueTwo
	}
	hi, lo := uint32(value>>32), uint32(value)
	n := len(then)
	switch c.Op {
	case specs.OpEqualTo, specs.OpMaskedEqual:
		return append(program{
			load(high), and(uint32(mask >> 32)), jumpIf(unix.BPF_JEQ, hi, 0, 3+n),
			load(low), and(uint32(mask)), jumpIf(unix.BPF_JEQ, lo, 0, n),
		}, then...), nil
	case specs.OpNotEqual:
		return append(program{
			load(high), jumpIf(unix.BPF_JEQ, hi, 0, 2),
			load(low), jumpIf(unix.BPF_JEQ, lo, n, 0),
		}, then...), nil
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		op := uint16(unix.BPF_JGT)
		if c.Op == specs.OpGreaterEqual {
			op = unix.BPF_JGE
		}
		return append(program{
			load(high), jumpIf(unix.BPF_JGT, hi, 3, 0), jumpIf(unix.BPF_JEQ, hi, 0, 2+n),
			load(low), jumpIf(op, lo, 0, n),
		}, then...), nil
	case specs.OpLessThan, specs.OpLessEqual:
		op := uint16(unix.BPF_JGE)
		if c.Op == specs.OpLessEqual {
			op = unix.BPF_JGT
		}
		return append(program{
			load(high), jumpIf(unix.BPF_JGT, hi, 4+n-1, 0), jumpIf(unix.BPF_JEQ, hi, 0, 2),
			load(low), jumpIf(op, lo, n, 0),
		}, then...), nil
	default:
		return nil, fmt.Errorf("seccomp operator %q: %w", c.Op, ErrUnsupported)
	}
}

// Actions returns the actions that a profile may name.
func Actions() []string {
	return []string{
		string(specs.ActAllow), string(specs.ActErrno), string(specs.ActKill), string(specs.ActKillProcess), string(specs.ActKillThread),
		string(specs.ActLog), string(specs.ActTrace), string(specs.ActTrap),
	}
}

// Operators returns the comparisons that a profile may make.
func Operators() []string {
	return []string{
		string(specs.OpEqualTo), string(specs.OpGreaterEqual), string(specs.OpGreaterThan), string(specs.OpLessEqual), string(specs.OpLessThan),
		string(specs.OpMaskedEqual), string(specs.OpNotEqual),
	}
}

// Architectures returns those whose programs a filter tells apart; of others nothing
// runs here.
func Architectures() []string {
	var names []string
	for name := range architectures() {
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}

// KnownFlags returns the flags that a profile may have.
func KnownFlags() []string {
	return []string{string(specs.LinuxSeccompFlagLog), string(specs.LinuxSeccompFlagSpecAllow), string(flagTSync)}
}
