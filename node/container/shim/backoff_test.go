package shim

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	for _, tc := range []struct {
		name      string
		ran, want []time.Duration
	}{
		{"a loop of failures", []time.Duration{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, 51200 * ms, 60 * s, 60 * s}},
		{"a long run ends it", []time.Duration{0, 0, 10 * s, 0}, []time.Duration{100 * ms, 200 * ms, 100 * ms, 200 * ms}},
		{"one that is nearly long does not", []time.Duration{0, 10*s - 1, 10*s - 1}, []time.Duration{100 * ms, 200 * ms, 400 * ms}},
		{"the clock went back", []time.Duration{0, -time.Hour}, []time.Duration{100 * ms, 200 * ms}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b backoff
			for i, ran := range tc.ran {
				if got := b.next(ran); got != tc.want[i] {
					t.Errorf("delay %d, after a run of %s: %s, want %s", i+1, ran, got, tc.want[i])
				}
			}
		})
	}
}

func TestWants(t *testing.T) {
	for _, tc := range []struct {
		restart        Restart
		code, restarts int
		want           bool
	}{
		{Restart{}, 1, 0, false},
		{Restart{Policy: RestartAlways}, 0, 1000, true},
		{Restart{Policy: RestartUnlessStopped}, 0, 0, true},
		{Restart{Policy: RestartOnFailure}, 0, 0, false},
		{Restart{Policy: RestartOnFailure}, 1, 1000, true},
		{Restart{Policy: RestartOnFailure, Max: 2}, 137, 1, true},
		{Restart{Policy: RestartOnFailure, Max: 2}, 137, 2, false},
		{Restart{Policy: "of a newer agent"}, 1, 0, false},
	} {
		if got := tc.restart.wants(tc.code, tc.restarts); got != tc.want {
			t.Errorf("%+v after exit code %d and %d restarts: %t, want %t", tc.restart, tc.code, tc.restarts, got, tc.want)
		}
	}
}
