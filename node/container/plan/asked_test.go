package plan_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container/plan"
)

// asks is a thing that a spec can ask for, and what comes of it.
type asks struct {
	name    string
	set     func(*plan.Input)
	shim    []string // lines of the shim's program, in this order …
	child   []string // … and of the child's, with numbers of registers as "r"
	without string   // a line that must not be there
	err     string   // part of the error
	refused bool     // it is ErrUnsupported
}

// check makes the plan and looks for what is wanted.
func (a asks) check(t *testing.T) {
	t.Helper()
	in := plan.Input{
		Spec: spec(), Seccomp: make([]byte, 16), Host: host(),
		Rootfs: plan.Rootfs{Lowers: []string{"/layers/base", "/layers/app"}, Upper: "/rw/c1/upper", Work: "/rw/c1/work"},
	}
	a.set(&in)
	p, err := plan.For(in)
	if a.err != "" {
		if err == nil || !strings.Contains(err.Error(), a.err) || errors.Is(err, plan.ErrUnsupported) != a.refused {
			t.Errorf("%s: %v, want an error with %q, unsupported %t", a.name, err, a.err, a.refused)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", a.name, err)
		return
	}
	a.lines(t, "shim", p.Prepare.String(), a.shim)
	a.lines(t, "child", p.Child.String(), a.child)
}

// lines looks for lines in a program, one after the other.
func (a asks) lines(t *testing.T, whose, program string, want []string) {
	t.Helper()
	if a.without != "" && strings.Contains(program, a.without) {
		t.Errorf("%s: the program of the %s has %q:\n%s", a.name, whose, a.without, program)
	}
	rest := program
	for _, line := range want {
		_, after, found := strings.Cut(rest, line)
		if !found {
			t.Errorf("%s: the program of the %s has no %q at its place:\n%s", a.name, whose, line, program)
			return
		}
		rest = after
	}
}

func TestSecurityModules(t *testing.T) {
	const pivot = "pivot_root("
	for _, tc := range []asks{
		{name: "AppArmor", set: func(in *plan.Input) { in.Host.AppArmor = true; in.Spec.Process.ApparmorProfile = "strict" }, child: []string{
			`openat(-100, "/proc/thread-self/attr/apparmor/exec", 0x80001, 0); ENOENT`, `openat(-100, "/proc/thread-self/attr/exec", 0x80001, 0)`, pivot, `"exec strict", 0xb)`, "seccomp(", "execve(",
		}},
		{name: "AppArmor's default", set: func(in *plan.Input) { in.Host.AppArmor = true; in.Spec.Process.ApparmorProfile = plan.DefaultAppArmor }, child: []string{
			pivot, `"exec berth-default", 0x12); ENOENT warn`,
		}},
		{name: "no AppArmor", set: func(in *plan.Input) { in.Spec.Process.ApparmorProfile = "strict" }, err: "process.apparmorProfile strict on a kernel without AppArmor", refused: true},
		{name: "no AppArmor for the default", set: func(in *plan.Input) { in.Spec.Process.ApparmorProfile = plan.DefaultAppArmor }, child: []string{"fail(0x5f)"}, without: "attr/"},
		{name: "unconfined without AppArmor", set: func(in *plan.Input) { in.Spec.Process.ApparmorProfile = "unconfined" }, without: "attr/"},
		{name: "unconfined", set: func(in *plan.Input) { in.Host.AppArmor = true; in.Spec.Process.ApparmorProfile = "unconfined" }, child: []string{`"exec unconfined"`}},
		{name: "two profiles", set: func(in *plan.Input) { in.Host.AppArmor = true; in.Spec.Process.ApparmorProfile = "a\nexec b" }, err: "is not a name"},
		{name: "SELinux", set: func(in *plan.Input) {
			in.Host.SELinux = true
			in.Spec.Process.SelinuxLabel, in.Spec.Linux.MountLabel = "system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0:c1,c2"
		}, shim: []string{
			`"context", "system_u:object_r:container_file_t:s0:c1,c2"`, `fsopen("tmpfs"`, `"context", "system_u:object_r:container_file_t:s0:c1,c2"`, `fsopen("devpts"`, `"context", `,
		}, child: []string{
			`openat(-100, "/proc/thread-self/attr/exec", 0x80001, 0)`, `fsopen("tmpfs"`, `"context", `, pivot, `"system_u:system_r:container_t:s0", 0x20)`,
		}},
		{name: "no SELinux", set: func(in *plan.Input) { in.Spec.Process.SelinuxLabel = "a:b:c:s0" }, err: "process.selinuxLabel a:b:c:s0 on a kernel without SELinux", refused: true},
		{name: "no SELinux for mounts", set: func(in *plan.Input) { in.Spec.Linux.MountLabel = "a:b:c:s0" }, err: "linux.mountLabel a:b:c:s0 on a kernel without SELinux", refused: true},
	} {
		tc.check(t)
	}
}

// joins gives the spec namespaces by path.
func joins(in *plan.Input, kinds ...specs.LinuxNamespaceType) {
	l := in.Spec.Linux
	for _, kind := range kinds {
		l.Namespaces = slices.DeleteFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: kind, Path: "/proc/7/ns/" + string(kind)})
	}
}

// leaves takes namespaces out of the spec.
func leaves(in *plan.Input, kinds ...specs.LinuxNamespaceType) {
	in.Spec.Linux.Namespaces = slices.DeleteFunc(in.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return slices.Contains(kinds, n.Type) })
}

func TestNamespaces(t *testing.T) {
	mqueue := specs.Mount{Destination: "/dev/mqueue", Type: "mqueue"}
	for _, tc := range []asks{
		{name: "another's ipc", set: func(in *plan.Input) {
			joins(in, specs.IPCNamespace)
			in.Spec.Mounts = append(in.Spec.Mounts, mqueue)
		}, shim: []string{`openat(-100, "/proc/thread-self/ns/ipc"`, "setns(r7, 0x8000000)", `fsopen("mqueue"`, "fsmount(", ", 0x8000000)"}, without: `"set mqueue`},
		{name: "the node's ipc", set: func(in *plan.Input) {
			leaves(in, specs.IPCNamespace)
			in.Spec.Mounts = append(in.Spec.Mounts, mqueue)
		}, shim: []string{`fsopen("mqueue"`}, without: "/ns/ipc"},
		{name: "another's ipc and users", set: func(in *plan.Input) {
			joins(in, specs.IPCNamespace, specs.UserNamespace)
			in.Spec.Mounts = append(in.Spec.Mounts, mqueue)
		}, child: []string{"setresuid(0, 0, 0)", `fsopen("mqueue"`}, without: "/ns/ipc"},
		{name: "the node's pid", set: func(in *plan.Input) { leaves(in, specs.PIDNamespace) }, shim: []string{`fsopen("proc"`}},
		{name: "the node's cgroup", set: func(in *plan.Input) { leaves(in, specs.CgroupNamespace) }, shim: []string{`mkdirat(`, `"cpu,cpuacct"`, `fsopen("cgroup"`, `fsopen("cgroup2"`}, without: "unshare(0x2000000)"},
		{name: "time", set: func(in *plan.Input) {
			in.Spec.Linux.Namespaces = append(in.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		}, without: "0x80)"},
		{name: "time with offsets", set: func(in *plan.Input) {
			in.Spec.Linux.Namespaces = append(in.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			in.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: -3}, "boottime": {Nanosecs: 4}}
		}, shim: []string{`openat(r10, "timens_offsets", 0x80001, 0)`}, child: []string{
			"unshare(0x80)", `{626f6f7474696d65203020340a6d6f6e6f746f6e6963202d3320300a}`, `openat(-100, "/proc/thread-self/ns/time_for_children"`, ", 0x80)",
		}},
		{name: "another's time", set: func(in *plan.Input) { joins(in, specs.TimeNamespace, specs.UserNamespace) }, shim: []string{"fcntl(r9, "}, child: []string{", 0x80)", "pivot_root"}},
		{name: "unknown clock", set: func(in *plan.Input) {
			in.Spec.Linux.Namespaces = append(in.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			in.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}}
		}, err: "realtime", refused: true},
		{name: "offsets in another's", set: func(in *plan.Input) {
			joins(in, specs.TimeNamespace, specs.UserNamespace)
			in.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1}}
		}, err: "timeOffsets"},
		{name: "another's time with users of its own", set: func(in *plan.Input) { joins(in, specs.TimeNamespace) }, err: "time namespace", refused: true},
		{name: "relative path", set: func(in *plan.Input) { in.Spec.Linux.Namespaces[2].Path = "proc/1/ns/net" }, err: "not an absolute path"},
		{name: "twice", set: func(in *plan.Input) {
			in.Spec.Linux.Namespaces = append(in.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/x"})
		}, err: "listed twice"},
		{name: "unknown", set: func(in *plan.Input) {
			in.Spec.Linux.Namespaces = append(in.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: "sound"})
		}, err: "sound namespace", refused: true},
		{name: "too many mappings", set: func(in *plan.Input) {
			for i := range uint32(400) {
				in.Spec.Linux.UIDMappings = append(in.Spec.Linux.UIDMappings, specs.LinuxIDMapping{ContainerID: 70000 + i, HostID: i, Size: 1})
			}
		}, err: "401 uid", refused: true},
		{name: "no mapping", set: func(in *plan.Input) { in.Spec.Linux.GIDMappings = nil }, err: "must contain 0"},
		{name: "sysctls of users", set: func(in *plan.Input) { in.Spec.Linux.Sysctl = map[string]string{"user.max_user_namespaces": "0"} }, child: []string{`"sys/user/max_user_namespaces"`}},
		{name: "sysctls of the node's users", set: func(in *plan.Input) {
			leaves(in, specs.UserNamespace)
			in.Spec.Linux.UIDMappings, in.Spec.Linux.GIDMappings = nil, nil
			in.Spec.Linux.Sysctl = map[string]string{"user.max_user_namespaces": "0"}
		}, err: "it would change the node"},
	} {
		tc.check(t)
	}
}

// TestExecEntersTheSame holds what exec enters against what the container has.
func TestExecEntersTheSame(t *testing.T) {
	for _, tc := range []struct {
		name  string
		set   func(*plan.Input)
		enter string
		setns string
	}{
		{"own", func(*plan.Input) {}, "[0x20000000]", "setns(r5, 0x5e020000)"},
		{"the node's pid and net", func(in *plan.Input) { leaves(in, specs.PIDNamespace, specs.NetworkNamespace) }, "[]", "setns(r5, 0x1e020000)"},
		{"another's net", func(in *plan.Input) { joins(in, specs.NetworkNamespace) }, "[0x20000000 0x40000000]", "setns(r5, 0x1e020000)"},
		{"another's pid, ipc and users", func(in *plan.Input) { joins(in, specs.PIDNamespace, specs.IPCNamespace, specs.UserNamespace) }, "[0x20000000]", "setns(r5, 0x5e020000)"},
		{"the node's cgroup, and time", func(in *plan.Input) {
			leaves(in, specs.CgroupNamespace)
			in.Spec.Linux.Namespaces = append(in.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		}, "[0x20000000]", "setns(r5, 0x5c020080)"},
	} {
		in := plan.Input{Spec: spec()}
		tc.set(&in)
		p, err := plan.ForExec(plan.ExecInput{Spec: in.Spec, Process: in.Spec.Process, Host: host()})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := fmt.Sprintf("%#x", p.Enter); got != tc.enter || !strings.Contains(p.Child.String(), tc.setns) {
			t.Errorf("%s: enters %s, want %s and %s:\n%s", tc.name, got, tc.enter, tc.setns, p.Child)
		}
	}
}

func TestProcess(t *testing.T) {
	for _, tc := range []asks{
		{name: "real time", set: func(in *plan.Input) {
			in.Spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedRR, Priority: 5, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}
		}, shim: []string{"sched_setattr(r3, {300000000200000001000000000000000000000005000000000000000000000000000000000000000000000000000000}, 0)"}},
		{name: "deadline", set: func(in *plan.Input) {
			in.Spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedDeadline, Runtime: 1, Deadline: 2, Period: 3}
		}, shim: []string{"sched_setattr(r3, {30000000060000000000000000000000000000000000000001000000000000000200000000000000" + "0300000000000000}, 0)"}},
		{name: "scheduler", set: func(in *plan.Input) { in.Spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedISO} }, err: `policy "SCHED_ISO"`, refused: true},
		{name: "scheduler flag", set: func(in *plan.Input) {
			in.Spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagUtilClampMin}}
		}, err: "SCHED_FLAG_UTIL_CLAMP_MIN", refused: true},
		{name: "priority without real time", set: func(in *plan.Input) {
			in.Spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Priority: 1}
		}, err: "priority 1 goes with"},
		{name: "nice", set: func(in *plan.Input) {
			in.Spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Nice: 20}
		}, err: "nice 20"},
		{name: "runtime without deadline", set: func(in *plan.Input) {
			in.Spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Runtime: 1}
		}, err: "SCHED_DEADLINE"},
		{name: "io priority", set: func(in *plan.Input) {
			in.Spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_RT, Priority: 3}
		}, shim: []string{"ioprio_set(1, r3, 0x2003)"}},
		{name: "io priority out of range", set: func(in *plan.Input) {
			in.Spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_RT, Priority: 8}
		}, err: "process.ioPriority"},
		{name: "affinity of exec", set: func(in *plan.Input) { in.Spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "3-1"} }, err: "execCPUAffinity.final"},
		{name: "memory policy", set: func(in *plan.Input) {
			in.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0,2-3", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
		}, child: []string{"set_mempolicy(0x8002, {0d00000000000000}, 0x41)", "seccomp("}},
		{name: "memory policy unknown", set: func(in *plan.Input) { in.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_X"} }, err: "mode \"MPOL_X\"", refused: true},
		{name: "memory policy with nodes too many", set: func(in *plan.Input) {
			in.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolDefault, Nodes: "0-7"}
		}, err: "mode requires 0 nodes but got 8"},
		{name: "masks", set: func(in *plan.Input) { in.Spec.Linux.MaskedPaths = []string{"/a", "/b", "a", "/a/"} }, child: []string{`"./a"`, `"./a"`, `"./b"`, `"./b"`}},
		{name: "memory nodes", set: func(in *plan.Input) {
			in.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "all"}
		}, err: "invalid memory policy node"},
		{name: "personality", set: func(in *plan.Input) { in.Spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} }, child: []string{"personality(8)", "seccomp("}},
		{name: "personality unknown", set: func(in *plan.Input) { in.Spec.Linux.Personality = &specs.LinuxPersonality{Domain: "BSD"} }, err: "linux.personality", refused: true},
		{name: "effective without permitted", set: func(in *plan.Input) { in.Spec.Process.Capabilities.Permitted = nil }, child: []string{"fail(1); error warn", "fail(1); error warn", "capset({2205082000000000}, {000000000000000000000000000000000000000000000000})"}},
		{name: "ambient without permitted", set: func(in *plan.Input) { in.Spec.Process.Capabilities.Ambient = []string{"CAP_SYS_ADMIN"} }, child: []string{"fail(1); error warn", "capset("}, without: "prctl(0x2f"},
		{name: "inheritable", set: func(in *plan.Input) { in.Spec.Process.Capabilities.Inheritable = []string{"CAP_CHOWN"} }, child: []string{"fail(1); error warn", "capset("}},
		{name: "the node's capabilities", set: func(in *plan.Input) { in.Host.NoCaps = 1 }, without: "fail(1)"},
		{name: "capabilities that the node has not", set: func(in *plan.Input) {
			in.Host.NoCaps = 1
			leaves(in, specs.UserNamespace)
			in.Spec.Linux.UIDMappings, in.Spec.Linux.GIDMappings = nil, nil
		}, child: []string{"fail(1)", "prctl(0x18, 0, 0, 0, 0)", "capset({2205082000000000}, {002000000020000000000000000000000000000000000000})"}},
		{name: "rlimit twice", set: func(in *plan.Input) {
			in.Spec.Process.Rlimits = append(in.Spec.Process.Rlimits, in.Spec.Process.Rlimits...)
		}, err: "listed twice"},
		{name: "rlimit upside down", set: func(in *plan.Input) { in.Spec.Process.Rlimits[0].Soft = 100 }, err: "above the hard limit"},
		{name: "oom score", set: func(in *plan.Input) { in.Spec.Process.OOMScoreAdj = new(2000) }, err: "oomScoreAdj 2000"},
		{name: "sysctl of a later kernel", set: func(in *plan.Input) {
			in.Host.Kernel = [2]int{6, 13}
			in.Spec.Linux.Sysctl = map[string]string{"kernel.pid_max": "100"}
		}, err: "from Linux 6.14 on only"},
		{name: "sysctl of this kernel", set: func(in *plan.Input) {
			in.Host.Kernel = [2]int{7, 0}
			in.Spec.Linux.Sysctl = map[string]string{"kernel.pid_max": "100"}
		}, child: []string{`"sys/kernel/pid_max"`}},
		{name: "hostname by sysctl", set: func(in *plan.Input) { in.Spec.Linux.Sysctl = map[string]string{"kernel.hostname": "x"} }, err: "set hostname instead"},
		{name: "no such namespace", set: func(in *plan.Input) { in.Host.NoNamespaces = 0x02000000 }, err: "cgroup namespace on this kernel", refused: true},
		{name: "many masks", set: func(in *plan.Input) { in.Spec.Linux.MaskedPaths = make([]string, 501) }, err: "501 linux.maskedPaths", refused: true},
		{name: "many mounts", set: func(in *plan.Input) { in.Spec.Mounts = make([]specs.Mount, 501) }, err: "501 mounts", refused: true},
	} {
		tc.check(t)
	}
}

// mounts adds mounts to the spec.
func mounts(in *plan.Input, list ...specs.Mount) { in.Spec.Mounts = append(in.Spec.Mounts, list...) }

// noDev takes the mount at /dev and those below it away.
func noDev(in *plan.Input) {
	in.Spec.Mounts = slices.DeleteFunc(in.Spec.Mounts, func(m specs.Mount) bool { return strings.HasPrefix(m.Destination, "/dev") })
}

func TestMounts(t *testing.T) {
	ids := []specs.LinuxIDMapping{{HostID: 5, Size: 1}}
	const bind = "/node/x"
	for _, tc := range []asks{
		{name: "options below", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "bind", Source: bind, Options: []string{"rbind", "rro", "rnosuid", "ratime", "rw", "rslave"}})
		}, shim: []string{`open_tree(-100, "/node/x", 0x88001)`, `, "", 0x9000, {03000000000000007000000000000000000008000000000000000000`}},
		{name: "shared", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "bind", Source: bind, Options: []string{"rbind", "shared"}})
		}, shim: []string{`open_tree(-100, "/node/x", 0x88001)`, `, "", 0x1000, {00000000000000000000000000000000000010000000000000`}},
		{name: "ids of a tree", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "bind", Source: bind, Options: []string{"rbind", "ridmap"}})
		}, shim: []string{`open_tree(-100, "/node/x", 0x88001)`, "EINVAL -> ", "tree("}},
		{name: "ids of a tree that is shared", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "bind", Source: bind, Options: []string{"rbind", "ridmap", "rshared"}})
		}, shim: []string{`open_tree(-100, "/node/x", 0x88001)`, "mount_setattr("}, without: " = tree("},
		{name: "access times as a whole", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "bind", Source: bind, Options: []string{"rbind", "noatime", "nosuid", "rstrictatime"}})
		}, shim: []string{`open_tree(-100, "/node/x", 0x88001)`, `, "", 0x9000, {20000000000000007000000000000000`, `, "", 0x1000, {02000000000000000000000000000000`}},
		{name: "ids of two mounts", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "bind", Source: bind, UIDMappings: ids, GIDMappings: ids},
				specs.Mount{Destination: "/y", Type: "bind", Source: bind, Options: []string{"rbind", "ridmap"}, UIDMappings: ids, GIDMappings: ids[:1]})
		}, shim: []string{`open_tree(-100, "/node/x", 0x80001)`, `[24:]=r11`, `open_tree(-100, "/node/x", 0x88001)`, `0x9000, {0000100000000000000000000000000000000000000000000000000000000000}[24:]=r11`}},
		{name: "ids by half", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "bind", Source: bind, UIDMappings: ids})
		}, err: "/x has uidMappings or gidMappings, not both"},
		{name: "ids of a tmpfs", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "tmpfs", UIDMappings: ids, GIDMappings: ids})
		}, err: "not bound", refused: true},
		{name: "idmap of a tmpfs", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"idmap"}})
		}, err: `"idmap"`, refused: true},
		{name: "remount", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"remount"}})
		}, err: `"remount"`, refused: true},
		{name: "copy", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"tmpcopyup", "nosuid"}})
		}, child: []string{`fsopen("tmpfs"`, "umount2(", `"upper"`, `"work"`, `"lowerdir+"`, `"userxattr"`, ", 1, 2)", "dup3(", "mode(", "fchmodat("}},
		{name: "copy by name", set: func(in *plan.Input) {
			in.Host.OverlayByName = true
			mounts(in, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"tmpcopyup"}})
		}, err: "tmpcopyup", refused: true},
		{name: "copy to what is no tmpfs", set: func(in *plan.Input) {
			mounts(in, specs.Mount{Destination: "/x", Type: "mqueue", Options: []string{"tmpcopyup"}})
		}, err: "tmpcopyup", refused: true},
		{name: "no /dev", set: func(in *plan.Input) { noDev(in) }, shim: []string{
			`mknodat(r`, "unshare(0x20000)", `"/proc", 4)`, `"null", 0x80101)`, `"zero", 0x80101)`, ", 0x20000)",
		}, child: []string{`"dev/dri/card0"`, `"dev/null"`, `symlinkat("/proc/self/fd/0"`}},
		{name: "/dev of the node", set: func(in *plan.Input) {
			noDev(in)
			mounts(in, specs.Mount{Destination: "/dev", Type: "bind", Source: "/dev"})
		}, without: "symlinkat(\"/proc/self/fd/0\", r6"},
		{name: "/dev of another kind", set: func(in *plan.Input) {
			noDev(in)
			mounts(in, specs.Mount{Destination: "/dev", Type: "devtmpfs"})
		}, err: `"devtmpfs" at /dev`, refused: true},
		{name: "devices of the node", set: func(in *plan.Input) { in.Host.NoCaps = 1 << 27 }, shim: []string{
			`mknodat(r19, "null", 0x8000, 0)`, `openat(-100, "/dev/null"`, `open_tree(-100, "/dev/null", 0x80101)`,
		}, child: []string{`"dev/null"`, "move_mount("}},
		{name: "device elsewhere", set: func(in *plan.Input) { in.Spec.Linux.Devices[0].Path = "/etc/passwd" }, err: "outside of /dev", refused: true},
		{name: "device of nobody", set: func(in *plan.Input) { in.Spec.Linux.Devices[0].UID = new(uint32(70000)) }, err: "outside of the user namespace"},
		{name: "device of no kind", set: func(in *plan.Input) { in.Spec.Linux.Devices[0].Type = "x" }, err: `type "x"`},
		{name: "propagation of the root", set: func(in *plan.Input) { in.Spec.Linux.RootfsPropagation = "rslave" }, child: []string{"umount2(", `, "", 0x9000, {00000000000000000000000000000000000008`}},
		{name: "root on the node as a slave", set: func(in *plan.Input) {
			in.Rootfs, in.Spec.Root.Path, in.Spec.Linux.RootfsPropagation = plan.Rootfs{}, "/node/root", "slave"
		}, shim: []string{`open_tree(-100, "/node/root"`, `, "", 0x9000, {00000000000000000000000000000000000008`}},
		{name: "root on the node", set: func(in *plan.Input) {
			in.Rootfs, in.Spec.Root.Path, in.Spec.Linux.RootfsPropagation = plan.Rootfs{}, "/node/root", "shared"
		}, shim: []string{`open_tree(-100, "/node/root"`, `, "", 0x9000, {00000000000000000000000000000000000004`}},
		{name: "propagation unknown", set: func(in *plan.Input) { in.Spec.Linux.RootfsPropagation = "viral" }, err: "rootfsPropagation viral", refused: true},
		{name: "cgroup2 beside version 1", set: func(in *plan.Input) { mounts(in, specs.Mount{Destination: "/cg", Type: "cgroup2"}) }, child: []string{`fsopen("cgroup2"`, `fsopen("cgroup2"`}},
	} {
		tc.check(t)
	}
}

func TestNetDevices(t *testing.T) {
	type devices = map[string]specs.LinuxNetDevice
	pausing := func(d devices) func(*plan.Input) {
		return func(in *plan.Input) { in.Detached, in.Spec.Linux.NetDevices = &plan.Detached{Pause: true}, d }
	}
	list := []asks{
		{name: "good ones", set: pausing(devices{"a": {}, "b": {Name: "c"}, "c": {Name: "b"}, "veth0123456789a": {Name: "eth%d"}, "x": {Name: "eth%d"}})},
		{name: "no pause", set: func(in *plan.Input) { in.Detached, in.Spec.Linux.NetDevices = new(plan.Detached), devices{"a": {}} }, err: "linux.netDevices", refused: true},
		{name: "a shim", set: func(in *plan.Input) { in.Spec.Linux.NetDevices = devices{"a": {}} }, err: "linux.netDevices", refused: true},
		{name: "the node's network", set: func(in *plan.Input) {
			pausing(devices{"a": {}})(in)
			in.Spec.Linux.Namespaces = slices.DeleteFunc(in.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
		}, err: "linux.netDevices need a network namespace of the container's own"},
		{name: "twice", set: pausing(devices{"a": {Name: "c"}, "b": {Name: "c"}}), err: "a and b would both be c"},
		{name: "twice, one by its own name", set: pausing(devices{"a": {}, "b": {Name: "a"}}), err: "a and b would both be a"},
	}
	for _, bad := range []string{".", "..", "a/b", "a:1", "a b", "a\tb", "a\nb", "a\x00b", "a\u00a0b", "0123456789abcdef"} {
		list = append(list,
			asks{name: "from " + bad, set: pausing(devices{bad: {}}), err: fmt.Sprintf("linux.netDevices: %q is no name of a network device", bad)},
			asks{name: "to " + bad, set: pausing(devices{"a": {Name: bad}}), err: fmt.Sprintf("linux.netDevices: %q is no name for network device a", bad)})
	}
	for _, bad := range []string{"%", "eth%s", "%d%d", "100%%d"} {
		list = append(list, asks{name: "to " + bad, set: pausing(devices{"a": {Name: bad}}), err: fmt.Sprintf("%q is no name for network device a", bad)})
	}
	list = append(list, asks{name: "from nothing", set: pausing(devices{"": {Name: "a"}}), err: `"" is no name of a network device`})
	for _, tc := range list {
		tc.check(t)
	}
}
