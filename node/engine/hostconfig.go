package engine

import (
	"net/netip"
	"path"
	"strconv"
	"strings"
	"unicode"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"berth.internal/node/host"
)

// addHostConfig translates the part of a create request that is about the host.
func addHostConfig(spec *host.Spec, hc *container.HostConfig) (warnings []string, err error) {
	spec.AutoRemove = hc.AutoRemove
	spec.HostUsers = hc.UsernsMode.IsHost()
	spec.ReadOnly = hc.ReadonlyRootfs
	spec.CapAdd, spec.CapDrop = hc.CapAdd, hc.CapDrop
	spec.ShmSize, spec.OOMScoreAdj, spec.Sysctls = hc.ShmSize, hc.OomScoreAdj, hc.Sysctls
	spec.Process.Groups = hc.GroupAdd
	spec.Annotations, spec.Umask, spec.Runtime = hc.Annotations, hc.Umask, hc.Runtime
	spec.IDFile = hc.ContainerIDFile
	spec.Init = hc.Init != nil && *hc.Init
	if !hc.UsernsMode.Valid() {
		return nil, invalid("invalid userns mode: %s", hc.UsernsMode)
	}
	if spec.Console, err = terminalSize(hc.ConsoleSize[0], hc.ConsoleSize[1]); err != nil {
		return nil, err
	}
	if spec.Restart, err = restartOf(hc.RestartPolicy); err != nil {
		return nil, err
	}
	if spec.Log, err = logOf(hc.LogConfig); err != nil {
		return nil, err
	}
	if spec.Network, warnings, err = networkOf(hc); err != nil {
		return nil, err
	}
	spec.Namespaces = host.Namespaces{
		PID: host.Namespace(hc.PidMode), IPC: host.Namespace(hc.IpcMode), UTS: host.Namespace(hc.UTSMode), Cgroup: host.Namespace(hc.CgroupnsMode),
	}
	if spec.Resources, err = resourcesOf(&hc.Resources); err != nil {
		return nil, err
	}
	for _, u := range hc.Ulimits {
		if u == nil || u.Soft < -1 || u.Hard < -1 {
			return nil, invalid("invalid ulimit: %v", u)
		}
		if u.Hard < u.Soft && u.Hard != -1 || u.Soft == -1 && u.Hard != -1 {
			return nil, invalid("ulimit soft limit must be less than or equal to hard limit: %s", u)
		}
		spec.Rlimits = append(spec.Rlimits, host.Rlimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	spec.Security = host.Security{Privileged: hc.Privileged, MaskedPaths: hc.MaskedPaths, ReadonlyPaths: hc.ReadonlyPaths}
	if err := addSecurity(spec, hc.SecurityOpt); err != nil {
		return nil, err
	}
	for _, d := range hc.Devices {
		spec.Devices = append(spec.Devices, deviceOf(d))
	}
	spec.DeviceRules = hc.DeviceCgroupRules
	if spec.ExtraHosts, err = extraHosts(hc.ExtraHosts); err != nil {
		return nil, err
	}
	if spec.Mounts, err = mountsOf(hc); err != nil {
		return nil, err
	}
	return warnings, nil
}

// extraHosts reads NAME:ADDRESS.
func extraHosts(list []string) (aliases []host.Alias, err error) {
	for _, h := range list {
		name, addr, ok := strings.Cut(h, ":")
		if addr == "host-gateway" {
			return nil, unsupported("HostConfig.ExtraHosts %q is not supported yet: there is no gateway without a bridge", h)
		}
		ip, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if !ok || name == "" || strings.ContainsFunc(name, unicode.IsSpace) || err != nil { // it is a word of /etc/hosts
			return nil, invalid("bad format for add-host: %q", h)
		}
		aliases = append(aliases, host.Alias{Name: name, Address: ip.String()})
	}
	return aliases, nil
}

// deviceOf fills the gaps of a device: its path in the container is that on the
// node, and everything may be done with it.
func deviceOf(d container.DeviceMapping) host.Device {
	dev := host.Device{Source: path.Clean(d.PathOnHost), Target: d.PathInContainer, Access: d.CgroupPermissions}
	if d.PathOnHost == "" {
		dev.Source = ""
	}
	if dev.Target == "" {
		dev.Target = dev.Source
	}
	if dev.Access == "" {
		dev.Access = "rwm"
	}
	dev.Target = path.Clean(dev.Target)
	return dev
}

// terminalSize reads the size of a terminal in characters.
func terminalSize(rows, columns uint) (size host.TerminalSize, err error) {
	const most = 1<<16 - 1
	if rows > most || columns > most {
		return size, invalid("invalid size of a terminal: %d rows and %d columns", rows, columns)
	}
	return host.TerminalSize{Rows: uint16(rows), Columns: uint16(columns)}, nil
}

// restartOf translates a restart policy.
func restartOf(p container.RestartPolicy) (r host.Restart, err error) {
	if err := container.ValidateRestartPolicy(p); err != nil {
		return r, invalid("%v", err)
	}
	if p.IsNone() {
		return r, nil
	}
	return host.Restart{Policy: host.RestartPolicy(p.Name), Max: p.MaximumRetryCount}, nil
}

// logOf translates what is said of the log. Both of Docker's drivers that keep it on
// the node mean the node's own.
func logOf(cfg container.LogConfig) (l host.Log, err error) {
	switch cfg.Type {
	case "", logDriver, localDriver, host.LogNone:
		l.Driver = cfg.Type
	default:
		return l, unsupported("HostConfig.LogConfig.Type %q is not supported; there are local, json-file and none", cfg.Type)
	}
	for name, value := range cfg.Config {
		switch name {
		case "max-size":
			if l.MaxSize, err = units.RAMInBytes(value); err != nil || l.MaxSize == 0 || l.MaxSize < -1 {
				return l, invalid("invalid value for log option max-size: %q", value)
			}
		case "max-file":
			if l.MaxFiles, err = strconv.Atoi(value); err != nil || l.MaxFiles < 1 {
				return l, invalid("invalid value for log option max-file: %q must be at least 1", value)
			}
		case "compress", "mode":
			if value != "false" && value != "blocking" {
				return l, unsupported("HostConfig.LogConfig.Config %s=%s is not supported", name, value)
			}
		default:
			return l, unsupported("HostConfig.LogConfig.Config: log option %q is not supported; there are max-size and max-file", name)
		}
	}
	if l.Driver == host.LogNone && (l.MaxSize != 0 || l.MaxFiles != 0) {
		return l, invalid("log driver none has no options")
	}
	return l, nil
}

// networkOf decides what network the container gets.
func networkOf(hc *container.HostConfig) (n host.Network, warnings []string, err error) {
	switch mode := hc.NetworkMode; {
	case mode == "", mode == network.NetworkDefault:
		n = host.NetworkNone
		warnings = []string{"No network was asked for and this node has no bridge yet: the container runs with --network none. Use --network host for the node's network."}
	case mode == network.NetworkNone, mode == network.NetworkHost:
		n = host.Network(mode)
	case mode.IsContainer():
		n = host.Network(mode)
		if len(hc.PortBindings) > 0 {
			return "", nil, invalid("conflicting options: port publishing and the container type network mode")
		}
	default:
		return "", nil, unsupported("HostConfig.NetworkMode: network %s is not supported yet; use --network host, none or container:NAME", mode)
	}
	if len(hc.PortBindings) > 0 {
		if n != host.NetworkHost {
			return "", nil, unsupported("HostConfig.PortBindings: publishing ports is not supported yet; use --network host")
		}
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	return n, warnings, nil
}

// cpuPeriod is the period of a quota that is said in processors, in microseconds.
const cpuPeriod = 100_000

// resourcesOf translates the limits.
func resourcesOf(r *container.Resources) (host.Resources, error) {
	res := host.Resources{
		Memory: r.Memory, MemorySwap: r.MemorySwap, MemoryReservation: r.MemoryReservation,
		CPUShares: r.CPUShares, CPUQuota: r.CPUQuota, CPUPeriod: r.CPUPeriod,
		CpusetCPUs: r.CpusetCpus, CpusetMems: r.CpusetMems,
		CPURealtimePeriod: r.CPURealtimePeriod, CPURealtimeRuntime: r.CPURealtimeRuntime,
		OOMKillDisable: r.OomKillDisable != nil && *r.OomKillDisable,
		Blkio:          host.Blkio{Weight: r.BlkioWeight},
	}
	for _, kind := range []struct {
		asked  []*blkiodev.ThrottleDevice
		limits *[]host.DeviceLimit
	}{
		{r.BlkioDeviceReadBps, &res.Blkio.ReadBps},
		{r.BlkioDeviceWriteBps, &res.Blkio.WriteBps},
		{r.BlkioDeviceReadIOps, &res.Blkio.ReadIOPS},
		{r.BlkioDeviceWriteIOps, &res.Blkio.WriteIOPS},
	} {
		var err error
		if *kind.limits, err = throttles(kind.asked); err != nil {
			return res, err
		}
	}
	for _, w := range r.BlkioWeightDevice {
		if w == nil {
			return res, invalid("invalid device weight: null")
		}
		res.Blkio.Weights = append(res.Blkio.Weights, host.DeviceLimit{Path: w.Path, Value: uint64(w.Weight)})
	}
	if s := r.MemorySwappiness; s != nil && *s != -1 {
		res.Swappiness = s
	}
	if n := r.NanoCPUs; n != 0 {
		switch {
		case n < 0:
			return res, invalid("invalid number of CPUs (NanoCpus %d)", n)
		case r.CPUQuota != 0 || r.CPUPeriod != 0:
			return res, invalid("Conflicting options: Nano CPUs and CPU Period or Quota cannot both be set")
		}
		res.CPUPeriod, res.CPUQuota = cpuPeriod, n*cpuPeriod/1e9
		res.NanoCPUs = n
	}
	if r.PidsLimit != nil && *r.PidsLimit > 0 { // 0 and -1: no limit
		res.Pids = *r.PidsLimit
	}
	return res, nil
}

func throttles(list []*blkiodev.ThrottleDevice) (limits []host.DeviceLimit, err error) {
	for _, t := range list {
		if t == nil {
			return nil, invalid("invalid device limit: null")
		}
		limits = append(limits, host.DeviceLimit{Path: t.Path, Value: t.Rate})
	}
	return limits, nil
}
