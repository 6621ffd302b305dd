package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ProcessInfo is a process of a container, as the node sees it.
type ProcessInfo struct {
	PID, PPID, PGID, SID int
	UID, GID             uint32
	TTY                  string // "?", "pts/0"
	State                string // a letter, as ps has it
	Nice, Threads        int
	CPU                  time.Duration // user and system
	Started              time.Time
	Virtual, Resident    uint64 // bytes
	Command              string // the name of its program, cut to 15 bytes
	Args                 string // the whole command line; "[NAME]" where there is none
}

// maxCommandLine is how much of a command line is shown, in bytes.
const maxCommandLine = 64 << 10

// Top returns the processes of a container that runs, in the order of their
// numbers. Errors: ErrNotFound; ErrConflict if it does not run.
func (h *Host) Top(ctx context.Context, ref string) ([]ProcessInfo, error) {
	c, err := h.findBegun(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !c.running() {
		return nil, conflict("container %s is not running", c.rec.ID)
	}
	pids, err := h.opts.Runtime.Processes(ctx, c.rec.ID)
	if err != nil {
		return nil, c.runtimeError(err)
	}
	boot, err := bootTime()
	if err != nil {
		return nil, err
	}
	var list []ProcessInfo
	for _, pid := range pids {
		p, err := readProcess(pid, boot)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, fmt.Errorf("read process %d of container %s: %w", pid, shortID(c.rec.ID), err)
		}
		list = append(list, p)
	}
	// A number can belong to somebody else by now: who is still the container's was
	// it all the time.
	still, err := h.opts.Runtime.Processes(ctx, c.rec.ID)
	if err != nil {
		return nil, c.runtimeError(err)
	}
	list = slices.DeleteFunc(list, func(p ProcessInfo) bool { return !slices.Contains(still, p.PID) })
	slices.SortFunc(list, func(a, b ProcessInfo) int { return a.PID - b.PID })
	return list, nil
}

// bootTime is when the clock of process starts began.
func bootTime() (time.Time, error) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}, fmt.Errorf("read the time since boot: %w", err)
	}
	return time.Now().Add(-time.Duration(up.Nano())), nil
}

// readProcess reads what /proc says of a process (proc_pid_stat(5)).
func readProcess(pid int, boot time.Time) (p ProcessInfo, err error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := readBounded(dir+"/stat", 4<<10)
	if err != nil {
		return p, err
	}
	status, err := readBounded(dir+"/status", 16<<10)
	if err != nil {
		return p, err
	}
	cmdline, err := readBounded(dir+"/cmdline", maxCommandLine)
	if err != nil {
		return p, err
	}
	if err := p.parseStat(stat, boot); err != nil {
		return p, err
	}
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if len(f) < 2 {
			continue
		}
		id, _ := strconv.ParseUint(f[1], 10, 32) // the effective one; the kernel writes numbers
		switch name {
		case "Uid":
			p.UID = uint32(id)
		case "Gid":
			p.GID = uint32(id)
		}
	}
	p.Args = printable(strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))))
	if p.Args == "" {
		p.Args = "[" + p.Command + "]"
	}
	return p, nil
}

// printable replaces what a terminal would act on: the text is the container's.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// readBounded reads a file of /proc up to a limit.
func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// ticks is USER_HZ, which is 100 wherever Linux runs containers.
const ticks = 100

// parseStat reads /proc/<pid>/stat. The name may contain anything, also
// parentheses: the last one ends it.
func (p *ProcessInfo) parseStat(stat []byte, boot time.Time) error {
	first, last := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if first < 1 || last < first {
		return fmt.Errorf("stat of a process is %q", stat)
	}
	f := strings.Fields(string(stat[last+1:])) // f[0] is field 3
	const need = 22
	if len(f) < need {
		return fmt.Errorf("stat of a process is %q", stat)
	}
	n := func(field int) int64 {
		v, _ := strconv.ParseInt(f[field-3], 10, 64) // the kernel writes numbers
		return v
	}
	p.PID, _ = strconv.Atoi(strings.TrimSpace(string(stat[:first])))
	p.Command = printable(string(stat[first+1 : last]))
	p.State = f[0]
	p.PPID, p.PGID, p.SID = int(n(4)), int(n(5)), int(n(6))
	p.TTY = ttyName(uint64(n(7)))
	p.CPU = time.Duration(n(14)+n(15)) * (time.Second / ticks)
	p.Nice, p.Threads = int(n(19)), int(n(20))
	p.Started = boot.Add(time.Duration(n(22)) * (time.Second / ticks))
	p.Virtual, p.Resident = uint64(n(23)), uint64(n(24))*uint64(os.Getpagesize())
	return nil
}

// ttyName is what ps calls a terminal.
func ttyName(dev uint64) string {
	major, minor := unix.Major(dev), unix.Minor(dev)
	switch {
	case major >= 136 && major < 144:
		return fmt.Sprintf("pts/%d", (major-136)<<8|minor)
	case major == 4:
		return fmt.Sprintf("tty%d", minor)
	case major == 5 && minor == 1:
		return "console"
	}
	return "?"
}
