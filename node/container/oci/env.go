package oci

import (
	"bufio"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// complete returns a process with an environment as others make it: of a variable that
// is there twice the last one counts, and HOME is the user's if it is not set.
func complete(p *specs.Process, rootfs string) *specs.Process {
	seen := map[string]bool{}
	var env []string
	for _, kv := range slices.Backward(p.Env) {
		name, value, _ := strings.Cut(kv, "=")
		if !seen[name] && (name != "HOME" || value != "") {
			env = append(env, kv)
		}
		seen[name] = true
	}
	slices.Reverse(env)
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		env = append(env, "HOME="+home(rootfs, p.User.UID))
	}
	with := *p
	with.Env = env
	return &with
}

// maxPasswd is how much of a container's /etc/passwd is read, in bytes.
const maxPasswd = 1 << 20

// home returns a user's directory as the root file system has it. The file belongs to
// the container: it is looked up inside of the root file system, and it is one.
func home(rootfs string, uid uint32) string {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "/"
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, "etc/passwd", &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "/"
	}
	f := os.NewFile(uintptr(fd), "passwd")
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "/"
	}
	for lines := bufio.NewScanner(io.LimitReader(f, maxPasswd)); lines.Scan(); {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) >= 6 && fields[2] == strconv.FormatUint(uint64(uid), 10) && strings.HasPrefix(fields[5], "/") && !strings.ContainsRune(fields[5], 0) {
			return fields[5]
		}
	}
	return "/"
}
