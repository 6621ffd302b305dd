package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container"
	"berth.internal/node/container/plan"
)

// bundle makes the container's files on the node and says to the runtime what
// it is. The container does not run. release is called once the runtime has created
// it.
func (h *Host) bundle(ctx context.Context, c *ctr) (_ container.Bundle, release func(), err error) {
	rec := c.rec
	lowers, err := h.opts.Images.Layers(digest.Digest(rec.ImageID))
	if err != nil {
		return container.Bundle{}, nil, err
	}
	rootfs := container.Rootfs{Lowers: lowers, Upper: c.path("upper"), Work: c.path("work")}
	if err := c.prepareFiles(h.networkOf(c)); err != nil {
		return container.Bundle{}, nil, fmt.Errorf("prepare files of container %s: %w", shortID(rec.ID), err)
	}
	if err := makeSources(rec.Spec.Mounts); err != nil {
		return container.Bundle{}, nil, err
	}
	root := tree{rootfs.Upper}
	for _, dir := range slices.Backward(lowers) {
		root = append(root, dir)
	}
	acc, err := lookupUser(root.open, rec.Spec.Process.User, rec.Spec.Process.Groups)
	if err != nil {
		return container.Bundle{}, nil, err
	}
	spec, err := c.runtimeSpec(acc)
	if err != nil {
		return container.Bundle{}, nil, err
	}
	if release, err = h.joinNamespaces(ctx, c, spec); err != nil {
		return container.Bundle{}, nil, err
	}
	bundle := container.Bundle{
		ID: rec.ID, Spec: spec, Rootfs: rootfs, Log: rec.Spec.Log.config(c.path("log")),
		Stdin: rec.Spec.OpenStdin, StdinOnce: rec.Spec.StdinOnce && !rec.Spec.Tty, // who leaves a terminal can come back
		Init: rec.Spec.Init, Restart: rec.Spec.Restart,
	}
	if bundle.Engine, err = h.engine(&rec.Spec); err != nil {
		release()
		return container.Bundle{}, nil, err
	}
	if rec.Spec.Tty {
		bundle.Terminal = &rec.Spec.Console
	}
	return bundle, release, nil
}

// prepareFiles makes the directory of the container's files. What it has
// written before stays. Of the container whose network it shares, if there is one,
// it has the hosts and the name servers.
func (c *ctr) prepareFiles(network *ctr) error {
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
	if err := c.makeShm(); err != nil {
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
	if network != nil {
		var err error
		if hosts, err = readIfThere(network.path("hosts")); err != nil {
			return err
		}
		if resolv, err = readIfThere(network.path("resolv.conf")); err != nil {
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

// makeSources makes the directories that binds ask for, as docker run -v does, and checks
// what there is.
func makeSources(mounts []Mount) error {
	for _, m := range mounts {
		if m.Type != MountBind {
			continue
		}
		_, err := os.Stat(m.Source)
		switch {
		case !errors.Is(err, fs.ErrNotExist): // what else is wrong with it the runtime says
		case m.MakeSource:
			if err := os.MkdirAll(m.Source, 0o755); err != nil {
				return fmt.Errorf("make %s to mount it: %w", m.Source, err)
			}
		default:
			return invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
		}
		if err := checkPropagation(m); err != nil {
			return err
		}
	}
	return nil
}

// runtimeSpec says in the runtime's words what the container is.
func (c *ctr) runtimeSpec(acc account) (*specs.Spec, error) {
	spec := c.rec.Spec
	s := container.DefaultSpec()
	if spec.Namespaces.UTS != NamespaceHost {
		s.Hostname, s.Domainname = spec.Hostname, spec.Domainname
	}
	if s.Root == nil {
		s.Root = &specs.Root{}
	}
	s.Root.Readonly = spec.ReadOnly
	s.Annotations = spec.Annotations
	if err := c.process(s.Process, acc); err != nil {
		return nil, err
	}
	c.namespaces(s)
	s.Linux.Sysctl = spec.Sysctls
	var err error
	if s.Linux.Resources, err = limits(s.Linux.Resources, spec.Resources); err != nil {
		return nil, err
	}
	s.Mounts = c.mounts(s.Mounts)
	if err := addDevices(s, spec); err != nil {
		return nil, err
	}
	if err := secure(s, spec.Security); err != nil {
		return nil, err
	}
	return s, nil
}

// process says what the container's first process is. p has the defaults.
func (c *ctr) process(p *specs.Process, acc account) error {
	rec, _ := c.now()
	spec := rec.Spec
	p.Args = spec.Process.args()
	p.Env = environ(spec.Hostname, acc, spec.Process.Env)
	if spec.Tty {
		p.Env = environ(spec.Hostname, acc, append([]string{terminalEnv}, spec.Process.Env...))
	}
	p.Cwd = "/"
	if spec.Process.WorkingDir != "" {
		p.Cwd = spec.Process.WorkingDir
	}
	p.User = specs.User{UID: acc.UID, GID: acc.GID, AdditionalGids: acc.Groups, Umask: spec.Umask}
	p.NoNewPrivileges = spec.NoNewPrivs != nil && *spec.NoNewPrivs
	p.Terminal = spec.Tty
	if spec.OOMScoreAdj != 0 {
		p.OOMScoreAdj = &spec.OOMScoreAdj
	}
	for _, r := range spec.Rlimits {
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(r.Name), Soft: r.Soft, Hard: r.Hard})
	}
	p.ApparmorProfile, p.SelinuxLabel = rec.appArmor(), spec.Security.Label
	caps := p.Capabilities.Bounding
	if spec.Security.Privileged {
		caps, _ = ownCapabilities()
	}
	caps, err := capabilities(caps, spec.CapAdd, spec.CapDrop)
	if err != nil {
		return err
	}
	p.Capabilities = capabilitiesOf(caps, acc)
	return nil
}

// terminalEnv tells programs what the terminal understands, as Docker does.
const terminalEnv = "TERM=xterm"

// namespaces leaves out those that the container shares with the node, and
// gives the user namespace its numbers. Those of other containers come when it is
// started.
func (c *ctr) namespaces(s *specs.Spec) {
	ns := c.rec.Spec.Namespaces
	drop := map[specs.LinuxNamespaceType]bool{
		specs.NetworkNamespace: c.rec.Spec.Network == NetworkHost,
		specs.PIDNamespace:     ns.PID == NamespaceHost,
		specs.IPCNamespace:     ns.IPC == NamespaceHost,
		specs.UTSNamespace:     ns.UTS == NamespaceHost,
		specs.CgroupNamespace:  ns.Cgroup == NamespaceHost,
		specs.UserNamespace:    c.rec.Users == 0,
	}
	if c.rec.Users != 0 {
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
		own = append(own, c.bindMount(m))
	}
	for _, m := range spec.Mounts {
		taken[path.Clean(m.Target)] = true
		if m.Type == MountTmpfs {
			own = append(own, tmpfsMount(m))
		} else {
			bind(m)
		}
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if target := "/etc/" + name; !taken[target] {
			bind(Mount{Source: c.path(name), Target: target, ReadOnly: spec.ReadOnly})
		}
	}
	var all []specs.Mount
	for _, m := range defaults {
		if taken[m.Destination] || m.Destination == "/dev/shm" && spec.Namespaces.IPC == NamespaceNone {
			continue
		}
		if m.Destination == "/dev/shm" {
			m = c.shmMount(m)
		}
		if m.Destination == "/dev/mqueue" && spec.Namespaces.IPC == NamespaceHost {
			m = specs.Mount{Type: "bind", Source: "/dev/mqueue", Destination: m.Destination, Options: []string{"rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"}}
			if _, err := os.Stat(m.Source); err != nil {
				continue // the node has none
			}
		}
		all = append(all, m)
	}
	return append(all, own...)
}

// shmMount is what is at /dev/shm: memory of the container's own, of the node's, or of
// those with whom it shares an IPC namespace.
func (c *ctr) shmMount(m specs.Mount) specs.Mount {
	spec := c.rec.Spec
	ns := spec.Namespaces.IPC
	_, joins := ns.container()
	source := ""
	switch {
	case ns == NamespaceHost:
		source = m.Destination
	case ns == NamespaceShareable, joins:
		source = c.shmPath()
	case spec.ShmSize > 0:
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "size=") })
		m.Options = append(m.Options, "size="+strconv.FormatInt(spec.ShmSize, 10))
		return m
	default:
		return m
	}
	return specs.Mount{Type: "bind", Source: source, Destination: m.Destination, Options: []string{"rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"}}
}

// tmpfsMount mounts memory. What the user says of a flag counts, not the default.
func tmpfsMount(m Mount) specs.Mount {
	options := append([]string{"nosuid", "nodev", "noexec"}, m.Options...)
	if m.ReadOnly {
		options = append(options, "ro")
	}
	return specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: m.Target, Options: options}
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
		options = append(options, "ridmap")
	}
	return specs.Mount{Type: "bind", Source: m.Source, Destination: m.Target, Options: options}
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

// ownCapabilities returns those that the node can give to a container with the
// node's users, and those that it lacks itself.
func ownCapabilities() (own, lacks []string) {
	for i, name := range plan.Capabilities() {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0)
		switch {
		case err != nil: // newer than the kernel
		case has == 1:
			own = append(own, name)
		default:
			lacks = append(lacks, name)
		}
	}
	return own, lacks
}

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
