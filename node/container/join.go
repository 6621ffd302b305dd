package container

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
	"berth.internal/node/container/plan"
	"berth.internal/node/container/shim"
)

// joins are the namespaces of a plan in the shim's terms.
func joins(list []plan.Join) []shim.Join {
	var out []shim.Join
	for _, j := range list {
		out = append(out, shim.Join(j))
	}
	return out
}

// users are the mappings of a plan's mounts in the shim's terms.
func users(list []plan.Users) []shim.Users {
	var out []shim.Users
	for _, u := range list {
		out = append(out, shim.Users(u))
	}
	return out
}

// resolve replaces what a spec says by paths of namespaces: one of the node's own
// counts as not listed, and of a user namespace the mappings are read.
func resolve(s *specs.Spec) (*specs.Spec, error) {
	if !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Path != "" }) {
		return s, nil
	}
	spec, linux := *s, *s.Linux
	spec.Linux = &linux
	linux.Namespaces = nil
	for _, n := range s.Linux.Namespaces {
		if n.Path != "" {
			own, err := isOwn(n)
			if err != nil {
				return nil, fmt.Errorf("%s namespace: %w", n.Type, err)
			}
			if own {
				continue
			}
			if n.Type == specs.UserNamespace {
				if err := readMappings(&linux, n.Path); err != nil {
					return nil, err
				}
			}
		}
		linux.Namespaces = append(linux.Namespaces, n)
	}
	return &spec, nil
}

// isOwn reports whether a namespace is this process's.
func isOwn(n specs.LinuxNamespace) (bool, error) {
	file := map[specs.LinuxNamespaceType]string{specs.MountNamespace: "mnt", specs.NetworkNamespace: "net"}[n.Type]
	if file == "" {
		file = string(n.Type)
	}
	theirs, err := os.Stat(n.Path)
	if err != nil {
		return false, err
	}
	ours, err := os.Stat("/proc/self/ns/" + file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // the plan says that there is no such kind
	}
	return err == nil && os.SameFile(ours, theirs), err
}

// readMappings reads the mappings of a user namespace. That a spec has them, too, is
// no contradiction if they are the same.
func readMappings(l *specs.Linux, path string) error {
	uids, gids, err := mappings(path)
	if err != nil {
		return fmt.Errorf("read the mappings of user namespace %s: %w", path, err)
	}
	for _, m := range []struct {
		asked *[]specs.LinuxIDMapping
		there []specs.LinuxIDMapping
		name  string
	}{{&l.UIDMappings, uids, "uidMappings"}, {&l.GIDMappings, gids, "gidMappings"}} {
		if len(*m.asked) > 0 && !slices.Equal(*m.asked, m.there) {
			return fmt.Errorf("linux.%s are %v, and those of user namespace %s %v: leave them out", m.name, *m.asked, path, m.there)
		}
		*m.asked = m.there
	}
	return nil
}

// mappings returns those of a user namespace: of a process that enters it.
func mappings(path string) (uids, gids []specs.LinuxIDMapping, err error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	says, status, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer says.Close()
	defer status.Close()
	hold, release, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer hold.Close()
	defer release.Close()

	p := call.New(3)
	p.Call(unix.SYS_SETNS, call.Get(0), call.Int(unix.CLONE_NEWUSER)).As("enter it")
	p.Ready()
	p.Call(unix.SYS_READ, call.Get(1), call.Data(make([]byte, 1)), call.Int(1))
	code, err := call.Load(p.Encode())
	if err != nil {
		return nil, nil, err
	}
	pid, pidfd, err := call.Fork{Status: int(status.Fd()), Regs: []uintptr{ns.Fd(), hold.Fd(), status.Fd()}}.Start(code)
	if err != nil {
		return nil, nil, err
	}
	_ = status.Close()
	defer unix.Close(pidfd)
	defer func() { _, _ = unix.Wait4(pid, nil, 0, nil) }()
	defer release.Close() // which ends it
	report := make([]byte, call.ReportSize)
	if _, err := io.ReadFull(says, report); err != nil {
		return nil, nil, err
	}
	if r := call.ParseReport(report, nil, code); !r.Ready {
		return nil, nil, r.Failure
	}
	if uids, err = readMap(fmt.Sprintf("/proc/%d/uid_map", pid)); err != nil {
		return nil, nil, err
	}
	gids, err = readMap(fmt.Sprintf("/proc/%d/gid_map", pid))
	return uids, gids, err
}

// readMap reads a file of the form of /proc/<pid>/uid_map.
func readMap(name string) ([]specs.LinuxIDMapping, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []specs.LinuxIDMapping
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var m specs.LinuxIDMapping
		if _, err := fmt.Sscan(strings.TrimSpace(lines.Text()), &m.ContainerID, &m.HostID, &m.Size); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		list = append(list, m)
	}
	return list, nil
}
