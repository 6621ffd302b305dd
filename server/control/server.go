package control

import (
	"net/http"

	"berth.internal/internal/control"
)

// server answers GET /server.
func (h *Handler) server(r *http.Request, _ control.None) (control.Server, error) {
	parts := h.Ready(r.Context())
	s := control.Server{Name: h.Name(), Ready: true}
	for _, p := range parts {
		s.Ready = s.Ready && p.Ready
	}
	if h.Access(r, "", Pull) != nil {
		return s, nil // somebody whom it does not know
	}
	s.Version, s.Features, s.Parts = h.Version, Features(h.table), parts
	if h.Access(r, "", Admin) != nil {
		for i := range s.Parts {
			s.Parts[i].Reason = ""
		}
	}
	return s, nil
}
