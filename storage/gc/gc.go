// Package gc is the collector: it takes away what nothing needs any more, while
// everybody goes on pushing. What may go is decided by storage.Collector in its
// own transactions, which is why no lock stands between a push and it.
package gc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"berth.internal/storage"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// batch is how many queue entries one transaction reviews, and how many
// sessions or keys are fetched at once.
const batch = 100

// Config says what is collected, and how fast.
type Config struct {
	// Interval is the time from the end of one round to the next. Default one
	// minute.
	Interval time.Duration

	// Rate is how many reviews and deletions there may be in a second. Default
	// 500.
	Rate int

	// SessionExpiry is how long an upload may rest before it is dropped.
	// Default 24 hours.
	SessionExpiry time.Duration

	// Policy is what review may condemn. With DryRun a round only looks at the
	// first that are due, and changes nothing.
	Policy storage.ReviewPolicy
}

func (c Config) withDefaults() Config {
	if c.Interval == 0 {
		c.Interval = time.Minute
	}
	if c.Rate == 0 {
		c.Rate = 500
	}
	if c.SessionExpiry == 0 {
		c.SessionExpiry = 24 * time.Hour
	}
	return c
}

// Collector collects.
type Collector struct {
	store  storage.Store
	index  storage.Index
	config Config
	limit  *rate.Limiter
	log    *slog.Logger

	reviewed  *prometheus.CounterVec // by verdict
	deleted   prometheus.Counter
	expired   prometheus.Counter
	failed    prometheus.Counter
	roundTook prometheus.Histogram
}

// Result is what a round did.
type Result struct {
	Expired   int               // sessions
	Condemned []storage.Verdict // kept ones are not listed
	Deleted   int               // keys, with their bytes
}

// New returns a collector of what index no longer needs in store.
func New(store storage.Store, index storage.Index, config Config, log *slog.Logger) *Collector {
	config = config.withDefaults()
	return &Collector{
		store: store, index: index, config: config, log: log,
		limit: rate.NewLimiter(rate.Limit(config.Rate), batch),
		reviewed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_gc_reviews_total", Help: "Reviews of content that something may have freed, by verdict.",
		}, []string{"verdict"}),
		deleted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_gc_deleted_total", Help: "Keys whose bytes were deleted.",
		}),
		expired: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_gc_expired_sessions_total", Help: "Upload sessions dropped because nobody went on with them.",
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_gc_failures_total", Help: "Rounds that ended with an error.",
		}),
		roundTook: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "berth_gc_round_seconds", Help: "Time of one round, the waiting for its rate included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}),
	}
}

// Metrics returns what is measured about rounds.
func (c *Collector) Metrics() []prometheus.Collector {
	return []prometheus.Collector{c.reviewed, c.deleted, c.expired, c.failed, c.roundTook}
}

// Run does a round after another until ctx ends. A round that fails is logged;
// the next one begins where it stopped.
func (c *Collector) Run(ctx context.Context) {
	for {
		began := time.Now()
		result, err := c.Round(ctx)
		if ctx.Err() != nil {
			return
		}
		took := time.Since(began)
		c.roundTook.Observe(took.Seconds())
		if err != nil {
			c.failed.Inc()
			c.log.ErrorContext(ctx, "collection failed", "error", err)
		}
		if result.Expired+len(result.Condemned)+result.Deleted > 0 {
			c.log.InfoContext(ctx, "collected", "sessions", result.Expired, "condemned", len(result.Condemned),
				"keys", result.Deleted, "took_seconds", took.Seconds())
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.config.Interval):
		}
	}
}

// Round collects all that is due now. An error of one step does not keep the
// others from their work.
func (c *Collector) Round(ctx context.Context) (Result, error) {
	var result Result
	if c.config.Policy.DryRun {
		verdicts, err := c.DryRun(ctx, batch)
		for _, v := range verdicts {
			c.judged(ctx, v, &result)
		}
		return result, err
	}
	err := errors.Join(c.expire(ctx, &result), c.review(ctx, &result), c.delete(ctx, &result))
	if err != nil {
		return result, fmt.Errorf("collect: %w", err)
	}
	return result, nil
}

// DryRun tells what a round would decide on up to n entries that are due, and
// changes nothing. What a condemned manifest would free in turn is not in it.
func (c *Collector) DryRun(ctx context.Context, n int) ([]storage.Verdict, error) {
	policy := c.config.Policy
	policy.DryRun = true
	return c.index.Review(ctx, policy, n)
}

// expire drops the uploads that nobody went on with. The session goes last, so
// that a crash between leaves something to find.
func (c *Collector) expire(ctx context.Context, result *Result) error {
	now, err := c.index.Now(ctx)
	if err != nil {
		return err
	}
	for {
		idle, err := c.index.Idle(ctx, now.Add(-c.config.SessionExpiry), batch)
		if err != nil || len(idle) == 0 {
			return err
		}
		for _, s := range idle {
			if err := c.limit.Wait(ctx); err != nil {
				return err
			}
			if err := c.store.Discard(ctx, s.State.ID); err != nil {
				return err
			}
			if err := c.index.EndSession(ctx, s.ID); err != nil {
				return err
			}
			result.Expired++
			c.expired.Inc()
		}
	}
}

// review lets the Index decide on all that is due.
func (c *Collector) review(ctx context.Context, result *Result) error {
	for {
		verdicts, err := c.index.Review(ctx, c.config.Policy, batch)
		if err != nil {
			return err
		}
		for _, v := range verdicts {
			c.judged(ctx, v, result)
		}
		if len(verdicts) < batch {
			return nil
		}
		if err := c.limit.WaitN(ctx, batch); err != nil {
			return err
		}
	}
}

// judged counts a verdict.
func (c *Collector) judged(ctx context.Context, v storage.Verdict, result *Result) {
	if !v.Condemned {
		c.reviewed.WithLabelValues("kept").Inc()
		return
	}
	c.reviewed.WithLabelValues("condemned").Inc()
	c.log.DebugContext(ctx, "condemned", "repo", v.Repo, "digest", v.Digest, "size_bytes", v.Size, "why", v.Why,
		"dry_run", c.config.Policy.DryRun)
	result.Condemned = append(result.Condemned, v)
}

// delete removes the bytes of keys that nothing names and nobody can name any
// more, and then their rows.
func (c *Collector) delete(ctx context.Context, result *Result) error {
	for {
		now, err := c.index.Now(ctx)
		if err != nil {
			return err
		}
		keys, err := c.index.Orphans(ctx, now, batch)
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, key := range keys {
			if err := c.limit.Wait(ctx); err != nil {
				return err
			}
			if err := c.store.Delete(ctx, key); err != nil {
				return err
			}
			if err := c.index.Forget(ctx, key); err != nil {
				return err
			}
			result.Deleted++
			c.deleted.Inc()
		}
	}
}
