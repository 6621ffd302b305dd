package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/plan"
)

// look finds out what plans need to know of the node.
func look() (h plan.Host, err error) {
	h = plan.Host{Dir: isDir, AppArmor: hasAppArmor(), SELinux: hasSELinux()}
	if h.Kernel, err = kernelVersion(); err != nil {
		return h, err
	}
	if h.OverlayByName, err = overlayByName(); err != nil {
		return h, err
	}
	if h.SignedIDs, err = signedIDs(); err != nil {
		return h, err
	}
	if h.NoCaps, err = missingCapabilities(); err != nil {
		return h, err
	}
	for file, flag := range map[string]uint64{
		"user": unix.CLONE_NEWUSER, "pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC,
		"uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP, "time": unix.CLONE_NEWTIME,
	} {
		if _, err := os.Stat("/proc/self/ns/" + file); errors.Is(err, fs.ErrNotExist) {
			h.NoNamespaces |= flag
		}
	}
	return h, nil
}

// signedIDs reports whether devpts takes no number of a group above 1<<31-1 as it is.
func signedIDs() (bool, error) {
	ctx, err := unix.Fsopen("devpts", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("the kernel has no file system of terminals: %w", err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetString(ctx, "gid", "2147483648"); err != nil {
		return true, nil //nolint:nilerr // that is the answer
	}
	return unix.FsconfigCreate(ctx) != nil, nil
}

// kernelVersion returns the first two numbers of the kernel's version.
func kernelVersion() (v [2]int, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return v, err
	}
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &v[0], &v[1]); err != nil {
		return v, fmt.Errorf("read the kernel's version %q: %w", release, err)
	}
	return v, nil
}

// missingCapabilities returns those that this process and its children cannot have.
func missingCapabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	has := uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	for n := range plan.Capabilities() {
		if bounding, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0); err != nil || bounding != 1 {
			has &^= 1 << n
		}
	}
	return ^has, nil
}

// hasAppArmor reports whether the kernel runs AppArmor.
func hasAppArmor() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(b) > 0 && b[0] == 'Y'
}

// hasSELinux reports whether the kernel runs SELinux: a process has a label then.
func hasSELinux() bool {
	var fs unix.Statfs_t
	return unix.Statfs("/sys/fs/selinux", &fs) == nil && fs.Type == unix.SELINUX_MAGIC
}

// hasX32 reports whether the kernel runs programs of the x32 ABI.
func hasX32() bool {
	const getpid = 0x40000000 | 39
	_, _, errno := unix.RawSyscall(getpid, 0, 0, 0)
	return runtime.GOARCH == "amd64" && errno == 0
}

func isDir(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return info.IsDir(), nil
}

// overlayByName reports whether the kernel cannot take the layers of an overlay
// by descriptor.
func overlayByName() (bool, error) {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("the kernel has no overlay file system, or this is not root: %w", err)
	}
	defer unix.Close(ctx)
	root, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(root)
	return unix.FsconfigSetFd(ctx, "lowerdir+", root) != nil, nil
}
