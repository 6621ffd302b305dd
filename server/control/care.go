package control

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/control"
	"berth.internal/storage"
	"berth.internal/storage/care"
)

// fsck is the job of POST /fsck.
func (h *Handler) fsck(ctx context.Context, tell tell, q control.FsckRequest) (control.FsckReport, error) {
	began := time.Now()
	seen, err := care.Check(ctx, h.Store, h.Index, care.Options{Deep: q.Deep}, func(p care.Progress) {
		tell(control.Progress{Doing: p.Doing, Done: p.Done, Unit: p.Unit})
	})
	report := control.FsckReport{
		Contents: seen.Contents, Bytes: seen.Bytes, Files: seen.Keys, Deep: q.Deep,
		Findings: []control.Finding{}, More: seen.More, TookSeconds: time.Since(began).Seconds(),
	}
	for _, f := range seen.Findings {
		report.Findings = append(report.Findings, control.Finding{
			Kind: string(f.Kind), Digest: f.Digest.String(), Key: string(f.Key), What: f.What, Next: f.Next,
		})
	}
	return report, err
}

// scrub is the job of POST /scrub.
func (h *Handler) scrub(ctx context.Context, tell tell, _ control.None) (control.ScrubState, error) {
	state, err := h.Scrub.Now(ctx, func(p care.Progress) {
		tell(control.Progress{Doing: p.Doing, Done: p.Done, Unit: p.Unit})
	})
	if errors.Is(err, storage.ErrHeld) {
		err = control.Conflict.With("another server is at it; GET /scrub says how far").Because(err)
	}
	return scrubState(state), err
}

// scrubState answers GET /scrub.
func (h *Handler) scrubState(r *http.Request, _ control.None) (control.ScrubState, error) {
	state, _, err := h.Scrub.State(r.Context())
	return scrubState(state), err
}

func scrubState(s care.ScrubState) control.ScrubState {
	return control.ScrubState{
		Began: s.Began, Ended: s.Ended, After: s.After.String(), Contents: s.Checked, Bytes: s.Bytes, Damaged: s.Damaged, Released: s.Released,
	}
}

// quarantine answers GET /quarantine.
func (h *Handler) quarantine(r *http.Request, q control.QuarantineQuery) (control.Quarantine, error) {
	answer := control.Quarantine{Contents: []control.Quarantined{}}
	limit, err := pageSize(q.Limit, 100, 1000)
	if err != nil {
		return answer, err
	}
	list, err := h.Index.Quarantined(r.Context(), digest.Digest(q.After), limit)
	for _, c := range list {
		answer.Contents = append(answer.Contents, control.Quarantined{
			Digest: c.Digest.String(), SizeBytes: c.Size, Why: c.Why, Since: c.Since, Holders: append([]string{}, c.Holders...),
		})
	}
	if len(list) == limit {
		answer.Next = list[limit-1].Digest.String()
	}
	return answer, err
}
