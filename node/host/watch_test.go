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

// fillsMemory takes 64 MiB when fillMemory says so.
const fillsMemory = "until [ -e /go ]; do sleep 0.02; done; dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 100"

func (n *node) fillMemory(t *testing.T, name string) {
	t.Helper()
	x, err := n.CreateExec(t.Context(), name, ExecSpec{Args: []string{"touch", "/go"}})
	if err == nil {
		err = n.StartExec(t.Context(), x, Streams{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// limitMemory gives a container another limit of memory, or none.
func (n *node) limitMemory(t *testing.T, name string, limit int64) {
	t.Helper()
	if err := n.Update(t.Context(), name, func(s *Spec) error {
		s.Resources.Memory, s.Resources.MemorySwap = limit, limit
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestMemoryLimitLater: also of a limit that was set on a container that runs, taken
// away and set again; once.
func TestMemoryLimitLater(t *testing.T) {
	n := newNode(t)
	events := n.Events()
	defer events.Close()
	n.create(t, "hog", fillsMemory, nil)
	n.start(t, "hog")
	for _, limit := range []int64{16 << 20, 0, 16 << 20} {
		n.limitMemory(t, "hog", limit)
	}
	n.fillMemory(t, "hog")
	events.await(t, "hog", "oom")
	n.endsUntold(t, "hog", events)
}

// TestMemoryLimitOfAnotherRun: a limit that the run before had does not count for one
// that is set in this one.
func TestMemoryLimitOfAnotherRun(t *testing.T) {
	n := newNode(t)
	events := n.Events()
	defer events.Close()
	n.create(t, "hog", fillsMemory, func(s *Spec) {
		s.Resources = Resources{Memory: 16 << 20, MemorySwap: 16 << 20}
	})
	n.start(t, "hog")
	if err := n.Kill(t.Context(), "hog", "KILL"); err != nil {
		t.Fatal(err)
	}
	events.await(t, "hog", "die")
	n.limitMemory(t, "hog", 0)
	n.start(t, "hog")
	n.limitMemory(t, "hog", 16<<20)
	n.fillMemory(t, "hog")
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
