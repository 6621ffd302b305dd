package call

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// DefaultPath is where commands are looked for by a process without PATH.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// SearchPath returns the directories of PATH.
func SearchPath(env []string) []string {
	search := DefaultPath
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	dirs := strings.Split(search, ":")
	for i, dir := range dirs {
		if dir == "" {
			dirs[i] = "."
		}
	}
	return dirs
}

// attempt is one of the files that may be a command.
type attempt struct {
	name string
	on   []syscall.Errno // errors after which the next one is tried
}

// attempts returns where execvp(3) looks for the command: a file that may not be
// executed counts only if there is no other.
func attempts(args, env []string) []attempt {
	if strings.Contains(args[0], "/") {
		return []attempt{{name: args[0]}}
	}
	var list []attempt
	if args[0] == "" {
		return list
	}
	for _, on := range [][]syscall.Errno{{unix.ENOENT, unix.ENOTDIR, unix.EACCES}, {unix.ENOENT, unix.ENOTDIR}} {
		for _, dir := range SearchPath(env) {
			list = append(list, attempt{dir + "/" + args[0], on})
		}
	}
	return list
}

// Execute adds calls that execute a command, which is looked for in PATH.
func (p *Program) Execute(args, env []string) {
	argv, envp := p.List(args), p.List(env)
	for _, a := range attempts(args, env) {
		p.Call(unix.SYS_EXECVE, Str(a.name), argv, envp).On(Next, a.on...).Command().As("execute " + a.name)
	}
	p.notFound(args)
}

func (p *Program) notFound(args []string) {
	if !strings.Contains(args[0], "/") {
		p.Fail(unix.ENOENT).Command().As(fmt.Sprintf("find %q in PATH", args[0]))
	}
}
