package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRuntimes: what is named must be there and be it; what is not named is offered
// if it is there.
func TestRuntimes(t *testing.T) {
	dir := t.TempDir()
	program := func(name, says string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("PATH", dir+":/bin")
	mine := program("runc", "runc version 9.9")
	other := program("other", "crun version 1.0\ncommit: 1")
	for _, tc := range []struct {
		cfg  Config
		runc string
		says string
	}{
		{Config{Runtime: "berth"}, mine, ""},
		{Config{Runtime: "runc"}, mine, ""},
		{Config{Runtime: "berth", Runc: "/nowhere/runc"}, "", "runc: ask /nowhere/runc for its version"},
		{Config{Runtime: "runc", Runc: other}, "", `is not runc, it says it is "crun version 1.0"`},
		{Config{Runtime: "crun", Crun: other}, mine, ""},
	} {
		found, err := tc.cfg.runtimes(t.Context())
		if tc.says == "" && (err != nil || found["runc"] != tc.runc) || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%+v: %v, %v, want runc at %q, error %q", tc.cfg, found, err, tc.runc, tc.says)
		}
	}
	if _, err := findRuntime(t.Context(), "nonesuch", "", true); err == nil || !strings.HasPrefix(err.Error(), "runtime: nonesuch is not installed") {
		t.Errorf("a runtime that is nowhere: %v", err)
	}
}
