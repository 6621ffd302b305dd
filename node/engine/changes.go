package engine

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"berth.internal/node/host"
)

// containerChanges answers GET /containers/{id}/changes: 200, null if there are none.
func (e *Engine) containerChanges(w http.ResponseWriter, r *http.Request) error {
	list, err := e.host.Changes(r.Context(), idOf(r))
	if err != nil {
		return err
	}
	kinds := map[host.ChangeKind]container.ChangeType{
		host.Modified: container.ChangeModify, host.Added: container.ChangeAdd, host.Deleted: container.ChangeDelete,
	}
	var answer []container.FilesystemChange
	for _, c := range list {
		answer = append(answer, container.FilesystemChange{Kind: kinds[c.Kind], Path: c.Path})
	}
	return writeJSON(w, http.StatusOK, answer)
}
