package host

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/node/image"
)

// asked is a container for health.run: it answers what it is told to, after a while.
type asked struct {
	codes  []int // of the checks in turn; the last one for all others
	takes  time.Duration
	ran    time.Duration // before it was asked the first time
	paused func(since time.Duration) bool

	began  time.Time
	at     []time.Duration // when checks began
	atOnce int
	told   []string
}

// ask runs the checks for so long and returns what came of it.
func (a *asked) ask(t *testing.T, check Health, lasts time.Duration) *HealthState {
	a.began = time.Now()
	p := newHealth(check, a.began.Add(-a.ran))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.run(ctx, func(context.Context) HealthResult {
			if a.atOnce++; a.atOnce > 1 {
				t.Error("two checks at a time")
			}
			defer func() { a.atOnce-- }()
			r := HealthResult{Start: time.Now(), ExitCode: a.codes[min(len(a.at), len(a.codes)-1)]}
			a.at = append(a.at, time.Since(a.began))
			time.Sleep(a.takes)
			r.End = time.Now()
			return r
		}, func() bool { return a.paused != nil && a.paused(time.Since(a.began)) }, func(s HealthStatus) {
			a.told = append(a.told, time.Since(a.began).String()+" "+string(s))
		})
	}()
	time.Sleep(lasts)
	stop()
	<-ended
	return p.snapshot()
}

func TestHealthTiming(t *testing.T) {
	for _, tc := range []struct {
		name   string
		check  Health
		asked  asked
		lasts  time.Duration
		at     string // when it is asked
		told   string
		status HealthStatus
		streak int
	}{
		{
			name: "defaults", asked: asked{codes: []int{0}, takes: time.Second}, lasts: 100 * time.Second,
			at: "[30s 1m1s 1m32s]", told: "31s healthy", status: Healthy,
		},
		{
			name: "three failures in a row", check: Health{Interval: 10 * time.Second}, asked: asked{codes: []int{1, 2, 0, 1, 1, 1, 1}}, lasts: 75 * time.Second,
			at: "[10s 20s 30s 40s 50s 1m0s 1m10s]", told: "30s healthy, 1m0s unhealthy", status: Unhealthy, streak: 4,
		},
		{
			name: "well again", check: Health{Interval: time.Second, Retries: 1}, asked: asked{codes: []int{1, 0}}, lasts: 3500 * time.Millisecond,
			at: "[1s 2s 3s]", told: "1s unhealthy, 2s healthy", status: Healthy,
		},
		{
			name: "failures while it starts do not count", check: Health{Interval: 10 * time.Second, StartPeriod: 12 * time.Second, StartInterval: 4 * time.Second, Retries: 2},
			asked: asked{codes: []int{1}}, lasts: 35 * time.Second,
			at: "[4s 8s 12s 22s 32s]", told: "22s unhealthy", status: Unhealthy, streak: 3,
		},
		{
			name: "well while it starts", check: Health{Interval: 10 * time.Second, StartPeriod: 30 * time.Second, Retries: 1}, asked: asked{codes: []int{1, 0, 1}}, lasts: 25 * time.Second,
			at: "[5s 10s 20s]", told: "10s healthy, 20s unhealthy", status: Unhealthy, streak: 1,
		},
		{
			name: "a node that comes back", check: Health{Interval: 10 * time.Second, StartPeriod: time.Minute}, asked: asked{codes: []int{0}, ran: 127 * time.Second}, lasts: 25 * time.Second,
			at: "[3s 13s 23s]", told: "3s healthy", status: Healthy,
		},
		{
			name: "paused", check: Health{Interval: 10 * time.Second}, lasts: 55 * time.Second,
			asked: asked{codes: []int{0}, paused: func(since time.Duration) bool { return since > 15*time.Second && since < 35*time.Second }},
			at:    "[10s 40s 50s]", told: "10s healthy", status: Healthy,
		},
		{
			name: "paused while it is asked", check: Health{Interval: 10 * time.Second, Retries: 1}, lasts: 45 * time.Second,
			asked: asked{codes: []int{1, 0}, takes: 5 * time.Second, paused: func(since time.Duration) bool { return since > 12*time.Second && since < 20*time.Second }},
			at:    "[10s 25s 40s]", told: "30s healthy", status: Healthy,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := tc.asked.ask(t, tc.check, tc.lasts)
				if at := durations(tc.asked.at); at != tc.at {
					t.Errorf("asked at %s, want %s", at, tc.at)
				}
				if told := strings.Join(tc.asked.told, ", "); told != tc.told {
					t.Errorf("told %s, want %s", told, tc.told)
				}
				if got.Status != tc.status || got.FailingStreak != tc.streak || len(got.Log) > healthKept {
					t.Errorf("in the end %+v, want %s after %d failures", got, tc.status, tc.streak)
				}
			})
		})
	}
}

func durations(list []time.Duration) string {
	var words []string
	for _, d := range list {
		words = append(words, d.String())
	}
	return "[" + strings.Join(words, " ") + "]"
}

// TestHealthOfImage: what the user does not say the image does, as with Docker.
func TestHealthOfImage(t *testing.T) {
	img := image.Image{RawConfig: []byte(`{"config":{"Shell":["/bin/ash","-c"],"Healthcheck":{"Test":["CMD-SHELL","ok"],"Interval":5000000000,"Retries":7}}}`)}
	h := (&Health{Interval: time.Second}).fill(img)
	if h.Test[1] != "ok" || h.Interval != time.Second || h.Retries != 7 {
		t.Errorf("filled: %+v", h)
	}
	if args, err := h.command(); err != nil || strings.Join(args, " ") != "/bin/ash -c ok" {
		t.Errorf("it executes %q, %v", args, err)
	}
	if h := (&Health{Test: []string{HealthNone}}).fill(img); h.checked() {
		t.Errorf("NONE is filled: %+v", h)
	}
	if h := (*Health)(nil).fill(img); !h.checked() || h.Retries != 7 {
		t.Errorf("the image's own check is %+v", h)
	}
	if h := (*Health)(nil).fill(image.Image{RawConfig: []byte(`{}`)}); h != nil {
		t.Errorf("an image without a check has %+v", h)
	}
	args, err := (&Health{Test: []string{HealthShell, "ok"}}).fill(image.Image{RawConfig: []byte(`{}`)}).command()
	if err != nil || strings.Join(args, " ") != "/bin/sh -c ok" {
		t.Errorf("it executes %q, %v", args, err)
	}
}

// TestHealthOfContainer asks real ones: one that is well, then is not, and one that
// does not answer. Each run is asked anew.
func TestHealthOfContainer(t *testing.T) {
	n := newNode(t)
	events := n.Events()
	defer events.Close()
	check := func(script string, timeout time.Duration) func(*Spec) {
		return func(s *Spec) {
			s.Health = &Health{Test: []string{HealthShell, script}, Interval: 10 * time.Millisecond, Timeout: timeout, Retries: 2}
			s.Restart = Restart{Policy: RestartAlways}
		}
	}
	n.create(t, "mute", "sleep 100", check("echo asked; sleep 1000 & sleep 1001", 300*time.Millisecond))
	if x := n.state(t, "mute"); x.Health != nil {
		t.Errorf("one that does not run is %+v", x.Health)
	}
	n.start(t, "mute")
	if s := n.state(t, "mute"); s.Health == nil || s.Health.Status != Starting {
		t.Errorf("at first it is %+v", s.Health)
	}
	events.await(t, "mute", "health_status: unhealthy")
	s := n.state(t, "mute").Health
	if last := s.Log[len(s.Log)-1]; last.ExitCode != healthCode || !strings.HasPrefix(last.Output, "Health check exceeded timeout (300ms): asked\n") || s.FailingStreak < 2 {
		t.Errorf("one that does not answer is %+v", s)
	}
	if err := n.Stop(t.Context(), "mute", StopOptions{Timeout: new(int)}); err != nil {
		t.Fatal(err)
	}

	n.create(t, "well", "trap 'exit 1' HUP; touch /well; echo up; while :; do sleep 0.05; done", check("yes | head -c 9000; cat /well", time.Minute))
	n.start(t, "well")
	events.await(t, "well", "health_status: healthy")
	s = n.state(t, "well").Health
	if last := s.Log[len(s.Log)-1]; last.ExitCode != 0 || len(last.Output) != healthOutput || last.End.Before(last.Start) {
		t.Errorf("one that is well is %+v", s)
	}
	n.says(t, "well", "up", 1)
	if err := n.Kill(t.Context(), "well", "HUP"); err != nil {
		t.Fatal(err)
	}
	events.await(t, "well", "die")
	events.await(t, "well", "start")
	n.says(t, "well", "up", 2)
	events.await(t, "well", "health_status: healthy") // again, from the beginning
	x, err := n.CreateExec(t.Context(), "well", ExecSpec{Args: []string{"sh", "-c", "rm /well || busybox rm /well"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.StartExec(t.Context(), x, Streams{}); err != nil {
		t.Fatal(err)
	}
	events.await(t, "well", "health_status: unhealthy")
}

// TestProbeIsKilled: a check that takes too long leaves no process behind.
func TestProbeIsKilled(t *testing.T) {
	n := newNode(t)
	id := n.create(t, "web", "sleep 100", nil)
	n.start(t, "web")
	c, err := n.find(id)
	if err != nil {
		t.Fatal(err)
	}
	r := n.probe(t.Context(), c, []string{"sh", "-c", "sleep 1000 & sleep 1001 & echo $$; wait"}, 100*time.Millisecond)
	if r.ExitCode != healthCode || !strings.Contains(r.Output, "exceeded timeout") {
		t.Errorf("the check answers %+v", r)
	}
	var left strings.Builder
	x, err := n.CreateExec(t.Context(), "web", ExecSpec{Args: []string{"sh", "-c", "cat /proc/[0-9]*/cmdline"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.StartExec(t.Context(), x, Streams{Output: func(_ bool, p []byte) error { left.Write(p); return nil }}); err != nil {
		t.Fatal(err)
	}
	if text := left.String(); strings.Contains(text, "1000") || strings.Contains(text, "1001") || !strings.Contains(text, "sleep\x00100\x00") {
		t.Errorf("there are left: %q", text)
	}
	if r := n.probe(t.Context(), c, []string{"nothing"}, time.Minute); r.ExitCode != healthCode || !strings.Contains(r.Output, "executable file not found") {
		t.Errorf("a check that is not there answers %+v", r)
	}
	if r := n.probe(t.Context(), c, []string{"sh", "-c", "echo no; exit 5"}, time.Minute); r.ExitCode != 5 || r.Output != "no\n" {
		t.Errorf("a check that fails answers %+v", r)
	}
}
