package audit

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"berth.internal/internal/control"
)

// Whoever can reach the server can be refused by it, as often as they like. What
// they are refused must neither fill the disk nor push what others did out of the
// log.
const (
	window    = 10 * time.Second // the same refusal makes one line in it
	different = 4096             // refusals that are told apart
	burst     = 1000             // lines of refusals at once
	perSecond = 2                // and in the long run: 60 MB a day
)

// flood counts refusals that are repeated.
type flood struct {
	mu    *sync.Mutex
	limit *rate.Limiter
	seen  map[control.AuditRecord]*repeat // by what is the same
	lost  int                             // refusals that were not told apart
	since time.Time                       // when lost was last told
}

type repeat struct {
	last  control.AuditRecord
	since time.Time
	n     int
}

func newFlood() flood {
	return flood{mu: new(sync.Mutex), limit: rate.NewLimiter(perSecond, burst), seen: map[control.AuditRecord]*repeat{}}
}

// same is rec without what differs each time.
func same(rec control.AuditRecord) control.AuditRecord {
	rec.Time, rec.RequestID = time.Time{}, ""
	return rec
}

// first tells whether rec is to be written; else it is counted.
func (f *flood) first(rec control.AuditRecord) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := same(rec)
	if known := f.seen[key]; known != nil {
		known.n++
		known.last = rec
		return false
	}
	if len(f.seen) >= different || !f.limit.AllowN(rec.Time, 1) {
		f.lost++
		return false
	}
	f.seen[key] = &repeat{last: rec, since: rec.Time}
	return true
}

// due returns records of what was counted long enough, or of all if the log ends.
func (f *flood) due(now time.Time, end bool) []control.AuditRecord {
	f.mu.Lock()
	defer f.mu.Unlock()
	var recs []control.AuditRecord
	for key, r := range f.seen {
		if !end && now.Sub(r.since) < window {
			continue
		}
		switch {
		case r.n == 0:
			delete(f.seen, key)
		case end || f.limit.AllowN(now, 1):
			r.last.Repeats = r.n
			recs = append(recs, r.last)
			r.n, r.since = 0, now
		default:
			f.lost += r.n
			r.n, r.since = 0, now
		}
	}
	slices.SortFunc(recs, func(a, b control.AuditRecord) int { return a.Time.Compare(b.Time) })
	if f.lost > 0 && (end || now.Sub(f.since) >= window) {
		recs = append(recs, control.AuditRecord{
			Time: now.UTC(), Who: "unknown", Action: "flood", Decision: control.AuditDenied, Repeats: f.lost,
			Reason: "so much was refused that it was only counted",
		})
		f.lost, f.since = 0, now
	}
	return recs
}
