package main

import (
	"strings"
	"testing"

	wire "berth.internal/internal/control"
)

func TestAdminWithoutServer(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{"admin", "server"}, {"admin", "gc"}, {"admin", "gc", "--dry-run"}} {
		stdout, stderr, code := berth(t, append(args, "--data", dir)...)
		if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "berth: no server runs with the data directory "+dir+": start one with berth serve --data "+dir) {
			t.Errorf("berth %s = %d\nstdout %q\nstderr %q\nwant 1 and how to start a server", args, code, stdout, stderr)
		}
	}
}

func TestAdminAPI(t *testing.T) {
	if out := ok(t, "admin", "api"); !strings.Contains(out, "\nGET /berth/v1/server\n") {
		t.Errorf("berth admin api printed %s", out)
	}
}

func TestProgressLine(t *testing.T) {
	for _, tc := range []struct {
		p    wire.Progress
		want string
	}{
		{wire.Progress{Doing: "waiting", Unit: "entries"}, "waiting"},
		{wire.Progress{Doing: "collecting", Done: 3, Unit: "entries"}, "collecting: 3 entries"},
		{wire.Progress{Doing: "checking", Done: 3, Total: 5, Unit: "blobs"}, "checking: 3 of 5 blobs"},
		{wire.Progress{Doing: "copying", Done: 1500, Total: 3e6, Unit: "bytes"}, "copying: 1.5kB of 3MB"},
	} {
		if got := progressLine(tc.p); got != tc.want {
			t.Errorf("progressLine(%+v) = %q, want %q", tc.p, got, tc.want)
		}
	}
}
