package host

import (
	"errors"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// secure chooses what holds the container in. Process.Capabilities and Mounts are
// chosen by now.
func secure(s *specs.Spec, sec Security) error {
	if sec.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		for i, m := range s.Mounts {
			if m.Type == "sysfs" || m.Type == "cgroup" {
				s.Mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
			}
		}
	}
	if sec.WritableCgroups {
		for i, m := range s.Mounts {
			if m.Type == "cgroup" {
				s.Mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
			}
		}
	}
	if sec.MaskedPaths != nil {
		s.Linux.MaskedPaths = sec.MaskedPaths
	}
	if sec.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = sec.ReadonlyPaths
	}
	switch {
	case sec.Seccomp == SeccompUnconfined, sec.Seccomp == "" && sec.Privileged:
		return nil
	case sec.Seccomp == "":
		return container.SetDefaultSeccomp(s)
	}
	return loadSeccomp(sec.Seccomp, s)
}

// loadSeccomp gives s a profile of the user's.
func loadSeccomp(profile string, s *specs.Spec) error {
	switch err := container.LoadSeccomp([]byte(profile), s); {
	case errors.Is(err, container.ErrUnsupported):
		return unsupported("seccomp profile: %v", err)
	case err != nil:
		return invalid("decoding seccomp profile failed: %v", err)
	}
	return nil
}

// DefaultPaths returns the paths that are masked, and those that are read-only, in a
// container that does not say.
func DefaultPaths() (masked, readonly []string) {
	s := container.DefaultSpec()
	return s.Linux.MaskedPaths, s.Linux.ReadonlyPaths
}

// check reports a profile that is none.
func (sec Security) check() error {
	if sec.Seccomp == "" || sec.Seccomp == SeccompUnconfined {
		return nil
	}
	return loadSeccomp(sec.Seccomp, container.DefaultSpec())
}
