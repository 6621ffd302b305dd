package engine

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"berth.internal/node/host"
)

// What the node calls the parts that Docker's users choose between.
const (
	logDriver     = "json-file" // Docker's default, which docker-py must see to read logs; the format is berth's own
	localDriver   = "local"     // the same
	runtimeName   = "berth"
	storageDriver = "overlay2"
)

// summary is a container in a list.
type summary struct {
	container.Summary
}

func newSummary(c host.Container, now time.Time) summary {
	s := summary{container.Summary{
		ID:              c.ID,
		Names:           []string{"/" + c.Name},
		Image:           c.Spec.Image,
		ImageID:         c.ImageID,
		Command:         strings.Join(c.Args, " "),
		Created:         c.Created.Unix(),
		Ports:           []container.PortSummary{},
		Labels:          notNil(c.Spec.Labels),
		State:           stateOf(c.State),
		Status:          statusText(c.State, now),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: endpoints(c)},
		Mounts:          mountPoints(c.Spec.Mounts),
	}}
	if h := c.State.Health; h != nil {
		s.Health = &container.HealthSummary{Status: container.HealthStatus(h.Status), FailingStreak: h.FailingStreak}
	}
	s.HostConfig.NetworkMode = string(c.Spec.Network)
	s.HostConfig.Annotations = c.Spec.Annotations
	return s
}

// inspect is a container in full: Moby's present type and what clients below
// API 1.52 read beside it.
type inspect struct {
	container.InspectResponse
	Config          containerConfig
	NetworkSettings networkSettings
	HostConfig      hostConfig
}

type containerConfig struct {
	*container.Config
	OnBuild []string // an image's: a container has none
}

type hostConfig struct {
	*container.HostConfig
	KernelMemory    int64 // gone since 1.42
	KernelMemoryTCP int64
}

// networkSettings is Docker's with the fields of the default network at the
// top, which went with API 1.52.
type networkSettings struct {
	container.NetworkSettings
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []network.EndpointSettings
	SecondaryIPv6Addresses []network.EndpointSettings
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
}

func (e *Engine) newInspect(c host.Container) inspect {
	s := c.State
	path, args := "", []string{}
	if len(c.Args) > 0 {
		path, args = c.Args[0], append(args, c.Args[1:]...)
	}
	return inspect{
		InspectResponse: container.InspectResponse{
			ID:              c.ID,
			Created:         c.Created.UTC().Format(time.RFC3339Nano),
			Path:            path,
			Args:            args,
			State:           newState(s),
			RestartCount:    s.Restarts,
			AppArmorProfile: c.AppArmor,
			ProcessLabel:    c.Spec.Security.Label,
			Image:           c.ImageID,
			ResolvConfPath:  c.Files.ResolvConf,
			HostnamePath:    c.Files.Hostname,
			HostsPath:       c.Files.Hosts,
			LogPath:         c.Files.Log,
			Name:            "/" + c.Name,
			Driver:          storageDriver,
			Platform:        "linux",
			ExecIDs:         c.Execs,
			GraphDriver:     &storage.DriverData{Name: storageDriver, Data: map[string]string{}},
			Mounts:          mountPoints(c.Spec.Mounts),
		},
		Config:     containerConfig{Config: newConfig(c)},
		HostConfig: hostConfig{HostConfig: newHostConfig(c.Spec)},
		NetworkSettings: networkSettings{NetworkSettings: container.NetworkSettings{
			Ports: network.PortMap{}, Networks: endpoints(c),
		}},
	}
}

// stateOf is the state in one word.
func stateOf(s host.State) container.ContainerState {
	if s.Paused {
		return container.StatePaused
	}
	return container.ContainerState(s.Status)
}

// newState shows what a container does or did last. One between two runs counts as
// running, since Docker's clients stop and remove it as such.
func newState(s host.State) *container.State {
	st := &container.State{
		Status:     stateOf(s),
		Running:    s.Alive(),
		Paused:     s.Paused,
		Restarting: s.Status == host.Restarting,
		Dead:       s.Status == host.Dead,
		OOMKilled:  s.OOMKilled,
		Pid:        s.PID,
		ExitCode:   s.ExitCode,
		Error:      s.Error,
		StartedAt:  s.Started.UTC().Format(time.RFC3339Nano),
		FinishedAt: s.Finished.UTC().Format(time.RFC3339Nano),
	}
	if h := s.Health; h != nil {
		st.Health = &container.Health{Status: container.HealthStatus(h.Status), FailingStreak: h.FailingStreak, Log: []*container.HealthcheckResult{}}
		for _, r := range h.Log {
			st.Health.Log = append(st.Health.Log, &container.HealthcheckResult{Start: r.Start, End: r.End, ExitCode: r.ExitCode, Output: r.Output})
		}
	}
	return st
}

// newConfig is configSpec backwards.
func newConfig(c host.Container) *container.Config {
	s := c.Spec
	cfg := &container.Config{
		Hostname: s.Hostname, Domainname: s.Domainname, User: s.Process.User,
		AttachStdin: s.Attached.Stdin, AttachStdout: s.Attached.Stdout, AttachStderr: s.Attached.Stderr,
		OpenStdin: s.OpenStdin, StdinOnce: s.StdinOnce,
		Env: s.Process.Env, Cmd: s.Process.Command, Entrypoint: s.Process.Entrypoint,
		Image: s.Image, WorkingDir: s.Process.WorkingDir, Labels: notNil(s.Labels),
		StopSignal: s.StopSignal, StopTimeout: s.StopTimeout, Tty: s.Tty,
	}
	if h := s.Health; h != nil {
		cfg.Healthcheck = &container.HealthConfig{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
	for _, p := range s.Exposed {
		port, err := network.ParsePort(p)
		if err != nil {
			continue // from an image that nobody else checked
		}
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = network.PortSet{}
		}
		cfg.ExposedPorts[port] = struct{}{}
	}
	return cfg
}

// newHostConfig is addHostConfig backwards, with the defaults that apply.
func newHostConfig(s host.Spec) *container.HostConfig {
	hc := &container.HostConfig{
		LogConfig:     logConfig(s.Log),
		NetworkMode:   container.NetworkMode(s.Network),
		PortBindings:  network.PortMap{},
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		AutoRemove:    s.AutoRemove,
		Annotations:   s.Annotations, ContainerIDFile: s.IDFile,
		ConsoleSize:    [2]uint{uint(s.Console.Rows), uint(s.Console.Columns)},
		CapAdd:         s.CapAdd,
		CapDrop:        s.CapDrop,
		CgroupnsMode:   container.CgroupnsMode(cmp.Or(s.Namespaces.Cgroup, host.NamespacePrivate)),
		DNS:            []netip.Addr{},
		DNSOptions:     []string{},
		DNSSearch:      []string{},
		GroupAdd:       s.Process.Groups,
		IpcMode:        container.IpcMode(cmp.Or(s.Namespaces.IPC, host.NamespacePrivate)),
		PidMode:        container.PidMode(s.Namespaces.PID),
		UTSMode:        container.UTSMode(s.Namespaces.UTS),
		OomScoreAdj:    s.OOMScoreAdj,
		Privileged:     s.Security.Privileged,
		ReadonlyRootfs: s.ReadOnly,
		SecurityOpt:    securityOptions(s),
		MaskedPaths:    s.Security.MaskedPaths,
		ReadonlyPaths:  s.Security.ReadonlyPaths,
		ShmSize:        cmp.Or(s.ShmSize, host.DefaultShmSize),
		Sysctls:        s.Sysctls,
		Runtime:        cmp.Or(s.Runtime, runtimeName),
		Umask:          s.Umask,
		Resources:      newResources(s),
	}
	if masked, readonly := host.DefaultPaths(); !s.Security.Privileged {
		if hc.MaskedPaths == nil {
			hc.MaskedPaths = masked
		}
		if hc.ReadonlyPaths == nil {
			hc.ReadonlyPaths = readonly
		}
	}
	if s.Init {
		hc.Init = &s.Init
	}
	if s.Restart.Policy != "" {
		hc.RestartPolicy = container.RestartPolicy{Name: container.RestartPolicyMode(s.Restart.Policy), MaximumRetryCount: s.Restart.Max}
	}
	if s.HostUsers {
		hc.UsernsMode = "host"
	}
	for _, h := range s.ExtraHosts {
		hc.ExtraHosts = append(hc.ExtraHosts, h.Name+":"+h.Address)
	}
	for _, m := range s.Mounts {
		addMount(hc, m)
	}
	return hc
}

// logConfig is logOf backwards.
func logConfig(l host.Log) container.LogConfig {
	cfg := container.LogConfig{Type: cmp.Or(l.Driver, logDriver), Config: map[string]string{}}
	if l.MaxSize != 0 {
		cfg.Config["max-size"] = strconv.FormatInt(l.MaxSize, 10)
	}
	if l.MaxFiles != 0 {
		cfg.Config["max-file"] = strconv.Itoa(l.MaxFiles)
	}
	return cfg
}

// securityOptions is addSecurity backwards.
func securityOptions(s host.Spec) (opts []string) {
	switch {
	case s.NoNewPrivs == nil:
	case *s.NoNewPrivs:
		opts = append(opts, "no-new-privileges")
	default:
		opts = append(opts, "no-new-privileges=false")
	}
	if s.Security.Seccomp != "" {
		opts = append(opts, "seccomp="+s.Security.Seccomp)
	}
	if s.Security.AppArmor != "" {
		opts = append(opts, "apparmor="+s.Security.AppArmor)
	}
	if s.Security.WritableCgroups {
		opts = append(opts, "writable-cgroups=true")
	}
	if s.Security.Label != "" {
		part := strings.SplitN(s.Security.Label, ":", 4) // a level can have colons
		for i, kind := range []string{"user", "role", "type", "level"} {
			if i < len(part) {
				opts = append(opts, "label="+kind+":"+part[i])
			}
		}
	}
	return opts
}

// newResources is resourcesOf backwards.
func newResources(s host.Spec) container.Resources {
	r := s.Resources
	out := container.Resources{
		CPUShares: r.CPUShares, CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, CpusetCpus: r.CpusetCPUs, CpusetMems: r.CpusetMems,
		CPURealtimePeriod: r.CPURealtimePeriod, CPURealtimeRuntime: r.CPURealtimeRuntime,
		Memory: r.Memory, MemorySwap: r.MemorySwap, MemoryReservation: r.MemoryReservation, MemorySwappiness: r.Swappiness,
		OomKillDisable: &r.OOMKillDisable, Devices: []container.DeviceMapping{}, DeviceCgroupRules: s.DeviceRules,
		BlkioWeight: r.Blkio.Weight, BlkioDeviceReadBps: newThrottles(r.Blkio.ReadBps), BlkioDeviceWriteBps: newThrottles(r.Blkio.WriteBps),
		BlkioDeviceReadIOps: newThrottles(r.Blkio.ReadIOPS), BlkioDeviceWriteIOps: newThrottles(r.Blkio.WriteIOPS),
		BlkioWeightDevice: []*blkiodev.WeightDevice{},
	}
	for _, w := range r.Blkio.Weights {
		out.BlkioWeightDevice = append(out.BlkioWeightDevice, &blkiodev.WeightDevice{Path: w.Path, Weight: uint16(w.Value)})
	}
	if r.NanoCPUs != 0 { // said as processors, not as a quota
		out.NanoCPUs, out.CPUPeriod, out.CPUQuota = r.NanoCPUs, 0, 0
	}
	if r.Memory > 0 && r.MemorySwap == 0 {
		out.MemorySwap = 2 * r.Memory // as much again, as Docker gives
	}
	if r.Pids > 0 {
		out.PidsLimit = &r.Pids
	}
	for _, d := range s.Devices {
		out.Devices = append(out.Devices, container.DeviceMapping{PathOnHost: d.Source, PathInContainer: d.Target, CgroupPermissions: d.Access})
	}
	for _, l := range s.Rlimits {
		out.Ulimits = append(out.Ulimits, &units.Ulimit{Name: l.Name, Soft: int64(l.Soft), Hard: int64(l.Hard)})
	}
	return out
}

func newThrottles(limits []host.DeviceLimit) []*blkiodev.ThrottleDevice {
	list := []*blkiodev.ThrottleDevice{}
	for _, l := range limits {
		list = append(list, &blkiodev.ThrottleDevice{Path: l.Path, Rate: l.Value})
	}
	return list
}

// addMount is mountsOf backwards, for one mount.
func addMount(hc *container.HostConfig, m host.Mount) {
	switch {
	case m.Type == host.MountTmpfs:
		if hc.Tmpfs == nil {
			hc.Tmpfs = map[string]string{}
		}
		opts := m.Options
		if m.ReadOnly {
			opts = append([]string{"ro"}, opts...)
		}
		hc.Tmpfs[m.Target] = strings.Join(opts, ",")
	case m.MakeSource && !m.Flat:
		bind := m.Source + ":" + m.Target
		if mode := bindMode(m); mode != "" {
			bind += ":" + mode
		}
		hc.Binds = append(hc.Binds, bind)
	default:
		hm := mount.Mount{Type: mount.TypeBind, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
		if m.Flat || m.MakeSource || m.Propagation != "" {
			hm.BindOptions = &mount.BindOptions{
				Propagation: mount.Propagation(m.Propagation), NonRecursive: m.Flat, CreateMountpoint: m.MakeSource,
			}
		}
		hc.Mounts = append(hc.Mounts, hm)
	}
}

func bindMode(m host.Mount) string {
	var opts []string
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	if m.Propagation != "" {
		opts = append(opts, m.Propagation)
	}
	return strings.Join(opts, ",")
}

// mountPoints shows the mounts as docker inspect does at the top level.
func mountPoints(mounts []host.Mount) []container.MountPoint {
	points := []container.MountPoint{}
	for _, m := range mounts {
		p := container.MountPoint{
			Type: mount.Type(m.Type), Source: m.Source, Destination: m.Target, RW: !m.ReadOnly,
		}
		if m.Type == host.MountBind {
			p.Mode = bindMode(m)
			p.Propagation = mount.Propagation(m.Propagation)
			if p.Propagation == "" {
				p.Propagation = mount.PropagationRPrivate
			}
		}
		points = append(points, p)
	}
	slices.SortFunc(points, func(a, b container.MountPoint) int { return strings.Compare(a.Destination, b.Destination) })
	return points
}

// endpoints shows the container's one network.
func endpoints(c host.Container) map[string]*network.EndpointSettings {
	if strings.HasPrefix(string(c.Spec.Network), "container:") {
		return map[string]*network.EndpointSettings{}
	}
	return map[string]*network.EndpointSettings{
		string(c.Spec.Network): {NetworkID: networkID(string(c.Spec.Network))},
	}
}

// notNil makes an empty object of what would be null, since some clients
// iterate over it unasked.
func notNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
