package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Sweep removes what agents left that were killed while they made or deleted a
// container: a bundle without its record, a socket, a cgroup without a bundle. Call
// it when nobody makes or deletes containers yet.
func (r *Runtime) Sweep() error {
	err := errors.Join(r.sweepSpares(), r.sweep())
	r.provide()
	return err
}

func (r *Runtime) sweep() error {
	dirs, err := os.ReadDir(r.cfg.Root)
	if err != nil {
		return fmt.Errorf("sweep containers: %w", err)
	}
	var ids []string
	for _, d := range dirs {
		ids = append(ids, d.Name())
	}
	sockets, err := os.ReadDir(r.cfg.Run)
	if err != nil {
		return fmt.Errorf("sweep containers: %w", err)
	}
	for _, s := range sockets {
		if id, ok := strings.CutSuffix(s.Name(), socketSuffix); ok {
			ids = append(ids, id)
		}
	}
	var errs []error
	seen := map[string]bool{}
	for _, id := range ids {
		if there, err := r.exists(id); err == nil && there {
			// It may have a cgroup of another name, or below one.
			if rel, err := filepath.Rel(r.cfg.CgroupParent, r.cgroupPath(id)); err == nil {
				name, _, _ := strings.Cut(rel, "/")
				seen[id], seen[name] = true, true
			}
		}
	}
	for _, id := range append(ids, r.groups.ids(r.cfg.CgroupParent)...) {
		if seen[id] || !idGrammar().MatchString(id) {
			continue
		}
		seen[id] = true
		there, err := r.exists(id)
		if err == nil && !there {
			err = r.remove(id)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep container %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}
