package shim

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// joined are the namespaces of other containers that this one enters, by CLONE_NEW*.
// They stay open: when the container begins again, the path may lead to another one.
type joined map[int]*os.File

// openJoined opens them, if that was not done before.
func (s *shim) openJoined() error {
	if s.joined != nil {
		return nil
	}
	list := joined{}
	paths := s.Join
	if s.NetNS != "" {
		paths = append([]Join{{Type: unix.CLONE_NEWNET, Path: s.NetNS}}, paths...)
	}
	for _, j := range paths {
		f, err := os.Open(j.Path)
		if err != nil {
			return fmt.Errorf("open %s namespace: %w", namespaceFile(j.Type), err)
		}
		list[j.Type] = f
	}
	s.joined = list
	return nil
}

// namespaceFile is the name in /proc/<pid>/ns.
func namespaceFile(kind int) string {
	return map[int]string{
		unix.CLONE_NEWPID: "pid", unix.CLONE_NEWNET: "net", unix.CLONE_NEWIPC: "ipc", unix.CLONE_NEWUTS: "uts",
		unix.CLONE_NEWUSER: "user", unix.CLONE_NEWCGROUP: "cgroup", unix.CLONE_NEWTIME: "time",
	}[kind]
}

// descriptor returns that of a namespace, -1 if it is not another container's.
func (j joined) descriptor(kind int) uintptr {
	if f := j[kind]; f != nil {
		return f.Fd()
	}
	return ^uintptr(0)
}

// enter makes f fork into the namespaces. Those of time the child enters itself. The
// files are to be closed after the fork.
func (j joined) enter(f *call.Fork) (own []*os.File, err error) {
	for _, kind := range []int{unix.CLONE_NEWPID, unix.CLONE_NEWNET, unix.CLONE_NEWIPC, unix.CLONE_NEWUTS, unix.CLONE_NEWCGROUP} {
		if j[kind] == nil {
			continue
		}
		back, err := os.Open("/proc/thread-self/ns/" + namespaceFile(kind)) // all threads have the same
		if err != nil {
			closeAll(own)
			return nil, err
		}
		own = append(own, back)
		f.Enter = append(f.Enter, call.Namespace{FD: int(j[kind].Fd()), Own: int(back.Fd()), Type: kind})
	}
	if user := j[unix.CLONE_NEWUSER]; user != nil {
		f.User = int(user.Fd())
	}
	return own, nil
}

// open makes a user namespace with these mappings. It exists as long as it is open or
// used by a mount: the process that it takes to make one ends.
func (u Users) open() (*os.File, error) {
	hold, release, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer hold.Close()
	p := call.New(1)
	p.Call(unix.SYS_READ, call.Get(0), call.Data(make([]byte, 1)), call.Int(1))
	code, err := call.Load(p.Encode())
	if err != nil {
		return nil, errors.Join(err, release.Close())
	}
	pid, pidfd, err := call.Fork{Flags: unix.CLONE_NEWUSER, Status: int(hold.Fd()), Regs: []uintptr{hold.Fd()}}.Start(code)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a user namespace: %w", err), release.Close())
	}
	defer func() {
		_ = release.Close() // which ends it
		_, _ = unix.Wait4(pid, nil, 0, nil)
		_ = unix.Close(pidfd)
	}()
	proc := fmt.Sprintf("/proc/%d", pid)
	if err := writeFile(proc+"/uid_map", u.UIDMap); err != nil {
		return nil, fmt.Errorf("map user ids of a mount: %w", err)
	}
	if err := writeFile(proc+"/gid_map", u.GIDMap); err != nil {
		return nil, fmt.Errorf("map group ids of a mount: %w", err)
	}
	return os.Open(proc + "/ns/user")
}
