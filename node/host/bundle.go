package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
	"berth.internal/node/container/plan"
)

// bundle makes the container's files on the node and says to the runtime what
// it is. The container does not run.
func (h *Host) bundle(c *ctr) (container.Bundle, error) {
	rec := c.rec
	lowers, err := h.opts.Images.Layers(digest.Digest(rec.ImageID))
	if err != nil {
		return container.Bundle{}, err
	}
	rootfs := container.Rootfs{Lowers: lowers, Upper: c.path("upper"), Work: c.path("work")}
	if err := c.prepareFiles(); err != nil {
		return container.Bundle{}, fmt.Errorf("prepare files of container %s: %w", shortID(rec.ID), err)
	}
	if err := makeSources(rec.Spec.Mounts); err != nil {
		return container.Bundle{}, err
	}
	root := tree{rootfs.Upper}
	for _, dir := range slices.Backward(lowers) {
		root = append(root, dir)
	}
	acc, err := lookupUser(root.open, rec.Spec.Process.User, rec.Spec.Process.Groups)
	if err != nil {
		return container.Bundle{}, err
	}
	spec, err := c.runtimeSpec(acc)
	if err != nil {
		return container.Bundle{}, err
	}
	bundle := container.Bundle{
		ID: rec.ID, Spec: spec, Rootfs: rootfs, Log: rec.Spec.Log.config(c.path("log")),
		Stdin: rec.Spec.OpenStdin, StdinOnce: rec.Spec.StdinOnce,
		Init: rec.Spec.Init, Restart: rec.Spec.Restart,
	}
	if rec.Spec.Tty {
		bundle.Terminal = &rec.Spec.Console
	}
	return bundle, nil
}

// prepareFiles makes the directory of the container's files. What it has
// written before stays.
func (c *ctr) prepareFiles() error {
	for _, dir := range []string{c.path(), c.path("upper")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// The runtime lets no other user look into the directory above, so the mode
	// of these is what the container sees of its root.
	if err := os.RemoveAll(c.path("work")); err != nil { // overlayfs wants it empty
		return err
	}
	if err := os.Mkdir(c.path("work"), 0o700); err != nil {
		return err
	}
	spec := c.rec.Spec
	hosts, resolv := []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"), []byte{}
	if spec.Network == NetworkHost {
		var err error
		if hosts, err = readIfThere("/etc/hosts"); err != nil {
			return err
		}
		if resolv, err = readIfThere("/etc/resolv.conf"); err != nil {
			return err
		}
	}
	for _, a := range spec.ExtraHosts {
		hosts = fmt.Appendf(hosts, "%s\t%s\n", a.Address, a.Name)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{"hosts", hosts}, {"resolv.conf", resolv}, {"hostname", []byte(spec.Hostname + "\n")}} {
		if err := os.WriteFile(c.path(f.name), f.data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func readIfThere(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// makeSources makes the directories that binds ask for, as docker run -v does.
func makeSources(mounts []Mount) error {
	for _, m := range mounts {
		if m.Type != MountBind {
			continue
		}
		if m.MakeSource {
			if err := os.MkdirAll(m.Source, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make %s to mount it: %w", m.Source, err)
			}
		} else if _, err := os.Stat(m.Source); errors.Is(err, fs.ErrNotExist) {
			return invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
		}
	}
	return nil
}

// runtimeSpec says in the runtime's words what the container is.
func (c *ctr) runtimeSpec(acc account) (*specs.Spec, error) {
	spec := c.rec.Spec
	s := container.DefaultSpec()
	s.Hostname, s.Domainname = spec.Hostname, spec.Domainname
	if s.Root == nil {
		s.Root = &specs.Root{}
	}
	s.Root.Readonly = spec.ReadOnly
	s.Process.Args = spec.Process.args()
	s.Process.Env = environ(spec.Hostname, acc, spec.Process.Env)
	s.Process.Cwd = "/"
	if spec.Process.WorkingDir != "" {
		s.Process.Cwd = spec.Process.WorkingDir
	}
	s.Process.User = specs.User{UID: acc.UID, GID: acc.GID, AdditionalGids: acc.Groups}
	s.Process.NoNewPrivileges = spec.NoNewPrivs
	s.Process.Terminal = spec.Tty
	if spec.OOMScoreAdj != 0 {
		s.Process.OOMScoreAdj = &spec.OOMScoreAdj
	}
	for _, r := range spec.Rlimits {
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(r.Name), Soft: r.Soft, Hard: r.Hard})
	}
	caps, err := capabilities(s.Process.Capabilities.Bounding, spec.CapAdd, spec.CapDrop)
	if err != nil {
		return nil, err
	}
	s.Process.Capabilities = capabilitiesOf(caps, acc)
	c.namespaces(s)
	s.Linux.Sysctl = spec.Sysctls
	s.Linux.Resources = limits(s.Linux.Resources, spec.Resources)
	s.Mounts = c.mounts(s.Mounts)
	if err := container.SetDefaultSeccomp(s); err != nil {
		return nil, err
	}
	return s, nil
}

// namespaces leaves out those that the container shares with the node, and
// gives the user namespace its numbers.
func (c *ctr) namespaces(s *specs.Spec) {
	drop := map[specs.LinuxNamespaceType]bool{}
	if c.rec.Spec.Network == NetworkHost {
		drop[specs.NetworkNamespace] = true
	}
	if c.rec.Users == 0 {
		drop[specs.UserNamespace] = true
	} else {
		own := []specs.LinuxIDMapping{{ContainerID: 0, HostID: c.rec.Users, Size: idsPerContainer}}
		s.Linux.UIDMappings, s.Linux.GIDMappings = own, own
	}
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return drop[n.Type] })
}

// mounts adds to the default mounts the container's own files and what the user
// asked for; that replaces a default at the same place.
func (c *ctr) mounts(defaults []specs.Mount) []specs.Mount {
	spec := c.rec.Spec
	taken := map[string]bool{}
	var own []specs.Mount
	bind := func(m Mount) {
		taken[m.Target] = true
		own = append(own, c.bindMount(m))
	}
	for _, m := range spec.Mounts {
		taken[m.Target] = true
		if m.Type == MountTmpfs {
			own = append(own, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: m.Target, Options: append([]string{"nosuid", "nodev", "noexec"}, m.Options...)})
		} else {
			bind(m)
		}
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if target := "/etc/" + name; !taken[target] {
			bind(Mount{Source: c.path(name), Target: target})
		}
	}
	var all []specs.Mount
	for _, m := range defaults {
		if taken[m.Destination] {
			continue
		}
		if m.Destination == "/dev/shm" && spec.ShmSize > 0 {
			m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "size=") })
			m.Options = append(m.Options, "size="+strconv.FormatInt(spec.ShmSize, 10))
		}
		all = append(all, m)
	}
	return append(all, own...)
}

// bindMount mounts something of the node's. In a user namespace its files show
// the owners that they have on the node, as Docker's users expect of a volume.
func (c *ctr) bindMount(m Mount) specs.Mount {
	options := []string{"rbind", "rprivate", "rw"}
	if m.Flat {
		options[0] = "bind"
	}
	if m.Propagation != "" {
		options[1] = m.Propagation
	}
	if m.ReadOnly {
		options[2] = "ro"
	}
	if c.rec.Users != 0 {
		options = append(options, "idmap")
	}
	return specs.Mount{Type: "bind", Source: m.Source, Destination: m.Target, Options: options}
}

// limits translates the container's limits.
func limits(defaults *specs.LinuxResources, r Resources) *specs.LinuxResources {
	out := specs.LinuxResources{}
	if defaults != nil {
		out = *defaults // the rules of devices
	}
	set := func(v int64) *int64 {
		if v == 0 {
			return nil
		}
		return &v
	}
	if r.Memory != 0 || r.MemoryReservation != 0 {
		swap := r.MemorySwap
		if swap == 0 {
			swap = 2 * r.Memory // as much again, as Docker gives
		}
		out.Memory = &specs.LinuxMemory{Limit: set(r.Memory), Swap: set(swap), Reservation: set(r.MemoryReservation)}
	}
	if r.CPUShares != 0 || r.CPUQuota != 0 || r.CPUPeriod != 0 || r.CpusetCPUs != "" || r.CpusetMems != "" {
		out.CPU = &specs.LinuxCPU{Quota: set(r.CPUQuota), Cpus: r.CpusetCPUs, Mems: r.CpusetMems}
		if r.CPUShares != 0 {
			shares := uint64(r.CPUShares)
			out.CPU.Shares = &shares
		}
		if r.CPUPeriod != 0 {
			period := uint64(r.CPUPeriod)
			out.CPU.Period = &period
		}
	}
	if r.Pids != 0 {
		out.Pids = &specs.LinuxPids{Limit: set(r.Pids)}
	}
	return &out
}

// capabilities returns the default ones, changed as the user asks: ALL stands
// for every one there is, and what is added counts before what is dropped, but
// for ALL dropped, which is dropped first.
func capabilities(defaults, add, drop []string) ([]string, error) {
	known := plan.Capabilities()
	add, err := capabilityNames(known, add)
	if err != nil {
		return nil, err
	}
	if drop, err = capabilityNames(known, drop); err != nil {
		return nil, err
	}
	caps := slices.Clone(defaults)
	if slices.Contains(drop, capAll) {
		caps, drop = nil, nil
	}
	if slices.Contains(add, capAll) {
		caps, add = slices.Clone(known), nil
	}
	for _, c := range add {
		if !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	return slices.DeleteFunc(caps, func(c string) bool { return slices.Contains(drop, c) }), nil
}

const capAll = "ALL"

// capabilityNames writes names as the kernel does: CAP_NET_ADMIN.
func capabilityNames(known, names []string) ([]string, error) {
	out := make([]string, 0, len(names))
	for _, name := range names {
		full := strings.ToUpper(name)
		if full != capAll && !strings.HasPrefix(full, "CAP_") {
			full = "CAP_" + full
		}
		if full != capAll && !slices.Contains(known, full) {
			return nil, invalid("invalid capability: %q", name)
		}
		out = append(out, full)
	}
	return out, nil
}

// capabilitiesOf gives a process the sets: who is not root has only those that
// a program can gain.
func capabilitiesOf(caps []string, acc account) *specs.LinuxCapabilities {
	sets := &specs.LinuxCapabilities{Bounding: caps}
	if acc.UID == 0 {
		sets.Effective, sets.Permitted = caps, caps
	}
	return sets
}
