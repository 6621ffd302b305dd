package control

import (
	"net/http"
	"strings"

	"berth.internal/internal/control"
)

// config answers GET /config.
func (h *Handler) config(*http.Request, control.None) (control.Settings, error) {
	return h.Settings(), nil
}

// reload answers POST /config/reload.
func (h *Handler) reload(r *http.Request, _ control.None) (control.Reloaded, error) {
	did, err := h.Reload(r.Context())
	h.Audit.Note(r).Detail = strings.Join(did.Changed, " ")
	return did, err
}
