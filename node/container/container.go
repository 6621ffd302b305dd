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
	// Root.Path is not used if Rootfs has Lowers; Linux.CgroupsPath never.
	Spec *specs.Spec
	// Rootfs is the root file system.
	Rootfs Rootfs
	// Log is where stdout and stderr of the container are kept.
	Log LogConfig
	// Stdin gives the container a standard input that Attach can write to.
	// Without it, it is /dev/null.
	Stdin bool
	// StdinOnce ends that input when the first Streams that had it is closed (or
	// its agent dies). Otherwise it stays open as long as the container lives.
	StdinOnce bool
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
}

// Status is where a container is in its life.
type Status string

// The life of a container, in order.
const (
	StatusCreated Status = "created" // everything is built, its program not yet executed
	StatusRunning Status = "running"
	StatusStopped Status = "stopped"
)

// State is what is known of a container.
type State struct {
	ID     string
	Status Status
	Pid    int // on the node; 0 when stopped

	// Created, Started and Finished are zero as long as it did not happen.
	Created, Started, Finished time.Time

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

// ExecSpec is a further process for a running container.
type ExecSpec struct {
	// Process is as in the runtime-spec. Capabilities, NoNewPrivileges, Rlimits,
	// OOMScoreAdj and User are taken as they are, nothing from the container's own
	// process. The container's seccomp filter applies.
	Process specs.Process
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
)
