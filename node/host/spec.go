package host

import (
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/lazyregexp"
	"berth.internal/node/container"
)

// Spec is what a user asks of a container. What the node cannot do has no
// field here.
type Spec struct {
	Name       string            `json:"name"`  // empty: one is made up
	Image      string            `json:"image"` // as the user wrote it
	Process    Process           `json:"process"`
	Hostname   string            `json:"hostname,omitempty"` // default: the short id
	Domainname string            `json:"domainname,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	OpenStdin  bool              `json:"open_stdin,omitempty"`
	StdinOnce  bool              `json:"stdin_once,omitempty"` // stdin ends when its first client does
	Attached   Attached          `json:"attached,omitzero"`    // what a client joins by default
	Exposed    []string          `json:"exposed,omitempty"`    // ports the program listens on: "80/tcp"; for people only
	StopSignal string            `json:"stop_signal,omitempty"`
	// StopTimeout is how many seconds a stop waits before it kills; nil means
	// DefaultStopTimeout, and below 0 without end.
	StopTimeout *int              `json:"stop_timeout,omitempty"`
	AutoRemove  bool              `json:"auto_remove,omitempty"`
	Network     Network           `json:"network"`
	HostUsers   bool              `json:"host_users,omitempty"` // no user namespace
	Mounts      []Mount           `json:"mounts,omitempty"`
	ExtraHosts  []Alias           `json:"extra_hosts,omitempty"`
	Resources   Resources         `json:"resources,omitzero"`
	ReadOnly    bool              `json:"read_only,omitempty"` // root file system
	CapAdd      []string          `json:"cap_add,omitempty"`
	CapDrop     []string          `json:"cap_drop,omitempty"`
	NoNewPrivs  *bool             `json:"no_new_privs,omitempty"` // nil: as the node says
	ShmSize     int64             `json:"shm_size,omitempty"`     // bytes; default 64 MiB
	OOMScoreAdj int               `json:"oom_score_adj,omitempty"`
	Rlimits     []Rlimit          `json:"rlimits,omitempty"`
	Sysctls     map[string]string `json:"sysctls,omitempty"`

	Tty        bool                   `json:"tty,omitempty"`       // standard streams are a terminal
	Console    container.TerminalSize `json:"console,omitzero"`    // the terminal's size at first
	Init       bool                   `json:"init,omitempty"`      // a reaper as first process
	Restart    container.Restart      `json:"restart,omitzero"`    // when the program begins again
	Health     *Health                `json:"health,omitempty"`    // nil: as the image says, after fill: it is not checked
	Log        Log                    `json:"log,omitzero"`        // what is kept of the output
	Runtime    string                 `json:"runtime,omitempty"`   // empty or RuntimeBerth, or one of the node's others
	Security   Security               `json:"security,omitzero"`   // beside capabilities
	Namespaces Namespaces             `json:"namespaces,omitzero"` // beside the network's and the user's
	Devices    []Device               `json:"devices,omitempty"`
	// DeviceRules say what else the container may do with devices: "c 1:3 rwm".
	DeviceRules []string          `json:"device_rules,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"` // for the runtime
	Umask       *uint32           `json:"umask,omitempty"`       // of the first process
	IDFile      string            `json:"id_file,omitempty"`     // where its client has written the id; for people only
}

// Attached says which streams of a container are meant for the terminal of who
// started it. The node keeps it for clients; it joins none by itself.
type Attached struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// Process is what runs, before and after the image has filled its gaps.
type Process struct {
	Entrypoint []string `json:"entrypoint,omitempty"` // nil: the image's, unless that is reset with [""]
	Command    []string `json:"command,omitempty"`
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"working_dir,omitempty"`
	User       string   `json:"user,omitempty"`   // user[:group], names or numbers
	Groups     []string `json:"groups,omitempty"` // further ones
}

// Network is the kind of a container's network.
type Network string

// The networks there are so far.
const (
	NetworkNone Network = "none"
	NetworkHost Network = "host"
)

// Alias is a further line of a container's /etc/hosts.
type Alias struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// MountType is the kind of a mount.
type MountType string

// The mounts there are so far.
const (
	MountBind  MountType = "bind"
	MountTmpfs MountType = "tmpfs"
)

// Mount is a directory or file that the container sees at Target.
type Mount struct {
	Type        MountType `json:"type"`
	Source      string    `json:"source,omitempty"` // of a bind: absolute path on the node
	Target      string    `json:"target"`           // absolute path in the container
	ReadOnly    bool      `json:"read_only,omitempty"`
	Propagation string    `json:"propagation,omitempty"` // of a bind; default rprivate
	Flat        bool      `json:"flat,omitempty"`        // of a bind: without the mounts below Source
	MakeSource  bool      `json:"make_source,omitempty"` // of a bind: make Source a directory if it is not there
	Options     []string  `json:"options,omitempty"`     // of a tmpfs: size=, mode=, noexec …
}

// Resources are a container's limits. Zero means no limit.
type Resources struct {
	Memory            int64  `json:"memory,omitempty"`             // bytes
	MemorySwap        int64  `json:"memory_swap,omitempty"`        // bytes of memory and swap together; -1: no limit
	MemoryReservation int64  `json:"memory_reservation,omitempty"` // bytes
	CPUShares         int64  `json:"cpu_shares,omitempty"`
	CPUQuota          int64  `json:"cpu_quota,omitempty"`  // microseconds per period
	CPUPeriod         int64  `json:"cpu_period,omitempty"` // microseconds
	CpusetCPUs        string `json:"cpuset_cpus,omitempty"`
	CpusetMems        string `json:"cpuset_mems,omitempty"`
	Pids              int64  `json:"pids,omitempty"` // processes and threads

	NanoCPUs           int64  `json:"nano_cpus,omitempty"`  // what CPUQuota and CPUPeriod were said as
	Swappiness         *int64 `json:"swappiness,omitempty"` // 0 to 100
	OOMKillDisable     bool   `json:"oom_kill_disable,omitempty"`
	CPURealtimePeriod  int64  `json:"cpu_realtime_period,omitempty"`  // microseconds
	CPURealtimeRuntime int64  `json:"cpu_realtime_runtime,omitempty"` // microseconds per period
	Blkio              Blkio  `json:"blkio,omitzero"`
}

// Rlimit is a limit of the kernel on each process.
type Rlimit struct {
	Name string `json:"name"` // without RLIMIT_, in lower case: nofile
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Docker's defaults.
const (
	DefaultStopTimeout = 10 * time.Second
	DefaultStopSignal  = "SIGTERM"
	DefaultShmSize     = 64 * units.MiB
	defaultPath        = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Limits on what one container may ask for.
const (
	maxArguments = 2 << 20 // bytes of arguments and of environment, each: what the kernel takes, roughly
	maxLabels    = 1 << 20 // bytes
	minMemory    = 6 * units.MiB
)

// fill gives the process what the image says and the user did not, in the way
// of Docker: an entrypoint of the user's drops the image's command, too.
func (p Process) fill(img v1.ImageConfig) Process {
	if len(p.Entrypoint) == 0 {
		if len(p.Command) == 0 {
			p.Command = img.Cmd
		}
		if p.Entrypoint == nil {
			p.Entrypoint = img.Entrypoint
		}
	}
	if len(p.Entrypoint) == 1 && p.Entrypoint[0] == "" {
		p.Entrypoint = nil
	}
	if p.User == "" {
		p.User = img.User
	}
	if p.WorkingDir == "" {
		p.WorkingDir = img.WorkingDir
	}
	set := map[string]bool{}
	for _, kv := range p.Env {
		key, _, _ := strings.Cut(kv, "=")
		set[key] = true
	}
	p.Env = slices.Clone(p.Env)
	for _, kv := range img.Env {
		if key, _, _ := strings.Cut(kv, "="); !set[key] {
			p.Env = append(p.Env, kv)
		}
	}
	return p
}

// args is what is executed.
func (p Process) args() []string { return slices.Concat(p.Entrypoint, p.Command) }

// environ returns the environment of a process of the container: defaults, then
// what was asked for, the last of each name.
func environ(hostname string, acc account, env []string) []string {
	all := append([]string{defaultPath, "HOSTNAME=" + hostname}, env...)
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		all = append(all, "HOME="+acc.Home)
	}
	last := map[string]int{}
	for i, kv := range all {
		key, _, _ := strings.Cut(kv, "=")
		last[key] = i
	}
	var out []string
	for i, kv := range all {
		// A name without a value asks for the variable to be left out.
		if key, _, ok := strings.Cut(kv, "="); ok && last[key] == i {
			out = append(out, kv)
		}
	}
	return out
}

// fill gives the container what its image says and the user did not.
func (s Spec) fill(img v1.ImageConfig) Spec {
	s.Process = s.Process.fill(img)
	if s.StopSignal == "" {
		s.StopSignal = img.StopSignal
	}
	labels := maps.Clone(img.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, s.Labels)
	s.Labels = labels
	return s
}

var hostnameGrammar = lazyregexp.New(`^[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_])?$`)

// check reports what no container can be made from. It is called after fill.
func (s Spec) check() error {
	switch {
	case len(s.Process.args()) == 0:
		return invalid("no command specified")
	case s.Hostname != "" && (len(s.Hostname) > 63 || !hostnameGrammar().MatchString(s.Hostname)):
		return invalid("invalid hostname: %q", s.Hostname)
	case s.Domainname != "" && (len(s.Domainname) > 63 || !hostnameGrammar().MatchString(s.Domainname)):
		return invalid("invalid domainname: %q", s.Domainname)
	case s.Process.WorkingDir != "" && !path.IsAbs(s.Process.WorkingDir):
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", s.Process.WorkingDir)
	case s.ShmSize < 0:
		return invalid("SHM size can not be less than 0")
	case s.OOMScoreAdj < -1000 || s.OOMScoreAdj > 1000:
		return invalid("invalid value %d for the OOM score, range is -1000 to 1000", s.OOMScoreAdj)
	}
	if s.StopSignal != "" {
		if _, err := parseSignal(s.StopSignal); err != nil {
			return err
		}
	}
	if err := s.checkStrings(); err != nil {
		return err
	}
	if err := s.Health.check(); err != nil {
		return err
	}
	if err := checkRestart(s.Restart, s.AutoRemove); err != nil {
		return err
	}
	if err := s.Resources.check(); err != nil {
		return err
	}
	if err := s.checkOptions(); err != nil {
		return err
	}
	return checkMounts(s.Mounts)
}

// checkStrings keeps out what the kernel, or the next reader of a file we
// write, would take for something else.
func (s Spec) checkStrings() error {
	args := s.Process.args()
	size := 0
	for _, list := range [][]string{args, s.Process.Env} {
		for _, v := range list {
			size += len(v) + 1
			if strings.ContainsRune(v, 0) {
				return invalid("invalid argument or variable %q: it contains a zero byte", v)
			}
		}
	}
	if size > maxArguments {
		return invalid("arguments and environment are %d bytes, more than %d", size, maxArguments)
	}
	for _, kv := range s.Process.Env {
		if kv == "" || kv[0] == '=' {
			return invalid("invalid environment variable: %q", kv)
		}
	}
	size = 0
	for _, m := range []map[string]string{s.Labels, s.Annotations} {
		for k, v := range m {
			size += len(k) + len(v)
		}
	}
	if size > maxLabels {
		return invalid("labels and annotations are %d bytes, more than %d", size, maxLabels)
	}
	return nil
}

// checkMounts reports mounts that cannot be made as asked.
func checkMounts(mounts []Mount) error {
	seen := map[string]bool{}
	for _, m := range mounts {
		target := path.Clean(m.Target)
		switch {
		case !path.IsAbs(m.Target):
			return invalid("invalid mount path: '%s' mount path must be absolute", m.Target)
		case target == "/":
			return invalid("invalid specification: destination can't be '/'")
		case seen[target]:
			return invalid("Duplicate mount point: %s", m.Target)
		case m.Type == MountBind && !path.IsAbs(m.Source):
			return invalid("invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		for _, opt := range m.Options {
			if !tmpfsOption(opt) {
				return invalid("invalid tmpfs option %q of %s", opt, m.Target)
			}
		}
		seen[target] = true
	}
	return nil
}

// tmpfsOption reports whether a tmpfs has the option. Of a wrong one the kernel says
// only that it is invalid, and not before the container starts.
func tmpfsOption(opt string) bool {
	name, value, valued := strings.Cut(opt, "=")
	rest := strings.Trim(value, "0123456789")
	switch name {
	case "size", "nr_blocks", "nr_inodes":
		return value != rest && len(rest) <= 1 && strings.HasSuffix(value, rest) && strings.Contains("kmgtpeKMGTPE%", rest)
	case "mode":
		return value != "" && len(value) <= 5 && strings.Trim(value, "01234567") == ""
	case "uid", "gid":
		return value != "" && rest == ""
	case "mpol", "huge":
		return value != ""
	}
	flag := strings.TrimPrefix(name, "no")
	return !valued && (slices.Contains(strings.Fields("defaults ro rw sync async dirsync private rprivate slave rslave shared rshared unbindable runbindable"), name) ||
		slices.Contains(strings.Fields("suid dev exec atime diratime relatime strictatime symfollow"), flag))
}
