package oci

import (
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// ExampleSpec returns a configuration to begin with: a shell on a terminal, in a root
// file system beside it that it cannot write.
func ExampleSpec() *specs.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	s := container.DefaultSpec()
	s.Root = &specs.Root{Path: "rootfs", Readonly: true}
	s.Hostname = "berth"
	s.Process = &specs.Process{
		Terminal: true,
		Args:     []string{"sh"},
		Env:      append(s.Process.Env, "TERM=xterm"),
		Cwd:      "/",
		Capabilities: &specs.LinuxCapabilities{
			Bounding: caps, Effective: caps, Permitted: caps,
		},
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}},
		NoNewPrivileges: true,
	}
	s.Linux.Namespaces = []specs.LinuxNamespace{
		{Type: specs.PIDNamespace},
		{Type: specs.NetworkNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.MountNamespace},
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil { // as runc: on cgroup version 2 only
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	return s
}
