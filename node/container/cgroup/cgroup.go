// Package cgroup is the little that a shim does with its container's cgroups:
// put processes in, kill all, count what the kernel killed. Making them and
// setting limits is the agent's part.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Group is the cgroup of a container: one directory in each hierarchy, all for
// the same processes.
type Group struct {
	Dirs    []string `json:"dirs"`              // of cgroup version 1
	Unified string   `json:"unified,omitempty"` // of version 2
	Memory  string   `json:"memory,omitempty"`  // the one of these with the memory controller
	Freezer string   `json:"freezer,omitempty"` // the one of Dirs with the freezer
}

// Join moves the process into the group. Who forks it itself has it be born in Unified
// and enter Dirs by Tasks, which is faster.
func (g Group) Join(pid int) error { return join(pid, g.all()) }

// JoinUnified moves the process into the version 2 directory only.
func (g Group) JoinUnified(pid int) error {
	if g.Unified == "" {
		return nil
	}
	return join(pid, []string{g.Unified})
}

func join(pid int, dirs []string) error {
	for _, dir := range dirs {
		if err := Write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("put process %d into its cgroup: %w", pid, err)
		}
	}
	return nil
}

// Tasks opens what call.Fork.Tasks wants of the version 1 directories.
func (g Group) Tasks() (fds []int, err error) {
	for _, dir := range g.Dirs {
		name := filepath.Join(dir, "tasks")
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// Write writes to a file of the kernel, without creating or truncating one.
func Write(name, value string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if _, err = unix.Write(fd, []byte(value)); err != nil {
		err = &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return errors.Join(err, unix.Close(fd))
}

// read returns what a small file of the kernel says, with less ado than os.ReadFile.
func read(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	b := make([]byte, 512)
	n, err := unix.Read(fd, b)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b[:n], nil
}

// all returns the directories that exist.
func (g Group) all() []string {
	if g.Unified == "" {
		return g.Dirs
	}
	return append([]string{g.Unified}, g.Dirs...)
}

// Pids returns the processes in the group and below.
func (g Group) Pids() ([]int, error) {
	seen := map[int]bool{}
	var pids []int
	for _, dir := range g.all() {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return ignoreGone(err)
			}
			b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
			for f := range bytes.FieldsSeq(b) {
				if pid, err := strconv.Atoi(string(f)); err == nil && pid > 0 && !seen[pid] {
					seen[pid] = true
					pids = append(pids, pid)
				}
			}
			return ignoreGone(err)
		})
		if err != nil {
			return nil, err
		}
	}
	return pids, nil
}

// ignoreGone drops errors about a cgroup that is not there any more.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// Kill sends SIGKILL to all processes of the group, also to those that are
// forked meanwhile, and returns when none is left. An error says how many
// resisted for limit.
func (g Group) Kill(limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; {
		pids, err := g.Pids()
		if err != nil {
			return fmt.Errorf("kill cgroup: %w", err)
		}
		if len(pids) == 0 {
			return nil
		}
		if g.Unified != "" {
			// One write for all; older kernels than 5.14 do not have it.
			if err := ignoreGone(Write(filepath.Join(g.Unified, "cgroup.kill"), "1")); err != nil {
				return fmt.Errorf("kill cgroup: %w", err)
			}
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // it is gone, or is seen again in the next round
		}
		_ = g.thaw() // in version 1 even killed processes stay frozen; those that do are counted below
		if time.Now().After(deadline) {
			return fmt.Errorf("kill cgroup: %d processes, among them %d, did not end within %s", len(pids), pids[0], limit)
		}
		time.Sleep(time.Millisecond) // the kernel tells nobody when a version 1 cgroup becomes empty
	}
}

// Frozen reports whether the group's processes are frozen, or about to be, by
// whomever.
func (g Group) Frozen() bool {
	if g.Unified != "" {
		if b, err := read(filepath.Join(g.Unified, "cgroup.freeze")); err == nil && bytes.HasPrefix(b, []byte("1")) {
			return true
		}
		if g.FrozenUnified() { // by a cgroup above it
			return true
		}
	}
	if g.Freezer == "" {
		return false
	}
	b, err := read(filepath.Join(g.Freezer, "freezer.state"))
	return err == nil && !bytes.HasPrefix(b, []byte("THAWED"))
}

// FrozenUnified reports whether all processes are frozen by version 2.
func (g Group) FrozenUnified() bool {
	b, err := read(filepath.Join(g.Unified, "cgroup.events"))
	return err == nil && bytes.Contains(b, []byte("frozen 1"))
}

// FrozenV1 reports whether all processes are frozen by version 1.
func (g Group) FrozenV1() bool {
	b, err := read(filepath.Join(g.Freezer, "freezer.state"))
	return err == nil && bytes.HasPrefix(b, []byte("FROZEN"))
}

// Thaw lets frozen processes of the group go on.
func (g Group) Thaw() error {
	if g.Unified != "" {
		// Older kernels than 5.2 do not have it.
		if err := ignoreGone(Write(filepath.Join(g.Unified, "cgroup.freeze"), "0")); err != nil {
			return fmt.Errorf("thaw cgroup: %w", err)
		}
	}
	if err := g.thaw(); err != nil {
		return fmt.Errorf("thaw cgroup: %w", err)
	}
	return nil
}

// thaw thaws the version 1 cgroup and those that the container made below it.
func (g Group) thaw() error {
	if g.Freezer == "" {
		return nil
	}
	return filepath.WalkDir(g.Freezer, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = Write(filepath.Join(p, "freezer.state"), "THAWED")
		}
		return ignoreGone(err)
	})
}

// OOMKills returns how many processes of the group the kernel killed because
// its memory limit was reached.
func (g Group) OOMKills() int {
	name := "memory.oom_control"
	if g.Memory == g.Unified {
		name = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(g.Memory, name))
	if g.Memory == "" || err != nil {
		return 0 // no memory controller, so no limit
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(v))
			return n
		}
	}
	return 0
}

// Remove removes the group with what the container made below it. The kernel
// lets go of a process some time after it was waited for, so it tries for limit.
func (g Group) Remove(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for _, dir := range g.all() {
		if err := removeBy(deadline, dir); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// removeBy removes a cgroup with those below it, as soon as the kernel lets it.
func removeBy(deadline time.Time, dir string) error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := removeTree(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(wait)
	}
}

// removeTree removes a cgroup after those below it.
func removeTree(dir string) error {
	if err := unix.Rmdir(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
