// Package gc collects what nothing refers to any more, while the registry
// serves. It knows the storage contract only: the Index decides in its own
// transactions what can go, so that no push waits for the collector and none is
// hurt by it; bytes go only after the transaction that took their last name.
package gc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"berth.internal/storage"
)

// batch is how many entries one transaction reviews: few enough that a push
// that waits for the same group commit does not notice.
const batch = 100

// Config says how the collector works.
type Config struct {
	Interval      time.Duration // pause after a round
	Rate          int           // entries reviewed and keys deleted, each at most so many a second
	SessionExpiry time.Duration // how long an upload may stand still
	Policy        storage.ReviewPolicy
}

// Collector collects. Make it with New.
type Collector struct {
	cfg     Config
	store   storage.Store
	index   storage.Index
	log     *slog.Logger
	limit   *rate.Limiter
	metrics metrics
}

// Round is what one round has done.
type Round struct {
	Sessions  int   // uploads that expired
	Reviewed  int   // entries of the queue
	Blobs     int   // condemned
	Manifests int   // condemned
	Keys      int   // whose bytes were deleted
	Bytes     int64 // condemned; what other repositories hold as well stays on the disk
}

// New returns a collector over the drivers.
func New(s storage.Store, x storage.Index, cfg Config, log *slog.Logger) *Collector {
	return &Collector{cfg: cfg, store: s, index: x, log: log, limit: rate.NewLimiter(rate.Limit(cfg.Rate), batch), metrics: newMetrics()}
}

// Metrics returns what the collector measures.
func (c *Collector) Metrics() []prometheus.Collector { return c.metrics.collectors() }

// Run collects until ctx ends. A round that fails is logged and tried again: a
// full disk or a lost database ends some day.
func (c *Collector) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		round, err := c.Collect(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.log.Error("collection failed; it goes on later", "error", err)
		case round.Blobs+round.Manifests+round.Keys+round.Sessions > 0:
			c.log.Info("collected", "sessions", round.Sessions, "blobs", round.Blobs, "manifests", round.Manifests, "keys", round.Keys, "size_bytes", round.Bytes)
		}
		timer.Reset(c.cfg.Interval)
	}
}

// Collect does one round: it ends idle uploads, reviews all that is due, and
// deletes the bytes that have lost their names. What it did before an error
// stays done.
func (c *Collector) Collect(ctx context.Context) (Round, error) {
	var r Round
	for _, step := range []func(context.Context, *Round) error{c.expire, c.review, c.delete} {
		if err := step(ctx, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// expire ends the uploads that nobody has gone on with.
func (c *Collector) expire(ctx context.Context, r *Round) error {
	for {
		now, err := c.index.Now(ctx)
		if err != nil {
			return err
		}
		idle, err := c.index.Idle(ctx, now.Add(-c.cfg.SessionExpiry), batch)
		if err != nil {
			return fmt.Errorf("find idle uploads: %w", err)
		}
		for _, s := range idle {
			// The row last: after a crash in between it is found again.
			err := c.store.Discard(ctx, s.State.ID)
			if err == nil {
				err = c.index.EndSession(ctx, s.ID)
			}
			if err != nil {
				return fmt.Errorf("end idle upload %s: %w", s.ID, err)
			}
			r.Sessions++
			c.metrics.done.WithLabelValues("session").Inc()
		}
		if len(idle) < batch {
			return nil
		}
	}
}

func (c *Collector) review(ctx context.Context, r *Round) error {
	for {
		if err := c.limit.WaitN(ctx, batch); err != nil {
			return err
		}
		verdicts, err := c.index.Review(ctx, c.cfg.Policy, batch)
		if err != nil {
			return fmt.Errorf("review: %w", err)
		}
		for _, v := range verdicts {
			r.Reviewed++
			if !v.Condemned {
				continue
			}
			r.Bytes += v.Size
			kind := "blob"
			if v.Manifest {
				r.Manifests++
				kind = "manifest"
			} else {
				r.Blobs++
			}
			c.metrics.done.WithLabelValues(kind).Inc()
			c.log.Debug("condemned", "repo", v.Repo, "digest", v.Digest, "kind", kind, "why", v.Why)
		}
		if len(verdicts) < batch {
			return nil
		}
	}
}

// delete removes the bytes of keys that are due. A key that cannot be deleted is
// passed over: the next round finds it again.
func (c *Collector) delete(ctx context.Context, r *Round) error {
	var failed error
	for {
		now, err := c.index.Now(ctx)
		if err != nil {
			return err
		}
		keys, err := c.index.Orphans(ctx, now, batch)
		if err != nil {
			return fmt.Errorf("find orphans: %w", err)
		}
		deleted := 0
		for _, key := range keys {
			if err := c.limit.Wait(ctx); err != nil {
				return err
			}
			err := c.store.Delete(ctx, key)
			if err == nil {
				err = c.index.Forget(ctx, key)
			}
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("delete %s: %w", key, err))
				continue
			}
			deleted++
			c.metrics.done.WithLabelValues("key").Inc()
		}
		r.Keys += deleted
		if len(keys) < batch || deleted == 0 {
			return failed
		}
		failed = nil // those that failed come first again
	}
}

type metrics struct {
	done *prometheus.CounterVec
}

func newMetrics() metrics {
	return metrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "berth_gc_collected_total", Help: "What the collector has taken away.",
	}, []string{"kind"})}
}

func (m metrics) collectors() []prometheus.Collector { return []prometheus.Collector{m.done} }
