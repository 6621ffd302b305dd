package plan_test

import (
	"errors"
	"strings"
	"testing"

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
