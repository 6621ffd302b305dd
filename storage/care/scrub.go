package care

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	scrubKey   = "scrub"         // the record of how far a pass is, and the lease of who does it
	scrubLease = 2 * time.Minute // renewed after a quarter of it
	scrubPause = time.Minute     // between two looks whether something is to do
)

// ScrubConfig says how much is read, and when.
type ScrubConfig struct {
	// Interval is the time from the start of one pass to the start of the next.
	// Zero: there are none but those that Now asks for.
	Interval time.Duration

	// Rate is how many bytes are read in a second. Default 16 MiB.
	Rate int64
}

// ScrubState is how far the scrub is. It is a record, so that a pass goes on
// after a restart, and on another server.
type ScrubState struct {
	Began    time.Time     `json:"began"`          // of the last pass
	Ended    time.Time     `json:"ended,omitzero"` // zero: it is under way
	After    digest.Digest `json:"after"`          // the last content that it has seen
	Checked  int64         `json:"checked"`        // contents
	Bytes    int64         `json:"bytes"`
	Damaged  int64         `json:"damaged"`  // contents that it quarantined
	Released int64         `json:"released"` // contents that are whole again
}

// Scrub reads all content again and again, and quarantines what is damaged.
type Scrub struct {
	store   storage.Store
	index   storage.Index
	records storage.Records
	config  atomic.Pointer[ScrubConfig]
	log     *slog.Logger
	holder  string
	busy    sync.Mutex // one pass at a time in this process
	setting sync.Mutex // so that damage that many find at once is told once

	checked, bytes prometheus.Counter
	quarantined    prometheus.GaugeFunc
	passTook       prometheus.Gauge
}

// NewScrub returns a scrub of all that index names in store.
func NewScrub(d storage.Drivers, config ScrubConfig, log *slog.Logger) *Scrub {
	s := &Scrub{
		store: d.Store, index: d.Index, records: d.Records, log: log, holder: rand.Text(),
		checked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_scrub_checked_total", Help: "Contents whose bytes were read and hashed again.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_scrub_bytes_total", Help: "Bytes of contents that were read and hashed again.",
		}),
		passTook: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_scrub_last_pass_seconds", Help: "Time from the start to the end of the last pass that ended here.",
		}),
	}
	s.quarantined = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berth_scrub_quarantined", Help: "Contents that are damaged and quarantined now.",
	}, s.count)
	s.Set(config)
	return s
}

// Set changes, while the scrub runs, how much it reads and when. A pass that is under
// way goes on as it began.
func (s *Scrub) Set(config ScrubConfig) {
	if config.Rate == 0 {
		config.Rate = 16 << 20
	}
	s.config.Store(&config)
}

// Metrics returns what is measured about passes.
func (s *Scrub) Metrics() []prometheus.Collector {
	return []prometheus.Collector{s.checked, s.bytes, s.quarantined, s.passTook}
}

// Run does a pass whenever one is due, until ctx ends. What fails is logged and
// tried again.
func (s *Scrub) Run(ctx context.Context) {
	for {
		if err := s.due(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, storage.ErrHeld) {
			s.log.ErrorContext(ctx, "scrub failed and goes on later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(scrubPause):
		}
	}
}

// due goes on with the pass that is under way, or begins one if it is time.
func (s *Scrub) due(ctx context.Context) error {
	state, _, err := s.State(ctx)
	if err != nil || s.config.Load().Interval == 0 {
		return err
	}
	now, err := s.index.Now(ctx)
	if err != nil {
		return err
	}
	fresh := !state.Ended.IsZero() || state.Began.IsZero()
	if fresh && now.Sub(state.Began) < s.config.Load().Interval {
		return nil
	}
	s.busy.Lock()
	defer s.busy.Unlock()
	_, err = s.pass(ctx, s.config.Load().Rate, fresh, func(Progress) {})
	return err
}

// Now does a whole pass at full speed and returns what it saw. Errors:
// storage.ErrHeld if another server does one.
func (s *Scrub) Now(ctx context.Context, tell func(Progress)) (ScrubState, error) {
	s.busy.Lock()
	defer s.busy.Unlock()
	return s.pass(ctx, 0, true, tell)
}

// State returns how far the scrub is, and the revision of that record.
func (s *Scrub) State(ctx context.Context) (state ScrubState, revision uint64, err error) {
	rec, err := s.records.Get(ctx, scrubKey)
	if storage.IsNotFound(err) {
		return state, 0, nil
	}
	if err == nil {
		err = json.Unmarshal(rec.Value, &state)
	}
	if err != nil {
		return state, 0, fmt.Errorf("read how far the scrub is: %w", err)
	}
	return state, rec.Revision, nil
}

// pass goes through all contents, from the first one or from where the last pass
// stopped.
func (s *Scrub) pass(ctx context.Context, bytesPerSecond int64, fresh bool, tell func(Progress)) (ScrubState, error) {
	if _, err := s.records.Acquire(ctx, scrubKey, s.holder, scrubLease); err != nil {
		return ScrubState{}, fmt.Errorf("scrub: %w", err)
	}
	defer func() { // a lease that cannot be given back ends by itself
		_ = s.records.Release(context.WithoutCancel(ctx), scrubKey, s.holder)
	}()
	state, revision, err := s.State(ctx)
	if err != nil {
		return state, err
	}
	now, err := s.index.Now(ctx)
	if err != nil {
		return state, err
	}
	if fresh {
		state = ScrubState{Began: now}
	}
	save := func() error {
		value, err := json.Marshal(state)
		if err != nil {
			return err
		}
		revision, err = s.records.Put(ctx, scrubKey, value, revision)
		return err
	}
	if err := save(); err != nil {
		return state, fmt.Errorf("scrub: %w", err)
	}
	r, renewed := newReader(s.store, s.index, bytesPerSecond), now
	r.every = func() error {
		now, err := s.index.Now(ctx)
		if err != nil || now.Sub(renewed) < scrubLease/4 {
			return err
		}
		renewed = now
		if _, err := s.records.Acquire(ctx, scrubKey, s.holder, scrubLease); err != nil {
			return err
		}
		return save()
	}
	err = contents(ctx, s.index, state.After, func(c storage.Content) error {
		if err := s.look(ctx, r, c, &state); err != nil {
			return err
		}
		state.After = c.Digest
		state.Checked++
		state.Bytes += max(c.Size, 0)
		s.checked.Inc()
		s.bytes.Add(float64(max(c.Size, 0)))
		tell(Progress{Doing: "reading", Done: state.Bytes, Unit: "bytes"})
		return r.every()
	})
	if err == nil {
		if state.Ended, err = s.index.Now(ctx); err == nil {
			s.passTook.Set(state.Ended.Sub(state.Began).Seconds())
			err = save()
		}
	}
	return state, err
}

// look reads one content, and quarantines or releases it.
func (s *Scrub) look(ctx context.Context, r *reader, c storage.Content, state *ScrubState) error {
	wrong, err := r.verify(ctx, c, true)
	if err != nil {
		return err
	}
	changed, err := s.set(ctx, c, wrong)
	switch {
	case err != nil || !changed:
		return err
	case wrong == "":
		state.Released++
	default:
		state.Damaged++
	}
	return nil
}

// set quarantines c, or releases it if nothing is wrong. It tells whether that
// is news.
func (s *Scrub) set(ctx context.Context, c storage.Content, wrong string) (bool, error) {
	s.setting.Lock()
	defer s.setting.Unlock()
	known, err := s.isQuarantined(ctx, c.Digest)
	if err != nil || known == (wrong != "") {
		return false, err
	}
	done, err := s.index.Quarantine(ctx, c, wrong)
	if err != nil || !done { // it has changed meanwhile
		return false, err
	}
	if wrong == "" {
		s.log.WarnContext(ctx, "quarantined content is whole again", "digest", c.Digest)
		return true, nil
	}
	s.log.ErrorContext(ctx, "content is damaged, and quarantined until it is pushed again", "digest", c.Digest,
		"size_bytes", c.Size, "why", wrong)
	return true, nil
}

// Suspect looks again at c, whose bytes somebody did not find, or not as many as
// there should be, and quarantines it at once if that is so. It returns what is
// wrong, empty if nothing is, or if c has changed meanwhile. Bytes are not read: a
// disk that cannot be read now may be well in a minute, and the next pass finds
// out. If the Index cannot note the quarantine, that is in the log, and what is
// wrong is wrong all the same.
func (s *Scrub) Suspect(ctx context.Context, c storage.Content) (wrong string, err error) {
	if c.Key == "" {
		return "", nil // the Index has it, and had it then
	}
	r := &reader{store: s.store, index: s.index}
	wrong, err = r.confirm(ctx, c, func(ctx context.Context, c storage.Content) (string, error) {
		blob, wrong, err := r.open(ctx, c)
		if blob != nil {
			err = blob.Close()
		}
		return wrong, err
	})
	if err != nil || wrong == "" {
		return "", err
	}
	if _, err := s.set(ctx, c, wrong); err != nil {
		s.log.ErrorContext(ctx, "content is damaged, and cannot be quarantined now", "digest", c.Digest,
			"size_bytes", c.Size, "why", wrong, "error", err)
	}
	return wrong, nil
}

func (s *Scrub) isQuarantined(ctx context.Context, d digest.Digest) (bool, error) {
	list, err := s.index.Quarantined(ctx, d[:len(d)-1], 16)
	for _, q := range list {
		if q.Digest == d {
			return true, err
		}
	}
	return false, err
}

// count is how many contents are quarantined now; not a number if the Index
// cannot tell.
func (s *Scrub) count() float64 {
	n := 0
	for after := digest.Digest(""); ; {
		list, err := s.index.Quarantined(context.Background(), after, page)
		if err != nil {
			return math.NaN()
		}
		if len(list) == 0 {
			return float64(n)
		}
		n += len(list)
		after = list[len(list)-1].Digest
	}
}
