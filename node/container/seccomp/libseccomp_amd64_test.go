package seccomp_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/seccomp"
)

// export compiles profiles, JSON in a list on standard input, with libseccomp in
// the way of runc and crun: conditions on one argument are alternatives. It prints
// the filters in hex.
const export = `
import json, seccomp, sys, tempfile
def action(name, errno):
    errno = 1 if errno is None else errno
    return {"ALLOW": seccomp.ALLOW, "LOG": seccomp.LOG, "TRAP": seccomp.TRAP, "KILL_PROCESS": seccomp.KILL_PROCESS, "KILL": seccomp.KILL, "KILL_THREAD": seccomp.KILL,
        "ERRNO": seccomp.ERRNO(errno), "TRACE": seccomp.TRACE(errno)}[name.removeprefix("SCMP_ACT_")]
def arg(a):
    op = {"NE": seccomp.NE, "LT": seccomp.LT, "LE": seccomp.LE, "EQ": seccomp.EQ, "GE": seccomp.GE, "GT": seccomp.GT, "MASKED_EQ": seccomp.MASKED_EQ}[a["op"].removeprefix("SCMP_CMP_")]
    return seccomp.Arg(a["index"], op, a["value"], a.get("valueTwo", 0))
for p in json.load(sys.stdin):
    fallback = action(p["defaultAction"], p.get("defaultErrnoRet"))
    f = seccomp.SyscallFilter(fallback)
    for a in p.get("architectures") or []:
        if not f.exist_arch(getattr(seccomp.Arch, a.removeprefix("SCMP_ARCH_"))):
            f.add_arch(getattr(seccomp.Arch, a.removeprefix("SCMP_ARCH_")))
    for s in p.get("syscalls") or []:
        act = action(s["action"], s.get("errnoRet"))
        if act == fallback:
            continue
        args = s.get("args") or []
        lists = [args]
        if len({a["index"] for a in args}) < len(args):
            lists = [[a] for a in args]
        for name in s["names"]:
            for list in lists:
                f.add_rule(act, name, *[arg(a) for a in list])
    with tempfile.TemporaryFile() as t:
        f.export_bpf(t)
        t.seek(0)
        print(t.read().hex())
`

// libseccomp compiles the profiles with libseccomp.
func libseccomp(t *testing.T, profiles []*specs.LinuxSeccomp) [][]byte {
	t.Helper()
	text, err := json.Marshal(profiles)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "-c", export)
	cmd.Stdin = bytes.NewReader(text)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("compile with libseccomp (apt-get install python3-seccomp): %v\n%s", err, stderr.String())
	}
	var filters [][]byte
	for line := range bytes.FieldsSeq(out) {
		filter := make([]byte, len(line)/2)
		if _, err := hex.Decode(filter, line); err != nil {
			t.Fatal(err)
		}
		filters = append(filters, filter)
	}
	if len(filters) != len(profiles) {
		t.Fatalf("libseccomp made %d filters of %d profiles: %s", len(filters), len(profiles), stderr.String())
	}
	return filters
}

// anyProfile makes up a profile: few calls with several rules each, whose
// conditions and values meet often.
func anyProfile(r *rand.Rand, names []string, values []uint64) *specs.LinuxSeccomp {
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActTrap, specs.ActTrace, specs.ActLog, specs.ActKill, specs.ActKillProcess}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	errno := func() *uint {
		if r.IntN(2) == 0 {
			return nil
		}
		return new(uint(r.IntN(100) + 1))
	}
	p := &specs.LinuxSeccomp{DefaultAction: actions[r.IntN(len(actions))], DefaultErrnoRet: errno()}
	// Of several rules of one call libseccomp 2.5 overlooks some: there is one entry
	// for each here, and alternatives in one have small values.
	wide := true
	if r.IntN(2) == 0 {
		wide = false
		p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
		values = slices.DeleteFunc(slices.Clone(values), func(v uint64) bool { return v >= 1<<32 })
	}
	for _, name := range names {
		act := actions[r.IntN(len(actions))]
		num := errno()
		for range r.IntN(2) {
			s := specs.LinuxSyscall{Names: []string{name}, Action: act, ErrnoRet: num}
			for range r.IntN(4) {
				index := uint(r.IntN(3))
				if wide {
					index = uint(len(s.Args))
				}
				s.Args = append(s.Args, specs.LinuxSeccompArg{
					Index: index, Op: ops[r.IntN(len(ops))], Value: values[r.IntN(len(values))], ValueTwo: values[r.IntN(len(values))],
				})
			}
			for i, a := range s.Args {
				if a.Op == specs.OpMaskedEqual {
					s.Args[i].ValueTwo &= a.Value // what can be
				}
			}
			p.Syscalls = append(p.Syscalls, s)
		}
	}
	return p
}

// TestLikeLibseccomp compiles made-up profiles with this package and with
// libseccomp, and asks both filters about calls. They may differ in what is not asked
// here: calls newer than the profile (ENOSYS here), those of an architecture that the
// profile has not (the process dies here, its thread there), and which of several
// actions a call gets whose conditions hold at once, which the specification does
// not say.
func TestLikeLibseccomp(t *testing.T) {
	// The last one is listed without conditions, so that all others are older.
	calls := map[string][2]uint32{
		"read": {unix.SYS_READ, 3}, "openat": {unix.SYS_OPENAT, 295}, "getpid": {unix.SYS_GETPID, 20}, "kill": {unix.SYS_KILL, 37},
		"personality": {unix.SYS_PERSONALITY, 136}, "clone": {unix.SYS_CLONE, 120}, "close_range": {unix.SYS_CLOSE_RANGE, 436},
	}
	names := []string{"clone", "getpid", "kill", "openat", "personality", "read"}
	values := []uint64{0, 1, 5, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 5, 5 << 32, 1 << 63, 1<<64 - 1}
	r := rand.New(rand.NewPCG(1, 3))
	var profiles []*specs.LinuxSeccomp
	for range 300 {
		p := anyProfile(r, names, values)
		last := specs.ActAllow
		if p.DefaultAction == specs.ActAllow {
			last = specs.ActTrap
		}
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"close_range"}, Action: last})
		profiles = append(profiles, p)
	}
	asked := 0
	for i, theirs := range libseccomp(t, profiles) {
		p := profiles[i]
		ours, err := seccomp.Compile(p, seccomp.Kernel{X32: true})
		if err != nil {
			t.Fatal(err)
		}
		arches := []struct {
			audit, bit uint32
			nr         int
		}{{unix.AUDIT_ARCH_X86_64, 0, 0}}
		if len(p.Architectures) > 0 {
			arches = append(arches, struct {
				audit, bit uint32
				nr         int
			}{unix.AUDIT_ARCH_X86_64, 0x40000000, 0}, struct {
				audit, bit uint32
				nr         int
			}{unix.AUDIT_ARCH_I386, 0, 1})
		}
		for _, arch := range arches {
			for name, nr := range calls {
				for range 40 {
					d := data{nr: nr[arch.nr] | arch.bit, arch: arch.audit}
					for j := range d.args {
						d.args[j] = values[r.IntN(len(values))]
						if len(p.Architectures) > 0 {
							d.args[j] &= 1<<32 - 1 // all that such a program can say
						}
					}
					a, err := run(ours, d)
					if err != nil {
						t.Fatal(err)
					}
					b, err := run(theirs, d)
					if err != nil {
						t.Fatalf("libseccomp's filter: %v", err)
					}
					asked++
					if a != b {
						text, _ := json.Marshal(p)
						t.Errorf("%s%x of %#x %#x: %#x, with libseccomp %#x\n%s", name, d.args, d.arch, d.nr, a, b, text)
					}
				}
			}
		}
	}
	t.Logf("%d calls of %d profiles", asked, len(profiles))
}
