package container

import (
	"context"
	"fmt"
)

// Processes returns the processes of a container on the node, those that it moved
// into cgroups below its own included, in no order. Errors: ErrNotFound; ErrStatus if it
// is stopped.
func (r *Runtime) Processes(ctx context.Context, id string) ([]int, error) {
	st, err := r.State(ctx, id)
	if err != nil {
		return nil, err
	}
	if st.Status == StatusStopped {
		return nil, fmt.Errorf("list processes of container %s: %w", id, ErrStatus)
	}
	pids, err := r.group(id).Pids()
	if err != nil {
		return nil, fmt.Errorf("list processes of container %s: %w", id, err)
	}
	return pids, nil
}
