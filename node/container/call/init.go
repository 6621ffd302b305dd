package call

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// InitName is the name of the program that executes a container's command below
// itself, passes signals on to it, and reaps what others leave behind.
const InitName = "berth-init"

// InitStatus is the descriptor that the program finds its pipe for reports at.
const InitStatus = 3

// initEnv is the first variable that the program is given. It says where, in the
// program that executed it, the failures of the command are.
const initEnv = "BERTH_INIT="

// runtimeEnv keeps Go's runtime small: one processor, nothing collected, no files
// read in the container to find out what it may use, no signals of its own.
func runtimeEnv() []string {
	return []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0"}
}

// ExecuteInit adds calls that execute the program open in the register init, which
// executes the command then. status takes its reports until it has. The descriptors
// of both registers have numbers above InitStatus; all from there on are to close when
// something is executed.
func (p *Program) ExecuteInit(init, status Reg, args, env []string) {
	what := "execute the container's init"
	p.Call(unix.SYS_DUP3, Get(status), Int(InitStatus), Int(0)).As(what)
	argv := p.List(slices.Concat([]string{InitName, "--"}, args))
	envp := p.List(slices.Concat([]string{initEnv + strconv.Itoa(len(p.ops)+1)}, runtimeEnv(), env))
	p.Call(unix.SYS_EXECVEAT, Get(init), Str(""), argv, envp, Int(unix.AT_EMPTY_PATH)).As(what)
	// Never made: what the init reports stands for one of these.
	for _, a := range attempts(args, env) {
		p.Fail(unix.ENOENT).Command().As("execute " + a.name)
	}
	p.notFound(args)
}

// Init is what ExecuteInit gave this program.
type Init struct {
	Args, Env []string
	at        int // index of the first of these calls
}

// ParseInit returns what this program shall execute. ok is false if it was not
// executed by ExecuteInit.
func ParseInit(args, env []string) (in Init, ok bool) {
	own := 1 + len(runtimeEnv())
	if len(args) < 3 || args[1] != "--" || len(env) < own {
		return in, false
	}
	text, ok := strings.CutPrefix(env[0], initEnv)
	at, err := strconv.Atoi(text)
	return Init{Args: args[2:], Env: env[own:], at: at}, ok && err == nil && at > 0 && at <= MaxOps
}

// Start executes the command in a new child, after the calls of prog. What becomes
// of it is reported on InitStatus, and gate is closed by it.
func (in Init) Start(prog *Program, gate int) (pid int, err error) {
	ahead := in.at - len(prog.ops)
	prog.Execute(in.Args, in.Env)
	c, err := Load(prog.Encode())
	if err != nil {
		return 0, err
	}
	pid, pidfd, err := Fork{Status: InitStatus, Ahead: ahead, Regs: []uintptr{uintptr(gate), InitStatus}}.Start(c)
	if err != nil {
		return 0, err
	}
	return pid, unix.Close(pidfd)
}
