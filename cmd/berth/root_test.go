package main

import (
	"bytes"
	"strings"
	"testing"
)

// berth runs the command line in this process and returns what it wrote and
// what it would exit with.
func berth(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), stdio{in: strings.NewReader(""), out: &out, err: &err}, args)
	return out.String(), err.String(), code
}

func TestMisuse(t *testing.T) {
	for _, tc := range []struct {
		name, args, stderr string
	}{
		{"unknown command", "frobnicate", `berth: "frobnicate" is not a command of berth; see berth --help`},
		{"mistyped command", "vresion", `berth: "vresion" is not a command of berth (did you mean version?); see berth --help`},
		{"unknown flag", "version --frobnicate", `berth: unknown flag: --frobnicate; see berth version --help`},
		{"mistyped flag", "version --hepl", `berth: unknown flag: --hepl (did you mean --help?); see berth version --help`},
		{"too many arguments", "version now", `berth: unknown command "now" for "berth version"; see berth version --help`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stdout, stderr, code := berth(t, strings.Fields(tc.args)...)
			if code != 2 || stdout != "" || stderr != tc.stderr+"\n" {
				t.Errorf("berth %s = %d\nstdout %q\nstderr %q\nwant 2 and stderr %q", tc.args, code, stdout, stderr, tc.stderr+"\n")
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range []string{"", "--help", "help", "help version"} {
		stdout, stderr, code := berth(t, strings.Fields(args)...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "Usage:") {
			t.Errorf("berth %s = %d\nstdout %q\nstderr %q\nwant 0 and the help", args, code, stdout, stderr)
		}
	}
}
