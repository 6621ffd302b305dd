package control

import (
	"context"
	"errors"
	"net/http"
	"time"

	"berth.internal/internal/control"
	"berth.internal/storage"
	"berth.internal/storage/gc"
)

const (
	gcPage    = 1000  // entries of a page, unless the client says how many
	gcPageMax = 10000 // and at most
	gcListed  = 1000  // entries that the report of a round names
)

// planGC answers GET /gc.
func (h *Handler) planGC(r *http.Request, q control.GCQuery) (control.GCPlan, error) {
	limit, err := pageSize(q.Limit, gcPage, gcPageMax)
	if err != nil {
		return control.GCPlan{}, err
	}
	entries, next, err := h.Collector.DryRun(r.Context(), gc.Look{After: q.After, Ahead: q.Queued, N: limit})
	if errors.Is(err, storage.ErrCursor) {
		return control.GCPlan{}, control.Invalid.With("it must be what the page before gave as next").In("after").Because(err)
	}
	plan := control.GCPlan{Entries: make([]control.GCEntry, len(entries)), Now: time.Now().UTC(), Next: next}
	for i, e := range entries {
		plan.Entries[i] = gcEntry(e)
	}
	return plan, err
}

// collect is the job of POST /gc.
func (h *Handler) collect(ctx context.Context, tell tell, _ control.None) (control.GCReport, error) {
	began := time.Now()
	report := control.GCReport{Gone: []control.GCEntry{}}
	done := int64(0)
	tell(control.Progress{Doing: "waiting for the server's own round", Unit: "entries"})
	result, err := h.Collector.Round(ctx, func(e gc.Entry) {
		done++
		tell(control.Progress{Doing: "collecting", Done: done, Unit: "entries"})
		if !e.Goes {
			return
		}
		switch e.Kind {
		case gc.Blob:
			report.Blobs++
		case gc.Manifest, gc.Trash:
			report.Manifests++
		case gc.History:
			report.Histories++
		}
		if len(report.Gone) < gcListed {
			report.Gone = append(report.Gone, gcEntry(e))
		}
	})
	report.Uploads, report.Kept = int64(result.Expired), int64(result.Kept)
	report.Deleted, report.FreedBytes = int64(result.Deleted), result.Freed
	report.Held = result.Held
	report.TookSeconds = time.Since(began).Seconds()
	return report, err
}

func gcEntry(e gc.Entry) control.GCEntry {
	return control.GCEntry{
		Kind: string(e.Kind), Repo: e.Repo, Digest: e.Digest.String(), Tag: e.Tag, Upload: e.Upload, Key: string(e.Key),
		SizeBytes: e.Size, Due: e.Due, Goes: e.Goes, Why: e.Why, Holders: e.Holders,
	}
}
