package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/internal/lazyregexp"
)

// maxConfig is how long a bundle's config.json may be, in bytes.
const maxConfig = 16 << 20

// configFile is the configuration in a bundle.
const configFile = "config.json"

// readBundle reads the configuration of a bundle, with its root file system as an
// absolute path.
func readBundle(dir string) (abs string, s *specs.Spec, err error) {
	if abs, err = filepath.Abs(dir); err != nil {
		return "", nil, err
	}
	data, err := readLimited(filepath.Join(abs, configFile), maxConfig)
	if err != nil {
		return "", nil, err
	}
	if s, err = parseConfig(data); err != nil {
		return "", nil, fmt.Errorf("%s: %w", filepath.Join(abs, configFile), err)
	}
	if !filepath.IsAbs(s.Root.Path) {
		s.Root.Path = filepath.Join(abs, s.Root.Path)
	}
	// The bundle is the caller's: what its paths lead through is what was meant.
	if s.Root.Path, err = filepath.EvalSymlinks(s.Root.Path); err != nil {
		return "", nil, fmt.Errorf("root file system: %w", err)
	}
	info, err := os.Stat(s.Root.Path)
	if err != nil {
		return "", nil, fmt.Errorf("root file system: %w", err)
	}
	if !info.IsDir() {
		return "", nil, fmt.Errorf("root file system: %s is no directory", s.Root.Path)
	}
	for i, m := range s.Mounts {
		if !filepath.IsAbs(m.Destination) { // what older versions of the specification allowed
			s.Mounts[i].Destination = "/" + m.Destination
		}
		// A bind's source may be relative to the bundle.
		if isBind(m) && m.Source != "" && !filepath.IsAbs(m.Source) {
			s.Mounts[i].Source = filepath.Join(abs, m.Source)
		}
	}
	return abs, s, nil
}

func isBind(m specs.Mount) bool {
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return m.Type == "bind"
}

// parseConfig reads a configuration, and fills in what may be left out.
func parseConfig(data []byte) (*specs.Spec, error) {
	s := new(specs.Spec)
	if err := json.Unmarshal(data, s); err != nil {
		return nil, err
	}
	if err := checkVersion(s.Version); err != nil {
		return nil, err
	}
	if s.Root == nil || s.Root.Path == "" {
		return nil, errors.New("root.path is not set")
	}
	if s.Linux == nil {
		s.Linux = new(specs.Linux)
	}
	if err := mapped(s.Linux); err != nil {
		return nil, err
	}
	return s, checkHooks(s.Hooks)
}

// userPath is the user namespace of a process.
var userPath = lazyregexp.New(`^/proc/(self|[0-9]+)/ns/user$`)

// mapped fills in the mappings of a user namespace that is joined: they are that one's.
func mapped(l *specs.Linux) error {
	for _, n := range l.Namespaces {
		m := userPath().FindStringSubmatch(n.Path)
		if n.Type != specs.UserNamespace || m == nil || len(l.UIDMappings)+len(l.GIDMappings) > 0 {
			continue
		}
		for file, to := range map[string]*[]specs.LinuxIDMapping{"uid_map": &l.UIDMappings, "gid_map": &l.GIDMappings} {
			text, err := os.ReadFile("/proc/" + m[1] + "/" + file)
			if err != nil {
				return fmt.Errorf("read the mappings of %s: %w", n.Path, err)
			}
			for line := range strings.Lines(string(text)) {
				var id specs.LinuxIDMapping
				if _, err := fmt.Sscan(line, &id.ContainerID, &id.HostID, &id.Size); err != nil {
					return fmt.Errorf("read the mappings of %s: %w", n.Path, err)
				}
				*to = append(*to, id)
			}
		}
	}
	return nil
}

// version is a semantic version, as ociVersion must be.
var version = lazyregexp.New(`^(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// checkVersion refuses configurations of versions that may mean something else. All
// of 1 are compatible, by the specification's own rules; 1.0.0's candidates are what
// engines write who never changed the number.
func checkVersion(v string) error {
	m := version().FindStringSubmatch(v)
	if m == nil {
		return fmt.Errorf("ociVersion %q is not a version in SemVer form", v)
	}
	if major, err := strconv.Atoi(m[1]); err != nil || major != 1 {
		return fmt.Errorf("ociVersion %s: %w (1.0.0 to %s are)", v, ErrUnsupported, specs.Version)
	}
	return nil
}

// readLimited reads a regular file, or what comes through a pipe, of limited length.
func readLimited(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	return data, err
}
