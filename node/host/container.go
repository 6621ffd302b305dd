package host

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"berth.internal/internal/durable"
	"berth.internal/node/container"
)

// Status is where a container is in its life, in Docker's words.
type Status string

// The states there are so far.
const (
	Created    Status = "created"
	Running    Status = "running" // also when it is paused
	Restarting Status = "restarting"
	Exited     Status = "exited"
	Removing   Status = "removing"
	Dead       Status = "dead" // could not be removed in full; removing it again goes on
)

// State is what a container does or did last.
type State struct {
	Status    Status    `json:"status"`
	PID       int       `json:"-"` // on the node, while it runs
	ExitCode  int       `json:"exit_code"`
	Error     string    `json:"error,omitempty"` // why it could not be started, or was lost
	OOMKilled bool      `json:"oom_killed,omitempty"`
	Started   time.Time `json:"started,omitzero"`  // zero: never
	Finished  time.Time `json:"finished,omitzero"` // zero: never

	Paused   bool         `json:"-"`                  // while it runs
	Restarts int          `json:"restarts,omitempty"` // by its policy, since somebody started it
	Health   *HealthState `json:"-"`                  // while it runs and is asked
}

// HealthStatus is how a container that runs is.
type HealthStatus string

// The answers to whether a container is well.
const (
	Starting  HealthStatus = "starting"
	Healthy   HealthStatus = "healthy"
	Unhealthy HealthStatus = "unhealthy"
)

// HealthState is what came of asking a container whether it is well.
type HealthState struct {
	Status        HealthStatus
	FailingStreak int
	Log           []HealthResult // the last ones, oldest first
}

// HealthResult is one answer.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int // below 0: it could not be asked, or did not answer in time
	Output     string
}

// Container is what there is to know about a container at one moment.
type Container struct {
	ID      string // 64 hex digits
	Name    string
	Created time.Time
	Spec    Spec   // with the image's part filled in
	ImageID string // digest of the image's configuration
	Args    []string
	// AppArmor is the profile that confines its programs, "" for none.
	AppArmor string
	State    State
	Execs    []string // ids of the processes that exec started and that still run
	Files    Files
}

// Files are a container's files on the node.
type Files struct {
	Log, Hosts, Hostname, ResolvConf string
}

// recordVersion is the version of the records this program reads and writes.
const recordVersion = 1

// record is what is on disk of a container, beside what the runtime keeps.
type record struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	ImageID string    `json:"image_id"`
	Spec    Spec      `json:"spec"`
	Users   uint32    `json:"users,omitempty"` // first of its numbers on the node; 0: the node's own users
	// SharedUsers says that they are those of another container, whose namespaces
	// this one shares.
	SharedUsers bool `json:"shared_users,omitempty"`
	// AppArmor is the profile of one that does not ask for any, "" for none.
	AppArmor string `json:"apparmor,omitempty"`
	Last     *State `json:"last,omitempty"` // of a run that the runtime has forgotten

	// Of one with a restart policy, what its user asked for last (askedStart or
	// askedStop; nothing: it never ran), and how often the node itself, not the shim,
	// has begun it again since.
	Asked    string `json:"asked,omitempty"`
	Restarts int    `json:"restarts,omitempty"`
}

// ctr is a container in memory.
type ctr struct {
	dir string // Options.Dir

	// op is held by who starts, changes, renames or removes it: one at a time.
	op sync.Mutex

	mu       sync.Mutex // guards the rest, never over the disk
	rec      record     // what save changes of it; the rest stays as it is
	state    State
	joinable bool // the runtime has it, and its output has not ended
	removing bool
	failed   bool          // its removal did
	run      *run          // the present or next one
	life     *run          // from a start to when nothing begins it again; the present or next one
	revival  chan struct{} // closed by who gives up; nil: the node is not about to begin it again
	delay    time.Duration // last one before the node began it again
	health   *health       // nil: it does not run, or there is nothing to ask
	watched  bool          // by watchMemory, since the last start
	oomTold  bool          // that memory ran out in this run
	begun    chan struct{} // closed when the last start is over; nil: there was none
	gone     chan struct{}
	waiting  []*Attachment // for the next start
	execs    []*execution  // oldest first
}

// run is one life of the container's process, from before its start, or all those
// that follow each other by themselves.
type run struct {
	ended chan struct{} // closed when it has
	exit  Exit          // valid then
}

func newRun() *run { return &run{ended: make(chan struct{})} }

func newCtr(dir string, rec record) *ctr {
	return &ctr{dir: dir, rec: rec, state: State{Status: Created}, run: newRun(), life: newRun(), gone: make(chan struct{})}
}

// path returns the path of something the container has on the node.
func (c *ctr) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir, c.rec.ID}, elem...)...)
}

func (c *ctr) recordPath() string { return filepath.Join(c.dir, c.rec.ID+recordSuffix) }
func (c *ctr) gonePath() string   { return filepath.Join(c.dir, c.rec.ID+goneSuffix) }

// The names of records: of a container, and of one that is being removed.
const (
	recordSuffix = ".json"
	goneSuffix   = ".gone"
)

func (c *ctr) name() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Name
}

// appArmor is the profile that the container's programs get.
func (rec *record) appArmor() string { return cmp.Or(rec.Spec.Security.AppArmor, rec.AppArmor) }

func (c *ctr) snapshot() Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Container{
		ID: c.rec.ID, Name: c.rec.Name, Created: c.rec.Created, Spec: c.rec.Spec, ImageID: c.rec.ImageID,
		Args: c.rec.Spec.Process.args(), State: c.state, AppArmor: c.rec.appArmor(),
		Files: Files{Log: c.path("log"), Hosts: c.path("hosts"), Hostname: c.path("hostname"), ResolvConf: c.path("resolv.conf")},
	}
	if c.rec.Spec.Log.Driver == LogNone {
		s.Files.Log = ""
	}
	s.State.Health = c.health.snapshot()
	for _, x := range c.execs {
		if x.running() {
			s.Execs = append(s.Execs, x.id)
		}
	}
	switch {
	case c.failed:
		s.State.Status = Dead
	case c.removing:
		s.State.Status = Removing
	}
	return s
}

// now returns the container's record and state.
func (c *ctr) now() (record, State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec, c.state
}

// Alive reports whether the program runs, or is about to by itself.
func (s State) Alive() bool { return s.Status == Running || s.Status == Restarting }

// alive is State.Alive of the container now.
func (c *ctr) alive() bool {
	_, state := c.now()
	return state.Alive()
}

// running reports whether the container runs now.
func (c *ctr) running() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Status == Running
}

// save writes the record. c.op is held, or nobody else knows the container.
func (c *ctr) save(rec record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("write record of container %s: %w", shortID(rec.ID), err)
	}
	if err := durable.WriteFile(c.recordPath(), data, 0o600); err != nil {
		return fmt.Errorf("write record of container %s: %w", shortID(rec.ID), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// The rest never changes and is read without the lock.
	c.rec.Name, c.rec.Last, c.rec.Asked, c.rec.Restarts = rec.Name, rec.Last, rec.Asked, rec.Restarts
	c.rec.Spec.Restart, c.rec.Spec.Resources = rec.Spec.Restart, rec.Spec.Resources
	return nil
}

// readRecord reads what save wrote.
func readRecord(path string) (rec record, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("read record %s: %w", path, err)
	}
	if rec.Version > recordVersion {
		return rec, fmt.Errorf("record %s was written by a newer berth: its version is %d, this berth knows %d", path, rec.Version, recordVersion)
	}
	return rec, nil
}

// fromRuntime translates what the runtime knows of a container's last run.
func fromRuntime(st container.State) State {
	s := State{
		Status: Exited, PID: st.Pid, ExitCode: st.ExitCode, Error: st.Error, OOMKilled: st.OOMKilled,
		Started: st.Started, Finished: st.Finished, Paused: st.Paused,
	}
	switch {
	case st.Status == container.StatusRunning:
		s.Status = Running
	case st.Status == container.StatusRestarting:
		if st.Last != nil {
			s = fromExit(*st.Last)
		}
		s.Status = Restarting
	case st.Started.IsZero() && st.Error != "":
		s.Started = st.Created // its shim was lost, and with it the time
	case st.Started.IsZero():
		s.Status = Created // its program was never executed
	}
	return s
}

// fromExit translates how a run ended.
func fromExit(e container.Exit) State {
	return State{ExitCode: e.ExitCode, Error: e.Error, OOMKilled: e.OOMKilled, Started: e.Started, Finished: e.Finished}
}

// removeFiles removes everything the container has on the node, its record
// last.
func (c *ctr) removeFiles() error {
	if err := c.dropShm(); err != nil {
		return err
	}
	if err := os.RemoveAll(c.path()); err != nil {
		return err
	}
	if err := os.Remove(c.gonePath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(c.dir)
}

// dropExecs forgets the oldest processes that have ended, but for the last
// execsKept. It returns the ids of those it forgot. c.mu is held.
func (c *ctr) dropExecs() (dropped []string) {
	over := len(c.execs) - execsKept
	c.execs = slices.DeleteFunc(c.execs, func(x *execution) bool {
		if over <= 0 || x.running() {
			return false
		}
		over--
		dropped = append(dropped, x.id)
		return true
	})
	return dropped
}
