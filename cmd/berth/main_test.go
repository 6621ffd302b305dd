package main

import (
	"fmt"
	"os"
	"testing"
)

// TestMain keeps the tests away from the logins of who runs them.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "berth-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Setenv("XDG_CONFIG_HOME", dir)
	os.Unsetenv(contextVar)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}
