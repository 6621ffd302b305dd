package container

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	mobyseccomp "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container/seccomp"
)

// maxFilters is how many compiled profiles are kept. A node uses few: one for each
// choice of capabilities.
const maxFilters = 32

// filters remembers compiled seccomp profiles.
type filters struct {
	kernel seccomp.Kernel
	mu     sync.Mutex
	by     map[[sha256.Size]byte][]byte
}

// compile returns the filter of a profile, nil if that is nil. Errors:
// ErrUnsupported.
func (f *filters) compile(p *specs.LinuxSeccomp) ([]byte, error) {
	if p == nil {
		return nil, nil
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(text)
	f.mu.Lock()
	defer f.mu.Unlock()
	if prog, ok := f.by[key]; ok {
		return prog, nil
	}
	prog, err := seccomp.Compile(p, f.kernel)
	if errors.Is(err, seccomp.ErrUnsupported) {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	if f.by == nil || len(f.by) >= maxFilters {
		f.by = map[[sha256.Size]byte][]byte{}
	}
	f.by[key] = prog
	return prog, nil
}

// SetDefaultSeccomp gives s Docker's seccomp profile as it is for the
// capabilities in s.Process.Capabilities: call it after these are chosen.
func SetDefaultSeccomp(s *specs.Spec) error {
	if err := mayHaveSeccomp(s); err != nil {
		return err
	}
	p, err := mobyseccomp.GetDefaultProfile(s)
	if err != nil {
		return fmt.Errorf("choose seccomp profile: %w", err)
	}
	s.Linux.Seccomp = p
	return nil
}

// maxProfile is the largest profile that LoadSeccomp reads, in bytes.
const maxProfile = 1 << 20

// LoadSeccomp gives s the seccomp profile in text: JSON as Docker's
// --security-opt seccomp=FILE takes it (with archMap, and includes and excludes
// that look at the capabilities in s.Process.Capabilities: call it after these are
// chosen), or as in the runtime-spec's linux.seccomp. Errors: ErrUnsupported, for
// what the Runtime would not do.
func LoadSeccomp(text []byte, s *specs.Spec) error {
	if err := mayHaveSeccomp(s); err != nil {
		return err
	}
	if len(text) > maxProfile {
		return fmt.Errorf("load seccomp profile: it has %d bytes, more than %d", len(text), maxProfile)
	}
	var entries struct{ Syscalls []*struct{} }
	if err := json.Unmarshal(text, &entries); err != nil {
		return fmt.Errorf("load seccomp profile: %w", err)
	}
	if slices.Contains(entries.Syscalls, nil) { // which the library does not expect
		return errors.New("load seccomp profile: an entry of syscalls is null")
	}
	p, err := mobyseccomp.LoadProfile(string(text), s)
	if err != nil {
		return fmt.Errorf("load seccomp profile: %w", err)
	}
	if p == nil {
		return errors.New("load seccomp profile: it has neither defaultAction nor syscalls")
	}
	if _, err := new(filters).compile(p); err != nil {
		return fmt.Errorf("load seccomp profile: %w", err)
	}
	s.Linux.Seccomp = p
	return nil
}

func mayHaveSeccomp(s *specs.Spec) error {
	if s.Process == nil || s.Process.Capabilities == nil || s.Linux == nil {
		return errors.New("choose seccomp profile: the spec has no capabilities yet")
	}
	return nil
}
