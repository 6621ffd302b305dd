package control

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"berth.internal/internal/control"
)

// Run starts the job of a long operation and returns it when it has ended.
// watch, if it is not nil, is told of each change. If ctx ends, the job is
// cancelled. Errors: those of Get; if the job failed, its *control.Error, and the
// job has what was done until then.
func (c *Client) Run(ctx context.Context, path string, request any, watch func(control.Job)) (control.Job, error) {
	var job control.Job
	if err := c.Do(ctx, http.MethodPost, path, request, &job); err != nil {
		return job, err
	}
	at := strings.TrimPrefix(job.Path, control.Base)
	for job.State == control.JobRunning {
		var news control.Job
		if err := c.Get(ctx, at, map[string]uint64{"watch": job.Revision}, &news); err != nil {
			if ctx.Err() == nil {
				return job, err
			}
			return job, c.cancel(ctx, at)
		}
		if job = news; watch != nil {
			watch(job)
		}
	}
	if job.Error != nil {
		return job, job.Error
	}
	return job, nil
}

// cancel ends a job whose starter, with ctx, waits no more.
func (c *Client) cancel(ctx context.Context, at string) error {
	soon, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if err := c.Do(soon, http.MethodDelete, at, nil, nil); err != nil {
		return fmt.Errorf("%w; it could not be cancelled and may go on: %w", context.Cause(ctx), err)
	}
	return fmt.Errorf("%w; the job was cancelled", context.Cause(ctx))
}
