package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"berth.internal/node/container/plan"
	"berth.internal/node/container/seccomp"
)

// Features says what the runtime does, as runtime-spec's features.md has it.
func Features() features.Features {
	yes, no := new(true), new(false)
	modes, flags := plan.MemoryPolicies()
	return features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions:  plan.MountOptions(),
		Linux: &features.Linux{
			Namespaces:   plan.Namespaces(),
			Capabilities: plan.Capabilities(),
			Cgroup:       &features.Cgroup{V1: yes, V2: yes, Systemd: no, SystemdUser: no, Rdma: yes},
			Seccomp: &features.Seccomp{
				Enabled: yes, Actions: seccomp.Actions(), Operators: seccomp.Operators(), Archs: seccomp.Architectures(),
				KnownFlags: seccomp.KnownFlags(), SupportedFlags: seccomp.KnownFlags(),
			},
			Apparmor:        &features.Apparmor{Enabled: yes},
			Selinux:         &features.Selinux{Enabled: yes},
			IntelRdt:        &features.IntelRdt{Enabled: no},
			MemoryPolicy:    &features.MemoryPolicy{Modes: modes, Flags: flags},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: yes}},
			NetDevices:      &features.NetDevices{Enabled: yes},
		},
	}
}
