package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/internal/control"
	"berth.internal/storage"
)

// order is what the jobs of these tests are told to do.
type order struct {
	Fail  bool `json:"fail"`
	Panic bool `json:"panic"`
	Steps int  `json:"steps"` // pieces of news, one in ten milliseconds
	Wait  bool `json:"wait"`  // until cancelled
}

type outcome struct {
	Steps int `json:"steps"`
}

func toil(_ *Handler, ctx context.Context, tell tell, o order) (done outcome, err error) {
	for done.Steps < o.Steps {
		time.Sleep(10 * time.Millisecond) // the bubble's time
		done.Steps++
		tell(control.Progress{Doing: "toiling", Done: int64(done.Steps), Unit: "steps"})
	}
	switch {
	case o.Wait:
		<-ctx.Done()
		return done, fmt.Errorf("toil: %w", ctx.Err())
	case o.Panic:
		panic("a bug")
	case o.Fail:
		return done, fmt.Errorf("write /srv/x: %w", storage.ErrNoSpace)
	}
	return done, nil
}

// boss speaks with a handler that has jobs.
type boss struct {
	*testing.T
	h *Handler
}

func newBoss(t *testing.T) boss {
	h := newHandler(Admin)
	h.table = append(h.table, long("/toil", Admin, toil, "Toils."), long("/rest", Admin, toil, "Rests."))
	return boss{t, h}
}

// ask makes a request and reads the job that the answer is.
func (b boss) ask(method, path, body string, status int) (j control.Job) {
	b.Helper()
	w := ask(b.T, b.h, method, control.Base+path, body)
	if w.Code != status {
		b.Fatalf("%s %s %s = %d %s, want %d", method, path, body, w.Code, w.Body, status)
	}
	if status < 400 {
		if err := json.Unmarshal(w.Body.Bytes(), &j); err != nil {
			b.Fatal(err)
		}
	}
	return j
}

// get asks for a job as its record says.
func (b boss) get(j control.Job, query string) control.Job {
	b.Helper()
	return b.ask("GET", strings.TrimPrefix(j.Path, control.Base)+query, "", http.StatusOK)
}

func TestJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoss(t)
		began := time.Now().UTC()
		j := b.ask("POST", "/toil", `{"steps":50}`, http.StatusAccepted)
		if j.Kind != "toil" || j.State != control.JobRunning || !j.Started.Equal(began) || j.ID == "" {
			t.Errorf("the new job is %+v", j)
		}
		var seen []int64
		for state := j; state.State == control.JobRunning; {
			state = b.get(j, fmt.Sprint("?watch=", state.Revision))
			seen = append(seen, state.Progress.Done)
			if state.State == control.JobDone && (string(state.Result) != `{"steps":50}` || state.Ended.Sub(began) != 500*time.Millisecond || state.Error != nil) {
				t.Errorf("the done job is %+v", state)
			}
		}
		// News of progress come every tenth of a second, and that of the end at once.
		if fmt.Sprint(seen) != "[1 11 21 31 41 50]" {
			t.Errorf("watching saw %v steps", seen)
		}
		if again := b.get(j, "?watch=1000"); again.State != control.JobDone {
			t.Errorf("watching an ended job = %+v", again)
		}
		b.ask("DELETE", "/jobs/"+j.ID, "", http.StatusOK)
		if after := b.get(j, ""); after.State != control.JobDone {
			t.Errorf("the job, cancelled after its end, is %s", after.State)
		}
		b.ask("GET", "/jobs/none", "", http.StatusNotFound)
		b.ask("DELETE", "/jobs/none", "", http.StatusNotFound)
	})
}

func TestOneJobOfAKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoss(t)
		first := b.ask("POST", "/toil", `{"wait":true,"steps":3}`, http.StatusAccepted)
		w := ask(t, b.h, "POST", control.Base+"/toil", "")
		if w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "DELETE "+first.Path) {
			t.Errorf("a second job of a kind = %d %s, want 409 that names the first", w.Code, w.Body)
		}
		b.ask("POST", "/rest", "", http.StatusAccepted)

		// Nothing new for a minute.
		synctest.Wait()
		time.Sleep(time.Second)
		now, began := b.get(first, ""), time.Now()
		if state := b.get(first, fmt.Sprint("?watch=", now.Revision)); state.Revision != now.Revision || time.Since(began) != time.Minute {
			t.Errorf("watching a job without news = %+v after %s", state, time.Since(began))
		}
		b.ask("DELETE", "/jobs/"+first.ID, "", http.StatusOK)
		ended := b.get(first, fmt.Sprint("?watch=", now.Revision))
		if ended.State != control.JobFailed || ended.Error.Message != "it was cancelled" || string(ended.Result) != `{"steps":3}` {
			t.Errorf("the cancelled job is %+v, %v", ended, ended.Error)
		}
		b.ask("POST", "/toil", "", http.StatusAccepted)
	})
}

func TestFailedJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoss(t)
		for _, tc := range []struct {
			body string
			want *control.Error
			says string
		}{
			{`{"fail":true,"steps":2}`, control.Unavailable, "disk is full"},
			{`{"panic":true}`, control.Internal, "its log says why"},
		} {
			j := b.ask("POST", "/toil", tc.body, http.StatusAccepted)
			synctest.Wait()
			time.Sleep(time.Second)
			j = b.get(j, "")
			if j.State != control.JobFailed || !errors.Is(j.Error, tc.want) || !strings.Contains(j.Error.Message, tc.says) || strings.Contains(j.Error.Message, "/srv") {
				t.Errorf("the job that was told %s is %s: %v, want %v", tc.body, j.State, j.Error, tc.want)
			}
		}
	})
}

func TestJobsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoss(t)
		runs := b.ask("POST", "/rest", `{"wait":true}`, http.StatusAccepted)
		var jobs []control.Job
		for range remembered + 5 {
			jobs = append(jobs, b.ask("POST", "/toil", "", http.StatusAccepted))
			synctest.Wait()
		}
		var list control.Jobs
		if err := json.Unmarshal(ask(t, b.h, "GET", control.Base+"/jobs", "").Body.Bytes(), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Jobs) != remembered+1 || list.Jobs[0].ID != runs.ID || list.Jobs[1].ID != jobs[5].ID || list.Jobs[remembered].ID != jobs[remembered+4].ID {
			t.Errorf("%d jobs are remembered, want the running one and the last %d", len(list.Jobs), remembered)
		}
		b.ask("GET", "/jobs/"+jobs[4].ID, "", http.StatusNotFound)
		b.get(runs, "")
		b.h.Close()
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoss(t)
		j := b.ask("POST", "/toil", `{"wait":true}`, http.StatusAccepted)
		watched := make(chan control.Job)
		go func() { watched <- b.get(j, "?watch=1") }()
		synctest.Wait()
		b.h.Close()
		if j := <-watched; j.State != control.JobFailed || j.Error.Message != "the server is stopping" {
			t.Errorf("the job at the end of its server is %+v, %v", j, j.Error)
		}
		b.ask("POST", "/toil", "", http.StatusServiceUnavailable)
	})
}
