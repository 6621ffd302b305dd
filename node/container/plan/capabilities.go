package plan

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// capSets are a process's capabilities as the kernel has them, bit by number.
type capSets struct {
	effective, permitted, inheritable, bounding, ambient uint64
	warnings                                             []capWarning
}

// capWarning is something that is not done as asked, without making the container
// weaker.
type capWarning struct {
	what  string
	errno unix.Errno
}

// sets reads the capabilities of a process. Inheritable ones are those that ambient
// ones need, and no more: with others, any program with inheritable file
// capabilities would gain them (CVE-2022-29162). available are those that can be
// given.
func sets(caps *specs.LinuxCapabilities, available uint64) capSets {
	if caps == nil {
		return capSets{}
	}
	var s capSets
	var unknown []string
	read := func(names []string) (set uint64) {
		for _, name := range names {
			if n := slices.Index(capabilities, name); n >= 0 {
				set |= 1 << n
			} else if !slices.Contains(unknown, name) {
				unknown = append(unknown, name)
			}
		}
		return set
	}
	inheritable := read(caps.Inheritable)
	s.effective, s.permitted, s.bounding, s.ambient = read(caps.Effective), read(caps.Permitted), read(caps.Bounding), read(caps.Ambient)
	for n, name := range capabilities {
		if s.effective&^s.permitted&(1<<n) != 0 {
			s.warnings = append(s.warnings, capWarning{"make " + name + " effective, which is not permitted", unix.EPERM})
		}
		if s.ambient&^s.permitted&(1<<n) != 0 {
			s.warnings = append(s.warnings, capWarning{"can't raise ambient capability " + name, unix.EPERM})
		}
	}
	s.effective &= s.permitted
	s.ambient &= s.permitted
	if len(unknown) > 0 {
		s.warnings = append(s.warnings, capWarning{fmt.Sprintf("give capabilities that are not known: %.200s", strings.Join(unknown, " ")), unix.EINVAL})
	}
	if more := (s.effective | s.permitted | s.bounding) &^ available; more != 0 {
		s.warnings = append(s.warnings, capWarning{"give " + capNames(more) + ", which the node itself has not", unix.EPERM})
	}
	for _, set := range []*uint64{&s.effective, &s.permitted, &s.bounding, &s.ambient} {
		*set &= available
	}
	if more := inheritable &^ s.ambient & available; more != 0 {
		s.warnings = append(s.warnings, capWarning{"leave " + capNames(more) + " inheritable, which only ambient capabilities are", unix.EPERM})
	}
	s.inheritable = s.ambient
	return s
}

func capNames(set uint64) string {
	var names []string
	for n, name := range capabilities {
		if set&(1<<n) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// identity gives up capabilities and becomes the process's user.
func identity(c *call.Program, proc *specs.Process, available uint64) {
	s := sets(proc.Capabilities, available)
	for _, w := range s.warnings {
		c.Fail(w.errno).Warn().As(w.what)
	}
	known := c.Label()
	for n := range 64 {
		if s.bounding&(1<<n) == 0 {
			c.Call(unix.SYS_PRCTL, call.Int(unix.PR_CAPBSET_DROP), call.Int(n), call.Int(0), call.Int(0), call.Int(0)).
				On(known, unix.EINVAL).As("drop a capability from the bounding set") // beyond the last one
		}
	}
	c.Place(known)
	c.Call(unix.SYS_PRCTL, call.Int(unix.PR_SET_KEEPCAPS), call.Int(1), call.Int(0), call.Int(0), call.Int(0))
	var groups []byte
	for _, g := range proc.User.AdditionalGids {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	user := proc.User
	c.Call(unix.SYS_SETGROUPS, call.Int(len(user.AdditionalGids)), call.Data(groups)).As("set supplementary groups")
	c.Call(unix.SYS_SETRESGID, call.Int(int(user.GID)), call.Int(int(user.GID)), call.Int(int(user.GID))).As(fmt.Sprintf("become group %d", user.GID))
	c.Call(unix.SYS_SETRESUID, call.Int(int(user.UID)), call.Int(int(user.UID)), call.Int(int(user.UID))).As(fmt.Sprintf("become user %d", user.UID))
	header := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	header = binary.NativeEndian.AppendUint32(header, 0)
	var data []byte
	for shift := 0; shift < 64; shift += 32 {
		for _, set := range []uint64{s.effective, s.permitted, s.inheritable} {
			data = binary.NativeEndian.AppendUint32(data, uint32(set>>shift))
		}
	}
	c.Call(unix.SYS_CAPSET, call.Data(header), call.Data(data)).As("set capabilities")
	for n := range 64 {
		if s.ambient&(1<<n) != 0 {
			c.Call(unix.SYS_PRCTL, call.Int(unix.PR_CAP_AMBIENT), call.Int(unix.PR_CAP_AMBIENT_RAISE), call.Int(n), call.Int(0), call.Int(0)).
				As("raise ambient capability " + capabilities[n])
		}
	}
}
