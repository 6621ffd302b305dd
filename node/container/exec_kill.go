package container

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// pidfdGroup makes pidfd_send_signal(2) mean the process's group, since Linux 6.9.
const pidfdGroup = 1 << 2

// Kill kills the process and those that it started, as far as they are in its
// process group still. One that has ended is no error.
func (e *Exec) Kill() error {
	if err := e.kill(); err != nil {
		return fmt.Errorf("kill process %d of container %s: %w", e.Pid, e.id, err)
	}
	return nil
}

func (e *Exec) kill() error {
	fd, err := unix.PidfdOpen(e.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The number could be somebody else's by now.
	if own, err := inCgroup(e.Pid, e.id); err != nil || !own {
		return err
	}
	err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, pidfdGroup)
	if errors.Is(err, unix.EINVAL) {
		err = unix.Kill(-e.Pid, unix.SIGKILL)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// inCgroup reports whether a process is in a cgroup of that name, or below one.
func inCgroup(pid int, name string) (bool, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if strings.Contains(lines.Text()+"/", "/"+name+"/") {
			return true, nil
		}
	}
	return false, nil
}
