package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
)

// server has one job, which goes on with each look at it.
type server struct {
	steps []wire.Job

	mu     sync.Mutex
	seen   []string
	looked chan struct{} // gets an element with each look
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, r.Method+" "+r.URL.String())
	step := s.steps[0]
	if len(s.steps) > 1 {
		s.steps = s.steps[1:]
	}
	s.mu.Unlock()
	if r.Method == http.MethodGet && s.looked != nil {
		s.looked <- struct{}{}
		<-r.Context().Done()
		return
	}
	_ = json.NewEncoder(w).Encode(step)
}

func newServer(t *testing.T, s *server) *control.Client {
	t.Helper()
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	client, err := control.New(h.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func running(revision uint64) wire.Job {
	return wire.Job{ID: "7", Path: wire.Base + "/jobs/7", State: wire.JobRunning, Revision: revision}
}

func TestRun(t *testing.T) {
	done, failed := running(9), running(9)
	done.State, done.Result = wire.JobDone, json.RawMessage(`{"x":1}`)
	failed.State, failed.Result, failed.Error = wire.JobFailed, json.RawMessage(`{"x":1}`), wire.Unavailable
	for _, tc := range []struct {
		name string
		last wire.Job
		want error
	}{{"done", done, nil}, {"failed", failed, wire.Unavailable}} {
		s := &server{steps: []wire.Job{running(1), running(5), tc.last}}
		var told []uint64
		job, err := newServer(t, s).Run(t.Context(), "/gc", nil, func(j wire.Job) { told = append(told, j.Revision) })
		if !errors.Is(err, tc.want) || string(job.Result) != `{"x":1}` {
			t.Errorf("%s: Run() = %+v, %v; want %v and the result", tc.name, job, err, tc.want)
		}
		got := strings.Join(s.seen, ", ")
		if want := "POST /berth/v1/gc, GET /berth/v1/jobs/7?watch=1, GET /berth/v1/jobs/7?watch=5"; got != want || len(told) != 2 {
			t.Errorf("%s: the server got %s, want %s; watch was told of %v", tc.name, got, want, told)
		}
	}
}

// TestRunIsGivenUp lets a user give up a job, which is cancelled then.
func TestRunIsGivenUp(t *testing.T) {
	s := &server{steps: []wire.Job{running(1)}, looked: make(chan struct{})}
	client := newServer(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := client.Run(ctx, "/gc", nil, nil)
		ended <- err
	}()
	<-s.looked
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the job was cancelled") {
		t.Errorf("Run() = %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.seen[len(s.seen)-1]; last != "DELETE /berth/v1/jobs/7" {
		t.Errorf("the last request is %s, want the job cancelled", last)
	}
}
