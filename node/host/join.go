package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// join is a namespace of another container that a container shares.
type join struct {
	kind specs.LinuxNamespaceType
	ref  string // of the other container
	what string // in Docker's words
}

// joins returns the namespaces of others that the container shares.
func (s Spec) joins() []join {
	var list []join
	if ref, ok := Namespace(s.Network).container(); ok {
		list = append(list, join{specs.NetworkNamespace, ref, "network"})
	}
	if ref, ok := s.Namespaces.PID.container(); ok {
		list = append(list, join{specs.PIDNamespace, ref, "PID"})
	}
	if ref, ok := s.Namespaces.IPC.container(); ok {
		list = append(list, join{specs.IPCNamespace, ref, "IPC"})
	}
	return list
}

// resolveJoins finds the containers whose namespaces spec shares, and writes their
// ids into it. users is the first number of the user namespace that it thereby
// shares, 0 if they have none or there are none. Errors: ErrInvalid; ErrUnsupported.
func (h *Host) resolveJoins(spec *Spec) (users uint32, warnings []string, err error) {
	why, several := "", false
	for _, j := range spec.joins() {
		other, err := h.find(j.ref)
		if err != nil { // not ErrNotFound: of that clients think that it is the image, and pull it
			return 0, nil, invalid("cannot join %s namespace of container %s: %v", j.what, j.ref, err)
		}
		of := Namespace(ofContainer + other.rec.ID)
		switch j.kind {
		case specs.NetworkNamespace:
			spec.Network = Network(of)
			spec.Hostname, spec.Domainname = other.rec.Spec.Hostname, other.rec.Spec.Domainname
		case specs.PIDNamespace:
			spec.Namespaces.PID = of
		case specs.IPCNamespace:
			switch other.rec.Spec.Namespaces.IPC {
			case NamespaceShareable:
				spec.Namespaces.IPC = of
			case NamespaceHost:
				spec.Namespaces.IPC = NamespaceHost
			default:
				return 0, nil, invalid("cannot join IPC of a container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", other.name())
			}
		}
		switch theirs := other.rec.Users; theirs {
		case 0:
			why = fmt.Sprintf("The %s namespace of container %s, which has the host's users, implies these", j.what, other.name())
		default:
			several = several || users != 0 && users != theirs
			users = theirs
		}
	}
	for _, host := range []struct {
		shared bool
		name   string
	}{
		{spec.Security.Privileged, "A privileged container"},
		{spec.Network == NetworkHost, "The host's network"},
		{spec.Namespaces.PID == NamespaceHost, "The host's PID namespace"},
		{spec.Namespaces.IPC == NamespaceHost, "The host's IPC namespace"},
	} {
		if host.shared && why == "" {
			why = host.name + " implies the host's users"
		}
	}
	if why != "" && !spec.HostUsers {
		spec.HostUsers = true
		warnings = append(warnings, why+": the container runs without a user namespace.")
	}
	switch {
	case spec.HostUsers:
		users = 0
	case several:
		return 0, nil, unsupported("namespaces of two containers, each with a user namespace of its own, cannot be shared: the kernel lets a process be in one only; use --userns host")
	}
	return users, warnings, nil
}

// joinNamespaces names to the runtime the namespaces of others that the container
// shares, as descriptors of this process: a path by a process's number could be
// somebody else's by the time it is looked at. release lets them go, once the
// container is created. Errors: ErrConflict if one of the others does not run.
func (h *Host) joinNamespaces(ctx context.Context, c *ctr, s *specs.Spec) (release func(), err error) {
	var open []*os.File
	closeAll := func() {
		for _, f := range open {
			_ = f.Close() // nothing was written
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	enter := func(kind specs.LinuxNamespaceType, pid int) error {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, procName(kind)))
		if err != nil {
			return err
		}
		open = append(open, f)
		i := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		ns := specs.LinuxNamespace{Type: kind, Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())}
		if i < 0 {
			s.Linux.Namespaces = append(s.Linux.Namespaces, ns)
		} else {
			s.Linux.Namespaces[i] = ns
		}
		return nil
	}
	for _, j := range c.rec.Spec.joins() {
		stopped := func(id string) error {
			return conflict("cannot join %s namespace of a non running container: container %s is not running", j.what, id)
		}
		other, err := h.find(j.ref)
		if err != nil {
			return nil, stopped(shortID(j.ref))
		}
		before, err := h.running(ctx, other)
		if err != nil {
			return nil, stopped(other.name())
		}
		if err := enter(j.kind, before.Pid); err != nil {
			return nil, errors.Join(stopped(other.name()), err)
		}
		if c.rec.Users != 0 {
			if err := enter(specs.UserNamespace, before.Pid); err != nil {
				return nil, errors.Join(stopped(other.name()), err)
			}
		}
		// As long as its shim says that the process runs, its number is its own.
		if after, err := h.running(ctx, other); err != nil || after.Pid != before.Pid {
			return nil, stopped(other.name())
		}
	}
	return closeAll, nil
}

// running returns the state of a container that runs.
func (h *Host) running(ctx context.Context, c *ctr) (container.State, error) {
	st, err := h.opts.Runtime.State(ctx, c.rec.ID)
	if err == nil && (st.Status != container.StatusRunning || st.Pid == 0) {
		err = container.ErrStatus
	}
	return st, err
}

// procName is what /proc calls a namespace.
func procName(kind specs.LinuxNamespaceType) string {
	switch kind {
	case specs.NetworkNamespace:
		return "net"
	case specs.MountNamespace:
		return "mnt"
	}
	return string(kind)
}

// networkOf returns the container whose network c shares, nil if there is none.
func (h *Host) networkOf(c *ctr) *ctr {
	ref, ok := strings.CutPrefix(string(c.rec.Spec.Network), ofContainer)
	if !ok {
		return nil
	}
	other, err := h.find(ref)
	if err != nil {
		return nil
	}
	return other
}
