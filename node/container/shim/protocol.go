// Package shim is the process that stands between the agent and one container.
// It forks the container's first process, keeps its stdio and log, waits for it
// and writes down how it ended, and runs further processes on demand; all this
// without the agent, which may die and come back.
//
// It is a program of its own, cmd/berth-init, and imports as little as it can:
// there is one for every container. Plans come from the agent ready to run.
package shim

import (
	"fmt"
	"time"

	"berth.internal/node/container/call"
	"berth.internal/node/container/cgroup"
)

// Version is that of the protocol and of the exit record. An agent speaks all
// versions that were ever released, see
// docs/design/0003-node-state-and-shim.md.
const Version = 1

// Methods of the protocol.
const (
	MethodCreate = "create"
	MethodStart  = "start"
	MethodState  = "state"
	MethodWait   = "wait"
	MethodKill   = "kill"
	MethodAttach = "attach"
	MethodExec   = "exec"
	MethodResize = "resize"
	// MethodExecTerminal is MethodExec for a process with a terminal, of which shims
	// that do not know this method have none.
	MethodExecTerminal = "exec_terminal"
	MethodGo           = "go" // on the connection of a create that pauses
	// MethodRestart sets the restart policy.
	MethodRestart = "set_restart"
)

// Request is what a shim is asked to do.
type Request struct {
	Version int           `json:"version"`
	Method  string        `json:"method"`
	Create  *Create       `json:"create,omitempty"` // blob: the programs Prepare and Child
	Begin   bool          `json:"begin,omitempty"`  // for MethodCreate: start it, too, and answer as MethodStart does
	Kill    *Kill         `json:"kill,omitempty"`
	Attach  *Attach       `json:"attach,omitempty"` // descriptors: where stdout, stderr are written to, as chosen
	Resize  *TerminalSize `json:"resize,omitempty"`
	Exec    *Exec         `json:"exec,omitempty"` // blob: the programs Prepare and Child; descriptors: stdin, stdout, stderr, as chosen

	// Run is for MethodWait: wait for the end of that run only. A shim that does not
	// know it begins no second one.
	Run     int      `json:"run,omitempty"`
	Restart *Restart `json:"restart,omitempty"`
}

// Create is the container.
type Create struct {
	ID        string       `json:"id"`
	Bundle    string       `json:"bundle"`        // directory that takes the exit record
	Log       string       `json:"log,omitempty"` // file that takes stdout and stderr
	LogSize   int64        `json:"log_max_size,omitempty"`
	LogFiles  int          `json:"log_max_files,omitempty"`
	Init      bool         `json:"init,omitempty"` // the first process is this program again
	Stdin     bool         `json:"stdin,omitempty"`
	StdinOnce bool         `json:"stdin_once,omitempty"`
	Flags     uint64       `json:"flags"` // of clone3
	UIDMap    string       `json:"uid_map,omitempty"`
	GIDMap    string       `json:"gid_map,omitempty"`
	NetNS     string       `json:"netns,omitempty"`
	Join      []Join       `json:"join,omitempty"`     // further namespaces to enter
	ProcDir   bool         `json:"proc_dir,omitempty"` // Prepare needs the directory /proc/<child>
	Users     []Users      `json:"users,omitempty"`    // user namespaces that Prepare needs
	OOM       *int         `json:"oom_score_adj,omitempty"`
	Send      []call.Reg   `json:"send"`
	Null      call.Reg     `json:"null,omitempty"` // the container's /dev/null among the registers of Prepare; 0: none
	Prepare   int          `json:"prepare"`        // size of that program in the blob
	Cgroup    cgroup.Group `json:"cgroup"`
	Restart   Restart      `json:"restart,omitzero"` // if it is set, PlanFile is there
	// Registers of Prepare: the file system of terminals, and both ends of the one that
	// is the container's stdio. 0: none.
	Devpts call.Reg `json:"devpts,omitempty"`
	Master call.Reg `json:"master,omitempty"`
	Peer   call.Reg `json:"peer,omitempty"`
	Engine *Engine  `json:"engine,omitempty"` // makes the container instead of the programs; nil: they do
	// Detached makes a container without a shim: this process leaves when it is
	// created. Descriptors: see detached.go.
	Detached *Detached `json:"detached,omitempty"`
}

// Detached is how a container is left to its caller.
type Detached struct {
	// Pause answers once before the container's root directory is its own, and goes on
	// after a request MethodGo.
	Pause bool `json:"pause,omitempty"`
}

// Restart is after which ends of its program a container begins again.
type Restart struct {
	Policy string `json:"policy,omitempty"` // always, unless-stopped (which is the same here), on-failure; "": never
	Max    int    `json:"max,omitempty"`    // how often at most, for on-failure; 0: without end
}

// Restart policies.
const (
	RestartAlways        = "always"
	RestartUnlessStopped = "unless-stopped"
	RestartOnFailure     = "on-failure"
)

// Users are the mappings of a user namespace, for mounts.
type Users struct {
	UIDMap string `json:"uid_map"`
	GIDMap string `json:"gid_map"`
}

// Join is a namespace of another container.
type Join struct {
	Type int    `json:"type"` // CLONE_NEW*
	Path string `json:"path"`
}

// Kill is a signal for the container's first process.
type Kill struct {
	Signal int `json:"signal"`
}

// Attach chooses streams. The answer to Stdin is a descriptor.
type Attach struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// Exec is a further process. It is answered twice: when it runs, and when it
// has ended.
type Exec struct {
	Attach
	Enter   []int `json:"enter,omitempty"` // CLONE_NEW*
	Share   bool  `json:"share,omitempty"` // see call.Fork
	Prepare int   `json:"prepare"`         // size of that program in the blob
	// Send are registers of Prepare that the process receives, and Master is the one of
	// its terminal, which comes with the first answer. 0: it has none.
	Send   []call.Reg `json:"send,omitempty"`
	Master call.Reg   `json:"master,omitempty"`
	// Terminal is the size of the terminal that Create.Engine makes for it; nil: none.
	Terminal *TerminalSize `json:"terminal,omitempty"`
	Once     *Once         `json:"once,omitempty"` // descriptors: see detached.go
}

// Once makes this process the shim of no container, but of one further process of
// a container that has none.
type Once struct {
	Cgroup cgroup.Group `json:"cgroup"`
	Leave  bool         `json:"leave,omitempty"` // do not wait for its end
}

// Response is the answer to a request.
type Response struct {
	Version  int    `json:"version"`
	Error    *Error `json:"error,omitempty"`
	State    *State `json:"state,omitempty"`
	Pid      int    `json:"pid,omitempty"`
	ExitCode *int   `json:"exit_code,omitempty"`
}

// Codes of errors.
const (
	CodeStatus        = "status"         // the container is not in the state that this needs
	CodeUnknown       = "unknown_method" // this shim is too old for it
	CodeNoCommand     = "no_command"
	CodeNotExecutable = "not_executable"
	CodeInvalid       = "invalid" // a path of the container's is no directory, or no file, as it must be, or none at all
	CodeFailed        = "failed"
)

// Error is a failure with a code.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

func failf(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// What a container is.
const (
	StatusCreated    = "created"
	StatusRunning    = "running"
	StatusRestarting = "restarting" // between two runs
	StatusStopped    = "stopped"
)

// State is a container as its shim knows it; the exit record is the last one.
type State struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	Status    string    `json:"status"`
	Pid       int       `json:"pid,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	Started   time.Time `json:"started,omitzero"`
	Finished  time.Time `json:"finished,omitzero"`
	ExitCode  int       `json:"exit_code"`
	Signal    int       `json:"signal,omitempty"`
	OOMKilled bool      `json:"oom_killed,omitempty"`
	Error     string    `json:"error,omitempty"`
	Warnings  []string  `json:"warnings,omitempty"`
	Run       int       `json:"run,omitempty"`  // the run there is or was last, from 1
	Next      time.Time `json:"next,omitzero"`  // when the next one begins, if it is restarting
	Last      *Exit     `json:"last,omitempty"` // of the run before this one; if it is restarting, of this one
}

// Exit is how a run ended.
type Exit struct {
	Started   time.Time `json:"started,omitzero"`
	Finished  time.Time `json:"finished,omitzero"`
	ExitCode  int       `json:"exit_code"`
	Signal    int       `json:"signal,omitempty"`
	OOMKilled bool      `json:"oom_killed,omitempty"`
	Error     string    `json:"error,omitempty"`
}

// LastFile is the name of the file in the bundle that has the state as it was
// when the last restart was announced.
const LastFile = "last.json"

// PlanFile is the name of the file in the bundle that has what a container is
// begun again from: Create and its programs, as in a request. It is there if a
// restart policy was ever set.
const PlanFile = "plan"

// ExitFile is the name of the exit record in the bundle. A container that has
// one is stopped.
const ExitFile = "exit.json"

// Exit codes of containers whose command was never executed, as shells have
// them, and of those that failed for another reason, as Docker has it.
const (
	ExitNotExecutable = 126
	ExitNoCommand     = 127
	ExitFailed        = 128
	ExitSignal        = 128 // plus its number
)
