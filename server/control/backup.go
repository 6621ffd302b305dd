package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"berth.internal/internal/control"
	"berth.internal/storage"
	"berth.internal/storage/backup"
)

// backUp is the job of POST /backup.
func (h *Handler) backUp(ctx context.Context, tell tell, q control.BackupRequest) (control.BackupReport, error) {
	began := time.Now()
	src := h.Backup
	src.Hold, src.Version = h.Collector.Hold, h.Version
	src.Tell = func(p backup.Progress) {
		tell(control.Progress{Doing: p.Doing, Done: p.Done, Total: p.Total, Unit: "bytes"})
	}
	did, err := backup.Write(ctx, src, q.Dir)
	report := BackupReport(q.Dir, did, time.Since(began))
	wrong, ofDir := errors.AsType[*backup.DirError](err)
	switch {
	case ofDir && errors.Is(err, storage.ErrNoSpace):
		return report, control.Unavailable.With(wrong.Says).In("dir").At(http.StatusInsufficientStorage).Because(wrong.Err)
	case ofDir:
		return report, control.Invalid.With(wrong.Says).In("dir").Because(wrong.Err)
	case errors.Is(err, backup.ErrUnable):
		return report, control.Unsupported.With(err.Error())
	case err == nil && did.Damaged > 0:
		return report, control.Internal.With(fmt.Sprintf(
			"the backup is complete but for what the registry itself has lost or damaged (%d blobs): berth admin fsck --deep says what; push that again, then make the backup anew", did.Damaged))
	}
	return report, err
}

// BackupReport puts what a backup or a restore did into the words of the API.
func BackupReport(dir string, did backup.Report, took time.Duration) control.BackupReport {
	report := control.BackupReport{
		Dir: dir, Time: did.Time, Blobs: did.Blobs, SizeBytes: did.Bytes, IndexBytes: did.IndexSize,
		New: did.New, NewBytes: did.NewBytes, Removed: did.Removed, Linked: did.Linked, SameDisk: did.SameDisk, Damaged: did.Damaged,
		Damage: make([]control.Damage, len(did.Damage)), TookSeconds: took.Seconds(),
	}
	for i, d := range did.Damage {
		report.Damage[i] = control.Damage{Digest: d.Digest.String(), Why: d.Why}
	}
	return report
}
