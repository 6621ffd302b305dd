package control

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.internal/internal/control"
	"berth.internal/internal/httpx"
)

const (
	remembered = 32                     // ended jobs
	longPoll   = time.Minute            // how long an answer waits for news
	calm       = 100 * time.Millisecond // between two pieces of news about progress
)

// Why a job was cancelled.
var (
	errCancelled = control.Unavailable.With("it was cancelled")
	errStopping  = control.Unavailable.With("the server is stopping")
)

// tell is what a job calls to say how far it has come.
type tell func(control.Progress)

// work is what a job does: it returns what came of it, also with an error.
type work func(ctx context.Context, tell tell) (result any, err error)

// jobs are the long work of one server. They live in its memory: what they work
// on is bound to this process, and none goes on after it.
type jobs struct {
	log     *slog.Logger
	running sync.WaitGroup

	mu       sync.Mutex
	all      []*job // oldest first
	stopping bool
}

// job is a record of a job. All of it is guarded by the lock of jobs.
type job struct {
	control.Job
	cancel  context.CancelCauseFunc
	told    time.Time     // when somebody was last told of progress
	changed chan struct{} // closed with the next news
}

// start begins a job. It outlives the request whose context it gets. Errors:
// conflict if one of its kind runs; unavailable if the server is stopping.
func (js *jobs) start(ctx context.Context, kind string, do work) (control.Job, error) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.stopping {
		return control.Job{}, errStopping
	}
	for _, j := range js.all {
		if j.Kind == kind && j.State == control.JobRunning {
			return control.Job{}, control.Conflict.With(fmt.Sprintf("job %s of this kind runs since %s: wait for it, or cancel it with DELETE %s",
				j.ID, j.Started.Format(time.RFC3339), j.Path))
		}
	}
	id := strings.ToLower(rand.Text()[:16])
	j := &job{changed: make(chan struct{})}
	j.Job = control.Job{
		ID: id, Kind: kind, Path: control.Base + "/jobs/" + id,
		State: control.JobRunning, Revision: 1, Started: time.Now().UTC(),
	}
	ctx, j.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	js.all = append(js.all, j)
	js.running.Go(func() { js.run(ctx, j, do) })
	js.log.InfoContext(ctx, "job begins", "job", id, "kind", kind, "request_id", httpx.RequestID(ctx))
	return j.Job, nil
}

// run does the work of a job, and records its end.
func (js *jobs) run(ctx context.Context, j *job, do work) {
	began := time.Now()
	result, err := js.guarded(ctx, j, do)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	encoded, failed := json.Marshal(result)
	err = errors.Join(err, failed)

	js.mu.Lock()
	defer js.mu.Unlock()
	defer j.cancel(nil)
	j.State, j.Ended, j.Result = control.JobDone, time.Now().UTC(), encoded
	if result == nil {
		j.Result = nil
	}
	if err != nil {
		j.State, j.Error = control.JobFailed, failure(err)
	}
	j.news()
	js.forget()
	attrs := []any{"job", j.ID, "kind", j.Kind, "took_seconds", time.Since(began).Seconds()}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		js.log.InfoContext(ctx, "job was cancelled", append(attrs, "reason", err)...)
		return
	case j.Error.Status < http.StatusInternalServerError: // as with requests, not the server's failure
		js.log.InfoContext(ctx, "job was refused", append(attrs, "reason", err)...)
		return
	default:
		js.log.ErrorContext(ctx, "job failed", append(attrs, "error", err)...)
		return
	}
	js.log.InfoContext(ctx, "job is done", attrs...)
}

// guarded does the work, and takes a panic in it for an error.
func (js *jobs) guarded(ctx context.Context, j *job, do work) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &httpx.Panic{Value: p}
		}
	}()
	return do(ctx, func(p control.Progress) {
		js.mu.Lock()
		defer js.mu.Unlock()
		j.Progress = p
		if now := time.Now(); now.Sub(j.told) >= calm {
			j.told = now
			j.news()
		}
	})
}

// news wakes those who watch the job.
func (j *job) news() {
	j.Revision++
	close(j.changed)
	j.changed = make(chan struct{})
}

// forget drops the oldest of too many ended jobs.
func (js *jobs) forget() {
	ended := 0
	for _, j := range slices.Backward(js.all) {
		if j.State != control.JobRunning {
			ended++
		}
		if ended > remembered {
			js.all = slices.DeleteFunc(js.all, func(other *job) bool { return other == j })
			return
		}
	}
}

// find returns a job as it is now, and what is closed with its next news.
func (js *jobs) find(id string) (control.Job, <-chan struct{}, error) {
	js.mu.Lock()
	defer js.mu.Unlock()
	for _, j := range js.all {
		if j.ID == id {
			return j.Job, j.changed, nil
		}
	}
	return control.Job{}, nil, control.NotFound.With(fmt.Sprintf("this server knows no job %.40q: it forgets all but the last %d that ended, and all of them when it stops", id, remembered))
}

// close cancels all jobs, and returns when they have ended.
func (js *jobs) close() {
	js.mu.Lock()
	js.stopping = true
	for _, j := range js.all {
		j.cancel(errStopping)
	}
	js.mu.Unlock()
	js.running.Wait()
}

// listJobs answers GET /jobs.
func (h *Handler) listJobs(*http.Request, control.None) (control.Jobs, error) {
	h.jobs.mu.Lock()
	defer h.jobs.mu.Unlock()
	list := control.Jobs{Jobs: []control.Job{}}
	for _, j := range h.jobs.all {
		short := j.Job
		short.Result = nil // which can be long
		list.Jobs = append(list.Jobs, short)
	}
	return list, nil
}

// job answers GET /jobs/{id}.
func (h *Handler) job(r *http.Request, q control.JobQuery) (control.Job, error) {
	timeout := time.NewTimer(longPoll)
	defer timeout.Stop()
	for {
		j, changed, err := h.jobs.find(q.ID)
		if err != nil || q.Watch == 0 || j.Revision > q.Watch || j.State != control.JobRunning {
			return j, err
		}
		select {
		case <-changed:
		case <-timeout.C:
			return j, nil
		case <-r.Context().Done():
			return j, context.Cause(r.Context())
		}
	}
}

// cancelJob answers DELETE /jobs/{id}. The job ends soon, not at once; to one
// that has ended nothing happens.
func (h *Handler) cancelJob(_ *http.Request, q control.JobID) (control.Job, error) {
	h.jobs.mu.Lock()
	for _, j := range h.jobs.all {
		if j.ID == q.ID {
			j.cancel(errCancelled)
		}
	}
	h.jobs.mu.Unlock()
	j, _, err := h.jobs.find(q.ID)
	return j, err
}
