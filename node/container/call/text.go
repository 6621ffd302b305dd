package call

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// String returns the program in a form like strace's, one call a line: result
// register, call, and after a ";" where it goes on after errors and success.
func (p *Program) String() string {
	var b strings.Builder
	for i := range p.ops {
		fmt.Fprintf(&b, "%3d  %s\n", i, p.line(i))
	}
	return b.String()
}

// line returns the call with index i.
func (p *Program) line(i int) string {
	op := p.ops[i]
	var b strings.Builder
	if op.hasOut {
		fmt.Fprintf(&b, "r%d = ", op.out)
	}
	b.WriteString(name(op.nr))
	for j, a := range op.args {
		sep := ", "
		if j == 0 {
			sep = "("
		}
		b.WriteString(sep)
		if a.kind == kindList {
			fmt.Fprintf(&b, "%q", p.lists[a.n])
		} else {
			b.WriteString(a.String())
		}
	}
	if len(op.args) == 0 {
		b.WriteString("(")
	}
	b.WriteString(")")
	if op.least > 0 {
		fmt.Fprintf(&b, " >= %d", op.least)
	}
	for _, br := range op.branches {
		errno := "error"
		if br.errno != 0 {
			errno = unix.ErrnoName(br.errno)
		}
		if br.warn {
			errno += " warn"
		}
		fmt.Fprintf(&b, "; %s -> %d", errno, p.target(br.to, i))
	}
	if t := p.target(op.then, i); t != i+1 {
		fmt.Fprintf(&b, "; ok -> %d", t)
	}
	return b.String()
}

// String returns the argument as strace would print it, roughly.
func (a Arg) String() string {
	switch a.kind {
	case kindReg:
		return "r" + strconv.FormatUint(a.n, 10)
	case kindData:
		return quote(a.data)
	case kindPatched:
		return fmt.Sprintf("%s[%d:]=r%d", quote(a.data), a.off, a.n)
	case kindFilter:
		return fmt.Sprintf("{%d instructions}", len(a.data)/8)
	default:
		if n := int64(a.n); n > -4096 && n < 10 {
			return strconv.FormatInt(n, 10)
		}
		return "0x" + strconv.FormatUint(a.n, 16)
	}
}

// quote returns text as a string, and anything else in hex.
func quote(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return fmt.Sprintf("{%x}", s)
		}
	}
	return strconv.Quote(s)
}

// name returns the name of a call.
func name(nr int) string {
	if s, ok := names()[nr]; ok {
		return s
	}
	return "syscall " + strconv.Itoa(nr)
}

// names are the calls that plans use.
func names() map[int]string {
	return map[int]string{
		nrFail: "fail", nrReceive: "receive", nrReady: "ready", nrMode: "mode", nrTree: "tree",
		unix.SYS_CAPSET: "capset", unix.SYS_CLOSE: "close", unix.SYS_CLOSE_RANGE: "close_range", unix.SYS_DUP3: "dup3",
		unix.SYS_EXECVE: "execve", unix.SYS_EXECVEAT: "execveat", unix.SYS_GETPID: "getpid", unix.SYS_SETPGID: "setpgid", unix.SYS_FCHDIR: "fchdir", unix.SYS_FCHOWN: "fchown", unix.SYS_FCHOWNAT: "fchownat",
		unix.SYS_FSCONFIG: "fsconfig", unix.SYS_FSMOUNT: "fsmount", unix.SYS_FSOPEN: "fsopen", unix.SYS_IOCTL: "ioctl",
		unix.SYS_KEYCTL: "keyctl", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_MKNODAT: "mknodat", unix.SYS_MOUNT_SETATTR: "mount_setattr",
		unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2", unix.SYS_OPEN_TREE: "open_tree",
		unix.SYS_PIVOT_ROOT: "pivot_root", unix.SYS_PRCTL: "prctl", unix.SYS_PRLIMIT64: "prlimit64", unix.SYS_READ: "read",
		unix.SYS_RT_SIGACTION: "rt_sigaction", unix.SYS_RT_SIGPROCMASK: "rt_sigprocmask", unix.SYS_SECCOMP: "seccomp",
		unix.SYS_SETDOMAINNAME: "setdomainname", unix.SYS_SETFSGID: "setfsgid", unix.SYS_SETFSUID: "setfsuid",
		unix.SYS_SETGROUPS: "setgroups", unix.SYS_SETHOSTNAME: "sethostname", unix.SYS_SETNS: "setns", unix.SYS_SETRESGID: "setresgid",
		unix.SYS_SETRESUID: "setresuid", unix.SYS_SETSID: "setsid", unix.SYS_SOCKET: "socket", unix.SYS_SYMLINKAT: "symlinkat",
		unix.SYS_FCNTL: "fcntl", unix.SYS_PERSONALITY: "personality", unix.SYS_SCHED_SETATTR: "sched_setattr", unix.SYS_IOPRIO_SET: "ioprio_set",
		unix.SYS_SET_MEMPOLICY: "set_mempolicy", unix.SYS_SCHED_SETAFFINITY: "sched_setaffinity", unix.SYS_FCHMODAT: "fchmodat",
		unix.SYS_SENDTO: "sendto", unix.SYS_RECVFROM: "recvfrom", unix.SYS_UMASK: "umask", unix.SYS_UMOUNT2: "umount2", unix.SYS_UNSHARE: "unshare", unix.SYS_WRITE: "write", unix.SYS_CHDIR: "chdir",
	}
}
