package container

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"

	mobyseccomp "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container/seccomp"
)

// filterKey identifies a seccomp profile, program is one compiled.
type (
	filterKey [sha256.Size]byte
	program   []byte
)

// maxFilters is how many compiled profiles are kept. Nearly all containers have
// the same.
const maxFilters = 16

// filter compiles a seccomp profile, or returns what was compiled before.
// Errors: ErrUnsupported.
func (r *Runtime) filter(p *specs.LinuxSeccomp) (program, error) {
	if p == nil {
		return nil, nil
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	key := filterKey(sha256.Sum256(text))
	r.mu.Lock()
	prog, ok := r.filters[key]
	r.mu.Unlock()
	if ok {
		return prog, nil
	}
	if prog, err = seccomp.Compile(p); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.filters) >= maxFilters {
		clear(r.filters)
	}
	r.filters[key] = prog
	return prog, nil
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
