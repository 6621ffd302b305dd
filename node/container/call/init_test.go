package call_test

import (
	"slices"
	"strings"
	"testing"

	"berth.internal/node/container/call"
)

func TestParseInit(t *testing.T) {
	own := []string{"BERTH_INIT=12", "GOMAXPROCS=1", "GOGC=off", "GODEBUG=x"}
	for _, tc := range []struct {
		name      string
		args, env []string
		ok        bool
	}{
		{"given", []string{"berth-init", "--", "sh", "-c", "x"}, append(own, "A=1", "A=1", ""), true},
		{"nothing in the environment", []string{"berth-init", "--", "sh"}, own, true},
		{"a shim", []string{"berth-init"}, own, false},
		{"no command", []string{"berth-init", "--"}, own, false},
		{"another call", []string{"berth-init", "run", "sh"}, own, false},
		{"too little", []string{"berth-init", "--", "sh"}, own[:3], false},
		{"not first", []string{"berth-init", "--", "sh"}, append([]string{"A=1"}, own...), false},
		{"no number", []string{"berth-init", "--", "sh"}, append([]string{"BERTH_INIT=x"}, own[1:]...), false},
		{"a number below zero", []string{"berth-init", "--", "sh"}, append([]string{"BERTH_INIT=-1"}, own[1:]...), false},
	} {
		in, ok := call.ParseInit(tc.args, tc.env)
		if ok != tc.ok || ok && (!slices.Equal(in.Args, tc.args[2:]) || !slices.Equal(in.Env, tc.env[4:])) {
			t.Errorf("%s: %+v, %t; want %t", tc.name, in, ok, tc.ok)
		}
	}
}

// FuzzParseInit takes what a program of a container may call the init with.
func FuzzParseInit(f *testing.F) {
	f.Add("berth-init\n--\nsh", "BERTH_INIT=1\nGOMAXPROCS=1\nGOGC=off\nGODEBUG=\nA=1")
	f.Fuzz(func(t *testing.T, args, env string) {
		in, ok := call.ParseInit(strings.Split(args, "\n"), strings.Split(env, "\n"))
		if ok && (len(in.Args) == 0 || !strings.HasPrefix(env, "BERTH_INIT=")) {
			t.Errorf("%q with %q is a call: %+v", args, env, in)
		}
	})
}

// TestExecuteInit holds that a report of the init stands for the same words as one of
// a child that executes the command itself.
func TestExecuteInit(t *testing.T) {
	for _, tc := range []struct{ args, env []string }{
		{[]string{"sh"}, []string{"PATH=/a:/b"}}, {[]string{"/bin/sh"}, nil}, {[]string{""}, nil}, {[]string{"sh"}, nil},
	} {
		direct, below := call.New(2), call.New(2)
		direct.Execute(tc.args, tc.env)
		below.ExecuteInit(0, 1, tc.args, tc.env)
		d, b := load(t, direct), load(t, below)
		lines := strings.Count(below.String(), "\n")
		calls := strings.Count(direct.String(), "\n")
		for i := range calls {
			want := call.ParseReport([]byte{byte(i), 0, 0, 0, 2, 0, 0, 0}, nil, d)
			got := call.ParseReport([]byte{byte(lines - calls + i), 0, 0, 0, 2, 0, 0, 0}, nil, b)
			if got.Failure == nil || *got.Failure != *want.Failure || !got.Failure.Command {
				t.Errorf("%q, call %d: %+v, want %+v", tc.args, i, got.Failure, want.Failure)
			}
		}
	}
}
