package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Reset removes what the container's processes made below the group, when none of
// them is left, so that others can be born in it: version 2 has no processes
// where controllers are passed on. It tries for limit, as Remove does.
func (g Group) Reset(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	var errs []error
	for _, dir := range g.all() {
		entries, err := os.ReadDir(dir)
		errs = append(errs, ignoreGone(err))
		for _, e := range entries {
			if e.IsDir() {
				errs = append(errs, removeBy(deadline, filepath.Join(dir, e.Name())))
			}
		}
	}
	if g.Unified != "" {
		name := filepath.Join(g.Unified, "cgroup.subtree_control")
		passed, err := os.ReadFile(name)
		errs = append(errs, ignoreGone(err))
		for c := range strings.FieldsSeq(string(passed)) {
			errs = append(errs, Write(name, "-"+c))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("empty cgroup: %w", err)
	}
	return nil
}
