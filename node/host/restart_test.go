package host

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.internal/node/container"
)

func TestNextDelay(t *testing.T) {
	var delay time.Duration
	for i, want := range []time.Duration{
		100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond,
		3200 * time.Millisecond, 6400 * time.Millisecond, 12800 * time.Millisecond, 25600 * time.Millisecond, 51200 * time.Millisecond, time.Minute, time.Minute,
	} {
		if delay = nextDelay(delay, 9*time.Second); delay != want {
			t.Errorf("delay %d is %v, want %v", i, delay, want)
		}
	}
	if delay = nextDelay(delay, 10*time.Second); delay != firstDelay {
		t.Errorf("after a run of ten seconds the delay is %v", delay)
	}
}

func TestCheckRestart(t *testing.T) {
	for _, tc := range []struct {
		policy container.RestartPolicy
		max    int
		remove bool
		says   string
	}{
		{policy: RestartNo},
		{policy: RestartAlways},
		{policy: RestartOnFailure, max: 3},
		{policy: RestartAlways, max: 1, says: "invalid restart policy: maximum retry count can only be used with 'on-failure'"},
		{policy: RestartOnFailure, max: -1, says: "invalid restart policy: maximum retry count cannot be negative"},
		{policy: "sometimes", says: "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"},
		{policy: RestartUnlessStopped, remove: true, says: "can't create 'AutoRemove' container with restart policy"},
	} {
		err := checkRestart(Restart{Policy: tc.policy, Max: tc.max}, tc.remove)
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || err.Error() != tc.says || !errors.Is(err, ErrInvalid)) {
			t.Errorf("policy %q, %d, remove %v: %v, want %q", tc.policy, tc.max, tc.remove, err, tc.says)
		}
	}
}

// TestOnBoot is the table of what runs after a reboot.
func TestOnBoot(t *testing.T) {
	for _, tc := range []struct {
		policy container.RestartPolicy
		asked  string
		code   int
		known  bool
		want   bool
	}{
		{RestartNo, "", 1, true, false},
		{RestartAlways, "", 0, false, false}, // never started
		{RestartAlways, askedStart, 0, true, true},
		{RestartAlways, askedStop, 137, true, true},
		{RestartUnlessStopped, askedStart, 0, true, true},
		{RestartUnlessStopped, askedStart, 0, false, true},
		{RestartUnlessStopped, askedStop, 137, true, false},
		{RestartUnlessStopped, askedStop, 0, false, false},
		{RestartOnFailure, askedStart, 0, true, false},
		{RestartOnFailure, askedStart, 137, true, true},
		{RestartOnFailure, askedStart, 0, false, true}, // the machine stopped under it
		{RestartOnFailure, askedStop, 137, true, false},
	} {
		rec := record{Asked: tc.asked, Spec: Spec{Restart: Restart{Policy: tc.policy}}}
		if got := rec.onBoot(State{ExitCode: tc.code}, tc.known); got != tc.want {
			t.Errorf("%s, asked for %q, exit code %d (known: %v): begins %v, want %v", tc.policy, tc.asked, tc.code, tc.known, got, tc.want)
		}
	}
}

func with(policy container.RestartPolicy, limit int) func(*Spec) {
	return func(s *Spec) { s.Restart = Restart{Policy: policy, Max: limit} }
}

// TestShimKilled: with its shim a container loses its processes, not its policy.
func TestShimKilled(t *testing.T) {
	n := newNode(t)
	n.create(t, "web", "sleep 100", with(RestartUnlessStopped, 0))
	n.create(t, "job", "sleep 100", nil)
	n.start(t, "web")
	n.start(t, "job")
	events := n.Events()
	defer events.Close()
	for _, pid := range n.shims(t) {
		kill(t, pid)
	}
	events.await(t, "web", "start")
	if s := n.state(t, "web"); s.Status != Running || s.Restarts != 1 || s.PID == 0 {
		t.Errorf("web is %+v, want it running, begun again once", s)
	}
	wait, err := n.Wait("job", NotRunning)
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := wait(t.Context()); err != nil || exit.Code != 137 {
		t.Errorf("job exited with %+v, %v, want 137", exit, err)
	}
	if s := n.state(t, "job"); s.Status != Exited || s.Started.IsZero() {
		t.Errorf("job is %+v, want it exited", s)
	}
}

// TestShimKilledBetweenRuns: nor does it lose its policy while it waits for its next
// run.
func TestShimKilledBetweenRuns(t *testing.T) {
	n := newNode(t)
	n.create(t, "loop", "exit 7", with(RestartAlways, 0))
	events := n.Events()
	defer events.Close()
	n.start(t, "loop")
	for range 5 { // the next run is more than a second away
		events.await(t, "loop", "die")
	}
	for _, pid := range n.shims(t) {
		kill(t, pid)
	}
	events.await(t, "loop", "start")
	events.await(t, "loop", "die")
	if s := n.state(t, "loop"); s.Status != Restarting || s.ExitCode != 7 || s.Restarts != 5 {
		t.Errorf("loop is %+v, want it restarting for the 6th time", s)
	}
}

// TestReboot: what shall run does, and nothing else.
func TestReboot(t *testing.T) {
	n := newNode(t)
	for name, policy := range map[string]container.RestartPolicy{"no": RestartNo, "always": RestartAlways, "unless": RestartUnlessStopped, "failure": RestartOnFailure} {
		for _, stopped := range []string{"", "-stopped"} {
			n.create(t, name+stopped, "sleep 100", with(policy, 0))
			n.start(t, name+stopped)
		}
		zero := 0
		if err := n.Stop(t.Context(), name+"-stopped", StopOptions{Timeout: &zero}); err != nil {
			t.Fatal(err)
		}
	}
	n.create(t, "never", "sleep 100", with(RestartAlways, 0))
	n.reboot(t)
	n.open(t)
	events := n.Events()
	defer events.Close()
	begun := map[string]bool{}
	for _, e := range events.Past {
		if e.Action == "start" {
			begun[e.Attributes["name"]] = true
		}
	}
	want := []string{"always", "always-stopped", "unless", "failure"}
	for _, name := range want {
		if !begun[name] && n.state(t, name).Status != Running {
			events.await(t, name, "start")
		}
	}
	running := map[string]bool{}
	for _, c := range n.List() {
		running[c.Name] = c.State.Alive()
	}
	for _, name := range want {
		if !running[name] {
			t.Errorf("%s does not run", name)
		}
		delete(running, name)
	}
	for name, runs := range running {
		if runs {
			t.Errorf("%s runs", name)
		}
	}
	if s := n.state(t, "never"); s.Status != Created {
		t.Errorf("what was never started is %s", s.Status)
	}
}

// TestStopWhileRestarting: stopping ends the wait for the next run.
func TestStopWhileRestarting(t *testing.T) {
	for _, how := range []string{"stop", "kill", "remove"} {
		t.Run(how, func(t *testing.T) {
			n := newNode(t)
			n.create(t, "loop", "exit 7", with(RestartAlways, 0))
			events := n.Events()
			defer events.Close()
			n.start(t, "loop")
			for range 4 {
				events.await(t, "loop", "die")
			}
			if s := n.state(t, "loop"); s.Status != Restarting || s.ExitCode != 7 || s.Restarts < 3 {
				t.Errorf("loop is %+v, want restarting", s)
			}
			wait, err := n.Wait("loop", NotRunning)
			if err != nil {
				t.Fatal(err)
			}
			switch how {
			case "stop":
				err = n.Stop(t.Context(), "loop", StopOptions{})
			case "kill":
				err = n.Kill(t.Context(), "loop", "KILL")
			case "remove":
				err = n.Remove(t.Context(), "loop", true)
			}
			if err != nil {
				t.Fatalf("%s a restarting container: %v", how, err)
			}
			if exit, err := wait(t.Context()); err != nil || exit.Code != 7 {
				t.Errorf("wait: %+v, %v, want code 7", exit, err)
			}
			if how == "remove" {
				return
			}
			if s := n.state(t, "loop"); s.Status != Exited || s.ExitCode != 7 {
				t.Errorf("loop is %+v, want exited", s)
			}
		})
	}
}

// TestOnFailureEnds: with a maximum there is an end, and a good end is one.
func TestOnFailureEnds(t *testing.T) {
	n := newNode(t)
	n.create(t, "bad", "exit 3", with(RestartOnFailure, 2))
	n.create(t, "good", "[ -e /once ] && exit 0; touch /once; exit 1", with(RestartOnFailure, 0))
	for name, want := range map[string]State{"bad": {ExitCode: 3, Restarts: 2}, "good": {ExitCode: 0, Restarts: 1}} {
		n.start(t, name)
		wait, err := n.Wait(name, NotRunning)
		if err != nil {
			t.Fatal(err)
		}
		exit, err := wait(t.Context())
		if s := n.state(t, name); err != nil || exit.Code != want.ExitCode || s.Status != Exited || s.Restarts != want.Restarts {
			t.Errorf("%s exited with %+v, %v and is %+v, want code %d after %d restarts", name, exit, err, s, want.ExitCode, want.Restarts)
		}
	}
}

// TestUpdateRestart: a policy given to a container that runs holds for it, and one taken
// away, too.
func TestUpdateRestart(t *testing.T) {
	n := newNode(t)
	update := func(name string, r Restart) error {
		return n.Update(t.Context(), name, func(s *Spec) error {
			s.Restart = r
			return nil
		})
	}
	n.create(t, "web", "trap 'exit 129' HUP; echo up; while :; do sleep 0.05; done", nil)
	n.start(t, "web")
	n.says(t, "web", "up", 1)
	if err := update("web", Restart{Policy: RestartAlways}); err != nil {
		t.Fatal(err)
	}
	events := n.Events()
	defer events.Close()
	if err := n.Kill(t.Context(), "web", "HUP"); err != nil { // no sign that it shall end
		t.Fatal(err)
	}
	events.await(t, "web", "die")
	events.await(t, "web", "start")
	n.says(t, "web", "up", 2)
	if err := update("web", Restart{}); err != nil {
		t.Fatal(err)
	}
	wait, err := n.Wait("web", NotRunning)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(t.Context(), "web", "HUP"); err != nil {
		t.Fatal(err)
	}
	if exit, err := wait(t.Context()); err != nil || exit.Code != 129 {
		t.Errorf("wait: %+v, %v, want 129", exit, err)
	}
	if err := update("web", Restart{Policy: "often"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a policy that does not exist: %v", err)
	}
	n.create(t, "once", "exit", func(s *Spec) { s.AutoRemove = true })
	if err := update("once", Restart{Policy: RestartAlways}); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "AutoRemove is enabled") {
		t.Errorf("a policy for what is removed when it exits: %v", err)
	}
}

// TestRestartsWithoutNode: what begins again while there is no node is counted by the
// next one, which goes on telling.
func TestRestartsWithoutNode(t *testing.T) {
	n := newNode(t)
	n.create(t, "loop", "echo up; exit 7", with(RestartAlways, 0))
	n.start(t, "loop")
	n.shut(t)
	n.open(t)
	events := n.Events()
	defer events.Close()
	events.await(t, "loop", "die")
	n.says(t, "loop", "up", 4)
	s := n.state(t, "loop")
	if !s.Alive() || s.Restarts < 2 {
		t.Errorf("loop is %+v, want it alive", s)
	}
	wait, err := n.Wait("loop", NextExit)
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := wait(t.Context()); err != nil || exit.Code != 7 {
		t.Errorf("the next exit is %+v, %v, want code 7", exit, err)
	}
	if s := n.state(t, "loop"); s.Status != Restarting || s.ExitCode != 7 {
		t.Errorf("after it loop is %+v, want restarting", s)
	}
	if err := n.Stop(t.Context(), "loop", StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := n.state(t, "loop"); s.Status != Exited || s.ExitCode != 7 {
		t.Errorf("in the end loop is %+v, want exited", s)
	}
}

// TestEachRunIsTold: between two ends there is a start, however short the run was.
func TestEachRunIsTold(t *testing.T) {
	n := newNode(t)
	events := n.Events()
	defer events.Close()
	const containers, runs = 4, 4
	for i := range containers {
		name := "c" + strconv.Itoa(i)
		n.create(t, name, "exit 7", with(RestartAlways, 0))
		n.start(t, name)
	}
	last, ends := map[string]string{}, map[string]int{}
	for done := 0; done < containers; {
		e := events.next(t)
		name := e.Attributes["name"]
		if e.Action != "start" && e.Action != "die" {
			continue
		}
		if last[name] == e.Action || last[name] == "" && e.Action == "die" {
			t.Errorf("%s: %s after %q", name, e.Action, last[name])
		}
		last[name] = e.Action
		if e.Action == "die" {
			if ends[name]++; ends[name] == runs {
				done++
			}
		}
	}
}
