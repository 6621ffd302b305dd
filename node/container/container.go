// Package container runs containers: OCI runtime-spec in, processes out. It is
// pure Go and needs no other program.
//
// Every container has a shim, a small process of its own that owns the
// container's stdio, log, exit record and exec sessions. The shim outlives the
// agent that started it, however that dies; a Runtime opened later on the same
// directories finds it again. What is on disk and how a Runtime speaks to a shim
// is written down in docs/design/0003-node-state-and-shim.md.
package container

import (
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container/plan"
	"berth.internal/node/container/shim"
)

// Config says where a Runtime keeps its things. Two Runtimes on one kernel must
// not share any of them.
type Config struct {
	// Root holds one directory per container, its bundle. It survives a reboot.
	Root string
	// Run holds the sockets of the shims, /run/berth/<id8> on a node. It may be
	// emptied by a reboot.
	Run string
	// CgroupParent is the cgroup, relative to the top of each hierarchy, beneath
	// which every container gets one named by its id: "berth-<id8>" on a node.
	CgroupParent string
	// Init is the program cmd/berth-init. Nil means this program itself: its main
	// must then begin with shim.Main (see there).
	Init []byte
	// Spare keeps a shim ready for the next container from Sweep on: to start one takes
	// as long as all else that Create does.
	Spare bool
	// Log takes warnings. Nil discards them.
	Log *slog.Logger
}

// Bundle is a container to be made.
type Bundle struct {
	// ID names the container: 1 to 128 letters, digits, "_", "-" and ".", the
	// first one a letter or digit.
	ID string
	// Spec is the container in the terms of OCI runtime-spec 1.3. What the
	// Runtime does not do is refused by name (ErrUnsupported), never left out.
	// Root.Path is not used if Rootfs has Lowers; Linux.CgroupsPath never, see Cgroup.
	Spec *specs.Spec
	// Cgroup is the path of the container's cgroup below the top of each hierarchy; a
	// relative one is below Config.CgroupParent. "": there, and named by the ID. No
	// process may be in it. It is removed with the container, those above it are not.
	Cgroup string
	// Rootfs is the root file system.
	Rootfs Rootfs
	// Log is where stdout and stderr of the container are kept.
	Log LogConfig
	// Stdin gives the container a standard input that Attach can write to.
	// Without it, it is /dev/null.
	Stdin bool
	// StdinOnce ends that input when the first Streams that had it is closed (or
	// its agent dies). Otherwise it stays open as long as the container lives. A
	// terminal's input stays open in any case: programs end it by a character.
	StdinOnce bool
	// Terminal makes standard input and output a terminal of this size. It goes with
	// Spec.Process.Terminal. Output is one stream then, Stdout.
	Terminal *TerminalSize
	// Init runs the container's program below a first process that passes signals on
	// and reaps what is left behind.
	Init bool
	// Restart says when the container's program begins again.
	Restart Restart
	// Engine is the path of runc or crun, which then make the container instead of the
	// Runtime, in its cgroup and with its shim. They do not do all that it does: Init
	// and namespaces of another container, but for the network's, are ErrUnsupported. "": the Runtime makes it.
	Engine string
}

// DefaultAppArmor is the AppArmor profile of containers whose users do not ask for
// one. That a node does not have it is a warning; of any other it is an error.
const DefaultAppArmor = plan.DefaultAppArmor

// TerminalSize is the size of a terminal in characters.
type TerminalSize = shim.TerminalSize

// RestartPolicy says after which ends a container's program begins again.
type RestartPolicy string

// Restart policies, as Docker's. What tells always and unless-stopped apart is the
// caller's business.
const (
	RestartNo            RestartPolicy = "" // never
	RestartAlways        RestartPolicy = "always"
	RestartUnlessStopped RestartPolicy = "unless-stopped"
	RestartOnFailure     RestartPolicy = "on-failure" // after an exit code other than zero
)

// Restart is when a container's program begins again after its end, also while
// there is no agent: 100 ms later, each time twice as long up to a minute, and
// again 100 ms after a run of ten seconds.
type Restart struct {
	Policy RestartPolicy `json:"policy,omitempty"`
	// Max is how often at most, for RestartOnFailure; 0: without end.
	Max int `json:"max,omitempty"`
}

// Rootfs is an overlay of directories. In a container with a user namespace all
// of them are mounted with its mapping: on disk files belong to the numbers that
// the container sees. Upper may be "", the container then cannot write.
type Rootfs = plan.Rootfs

// LogConfig is the log of a container: CRI lines, "<RFC 3339 time in UTC with
// nanoseconds> stdout|stderr F|P <text>", P if the line goes on in the next one.
type LogConfig struct {
	// Path is appended to. Its directory must exist. "": no log is kept.
	Path string
	// MaxSize is how long a file gets, in bytes, before it is renamed to Path.1, that
	// to Path.2 and so on. 0: it grows without end.
	MaxSize int64
	// MaxFiles is how many there are at most, Path among them. 0 counts as 1.
	MaxFiles int
}

// Status is where a container is in its life.
type Status string

// The life of a container, in order.
const (
	StatusCreated    Status = "created" // everything is built, its program not yet executed
	StatusRunning    Status = "running"
	StatusRestarting Status = "restarting" // between two runs
	StatusStopped    Status = "stopped"
)

// State is what is known of a container.
type State struct {
	ID     string
	Status Status
	Pid    int // on the node; 0 when stopped

	// Created, Started and Finished are zero as long as it did not happen.
	Created, Started, Finished time.Time

	// Paused says that the processes are frozen.
	Paused bool
	// Run counts how often the program was begun, from 1; 0: never.
	Run int
	// Next is when a restarting container begins again.
	Next time.Time
	// Last is how the run before this one ended, nil if this is the first; of a
	// restarting container, how this one did.
	Last *Exit

	// ExitCode is that of the container's first process, 128 + Signal if a signal
	// ended it. Both are 0 until it stopped.
	ExitCode int
	Signal   int
	// OOMKilled says that the kernel killed a process of the container because
	// its memory limit was reached.
	OOMKilled bool
	// Error is why the container stopped if its program is not the reason: it
	// could not be executed, or its shim was killed.
	Error string
	// Warnings are what the node could not do as asked without making the
	// container weaker than asked: a limit that may not be raised here.
	Warnings []string
}

// Exit is how a run ended. The fields are as those of State.
type Exit struct {
	Started, Finished time.Time
	ExitCode, Signal  int
	OOMKilled         bool
	Error             string
}

// AttachOptions chooses streams.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
}

// Streams are connected to a container or to a process of Exec. What was not
// asked for is nil. Output ends with io.EOF when no process holds it any more. A
// reader of output that stops reading stops the container's writing: read, or
// Close.
type Streams struct {
	Stdin  io.WriteCloser // Close is the end of input, if the Bundle says StdinOnce or for Exec
	Stdout io.ReadCloser
	Stderr io.ReadCloser
}

// Close closes all streams. It can be called more than once.
func (s *Streams) Close() error {
	for _, c := range []io.Closer{s.Stdin, s.Stdout, s.Stderr} {
		if c != nil {
			_ = c.Close() // a pipe; nothing is buffered that could be lost
		}
	}
	return nil
}

// Stats is what a container has used so far. What the kernel does not count here is
// zero.
type Stats struct {
	Read time.Time

	CPU           time.Duration // of all processors together
	CPUUser       time.Duration
	CPUSystem     time.Duration
	CPUPerCPU     []time.Duration // cgroup version 1 only
	Periods       uint64          // of the quota
	ThrottledRuns uint64          // periods in which it was used up
	Throttled     time.Duration

	Memory        uint64            // bytes, caches of files included
	MemoryMax     uint64            // the most there was
	MemoryLimit   uint64            // bytes; 0: none
	MemoryDetails map[string]uint64 // as in memory.stat
	OOMKills      uint64
	Swap          uint64 // bytes

	Pids      uint64
	PidsLimit uint64 // 0: none

	Blocks  []BlockStats
	HugeTLB map[string]HugeTLBStats // by page size, such as 2MB

	// Pressure is how much of the time was lost to waiting for cpu, memory and io
	// (cgroup version 2, PSI); nil where the kernel does not say.
	Pressure map[string]Pressure
}

// BlockStats are transfers of one block device.
type BlockStats struct {
	Major, Minor                             uint64
	ReadBytes, WriteBytes, ReadOps, WriteOps uint64
}

// HugeTLBStats are huge pages of one size, in bytes.
type HugeTLBStats struct{ Usage, Max, Failed uint64 }

// Pressure is PSI: the share of time, in percent over the last 10, 60 and 300
// seconds, in which some or all processes waited, and that time in total.
type Pressure struct {
	Some, Full PressureTimes
}

// PressureTimes are the figures of a line of a pressure file.
type PressureTimes struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}

// ExecSpec is a further process for a running container.
type ExecSpec struct {
	// Process is as in the runtime-spec. Capabilities, NoNewPrivileges, Rlimits,
	// OOMScoreAdj and User are taken as they are, nothing from the container's own
	// process. The container's seccomp filter applies.
	Process specs.Process
	// Terminal makes its standard streams a terminal of this size, with
	// Process.Terminal; then Stdin and Stdout are connected.
	Terminal *TerminalSize
	// The streams to connect; others are /dev/null.
	AttachOptions
}

// Errors that callers tell apart. They come wrapped in one that says what was
// attempted on which container.
var (
	ErrNotFound      = errors.New("no such container")
	ErrExists        = errors.New("container exists already")
	ErrStatus        = errors.New("container is not in the state that this needs")
	ErrUnsupported   = plan.ErrUnsupported
	ErrNotExecutable = errors.New("command cannot be executed") // exit code 126
	ErrNoCommand     = errors.New("command not found")          // exit code 127
	// ErrInvalid is in no error's text: that says what of the Bundle cannot be.
	ErrInvalid = errors.New("the container cannot be as asked")
)

// invalid is an error that is ErrInvalid.
type invalid struct{ error }

func (e invalid) Unwrap() error      { return e.error }
func (invalid) Is(target error) bool { return target == ErrInvalid }
