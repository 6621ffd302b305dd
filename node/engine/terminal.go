package engine

import (
	"net/http"
	"strconv"

	"berth.internal/node/host"
)

// readSize reads the query parameters h and w, in characters.
func readSize(r *http.Request) (host.TerminalSize, error) {
	var size [2]uint
	for i, name := range []string{"h", "w"} {
		n, err := strconv.ParseUint(r.FormValue(name), 10, 32)
		if err != nil {
			return host.TerminalSize{}, invalid("invalid resize %s %q: it is no number of characters", map[string]string{"h": "height", "w": "width"}[name], r.FormValue(name))
		}
		size[i] = uint(n)
	}
	return terminalSize(size[0], size[1])
}

// resizeContainer answers POST /containers/{id}/resize: 200.
func (e *Engine) resizeContainer(w http.ResponseWriter, r *http.Request) error {
	size, err := readSize(r)
	if err != nil {
		return err
	}
	if err := e.host.Resize(r.Context(), idOf(r), size); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// resizeExec answers POST /exec/{id}/resize: 200.
func (e *Engine) resizeExec(w http.ResponseWriter, r *http.Request) error {
	size, err := readSize(r)
	if err != nil {
		return err
	}
	if err := e.host.ResizeExec(r.Context(), idOf(r), size); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// pauseContainer answers POST /containers/{id}/pause: 204, or 409 if it does not
// run or is paused.
func (e *Engine) pauseContainer(w http.ResponseWriter, r *http.Request) error {
	return done(w, e.host.Pause(r.Context(), idOf(r)))
}

// unpauseContainer answers POST /containers/{id}/unpause: 204, or 409 if it is not
// paused.
func (e *Engine) unpauseContainer(w http.ResponseWriter, r *http.Request) error {
	return done(w, e.host.Unpause(r.Context(), idOf(r)))
}
