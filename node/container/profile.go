package container

import (
	"errors"
	"fmt"

	mobyseccomp "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container/seccomp"
)

// filter compiles a seccomp profile. That takes a quarter of a millisecond, too
// little to remember it. Errors: ErrUnsupported.
func filter(p *specs.LinuxSeccomp) ([]byte, error) {
	if p == nil {
		return nil, nil
	}
	prog, err := seccomp.Compile(p)
	if errors.Is(err, seccomp.ErrUnsupported) {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return prog, err
}

// SetDefaultSeccomp gives s Docker's seccomp profile as it is for the
// capabilities in s.Process.Capabilities: call it after these are chosen.
func SetDefaultSeccomp(s *specs.Spec) error {
	if s.Process == nil || s.Process.Capabilities == nil || s.Linux == nil {
		return fmt.Errorf("choose seccomp profile: the spec has no capabilities yet")
	}
	p, err := mobyseccomp.GetDefaultProfile(s)
	if err != nil {
		return fmt.Errorf("choose seccomp profile: %w", err)
	}
	s.Linux.Seccomp = p
	return nil
}
