package plan

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// DefaultAppArmor is the profile that containers get who do not ask for one. That a
// node does not have it is worth a warning; of any other profile it is an error.
const DefaultAppArmor = "berth-default"

// unconfined is AppArmor's word for no profile.
const unconfined = "unconfined"

// maxLabel is the length of a profile's name or a label: they are written in one
// page.
const maxLabel = 2000

// label is what a security module shall call a program that is executed.
type label struct {
	file    call.Reg // takes it
	text    string
	what    string
	missing bool // the module may not know it
}

// labels opens what takes the names that the kernel's security modules give to the
// process. It does so while the process still sees the node's /proc, since the
// container's may be anything. The names count from execve on.
func labels(c *call.Program, host Host, proc *specs.Process) ([]label, error) {
	var list []label
	profile := proc.ApparmorProfile
	switch {
	case len(profile) > maxLabel || strings.ContainsAny(profile, "\x00\n"):
		return nil, fmt.Errorf("process.apparmorProfile %.100q is not a name", profile)
	case profile == "", profile == unconfined && !host.AppArmor:
	case host.AppArmor:
		what := "apply AppArmor profile " + profile
		list = append(list, label{
			file: openLabel(c, what, "apparmor/exec", "exec"), text: "exec " + profile, what: what, missing: profile == DefaultAppArmor,
		})
	case profile == DefaultAppArmor:
		c.Fail(unix.EOPNOTSUPP).Warn().As("apply AppArmor profile " + profile + " on a kernel without AppArmor")
	default:
		return nil, unsupported("process.apparmorProfile %s on a kernel without AppArmor", profile)
	}
	switch text := proc.SelinuxLabel; {
	case text == "":
	case len(text) > maxLabel || strings.ContainsAny(text, "\x00\n"):
		return nil, fmt.Errorf("process.selinuxLabel %.100q is not a label", text)
	case !host.SELinux:
		return nil, unsupported("process.selinuxLabel %s on a kernel without SELinux", text)
	default:
		what := "apply SELinux label " + text
		list = append(list, label{file: openLabel(c, what, "exec"), text: text, what: what})
	}
	return list, nil
}

// openLabel opens the first file there is below the thread's attr.
func openLabel(c *call.Program, what string, names ...string) call.Reg {
	r, done := c.Reg(), c.Label()
	for i, name := range names {
		op := c.Call(unix.SYS_OPENAT, call.Int(unix.AT_FDCWD), call.Str("/proc/thread-self/attr/"+name), call.Int(unix.O_WRONLY|unix.O_CLOEXEC), call.Int(0)).
			To(r).Then(done).As(what)
		if i < len(names)-1 {
			op.On(call.Next, unix.ENOENT)
		}
	}
	c.Place(done)
	return r
}

// apply writes the labels.
func apply(c *call.Program, list []label) {
	for _, l := range list {
		op := c.Call(unix.SYS_WRITE, call.Get(l.file), call.Str(l.text), call.Int(len(l.text))).As(l.what)
		if l.missing {
			op.Warn(unix.ENOENT)
		}
	}
}

// context returns the option that labels a file system of the container's own.
func (b *builder) context() [][2]string {
	if b.spec.Linux.MountLabel == "" {
		return nil
	}
	return [][2]string{{"context", b.spec.Linux.MountLabel}}
}

// checkMountLabel refuses a label that would be left out.
func checkMountLabel(host Host, text string) error {
	switch {
	case text == "":
		return nil
	case len(text) > maxLabel || strings.ContainsAny(text, "\x00\n"):
		return fmt.Errorf("linux.mountLabel %.100q is not a label", text)
	case !host.SELinux:
		return unsupported("linux.mountLabel %s on a kernel without SELinux", text)
	}
	return nil
}
