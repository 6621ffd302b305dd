// Command guest is the first process of the machine that vm starts. It makes the
// machine what the tests expect, runs them, and turns it off.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	err := prepare()
	if err == nil {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		fmt.Fprintln(os.Stdout, "guest:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // what follows is a panic, which ends the machine too
}

// prepare mounts and loads what a distribution would.
func prepare() error {
	// A root that can be left: what the kernel unpacked has nothing above it.
	for _, step := range []func() error{
		func() error { return os.MkdirAll("/root/new", 0o755) },
		func() error { return unix.Mount("/", "/root/new", "", unix.MS_BIND, "") },
		func() error { return unix.Chdir("/root/new") },
		func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") },
		func() error { return unix.Chroot(".") },
		func() error { return unix.Chdir("/") },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("change root: %w", err)
		}
	}
	for _, m := range [][3]string{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", "ptmxmode=666"},
		{"tmpfs", "/dev/shm", ""},
		{"mqueue", "/dev/mqueue", ""},
		{"tmpfs", "/tmp", ""},
		{"tmpfs", "/run", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"securityfs", "/sys/kernel/security", ""},
	} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, m[2]); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	// What the tests say goes past the kernel's messages.
	tty, err := os.OpenFile("/dev/ttyS1", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup2(int(tty.Fd()), fd); err != nil {
			return err
		}
	}
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open(filepath.Join("/modules", name))
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
		}
		if err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
		_ = f.Close()
	}
	profiles, err := os.ReadFile("/profiles")
	if err == nil {
		err = os.WriteFile("/sys/kernel/security/apparmor/.load", profiles, 0)
	}
	if err != nil {
		return fmt.Errorf("load AppArmor profiles: %w", err)
	}
	return nil
}

// run runs the tests, and is the parent of whoever loses theirs.
func run() error {
	tests, err := os.ReadFile("/tests")
	if err != nil {
		return err
	}
	limit, err := os.ReadFile("/limit")
	if err != nil {
		return err
	}
	const program = "/programs/container.test"
	p, err := os.StartProcess(program, []string{program, "-test.v", "-test.timeout", string(limit), "-test.run", string(tests)}, &os.ProcAttr{
		Dir: "/", Files: []*os.File{os.Stdin, os.Stdout, os.Stdout},
		Env: []string{"PATH=/bin", "HOME=/root", "TMPDIR=/tmp", "BERTH_TEST_PROGRAMS=/programs"},
	})
	if err != nil {
		return err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err != nil && err != unix.EINTR {
			return err
		}
		if pid == p.Pid {
			fmt.Printf("exit status %d\n", ws.ExitStatus())
			return nil
		}
	}
}
