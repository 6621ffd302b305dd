package cgroup

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
)

// memoryLimits are files of version 1, in the order in which limits are lowered:
// memory and swap together are never less than memory.
var memoryLimits = []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}

// MemoryLimits reads the group's limits of memory in version 1. restore sets them
// again where they are not the same any more.
func (g Group) MemoryLimits() (restore func() error, err error) {
	if g.Memory == "" || g.Memory == g.Unified {
		return func() error { return nil }, nil
	}
	limits := map[string][]byte{}
	for _, file := range memoryLimits {
		value, err := read(filepath.Join(g.Memory, file))
		switch {
		case err == nil:
			limits[file] = value
		case !errors.Is(err, fs.ErrNotExist): // a kernel may not count swap
			return nil, err
		}
	}
	return func() error { return g.setMemoryLimits(limits) }, nil
}

func (g Group) setMemoryLimits(limits map[string][]byte) error {
	for _, file := range memoryLimits {
		name, want := filepath.Join(g.Memory, file), limits[file]
		if want == nil {
			continue
		}
		now, err := read(name)
		if err == nil && !bytes.Equal(now, want) {
			err = Write(name, string(bytes.TrimSpace(want)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
