package engine

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"berth.internal/node/host"
)

// ping answers GET and HEAD /_ping: 200. The versions are in its header.
func (e *Engine) ping(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-cache, no-store, must-revalidate")
	w.Header().Set("Pragma", "no-cache")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte("OK")) // the client is gone, if it fails
	}
	return nil
}

// version answers GET /version: 200.
func (e *Engine) version(w http.ResponseWriter, _ *http.Request) error {
	kernel := kernelRelease()
	return writeJSON(w, http.StatusOK, versionAnswer{GitCommit: e.cfg.Commit, VersionResponse: system.VersionResponse{
		Platform: system.PlatformInfo{Name: "berth"},
		Version:  e.cfg.Version, APIVersion: maxVersion.String(), MinAPIVersion: minVersion.String(),
		GitCommit: e.cfg.Commit, GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH, KernelVersion: kernel,
		Components: []system.ComponentVersion{{
			Name: "Engine", Version: e.cfg.Version,
			Details: map[string]string{
				"ApiVersion": maxVersion.String(), "MinAPIVersion": minVersion.String(), "GitCommit": e.cfg.Commit,
				"GoVersion": runtime.Version(), "Os": runtime.GOOS, "Arch": runtime.GOARCH, "KernelVersion": kernel,
				"BuildTime": "", "Experimental": "false",
			},
		}},
	}})
}

// info is what there is to know about the node: Moby's present type and what
// older clients read beside it.
type info struct {
	system.Info
	BridgeNfIptables  bool
	BridgeNfIP6tables bool `json:"BridgeNfIp6tables"`
	KernelMemory      bool
	KernelMemoryTCP   bool
	ClusterStore      string
	ClusterAdvertise  string
	ContainerdCommit  commit
	RuncCommit        commit
	InitCommit        commit
}

// commit is what a program was built from, of those that the node does not use.
type commit struct {
	ID       string
	Expected string // gone since 1.48
}

// versionAnswer is Moby's present type with fields that older clients read, also if
// they are empty.
type versionAnswer struct {
	system.VersionResponse
	GitCommit string
	BuildTime string
}

// info answers GET /info: 200.
func (e *Engine) info(w http.ResponseWriter, _ *http.Request) error {
	var memory unix.Sysinfo_t
	if err := unix.Sysinfo(&memory); err != nil {
		return err
	}
	list := e.host.List()
	running, paused, stopped := 0, 0, 0
	for _, c := range list {
		switch {
		case c.State.Paused:
			paused++
		case c.State.Alive():
			running++
		default:
			stopped++
		}
	}
	paths, standard := e.host.Runtimes()
	runtimes := map[string]system.RuntimeWithStatus{}
	for name, path := range paths {
		runtimes[name] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: path}}
	}
	answer := info{Info: system.Info{
		ID: e.cfg.ID, Name: e.cfg.Name, ServerVersion: e.cfg.Version, DockerRootDir: e.cfg.Data,
		Containers: len(list), ContainersRunning: running, ContainersPaused: paused, ContainersStopped: stopped, Images: len(e.host.Images()),
		Driver: storageDriver, DriverStatus: [][2]string{{"Registry", e.cfg.Registry}},
		Plugins:     system.PluginsInfo{Volume: []string{}, Network: []string{string(host.NetworkHost), string(host.NetworkNone)}, Log: []string{logDriver, localDriver, host.LogNone}},
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		NGoroutines: runtime.NumGoroutine(), SystemTime: time.Now().Format(time.RFC3339Nano), NEventsListener: e.host.Listeners(),
		LoggingDriver: logDriver, CgroupDriver: "cgroupfs", CgroupVersion: cgroupVersion(),
		KernelVersion: kernelRelease(), OperatingSystem: "Linux", OSType: runtime.GOOS, Architecture: machine(),
		NCPU: runtime.NumCPU(), MemTotal: int64(memory.Totalram) * int64(memory.Unit),
		IndexServerAddress: e.cfg.Registry, RegistryConfig: &registry.ServiceConfig{IndexConfigs: map[string]*registry.IndexInfo{}, Mirrors: []string{}},
		Labels: []string{}, GenericResources: []swarm.GenericResource{}, CDISpecDirs: []string{}, Warnings: []string{},
		Runtimes:       runtimes,
		DefaultRuntime: standard, Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		LiveRestoreEnabled: true, // containers never depend on the agent
		SecurityOptions:    protections(),
		OomKillDisable:     cgroupVersion() == "1",
		InitBinary:         "berth-init",
	}}
	return writeJSON(w, http.StatusOK, answer)
}

// protections are what holds containers in here.
func protections() []string {
	list := []string{"name=seccomp,profile=builtin", "name=userns", "name=cgroupns"}
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && strings.HasPrefix(string(on), "Y") {
		list = append(list, "name=apparmor")
	}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		list = append(list, "name=selinux")
	}
	return list
}

func kernelRelease() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail
	return unix.ByteSliceToString(u.Release[:])
}

func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail
	return unix.ByteSliceToString(u.Machine[:])
}

// cgroupVersion returns 2 if the machine has the unified hierarchy only.
func cgroupVersion() string {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return "2"
	}
	return "1"
}

// diskUsage answers GET /system/df: 200, images and containers. The size of
// what containers have written is not measured: it is shown as unknown.
func (e *Engine) diskUsage(w http.ResponseWriter, _ *http.Request) error {
	containers, used, now := []summary{}, map[string]int64{}, time.Now()
	for _, c := range e.host.List() {
		containers = append(containers, newSummary(c, now))
		used[c.ImageID]++
	}
	var total int64
	images := []image.Summary{}
	for _, img := range e.host.Images() {
		total += img.Size
		images = append(images, image.Summary{
			ID: img.ID.String(), RepoTags: list0(img.RepoTags), RepoDigests: list0(img.RepoDigests),
			Created: img.Created.Unix(), Size: img.Size, SharedSize: -1, Containers: used[img.ID.String()],
		})
	}
	return writeJSON(w, http.StatusOK, struct {
		LayersSize int64
		Images     []image.Summary
		Containers []summary
		Volumes    []volume.Volume
		BuildCache []struct{}
	}{total, images, containers, []volume.Volume{}, []struct{}{}})
}

// event is an event in the words of the API, with what clients before 1.24
// read beside it.
type event struct {
	Status   string `json:"status,omitempty"`
	ID       string `json:"id,omitempty"`
	From     string `json:"from,omitempty"`
	Type     string
	Action   string
	Actor    actor
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`
}

type actor struct {
	ID         string
	Attributes map[string]string
}

// events answers GET /events: 200, one JSON document a line until the client
// leaves, or the time until.
func (e *Engine) events(w http.ResponseWriter, r *http.Request) error {
	f, err := readFilters(r, "type", "event", "container", "image", "label")
	if err != nil {
		return err
	}
	since, err := readTime(r, "since")
	if err != nil {
		return err
	}
	until, err := readTime(r, "until")
	if err != nil {
		return err
	}
	sub := e.host.Events()
	defer sub.Close()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := newFlushWriter(w)
	if err := out.flush(); err != nil {
		return nil // the client is gone
	}
	send := func(ev host.Event) bool {
		if !f.event(ev) {
			return true
		}
		return encode(out, newEvent(ev)) == nil
	}
	if r.FormValue("since") != "" { // 0 is a time, too
		for _, ev := range sub.Past {
			if !ev.Time.Before(since) && (until.IsZero() || !ev.Time.After(until)) && !send(ev) {
				return nil
			}
		}
	}
	var end <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		end = timer.C
	}
	for {
		select {
		case ev, ok := <-sub.Events:
			if !ok || !send(ev) {
				return nil
			}
		case <-end:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
}

// event reports whether the filters let it pass.
func (f filters) event(ev host.Event) bool {
	named := func(kind string) func(string) bool {
		return func(v string) bool {
			return ev.Type == kind && (strings.HasPrefix(ev.ID, v) || ev.Attributes["name"] == v) ||
				ev.Type != kind && kind == "image" && ev.Attributes["image"] == v
		}
	}
	return f.match("type", func(v string) bool { return v == ev.Type }) &&
		f.match("event", func(v string) bool { return v == ev.Action || strings.HasPrefix(ev.Action, v+":") }) &&
		f.match("container", named("container")) && f.match("image", named("image")) && f.labels(ev.Attributes)
}

func newEvent(ev host.Event) event {
	return event{
		Status: ev.Action, ID: ev.ID, From: ev.Attributes["image"], Type: ev.Type, Action: ev.Action,
		Actor: actor{ev.ID, ev.Attributes}, Scope: "local", Time: ev.Time.Unix(), TimeNano: ev.Time.UnixNano(),
	}
}

// encode writes v as one line, after the head has gone out: an error means that
// the client is gone.
func encode(w io.Writer, v any) error {
	return json.NewEncoder(w).Encode(v)
}
