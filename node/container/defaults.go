package container

import "github.com/opencontainers/runtime-spec/specs-go"

// DefaultSpec returns what Docker's users expect of a container with nothing
// chosen: the capabilities, mounts, devices, masked and read-only paths, and new
// namespaces for everything, the user namespace included. The caller adds the
// process, the user namespace's Linux.UIDMappings and GIDMappings, what the user
// chose, and last SetDefaultSeccomp. For host users, networks … remove the
// namespace from Linux.Namespaces.
func DefaultSpec() *specs.Spec { panic("not built yet") }

// SetDefaultSeccomp gives s Docker's seccomp profile as it is for the
// capabilities in s.Process.Capabilities: call it after these are chosen.
func SetDefaultSeccomp(s *specs.Spec) error { panic("not built yet") }
