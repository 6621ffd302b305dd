package shim

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// environ returns the environment as it was given, with what is in it twice, which
// package os leaves out.
//
//go:linkname environ syscall.runtime_envs
func environ() []string

// first is the life of the first process of a container with an init. It returns
// the exit code of the command.
func first(in call.Init) int {
	unix.CloseOnExec(call.InitStatus)
	nameProcess(call.InitName)
	// Without a pid namespace of its own it is not yet the one that orphans come to.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	// Before there is a command: none that comes after it is lost.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	pid, err := begin(in)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", Name, err)
		return ExitFailed
	}
	for {
		select {
		case <-ended:
			if code, over := reapAll(pid); over {
				return code
			}
		case sig := <-signals:
			if n, ok := sig.(unix.Signal); ok && n != unix.SIGCHLD {
				_ = unix.Kill(pid, n) // it may just have ended
			}
		}
	}
}

// nameProcess sets what ps calls this process: the name of its first thread. Go may
// run this on another one; then that needs /proc, as ps does.
func nameProcess(name string) {
	if unix.Gettid() == os.Getpid() {
		text := append([]byte(name), 0)
		_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&text[0])), 0)
		return
	}
	// Without /proc the image may have anything there.
	fd, err := unix.Open("/proc/self/comm", unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, _ = unix.Write(fd, []byte(name))
		_ = unix.Close(fd)
	}
}

// begin begins the command. If it cannot be executed its process says so to who
// executed this one, and ends.
func begin(in call.Init) (pid int, err error) {
	var gate [2]int
	if err := unix.Pipe2(gate[:], unix.O_CLOEXEC); err != nil {
		return 0, fmt.Errorf("make pipe: %w", err)
	}
	prog := call.New(2)
	isolate(prog)
	pid, err = in.Start(prog, gate[0])
	if err != nil {
		return 0, fmt.Errorf("fork: %w", err)
	}
	// The command shall find none of these in its parent. It waits for the end of the last one,
	// which nobody can find any more by then.
	for _, fd := range []int{gate[0], call.InitStatus, gate[1]} {
		_ = unix.Close(fd)
	}
	return pid, nil
}

// isolate adds calls that wait for the gate to be closed, and give the command a process
// group of its own, in front of the terminal if there is one: what is typed there
// concerns it alone.
func isolate(p *call.Program) {
	const gate = call.Reg(0)
	pid := p.Reg()
	all := []byte{255, 255, 255, 255, 255, 255, 255, 255}
	p.Call(unix.SYS_READ, call.Get(gate), call.Data(make([]byte, 1)), call.Int(1))
	// Who is not in front may not change that, unless the signal for it is blocked.
	p.Call(unix.SYS_RT_SIGPROCMASK, call.Int(unix.SIG_SETMASK), call.Data(all), call.Int(0), call.Int(8))
	p.Call(unix.SYS_SETPGID, call.Int(0), call.Int(0))
	p.Call(unix.SYS_GETPID).To(pid)
	p.Call(unix.SYS_IOCTL, call.Int(0), call.Int(unix.TIOCSPGRP), call.Patched(make([]byte, 8), 0, pid)).On(call.Next, 0) // no terminal
	p.Call(unix.SYS_RT_SIGPROCMASK, call.Int(unix.SIG_SETMASK), call.Data(make([]byte, 8)), call.Int(0), call.Int(8))
}

// reapAll waits for all children that have ended, and reports whether the command
// is among them.
func reapAll(command int) (code int, over bool) {
	for {
		var ws unix.WaitStatus
		pid, err := restarted(func() (int, error) { return unix.Wait4(-1, &ws, unix.WNOHANG|unix.WALL, nil) })
		if err != nil || pid == 0 {
			return code, over
		}
		if pid == command && (ws.Exited() || ws.Signaled()) {
			code, over = exitCode(ws), true
		}
	}
}

// restarted calls fn again whenever a signal interrupted it.
func restarted(fn func() (int, error)) (n int, err error) {
	for {
		if n, err = fn(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
