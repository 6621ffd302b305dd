package engine

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"berth.internal/node/host"
)

// What the node calls the parts that Docker's users choose between.
const (
	logDriver     = "local" // read by the API only, rotated, in a format of its own
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
		State:           container.ContainerState(c.State.Status),
		Status:          statusText(c.State, now),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: endpoints(c)},
		Mounts:          mountPoints(c.Spec.Mounts),
	}}
	s.HostConfig.NetworkMode = string(c.Spec.Network)
	return s
}

// inspect is a container in full: Moby's present type and what clients below
// API 1.52 read beside it.
type inspect struct {
	container.InspectResponse
	NetworkSettings networkSettings
	HostConfig      hostConfig
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
			ID:      c.ID,
			Created: c.Created.UTC().Format(time.RFC3339Nano),
			Path:    path,
			Args:    args,
			State: &container.State{
				Status:     container.ContainerState(s.Status),
				Running:    s.Alive(), // as Docker has it, also between two runs
				Restarting: s.Status == host.Restarting,
				Dead:       s.Status == host.Dead,
				OOMKilled:  s.OOMKilled,
				Pid:        s.PID,
				ExitCode:   s.ExitCode,
				Error:      s.Error,
				StartedAt:  s.Started.UTC().Format(time.RFC3339Nano),
				FinishedAt: s.Finished.UTC().Format(time.RFC3339Nano),
			},
			RestartCount:   s.Restarts,
			Image:          c.ImageID,
			ResolvConfPath: c.Files.ResolvConf,
			HostnamePath:   c.Files.Hostname,
			HostsPath:      c.Files.Hosts,
			LogPath:        c.Files.Log,
			Name:           "/" + c.Name,
			Driver:         storageDriver,
			Platform:       "linux",
			ExecIDs:        c.Execs,
			GraphDriver:    &storage.DriverData{Name: storageDriver, Data: map[string]string{}},
			Mounts:         mountPoints(c.Spec.Mounts),
			Config:         newConfig(c),
		},
		HostConfig: hostConfig{HostConfig: newHostConfig(c.Spec)},
		NetworkSettings: networkSettings{NetworkSettings: container.NetworkSettings{
			Ports: network.PortMap{}, Networks: endpoints(c),
		}},
	}
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
		StopSignal: s.StopSignal, StopTimeout: s.StopTimeout,
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
	no := false
	hc := &container.HostConfig{
		LogConfig:      container.LogConfig{Type: logDriver, Config: map[string]string{}},
		NetworkMode:    container.NetworkMode(s.Network),
		PortBindings:   network.PortMap{},
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		AutoRemove:     s.AutoRemove,
		CapAdd:         s.CapAdd,
		CapDrop:        s.CapDrop,
		CgroupnsMode:   container.CgroupnsModePrivate,
		DNS:            []netip.Addr{},
		DNSOptions:     []string{},
		DNSSearch:      []string{},
		GroupAdd:       s.Process.Groups,
		IpcMode:        container.IPCModePrivate,
		OomScoreAdj:    s.OOMScoreAdj,
		ReadonlyRootfs: s.ReadOnly,
		ShmSize:        s.ShmSize,
		Sysctls:        s.Sysctls,
		Runtime:        runtimeName,
		Resources: container.Resources{
			CPUShares: s.Resources.CPUShares, CPUPeriod: s.Resources.CPUPeriod, CPUQuota: s.Resources.CPUQuota,
			CpusetCpus: s.Resources.CpusetCPUs, CpusetMems: s.Resources.CpusetMems,
			Memory: s.Resources.Memory, MemorySwap: s.Resources.MemorySwap, MemoryReservation: s.Resources.MemoryReservation,
			Devices: []container.DeviceMapping{}, OomKillDisable: &no,
		},
	}
	if s.ShmSize == 0 {
		hc.ShmSize = host.DefaultShmSize
	}
	if s.HostUsers {
		hc.UsernsMode = "host"
	}
	if s.NoNewPrivs {
		hc.SecurityOpt = []string{"no-new-privileges"}
	}
	if s.Resources.Pids > 0 {
		hc.PidsLimit = &s.Resources.Pids
	}
	for _, h := range s.ExtraHosts {
		hc.ExtraHosts = append(hc.ExtraHosts, h.Name+":"+h.Address)
	}
	for _, l := range s.Rlimits {
		hc.Ulimits = append(hc.Ulimits, &units.Ulimit{Name: l.Name, Soft: int64(l.Soft), Hard: int64(l.Hard)})
	}
	for _, m := range s.Mounts {
		addMount(hc, m)
	}
	return hc
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
