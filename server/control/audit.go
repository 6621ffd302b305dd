package control

import (
	"errors"
	"net/http"

	"berth.internal/internal/control"
	"berth.internal/server/audit"
)

const (
	auditPage    = 100    // records of a page, unless the client says how many
	auditPageMax = 10_000 // and at most
)

// audit answers GET /audit.
func (h *Handler) audit(r *http.Request, q control.AuditQuery) (control.AuditPage, error) {
	var err error
	if q.Limit, err = pageSize(q.Limit, auditPage, auditPageMax); err != nil {
		return control.AuditPage{}, err
	}
	page, err := h.Audit.Read(r.Context(), q)
	if wrong, ok := errors.AsType[*audit.QueryError](err); ok {
		return page, control.Invalid.With(wrong.Says).In(wrong.Field)
	}
	return page, err
}
