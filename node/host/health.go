package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"berth.internal/node/container"
)

const (
	healthKept   = 5       // results
	healthOutput = 4 << 10 // bytes of a result

	// healthCode is the exit code of a check that gave none.
	healthCode = -1

	// After a check has ended, or was killed, so long is waited for who holds its
	// output, and for the kernel.
	healthDrain = time.Second
	healthKill  = 10 * time.Second
)

// health asks a container in one run whether it is well.
type health struct {
	check   Health // with defaults
	started time.Time
	stop    context.CancelFunc

	mu    sync.Mutex
	state HealthState
}

func newHealth(check Health, started time.Time) *health {
	return &health{check: check.withDefaults(), started: started, state: HealthState{Status: Starting}}
}

// snapshot returns what came of it so far; nil of nil.
func (p *health) snapshot() *HealthState {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state
	s.Log = slices.Clone(s.Log)
	return &s
}

// interval is how long to wait before the next check.
func (p *health) interval() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.Status == Starting && time.Since(p.started) < p.check.StartPeriod {
		return p.check.StartInterval
	}
	return p.check.Interval
}

// first is how long to wait before the first check. Those of a node that has come
// back are spread as they were before.
func (p *health) first() time.Duration {
	interval := p.interval()
	return interval - max(time.Since(p.started), 0)%interval
}

// run asks until ctx ends, one check at a time and none of a container that is
// paused: that could not answer.
func (p *health) run(ctx context.Context, probe func(context.Context) HealthResult, paused func() bool, tell func(HealthStatus)) {
	timer := time.NewTimer(p.first())
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if !paused() {
			result := probe(ctx)
			if ctx.Err() != nil {
				return // it ended with its container
			}
			if !paused() && p.note(result) {
				tell(p.snapshot().Status)
			}
		}
		timer.Reset(p.interval())
	}
}

// note counts a result as Docker does, and reports whether the status has changed.
func (p *health) note(r HealthResult) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.state
	if len(s.Log) == healthKept {
		s.Log = slices.Delete(s.Log, 0, 1)
	}
	s.Log = append(s.Log, r)
	before := s.Status
	switch {
	case r.ExitCode == 0:
		s.Status, s.FailingStreak = Healthy, 0
	case s.Status == Starting && r.Start.Sub(p.started) < p.check.StartPeriod:
	default:
		if s.FailingStreak++; s.FailingStreak >= p.check.Retries {
			s.Status = Unhealthy
		}
	}
	return s.Status != before
}

// ask begins to ask the container, whose run has just begun, if there is something
// to ask.
func (h *Host) ask(c *ctr) {
	check := c.rec.Spec.Health
	if !check.checked() {
		return
	}
	args, err := check.command()
	if err != nil {
		h.opts.Log.Warn("container is not asked whether it is well", "container", c.rec.ID, "error", err)
		return
	}
	c.mu.Lock()
	p := newHealth(*check, c.state.Started)
	c.stopAsking()
	c.health = p
	asking, stop := context.WithCancel(context.Background())
	p.stop = stop
	c.mu.Unlock()
	h.begin(func(ctx context.Context) {
		defer stop()
		defer context.AfterFunc(ctx, stop)()
		p.run(asking, func(ctx context.Context) HealthResult { return h.probe(ctx, c, args, p.check.Timeout) }, c.paused, func(s HealthStatus) {
			h.tell(c, "health_status: "+string(s))
		})
	})
}

// stopAsking is called at the end of a run. c.mu is held.
func (c *ctr) stopAsking() {
	if c.health != nil {
		c.health.stop()
		c.health = nil
	}
}

func (c *ctr) paused() bool {
	_, state := c.now()
	return state.Paused
}

// command is what the test executes.
func (h *Health) command() ([]string, error) {
	switch kind := h.Test[0]; kind {
	case HealthExec:
		return h.Test[1:], nil
	case HealthShell:
		shell := h.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return slices.Concat(shell, h.Test[1:]), nil
	default:
		return nil, fmt.Errorf("unknown type of health check %q (expected 'CMD')", kind)
	}
}

// probe runs one check, and ends it if it takes too long.
func (h *Host) probe(ctx context.Context, c *ctr, args []string, timeout time.Duration) HealthResult {
	r := HealthResult{Start: time.Now(), ExitCode: healthCode}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	code, output, err := h.runProbe(limited, c, args)
	switch r.Output = output; {
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		r.Output = fmt.Sprintf("Health check exceeded timeout (%v)", timeout)
		if output != "" {
			r.Output += ": " + output
		}
	case err != nil:
		r.Output = err.Error()
	default:
		r.ExitCode = code
	}
	r.End = time.Now()
	return r
}

// runProbe executes the check. It returns soon after ctx has ended, and leaves no
// process then.
func (h *Host) runProbe(ctx context.Context, c *ctr, args []string) (code int, output string, err error) {
	process, err := h.execProcess(&execution{ctr: c, spec: ExecSpec{Args: args}})
	if err != nil {
		return 0, "", err
	}
	p, err := h.opts.Runtime.Exec(ctx, c.rec.ID, container.ExecSpec{Process: *process, AttachOptions: container.AttachOptions{Stdout: true, Stderr: true}})
	if err != nil {
		return 0, "", startFailure(args[0], err)
	}
	out := &firstBytes{max: healthOutput}
	var reading sync.WaitGroup
	for _, from := range []io.Reader{p.Stdout, p.Stderr} {
		reading.Go(func() { _, _ = io.Copy(out, from) }) // it ends with the process, or is closed
	}
	waiting, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		code, err = p.Wait(waiting)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		kerr := p.Kill()
		late := time.AfterFunc(healthKill, giveUp) // frozen, or in the kernel
		<-ended
		late.Stop()
		err = errors.Join(err, kerr)
	}
	late := time.AfterFunc(healthDrain, func() { _ = p.Streams.Close() })
	reading.Wait()
	late.Stop()
	_ = p.Streams.Close()
	return code, out.String(), err
}

// firstBytes keeps the beginning of what is written to it.
type firstBytes struct {
	max int

	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *firstBytes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p[:min(len(p), w.max-w.buf.Len())])
	return len(p), nil
}

func (w *firstBytes) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
