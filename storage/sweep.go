package storage

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// Swept is what Sweep removed.
type Swept struct {
	Uploads int // whose session was never written, or has ended
	Keys    int // that no name was given to, or that lost the last one
}

// Sweep removes what a crash has left: uploads without a session, and bytes
// without a name. Only a server that has just opened its data, and has it to
// itself, may call it: to all others, what somebody is about to name looks the
// same.
func Sweep(ctx context.Context, s Store, x Index, log *slog.Logger) (Swept, error) {
	var swept Swept
	live := map[string]bool{}
	for next, again := "", true; again; again = next != "" {
		var sessions []Session
		var err error
		if sessions, next, err = x.Idle(ctx, endOfTime(), next, page); err != nil {
			return swept, fmt.Errorf("sweep: %w", err)
		}
		for _, session := range sessions {
			live[session.State.ID] = true
		}
	}
	for id, err := range s.Uploads(ctx) {
		if err != nil {
			return swept, fmt.Errorf("sweep: %w", err)
		}
		if live[id] {
			continue
		}
		if err := s.Discard(ctx, id); err != nil {
			return swept, fmt.Errorf("sweep: %w", err)
		}
		swept.Uploads++
	}
	for {
		keys, _, err := x.Orphans(ctx, endOfTime(), "", page)
		if err != nil {
			return swept, fmt.Errorf("sweep: %w", err)
		}
		if len(keys) == 0 {
			break
		}
		if err := s.Delete(ctx, keys...); err != nil {
			return swept, fmt.Errorf("sweep: %w", err)
		}
		if err := x.Forget(ctx, keys...); err != nil {
			return swept, fmt.Errorf("sweep: %w", err)
		}
		swept.Keys += len(keys)
	}
	if swept != (Swept{}) {
		log.InfoContext(ctx, "swept what a crash has left", "uploads", swept.Uploads, "keys", swept.Keys)
	}
	return swept, nil
}

// page is how many rows Sweep asks for at once.
const page = 1000

// endOfTime is later than any key is due.
func endOfTime() time.Time { return time.Unix(1<<40, 0) }
