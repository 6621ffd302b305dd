// Package gc is the collector: it takes away what nothing needs any more, while
// everybody goes on pushing. What may go is decided by storage.Collector in its
// own transactions, which is why no lock stands between a push and it.
package gc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"berth.internal/storage"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// batch is how many queue entries one transaction reviews, and how many keys
// one deletes. A push waits for one of them at most.
const batch = 25

// resting is how many times as long as a batch took the collector rests before
// the next: where pushes keep the disk busy, it is busy with the collector's
// work a quarter of the time at most.
const resting = 3

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

	// Policy is what review may condemn.
	Policy storage.ReviewPolicy

	// Records remember the policy, so that one that has changed reaches what was
	// reviewed before. Nil: it does not.
	Records storage.Records
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
	store storage.Store
	index storage.Index
	now   atomic.Pointer[Config]
	again chan struct{} // the pause is another one
	limit *rate.Limiter
	log   *slog.Logger
	busy  chan struct{} // holds one element during a round
	holds atomic.Int64  // those who need the bytes to stay

	reviewed  *prometheus.CounterVec // by verdict
	deleted   prometheus.Counter
	freed     prometheus.Counter
	expired   prometheus.Counter
	failed    prometheus.Counter
	roundTook prometheus.Histogram
}

// Result is what a round did, in numbers of entries.
type Result struct {
	Expired   int   // uploads dropped
	Condemned int   // blobs and manifests taken from their repositories
	Kept      int   // blobs and manifests that were reviewed and are needed
	Deleted   int   // keys, with their bytes
	Freed     int64 // bytes of those
	Held      bool  // keys stay until a backup has ended
}

// New returns a collector of what index no longer needs in store.
func New(store storage.Store, index storage.Index, config Config, log *slog.Logger) *Collector {
	config = config.withDefaults()
	c := &Collector{
		store: store, index: index, log: log, busy: make(chan struct{}, 1), again: make(chan struct{}, 1),
		limit: rate.NewLimiter(rate.Limit(config.Rate), batch),
		reviewed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_gc_reviews_total", Help: "Reviews of content that something may have freed, by verdict.",
		}, []string{"verdict"}),
		deleted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_gc_deleted_total", Help: "Keys whose bytes were deleted.",
		}),
		freed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_gc_freed_bytes_total", Help: "Size of the keys whose bytes were deleted.",
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
	c.now.Store(&config)
	return c
}

func (c *Collector) config() *Config { return c.now.Load() }

// Set changes, while the collector runs, how long it rests after a round, how fast
// it is, and the rules of its Policy.
func (c *Collector) Set(interval time.Duration, perSecond int, rules storage.Rules) {
	config := *c.config()
	config.Interval, config.Rate, config.Policy.Rules = interval, perSecond, rules
	c.now.Store(&config)
	c.limit.SetLimit(rate.Limit(perSecond))
	select {
	case c.again <- struct{}{}:
	default: // it will look
	}
}

// Metrics returns what is measured about rounds.
func (c *Collector) Metrics() []prometheus.Collector {
	return []prometheus.Collector{c.reviewed, c.deleted, c.freed, c.expired, c.failed, c.roundTook}
}

// Run does a round after another until ctx ends. A round that fails is logged;
// the next one begins where it stopped.
func (c *Collector) Run(ctx context.Context) {
	if err := c.requeue(ctx); err != nil && ctx.Err() == nil {
		c.log.ErrorContext(ctx, "what an earlier policy kept was not queued again; the next start will", "error", err)
	}
	for {
		began := time.Now()
		result, err := c.Round(ctx, nil)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.log.ErrorContext(ctx, "collection failed", "error", err)
		}
		if result.Expired+result.Condemned+result.Deleted > 0 {
			c.log.InfoContext(ctx, "collected", "sessions", result.Expired, "condemned", result.Condemned,
				"keys", result.Deleted, "took_seconds", time.Since(began).Seconds())
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.config().Interval):
		case <-c.again:
		}
	}
}

// Hold lets all bytes stay that anything names when it returns, or that
// something will name, until release is called. The rest of the collector's work
// goes on; what is held back comes after it. Several may hold at a time.
func (c *Collector) Hold() (release func()) {
	c.holds.Add(1)
	return sync.OnceFunc(func() { c.holds.Add(-1) })
}

// Round collects all that is due now, after the round that may be under way. An
// error of one step does not keep the others from their work. tell, if it is
// not nil, is told of each entry when that is done.
func (c *Collector) Round(ctx context.Context, tell func(Entry)) (Result, error) {
	var result Result
	select {
	case c.busy <- struct{}{}:
		defer func() { <-c.busy }()
	case <-ctx.Done():
		return result, fmt.Errorf("collect: %w", context.Cause(ctx))
	}
	if tell == nil {
		tell = func(Entry) {}
	}
	began := time.Now()
	err := errors.Join(c.expire(ctx, &result, tell), c.review(ctx, &result, tell), c.delete(ctx, &result, tell))
	c.roundTook.Observe(time.Since(began).Seconds())
	if err != nil {
		if ctx.Err() == nil {
			c.failed.Inc()
		}
		return result, fmt.Errorf("collect: %w", err)
	}
	return result, nil
}

// expire drops the uploads that nobody went on with. The session goes first, in
// one transaction with the look at its age, so that a client either finds no
// session or has all its bytes.
func (c *Collector) expire(ctx context.Context, result *Result, tell func(Entry)) error {
	now, err := c.index.Now(ctx)
	if err != nil {
		return err
	}
	for {
		// Looked at first: a round without work writes nothing.
		idle, _, err := c.index.Idle(ctx, now.Add(-c.config().SessionExpiry), "", 1)
		if err != nil || len(idle) == 0 {
			return err
		}
		if err := c.limit.Wait(ctx); err != nil {
			return err
		}
		if idle, err = c.index.Expire(ctx, now.Add(-c.config().SessionExpiry), 1); err != nil {
			return err
		}
		for _, s := range idle {
			if err := c.discard(ctx, s); err != nil {
				return err
			}
			result.Expired++
			c.expired.Inc()
			tell(c.upload(s))
		}
	}
}

// discard drops the bytes of a session that has ended. What cannot be dropped is
// a session again, to be found when it is idle once more. After a crash Sweep
// finds it.
func (c *Collector) discard(ctx context.Context, s storage.Session) error {
	ctx = context.WithoutCancel(ctx)
	err := c.store.Discard(ctx, s.State.ID)
	if err == nil {
		return nil
	}
	s.Updated = time.Time{}
	return errors.Join(err, c.index.PutSession(ctx, s))
}

// review lets the Index decide on all that is due.
func (c *Collector) review(ctx context.Context, result *Result, tell func(Entry)) error {
	for {
		began := time.Now()
		verdicts, err := c.index.Review(ctx, c.config().Policy, batch)
		if err != nil {
			return err
		}
		for _, v := range verdicts {
			if v.Condemned {
				result.Condemned++
				c.reviewed.WithLabelValues("condemned").Inc()
				c.log.DebugContext(ctx, "condemned", "repo", v.Repo, "digest", v.Digest, "size_bytes", v.Size, "why", v.Why)
			} else {
				result.Kept++
				c.reviewed.WithLabelValues("kept").Inc()
			}
			tell(reviewed(v))
		}
		if len(verdicts) < batch {
			return nil
		}
		if err := c.rest(ctx, batch, time.Since(began)); err != nil {
			return err
		}
	}
}

// delete removes the bytes of keys that nothing names and nobody can name any
// more, and then their rows.
func (c *Collector) delete(ctx context.Context, result *Result, tell func(Entry)) error {
	for {
		began := time.Now()
		now, err := c.index.Now(ctx)
		if err != nil {
			return err
		}
		keys, _, err := c.index.Orphans(ctx, now, "", batch)
		if err != nil || len(keys) == 0 {
			return err
		}
		// Asked after the keys were listed: those of a list that is older than
		// the hold had lost their names before it.
		if c.holds.Load() > 0 {
			result.Held = true
			return nil
		}
		gone := make([]Entry, len(keys))
		for i, key := range keys {
			gone[i] = orphan(key)
			_ = c.measure(ctx, &gone[i]) // what cannot be measured goes, too
		}
		if err := c.store.Delete(ctx, keys...); err != nil {
			return err
		}
		if err := c.index.Forget(ctx, keys...); err != nil {
			return err
		}
		for _, e := range gone {
			result.Deleted++
			result.Freed += e.Size
			c.deleted.Inc()
			c.freed.Add(float64(e.Size))
			tell(e)
		}
		if err := c.rest(ctx, len(keys), time.Since(began)); err != nil {
			return err
		}
	}
}

// rest lets others have the disk after n entries, which took so long.
func (c *Collector) rest(ctx context.Context, n int, took time.Duration) error {
	if err := c.limit.WaitN(ctx, n); err != nil {
		return err
	}
	select {
	case <-time.After(resting * took):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
