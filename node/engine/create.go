package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"berth.internal/node/host"
)

// maxBody is the largest JSON body of a request, in bytes.
const maxBody = 4 << 20

// createContainer answers POST /containers/create: 201.
func (e *Engine) createContainer(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	spec, warnings, err := readSpec(body)
	if err != nil {
		return err
	}
	if p := r.FormValue("platform"); p != "" {
		return unsupported("platform %s: containers run for the node's own platform; leave --platform out", p)
	}
	spec.Name = r.FormValue("name")
	id, more, err := e.host.Create(r.Context(), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.CreateResponse{
		ID: id, Warnings: append(append([]string{}, warnings...), more...),
	})
}

// readBody returns the JSON body of a request, which may be empty.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if ct := r.Header.Get("Content-Type"); r.ContentLength != 0 && ct != "" && !isJSON(ct) {
		return nil, invalid("Content-Type specified (%s) must be 'application/json'", ct)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, invalidBody(err)
	}
	return body, nil
}

// decode reads the JSON body of a request into v. An empty one leaves v alone.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := readBody(w, r)
	if err != nil || len(bytes.TrimSpace(body)) == 0 {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return invalidBody(err)
	}
	return nil
}

func isJSON(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	return strings.TrimSpace(kind) == "application/json"
}

func invalidBody(err error) error {
	return invalid("invalid request body: %v", err)
}

// readSpec translates the body of a create request. What it cannot translate
// it refuses by name.
func readSpec(body []byte) (spec host.Spec, warnings []string, err error) {
	var req struct {
		*container.Config
		HostConfig *container.HostConfig
	}
	if err := json.Unmarshal(body, &req); err != nil {
		return spec, nil, invalidBody(err)
	}
	if req.Config == nil {
		return spec, nil, invalid("Config cannot be empty in order to create a container")
	}
	if err := checkHonoured(body); err != nil {
		return spec, nil, err
	}
	if req.HostConfig == nil {
		req.HostConfig = new(container.HostConfig)
	}
	spec = configSpec(req.Config)
	warnings, err = addHostConfig(&spec, req.HostConfig)
	return spec, warnings, err
}

// configSpec translates the part of a create request that is not about the
// host.
func configSpec(c *container.Config) host.Spec {
	spec := host.Spec{
		Image: c.Image,
		Process: host.Process{
			Entrypoint: c.Entrypoint, Command: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir, User: c.User,
		},
		Hostname: c.Hostname, Domainname: c.Domainname, Labels: c.Labels,
		OpenStdin: c.OpenStdin, StdinOnce: c.StdinOnce,
		Attached:   host.Attached{Stdin: c.AttachStdin, Stdout: c.AttachStdout, Stderr: c.AttachStderr},
		StopSignal: c.StopSignal, StopTimeout: c.StopTimeout,
	}
	for p := range c.ExposedPorts {
		spec.Exposed = append(spec.Exposed, p.String())
	}
	sort.Strings(spec.Exposed)
	return spec
}

// addHostConfig translates the part of a create request that is about the host.
func addHostConfig(spec *host.Spec, hc *container.HostConfig) (warnings []string, err error) {
	spec.AutoRemove = hc.AutoRemove
	spec.HostUsers = hc.UsernsMode.IsHost()
	spec.ReadOnly = hc.ReadonlyRootfs
	spec.CapAdd, spec.CapDrop = hc.CapAdd, hc.CapDrop
	spec.ShmSize, spec.OOMScoreAdj, spec.Sysctls = hc.ShmSize, hc.OomScoreAdj, hc.Sysctls
	spec.Process.Groups = hc.GroupAdd
	if !hc.UsernsMode.Valid() {
		return nil, invalid("invalid userns mode: %s", hc.UsernsMode)
	}
	if spec.Network, warnings, err = networkOf(hc); err != nil {
		return nil, err
	}
	if spec.Resources, err = resourcesOf(hc); err != nil {
		return nil, err
	}
	for _, u := range hc.Ulimits {
		if u.Hard < u.Soft && u.Hard != -1 || u.Soft == -1 && u.Hard != -1 {
			return nil, invalid("ulimit soft limit must be less than or equal to hard limit: %s", u)
		}
		spec.Rlimits = append(spec.Rlimits, host.Rlimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	for _, opt := range hc.SecurityOpt {
		switch opt {
		case "no-new-privileges", "no-new-privileges:true", "no-new-privileges=true":
			spec.NoNewPrivs = true
		default:
			return nil, unsupported("HostConfig.SecurityOpt %q is not supported yet; there is no-new-privileges", opt)
		}
	}
	for _, h := range hc.ExtraHosts {
		name, addr, ok := strings.Cut(h, ":")
		if addr == "host-gateway" {
			return nil, unsupported("HostConfig.ExtraHosts %q is not supported yet: there is no gateway without a bridge", h)
		}
		ip, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if !ok || name == "" || err != nil {
			return nil, invalid("bad format for add-host: %q", h)
		}
		spec.ExtraHosts = append(spec.ExtraHosts, host.Alias{Name: name, Address: ip.String()})
	}
	if spec.Mounts, err = mountsOf(hc); err != nil {
		return nil, err
	}
	return warnings, nil
}

// networkOf decides what network the container gets.
func networkOf(hc *container.HostConfig) (n host.Network, warnings []string, err error) {
	switch mode := hc.NetworkMode; mode {
	case "", network.NetworkDefault:
		n = host.NetworkNone
		warnings = []string{"No network was asked for and this node has no bridge yet: the container runs with --network none. Use --network host for the node's network."}
	case network.NetworkNone, network.NetworkHost:
		n = host.Network(mode)
	default:
		return "", nil, unsupported("HostConfig.NetworkMode: network %s is not supported yet; use --network host or none", mode)
	}
	if len(hc.PortBindings) > 0 {
		if n != host.NetworkHost {
			return "", nil, unsupported("HostConfig.PortBindings: publishing ports is not supported yet; use --network host")
		}
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	return n, warnings, nil
}

// resourcesOf translates the limits.
func resourcesOf(hc *container.HostConfig) (host.Resources, error) {
	res := host.Resources{
		Memory: hc.Memory, MemorySwap: hc.MemorySwap, MemoryReservation: hc.MemoryReservation,
		CPUShares: hc.CPUShares, CPUQuota: hc.CPUQuota, CPUPeriod: hc.CPUPeriod,
		CpusetCPUs: hc.CpusetCpus, CpusetMems: hc.CpusetMems,
	}
	if n := hc.NanoCPUs; n != 0 {
		const period = 100_000 // microseconds
		switch {
		case n < 0:
			return res, invalid("invalid number of CPUs (NanoCpus %d)", n)
		case hc.CPUQuota != 0 || hc.CPUPeriod != 0:
			return res, invalid("Conflicting options: Nano CPUs and CPU Period or Quota cannot both be set")
		}
		res.CPUPeriod, res.CPUQuota = period, n*period/1e9
	}
	if hc.PidsLimit != nil && *hc.PidsLimit > 0 { // 0 and -1: no limit
		res.Pids = *hc.PidsLimit
	}
	return res, nil
}

// mountsOf translates the three ways to ask for a mount.
func mountsOf(hc *container.HostConfig) (mounts []host.Mount, err error) {
	for _, bind := range hc.Binds {
		m, err := parseBind(bind)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	for _, m := range hc.Mounts {
		hm := host.Mount{Type: host.MountType(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
		switch m.Type {
		case mount.TypeBind:
			if o := m.BindOptions; o != nil {
				hm.Propagation, hm.Flat, hm.MakeSource = string(o.Propagation), o.NonRecursive, o.CreateMountpoint
			}
		case mount.TypeTmpfs:
			if m.Source != "" {
				return nil, invalid("invalid mount config for type \"tmpfs\": field Source must not be specified")
			}
			if o := m.TmpfsOptions; o != nil {
				hm.Options = tmpfsOptions(o)
			}
		default:
			return nil, unsupported("HostConfig.Mounts: mounts of type %q are not supported yet; use bind or tmpfs", m.Type)
		}
		mounts = append(mounts, hm)
	}
	for _, target := range slices.Sorted(maps.Keys(hc.Tmpfs)) {
		m := host.Mount{Type: host.MountTmpfs, Target: target}
		for opt := range strings.SplitSeq(hc.Tmpfs[target], ",") {
			switch opt {
			case "", "rw":
			case "ro":
				m.ReadOnly = true
			default:
				m.Options = append(m.Options, opt)
			}
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

func tmpfsOptions(o *mount.TmpfsOptions) (opts []string) {
	if o.SizeBytes > 0 {
		opts = append(opts, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.Mode != 0 {
		opts = append(opts, fmt.Sprintf("mode=%o", o.Mode))
	}
	return opts
}

// parseBind reads "source:target[:option,...]" as in -v. A source that is not
// there becomes a directory, as Docker's users expect of -v.
func parseBind(bind string) (host.Mount, error) {
	parts := strings.Split(bind, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return host.Mount{}, invalid("invalid volume specification: '%s'", bind)
	}
	if !path.IsAbs(parts[0]) {
		return host.Mount{}, unsupported("HostConfig.Binds: named volumes (%q) are not supported yet; name a directory of the node by its absolute path", parts[0])
	}
	m := host.Mount{Type: host.MountBind, Source: path.Clean(parts[0]), Target: parts[1], MakeSource: true}
	if len(parts) < 3 {
		return m, nil
	}
	for opt := range strings.SplitSeq(parts[2], ",") {
		switch {
		case opt == "rw":
		case opt == "ro":
			m.ReadOnly = true
		case slices.Contains(mount.Propagations, mount.Propagation(opt)):
			m.Propagation = opt
		default:
			return host.Mount{}, unsupported("HostConfig.Binds: option %q of %q is not supported yet; there are ro, rw, and propagations such as rslave", opt, bind)
		}
	}
	return m, nil
}
