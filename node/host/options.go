package host

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"berth.internal/node/container"
	"berth.internal/node/image"
)

// What of the runtime's a Spec is made of.
type (
	// TerminalSize is the size of a terminal in characters.
	TerminalSize = container.TerminalSize
	// RestartPolicy says after which ends.
	RestartPolicy = container.RestartPolicy
	// Pressure is how much of the time was lost to waiting.
	Pressure = container.Pressure
)

// Health is how a container is asked whether it is well. What is zero is as the
// image says, or else as Docker does: see withDefaults.
type Health struct {
	// Test is "CMD" and a command with its arguments, or "CMD-SHELL" and what the
	// shell shall run, or "NONE". Nothing: the image's.
	Test          []string      `json:"test,omitempty"`
	Shell         []string      `json:"shell,omitempty"`          // the image's; nothing: /bin/sh -c
	Interval      time.Duration `json:"interval,omitempty"`       // from the end of one check to the next
	Timeout       time.Duration `json:"timeout,omitempty"`        // of a check
	StartPeriod   time.Duration `json:"start_period,omitempty"`   // in which failures do not count
	StartInterval time.Duration `json:"start_interval,omitempty"` // Interval in that time
	Retries       int           `json:"retries,omitempty"`        // so many failures in a row make it unhealthy
}

// The kinds of Health.Test.
const (
	HealthNone  = "NONE"
	HealthExec  = "CMD"
	HealthShell = "CMD-SHELL"
)

// checked reports whether there is something to ask.
func (h *Health) checked() bool {
	return h != nil && len(h.Test) > 0 && h.Test[0] != HealthNone
}

// withDefaults fills the gaps as Docker does.
func (h Health) withDefaults() Health {
	h.Interval = cmp.Or(h.Interval, 30*time.Second)
	h.Timeout = cmp.Or(h.Timeout, 30*time.Second)
	h.StartInterval = cmp.Or(h.StartInterval, 5*time.Second)
	h.Retries = cmp.Or(h.Retries, 3)
	return h
}

// fill returns the check with the image's part filled in; nil if neither says
// anything.
func (h *Health) fill(img image.Image) *Health {
	var docker dockerspec.DockerOCIImage
	_ = json.Unmarshal(img.RawConfig, &docker) // what is not of Docker's form has no check
	theirs := docker.Config.Healthcheck
	if h != nil && theirs == nil {
		theirs = new(dockerspec.HealthcheckConfig)
	}
	if theirs == nil {
		return nil
	}
	if h == nil {
		h = new(Health)
	}
	out := Health{
		Test: h.Test, Interval: cmp.Or(h.Interval, theirs.Interval), Timeout: cmp.Or(h.Timeout, theirs.Timeout),
		StartPeriod: cmp.Or(h.StartPeriod, theirs.StartPeriod), StartInterval: cmp.Or(h.StartInterval, theirs.StartInterval),
		Retries: cmp.Or(h.Retries, theirs.Retries), Shell: slices.Clone(docker.Config.Shell),
	}
	if len(out.Test) == 0 {
		out.Test = slices.Clone(theirs.Test)
	}
	return &out
}

// check follows Docker's words.
func (h *Health) check() error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.value != 0 && d.value < time.Millisecond {
			return invalid("%s in Healthcheck cannot be less than 1ms", d.name)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) == 0 {
		return nil
	}
	switch kind := h.Test[0]; {
	case kind == HealthNone && len(h.Test) == 1:
	case kind == HealthExec && len(h.Test) > 1, kind == HealthShell && len(h.Test) == 2:
	default:
		return invalid("invalid Healthcheck.Test %q: say NONE, CMD and a command, or CMD-SHELL and one argument", h.Test)
	}
	for _, arg := range h.Test {
		if strings.ContainsRune(arg, 0) {
			return invalid("invalid Healthcheck.Test %q: it contains a zero byte", h.Test)
		}
	}
	return nil
}

// Log is what is kept of a container's output.
type Log struct {
	Driver   string `json:"driver,omitempty"`    // as its user calls it: local or json-file; or LogNone
	MaxSize  int64  `json:"max_size,omitempty"`  // bytes of a file; 0: DefaultLogSize; below 0: no limit
	MaxFiles int    `json:"max_files,omitempty"` // 0: DefaultLogFiles
}

// LogNone is the driver that keeps nothing.
const LogNone = "none"

// How much is kept of what a container writes if it does not say.
const (
	DefaultLogSize  = 10 * units.MiB
	DefaultLogFiles = 3
)

// config says it in the runtime's words. path is where the log is.
func (l Log) config(path string) container.LogConfig {
	if l.Driver == LogNone {
		return container.LogConfig{}
	}
	return container.LogConfig{
		Path: path, MaxSize: max(cmp.Or(l.MaxSize, DefaultLogSize), 0), MaxFiles: cmp.Or(l.MaxFiles, DefaultLogFiles),
	}
}

// The runtimes there are. RuntimeBerth is the node's own, which "" means, too.
const (
	RuntimeBerth = "berth"
	RuntimeRunc  = "runc"
	RuntimeCrun  = "crun"
)

// Security is what holds a container in, beside its user namespace and its
// capabilities.
type Security struct {
	// Privileged leaves all of it out: all capabilities, all devices, nothing masked.
	Privileged bool `json:"privileged,omitempty"`
	// Seccomp is a profile as JSON, or SeccompUnconfined. Nothing: Docker's.
	Seccomp string `json:"seccomp,omitempty"`
	// AppArmor is the name of a profile that the node has loaded, or
	// "unconfined". Nothing: the node's default.
	AppArmor string `json:"apparmor,omitempty"`
	// WritableCgroups lets the container make cgroups below its own.
	WritableCgroups bool `json:"writable_cgroups,omitempty"`
	// Label is what SELinux calls its processes: "user:role:type:level".
	Label string `json:"label,omitempty"`
	// MaskedPaths and ReadonlyPaths replace the default ones. Nil: those.
	MaskedPaths   []string `json:"masked_paths"`
	ReadonlyPaths []string `json:"readonly_paths"`
}

// foreign reports whether the container is made by another runtime than the node's
// own.
func (s *Spec) foreign() bool { return s.Runtime != "" && s.Runtime != RuntimeBerth }

// engine returns the path of the runtime that makes the container; "": the node's
// own does.
func (h *Host) engine(s *Spec) (string, error) {
	if !s.foreign() {
		return "", nil
	}
	path := h.opts.Engines[s.Runtime]
	if path == "" {
		return "", invalid("unknown or invalid runtime name: %s: it is not installed on this node", s.Runtime)
	}
	return path, nil
}

// maxPaths is how many paths, or devices, a container can name.
const maxPaths = 1000

// SeccompUnconfined stands for no filter of system calls.
const SeccompUnconfined = "unconfined"

// AppArmorUnconfined stands for no profile of AppArmor.
const AppArmorUnconfined = "unconfined"

// Namespaces says which namespaces a container shares.
type Namespaces struct {
	PID    Namespace `json:"pid,omitempty"`
	IPC    Namespace `json:"ipc,omitempty"`
	UTS    Namespace `json:"uts,omitempty"`
	Cgroup Namespace `json:"cgroup,omitempty"`
}

// Namespace is whose namespace it is: empty or one of the words below, or
// "container:" and the id of another container.
type Namespace string

// Whose a namespace is.
const (
	NamespaceHost      Namespace = "host"
	NamespacePrivate   Namespace = "private"
	NamespaceShareable Namespace = "shareable" // of IPC: private, and others may join it
	NamespaceNone      Namespace = "none"      // of IPC: private, without /dev/shm

	ofContainer = "container:"
)

// container returns what is behind "container:".
func (n Namespace) container() (ref string, ok bool) {
	return strings.CutPrefix(string(n), ofContainer)
}

// Device is a device of the node's that the container has.
type Device struct {
	Source string `json:"source"` // path on the node; a directory stands for all that is below it
	Target string `json:"target"` // path in the container
	Access string `json:"access"` // of r, w and m
}

// checkOptions reports options that are none, or that exclude each other.
func (s Spec) checkOptions() error {
	ns := s.Namespaces
	for _, n := range []struct {
		name    string
		value   Namespace
		allowed []Namespace
		joins   bool
	}{
		{"network", Namespace(s.Network), []Namespace{Namespace(NetworkNone), NamespaceHost}, true},
		{"PID mode", ns.PID, []Namespace{"", NamespacePrivate, NamespaceHost}, true},
		{"IPC mode", ns.IPC, []Namespace{"", NamespacePrivate, NamespaceShareable, NamespaceHost, NamespaceNone}, true},
		{"UTS mode", ns.UTS, []Namespace{"", NamespacePrivate, NamespaceHost}, false},
		{"cgroup namespace mode", ns.Cgroup, []Namespace{"", NamespacePrivate, NamespaceHost}, false},
	} {
		ref, joins := n.value.container()
		switch {
		case joins && n.joins && ref == "":
			return invalid("invalid %s: %q names no container", n.name, n.value)
		case joins && n.joins, slices.Contains(n.allowed, n.value):
		default:
			return unsupported("%s %q is not supported", n.name, n.value)
		}
	}
	_, joinsNetwork := Namespace(s.Network).container()
	switch {
	case joinsNetwork && s.Hostname != "":
		return invalid("conflicting options: hostname and the network mode")
	case joinsNetwork && len(s.ExtraHosts) > 0:
		return invalid("conflicting options: custom host-to-IP mapping and the network mode")
	case ns.UTS == NamespaceHost && s.Hostname+s.Domainname != "":
		return invalid("conflicting options: hostname and the UTS mode")
	case len(s.Security.MaskedPaths)+len(s.Security.ReadonlyPaths) > maxPaths || len(s.Devices)+len(s.DeviceRules) > maxPaths:
		return invalid("more than %d masked and read-only paths, or devices and their rules", maxPaths)
	case s.Umask != nil && *s.Umask > 0o777:
		return invalid("invalid umask %#o", *s.Umask)
	case s.Log.MaxFiles < 0:
		return invalid("max-file must be at least 1")
	case !slices.Contains([]string{"", RuntimeBerth, RuntimeRunc, RuntimeCrun}, s.Runtime):
		return invalid("unknown or invalid runtime name: %s", s.Runtime)
	case s.foreign() && s.Init:
		return unsupported("--init with runtime %s is not supported yet; leave it out, or use --runtime berth", s.Runtime)
	}
	if err := s.Security.check(); err != nil {
		return err
	}
	return checkDevices(s.Devices, s.DeviceRules)
}
