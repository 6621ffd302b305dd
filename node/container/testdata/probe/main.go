// Command probe is what a hostile program in a container does, for the tests of
// the runtime.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Println("probe: what?")
		os.Exit(2)
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "flip":
		flip(args)
	case "hunt":
		hunt(args)
	case "keys":
		keys()
	case "mounts":
		mounts()
	case "group":
		_ = unix.Kill(0, unix.SIGKILL)
	case "status":
		status(args)
	case "fill":
		fill()
	default:
		fmt.Println("probe: unknown", os.Args[1])
		os.Exit(2)
	}
}

// flip exchanges names, two by two, as fast as it can.
func flip(names []string) {
	for n := 0; ; n++ {
		for i := 0; i+1 < len(names); i += 2 {
			if err := unix.Renameat2(unix.AT_FDCWD, names[i], unix.AT_FDCWD, names[i+1], unix.RENAME_EXCHANGE); err != nil {
				fmt.Println("flip:", err)
				os.Exit(1)
			}
		}
		if n == 0 {
			fmt.Println("ready")
		}
	}
}

// hunt looks into every other process that comes, by all ways there are, and says
// whenever it got hold of something that is not the container's own.
func hunt(args []string) {
	runtime.LockOSThread() // who traces is a thread
	fmt.Println("ready")
	self := strconv.Itoa(os.Getpid())
	var busybox header
	if f, err := os.Open("/bin/busybox"); err == nil {
		_, _ = f.Read(busybox[:])
		f.Close()
	}
	var root unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		fmt.Println("found:", err)
	}
	foreign := func(dev uint64) bool { return dev != root.Dev }
	if len(args) > 0 { // there are other containers' processes: only the node's root is foreign
		foreign = func(dev uint64) bool { return strconv.FormatUint(dev, 10) == args[0] }
	}
	for {
		procs, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			fmt.Println("found:", err)
		}
		for _, p := range procs {
			if pid := filepath.Base(p); pid != self && pid != "1" {
				look(p, pid, foreign, busybox)
			}
		}
	}
}

// header is how the file of a program begins.
type header [128]byte

func look(p, number string, foreign func(uint64) bool, busybox header) {
	var got header
	pid, err := strconv.Atoi(number)
	if err != nil {
		return
	}
	if env, err := os.ReadFile(p + "/environ"); err == nil && strings.Contains(string(env), "GOMAXPROCS") {
		fmt.Println("found: environment of", shown(p))
	}
	if exe, err := os.Readlink(p + "/exe"); err == nil && strings.Contains(exe, "memfd") {
		fmt.Println("found: program of", shown(p), exe)
	}
	for _, link := range []string{"/root", "/cwd"} {
		var st unix.Stat_t
		if err := unix.Stat(p+link, &st); err == nil && foreign(st.Dev) {
			fmt.Println("found:", link, "of", shown(p))
		}
	}
	fds, _ := filepath.Glob(p + "/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && (strings.HasPrefix(to, "socket:") || strings.Contains(to, "memfd")) {
			fmt.Println("found:", fd, to)
		}
	}
	if f, err := os.OpenFile(p+"/mem", os.O_RDWR, 0); err == nil {
		// Programs that are not position-independent begin here.
		if _, err := f.ReadAt(got[:], 0x400000); err == nil && !bytes.Equal(got[:], busybox[:]) {
			fmt.Println("found: memory of", shown(p))
		}
		f.Close()
	}
	seize(pid, p)
}

// seize traces a process. What it executes later is its own business; what it was
// when it could be traced must not be the runtime's.
func seize(pid int, p string) {
	const ptraceSeize, ptraceInterrupt = 0x4206, 0x4207
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, ptraceSeize, uintptr(pid), 0, 0, 0, 0); e != 0 {
		return
	}
	_, _, _ = unix.Syscall6(unix.SYS_PTRACE, ptraceInterrupt, uintptr(pid), 0, 0, 0, 0)
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, unix.WALL, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
	if ws.Exited() || ws.Signaled() {
		return
	}
	if exe, err := os.Readlink(p + "/exe"); errors.Is(err, unix.EACCES) || strings.Contains(exe, "memfd") {
		fmt.Println("found: could trace", shown(p), exe, err)
	}
	_ = unix.PtraceDetach(pid)
}

func shown(p string) string {
	comm, _ := os.ReadFile(p + "/comm")
	return p + " " + strings.TrimSpace(string(comm))
}

// keys says what keys of others can be found.
func keys() {
	for _, ring := range []int{unix.KEY_SPEC_SESSION_KEYRING, unix.KEY_SPEC_USER_SESSION_KEYRING, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_PROCESS_KEYRING} {
		if id, err := unix.KeyctlSearch(ring, "user", os.Args[2], 0); err == nil {
			fmt.Println("found: key", id, "in", ring)
		}
	}
	b, err := os.ReadFile("/proc/keys")
	if err == nil && len(b) > 0 {
		fmt.Printf("found: /proc/keys: %s\n", b)
	}
	fmt.Println("done")
}

// mounts tries every way to change mounts, and to make namespaces in which it
// may.
func mounts() {
	try := func(what string, err error) {
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOSYS) {
			fmt.Println("found:", what, err)
		}
	}
	try("mount tmpfs", unix.Mount("x", "/tmp", "tmpfs", 0, ""))
	try("bind", unix.Mount("/proc", "/tmp", "", unix.MS_BIND, ""))
	try("remount", unix.Mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	try("umount mask", unix.Unmount("/proc/kcore", unix.MNT_DETACH))
	try("umount /proc/sys", unix.Unmount("/proc/sys", unix.MNT_DETACH))
	_, err := unix.Fsopen("proc", 0)
	try("fsopen", err)
	_, err = unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE)
	try("open_tree", err)
	try("mount_setattr", unix.MountSetattr(unix.AT_FDCWD, "/sys", 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}))
	try("unshare user", unix.Unshare(unix.CLONE_NEWUSER))
	try("unshare mount", unix.Unshare(unix.CLONE_NEWNS))
	try("pivot_root", unix.PivotRoot("/tmp", "/tmp"))
	try("swap", func() error {
		_, _, e := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(unsafe.StringData("/x\x00"))), 0, 0)
		return errnoOr(e)
	}())
	try("kexec", func() error { _, _, e := unix.Syscall(unix.SYS_KEXEC_LOAD, 0, 0, 0); return errnoOr(e) }())
	try("bpf", func() error { _, _, e := unix.Syscall(unix.SYS_BPF, 0, 0, 0); return errnoOr(e) }())
	try("open_by_handle_at", func() error {
		handle := unix.NewFileHandle(1, make([]byte, 8))
		_, err := unix.OpenByHandleAt(unix.AT_FDCWD, handle, unix.O_RDONLY)
		return err
	}())
	try("io_uring", func() error { _, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0); return errnoOr(e) }())
	try("userfaultfd", func() error { _, _, e := unix.Syscall(unix.SYS_USERFAULTFD, 0, 0, 0); return errnoOr(e) }())
	try("perf", func() error {
		_, err := unix.PerfEventOpen(&unix.PerfEventAttr{}, 0, -1, -1, 0)
		return err
	}())
	try("vsock", func() error { _, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0); return err }())
	try("alg", func() error { _, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0); return err }())
	fmt.Println("done")
}

func errnoOr(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// status says what /proc says of this process.
func status(keys []string) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fmt.Println("found:", err)
	}
	for line := range strings.Lines(string(b)) {
		if key, _, _ := strings.Cut(line, ":"); slices.Contains(keys, key) {
			fmt.Print(line)
		}
	}
}

// fill takes memory until there is no more.
func fill() {
	for {
		b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		b[0] = 1
	}
}
