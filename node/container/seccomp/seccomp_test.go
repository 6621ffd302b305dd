package seccomp_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/seccomp"
)

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

// load returns the word at an offset.
func (d data) load(off uint32) uint32 {
	b := binary.LittleEndian.AppendUint32(nil, d.nr)
	b = binary.LittleEndian.AppendUint32(b, d.arch)
	b = binary.LittleEndian.AppendUint64(b, 0)
	for _, a := range d.args {
		b = binary.LittleEndian.AppendUint64(b, a)
	}
	return binary.LittleEndian.Uint32(b[off:])
}

// run runs a filter as the kernel would, and fails on what that would refuse.
func run(filter []byte, d data) (uint32, error) {
	acc := uint32(0)
	for pc := 0; ; pc++ {
		if pc < 0 || 8*pc+8 > len(filter) {
			return 0, fmt.Errorf("jump out of the program, to %d", pc)
		}
		in := filter[8*pc:]
		code, jt, jf, k := binary.NativeEndian.Uint16(in), int(in[2]), int(in[3]), binary.NativeEndian.Uint32(in[4:])
		branch := func(yes bool) {
			if yes {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = d.load(k)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= k
		case unix.BPF_RET | unix.BPF_K:
			return k, nil
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(k)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			branch(acc == k)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			branch(acc&k != 0)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			branch(acc > k)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			branch(acc >= k)
		default:
			return 0, fmt.Errorf("instruction %#x", code)
		}
	}
}

const (
	allow  = unix.SECCOMP_RET_ALLOW
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	kill   = unix.SECCOMP_RET_KILL_PROCESS
)

func compile(t testing.TB, p *specs.LinuxSeccomp) []byte {
	t.Helper()
	b, err := seccomp.Compile(p, seccomp.Kernel{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDefaultProfile asks Docker's profile about calls of which its
// documentation says what happens.
func TestDefaultProfile(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Fatal("this table has the numbers of amd64; add those of " + runtime.GOARCH)
	}
	caps := []string{"CAP_CHOWN"}
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	filter := compile(t, p)
	t.Logf("%d instructions", len(filter)/8)
	const native, compat = unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386
	for _, tc := range []struct {
		name string
		data data
		want uint32
	}{
		{"read", data{nr: unix.SYS_READ, arch: native}, allow},
		{"execve", data{nr: unix.SYS_EXECVE, arch: native}, allow},
		{"mount", data{nr: unix.SYS_MOUNT, arch: native}, eperm},
		{"bpf", data{nr: unix.SYS_BPF, arch: native}, eperm},
		{"io_uring_setup", data{nr: unix.SYS_IO_URING_SETUP, arch: native}, eperm},
		{"clone of a process", data{nr: unix.SYS_CLONE, arch: native, args: [6]uint64{uint64(unix.SIGCHLD)}}, allow},
		{"clone of a user namespace", data{nr: unix.SYS_CLONE, arch: native, args: [6]uint64{unix.CLONE_NEWUSER}}, eperm},
		{"clone3, so that libraries use clone", data{nr: unix.SYS_CLONE3, arch: native}, enosys},
		{"socket of AF_INET", data{nr: unix.SYS_SOCKET, arch: native, args: [6]uint64{unix.AF_INET}}, allow},
		{"socket of AF_ALG", data{nr: unix.SYS_SOCKET, arch: native, args: [6]uint64{unix.AF_ALG}}, eperm},
		{"socket of AF_VSOCK", data{nr: unix.SYS_SOCKET, arch: native, args: [6]uint64{unix.AF_VSOCK}}, eperm},
		{"socket of a family above 32 bits", data{nr: unix.SYS_SOCKET, arch: native, args: [6]uint64{unix.AF_ALG | 1<<40}}, allow},
		{"personality of Linux", data{nr: unix.SYS_PERSONALITY, arch: native}, allow},
		{"personality of another", data{nr: unix.SYS_PERSONALITY, arch: native, args: [6]uint64{6}}, eperm},
		{"newer than the profile", data{nr: 9999, arch: native}, enosys},
		{"of the x32 ABI", data{nr: 0x40000000, arch: native}, enosys},
		{"read of i386", data{nr: 3, arch: compat}, allow},
		{"mount of i386", data{nr: 21, arch: compat}, eperm},
		{"newer, of i386", data{nr: 9999, arch: compat}, enosys},
		{"another architecture", data{nr: 0, arch: unix.AUDIT_ARCH_AARCH64}, kill},
	} {
		if got, err := run(filter, tc.data); err != nil || got != tc.want {
			t.Errorf("%s: %#x, %v; want %#x", tc.name, got, err, tc.want)
		}
	}
}

// holds is the meaning of a condition, as libseccomp's manual has it.
func holds(c specs.LinuxSeccompArg, v uint64) bool {
	switch c.Op {
	case specs.OpEqualTo:
		return v == c.Value
	case specs.OpNotEqual:
		return v != c.Value
	case specs.OpLessThan:
		return v < c.Value
	case specs.OpLessEqual:
		return v <= c.Value
	case specs.OpGreaterThan:
		return v > c.Value
	case specs.OpGreaterEqual:
		return v >= c.Value
	default:
		return v&c.Value == c.ValueTwo
	}
}

// TestConditions holds each operator against its meaning, at the edges of both
// words of an argument.
func TestConditions(t *testing.T) {
	values := []uint64{0, 1, 5, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 5, 5 << 32, 5<<32 + 5, 1 << 63, 1<<64 - 1}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	for _, op := range ops {
		for _, want := range values {
			c := specs.LinuxSeccompArg{Index: 1, Op: op, Value: want, ValueTwo: want & values[rand.IntN(len(values))]}
			second := specs.LinuxSeccompArg{Index: 2, Op: specs.OpEqualTo, Value: 7}
			filter := compile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
				{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{c, second}},
			}})
			for _, v := range values {
				for _, other := range []uint64{7, 8} {
					d := data{nr: unix.SYS_READ, arch: native(), args: [6]uint64{9, v, other}}
					expect := eperm
					if holds(c, v) && other == 7 {
						expect = allow
					}
					if got, err := run(filter, d); err != nil || got != expect {
						t.Fatalf("%s %#x %#x of %#x, %d: %#x, %v; want %#x", op, c.Value, c.ValueTwo, v, other, got, err, expect)
					}
				}
			}
		}
	}
}

func native() uint32 {
	if runtime.GOARCH == "arm64" {
		return unix.AUDIT_ARCH_AARCH64
	}
	return unix.AUDIT_ARCH_X86_64
}

func TestActions(t *testing.T) {
	num := uint(42)
	for _, tc := range []struct {
		action specs.LinuxSeccompAction
		want   uint32
		err    string
	}{
		{specs.ActErrno, unix.SECCOMP_RET_ERRNO | 42, ""},
		{specs.ActTrace, unix.SECCOMP_RET_TRACE | 42, ""},
		{specs.ActKill, unix.SECCOMP_RET_KILL_THREAD, ""},
		{specs.ActKillProcess, kill, ""},
		{specs.ActTrap, unix.SECCOMP_RET_TRAP, ""},
		{specs.ActLog, unix.SECCOMP_RET_LOG, ""},
		{specs.ActNotify, 0, `seccomp action "SCMP_ACT_NOTIFY": not supported`},
		{"", 0, `seccomp action "": not supported`},
	} {
		filter, err := seccomp.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read", "no_such_call"}, Action: tc.action, ErrnoRet: &num},
		}}, seccomp.Kernel{})
		if err != nil || tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%s: %v, want %s", tc.action, err, tc.err)
			}
			continue
		}
		got, err := run(filter, data{nr: unix.SYS_READ, arch: native()})
		if err != nil || got != tc.want {
			t.Errorf("%s: %#x, %v; want %#x", tc.action, got, err, tc.want)
		}
		// With a default of allow, there is no reason to refuse what is newer.
		if got, err := run(filter, data{nr: 5000, arch: native()}); err != nil || got != allow {
			t.Errorf("%s, newer call: %#x, %v; want %#x", tc.action, got, err, uint32(allow))
		}
	}
}

func FuzzCompile(f *testing.F) {
	for _, name := range []string{`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_NE"}]}]}`} {
		f.Add([]byte(name))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var p specs.LinuxSeccomp
		if json.Unmarshal(text, &p) != nil {
			return
		}
		filter, err := seccomp.Compile(&p, seccomp.Kernel{X32: true})
		if err != nil {
			return
		}
		for nr := range uint32(600) {
			if _, err := run(filter, data{nr: nr, arch: native(), args: [6]uint64{uint64(nr)}}); err != nil {
				t.Errorf("call %d of %s: %v", nr, text, err)
			}
		}
	})
}

// TestNames looks for calls of Docker's profile that no table has: those are
// either of other processors, or were missed.
func TestNames(t *testing.T) {
	src, err := os.ReadFile("calls.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"openat2", "clone3", "futex_waitv", "cachestat", "statmount", "mseal", "map_shadow_stack"} {
		if !strings.Contains(string(src), fmt.Sprintf("%q", name)) {
			t.Errorf("%s has no %s: run go generate", filepath.Base("calls.go"), name)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		compile(b, p)
	}
}
