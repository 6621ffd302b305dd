package host

import "testing"

// TestMemoryRunsOut: that the kernel kills for memory is told at once, and once.
func TestMemoryRunsOut(t *testing.T) {
	n := newNode(t)
	events := n.Events()
	defer events.Close()
	n.create(t, "hog", "dd if=/dev/zero of=/dev/null bs=64M count=1; echo lives; sleep 100", func(s *Spec) {
		s.Resources = Resources{Memory: 16 << 20, MemorySwap: 16 << 20}
	})
	n.start(t, "hog")
	events.await(t, "hog", "oom")
	n.says(t, "hog", "lives", 1)
	if s := n.state(t, "hog"); s.Status != Running {
		t.Errorf("it is %+v, want it running", s)
	}
	n.endsUntold(t, "hog", events)
}

// TestMemoryLimitLater: also of a limit that was set on a container that runs, taken
// away and set again; once.
func TestMemoryLimitLater(t *testing.T) {
	n := newNode(t)
	events := n.Events()
	defer events.Close()
	n.create(t, "hog", "until [ -e /go ]; do sleep 0.02; done; dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 100", nil)
	n.start(t, "hog")
	for _, limit := range []int64{16 << 20, 0, 16 << 20} {
		if err := n.Update(t.Context(), "hog", func(s *Spec) error {
			s.Resources.Memory, s.Resources.MemorySwap = limit, limit
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	x, err := n.CreateExec(t.Context(), "hog", ExecSpec{Args: []string{"touch", "/go"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.StartExec(t.Context(), x, Streams{}); err != nil {
		t.Fatal(err)
	}
	events.await(t, "hog", "oom")
	n.endsUntold(t, "hog", events)
}

// TestMemoryLimitOfAnotherRun: a limit that the run before had does not count for one
// that is set in this one.
func TestMemoryLimitOfAnotherRun(t *testing.T) {
	n := newNode(t)
	events := n.Events()
	defer events.Close()
	limit := func(bytes int64) {
		t.Helper()
		if err := n.Update(t.Context(), "hog", func(s *Spec) error {
			s.Resources.Memory, s.Resources.MemorySwap = bytes, bytes
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	n.create(t, "hog", "until [ -e /go ]; do sleep 0.02; done; dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 100", func(s *Spec) {
		s.Resources = Resources{Memory: 16 << 20, MemorySwap: 16 << 20}
	})
	n.start(t, "hog")
	if err := n.Kill(t.Context(), "hog", "KILL"); err != nil {
		t.Fatal(err)
	}
	events.await(t, "hog", "die")
	limit(0)
	n.start(t, "hog")
	limit(16 << 20)
	x, err := n.CreateExec(t.Context(), "hog", ExecSpec{Args: []string{"touch", "/go"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.StartExec(t.Context(), x, Streams{}); err != nil {
		t.Fatal(err)
	}
	events.await(t, "hog", "oom")
	n.endsUntold(t, "hog", events)
}

// endsUntold kills the container, whose end of memory was told before. The signal is
// told before or after the end that it makes, and nothing else is.
func (n *node) endsUntold(t *testing.T, name string, events *Subscription) {
	t.Helper()
	if err := n.Kill(t.Context(), name, "KILL"); err != nil {
		t.Fatal(err)
	}
	for told := map[string]bool{}; len(told) < 2; {
		e := events.next(t)
		if e.Action != "kill" && e.Action != "die" {
			t.Fatalf("after the container was killed comes %s", e.Action)
		}
		told[e.Action] = true
	}
	if s := n.state(t, name); !s.OOMKilled {
		t.Errorf("it ends as %+v, want OOMKilled", s)
	}
}
