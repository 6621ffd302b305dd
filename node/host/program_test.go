package host

import (
	"bytes"
	"os"
	"testing"
)

func TestELFMachine(t *testing.T) {
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(own[:64])
	other[18], other[19] = 0xf7, 0 // EM_BPF: nobody's
	for _, tc := range []struct {
		name string
		file []byte
		want string
	}{
		{"this program", own, ""},
		{"another machine's", other, "bpf"},
		{"a script", []byte("#!/bin/sh\necho this is no ELF file"), ""},
		{"cut off", own[:10], ""},
		{"nothing", nil, ""},
	} {
		if got := elfMachine(bytes.NewReader(tc.file)); got != tc.want {
			t.Errorf("%s is for %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestInterpreterOf(t *testing.T) {
	// A program of the machine's that is linked dynamically, as most are.
	dynamic, err := os.ReadFile("/bin/ls")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		file []byte
		want string
	}{
		{"a script", []byte("#!/bin/sh -e\necho"), "/bin/sh"},
		{"a script of one line", []byte("#! /usr/bin/env python3"), "/usr/bin/env"},
		{"a script by nobody", []byte("#!\n"), ""},
		{"a dynamic program", dynamic, "/lib64/ld-linux-x86-64.so.2"},
		{"cut off", dynamic[:70], ""},
		{"text", []byte("echo"), ""},
		{"nothing", nil, ""},
	} {
		if got := interpreterOf(bytes.NewReader(tc.file)); got != tc.want {
			t.Errorf("%s is executed with %q, want %q", tc.name, got, tc.want)
		}
	}
}

func FuzzInterpreterOf(f *testing.F) {
	for _, seed := range []string{"#!/bin/sh -e\n", "\x7fELF\x02\x01", "\x7fELF\x02\x02" + string(make([]byte, 200))} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		if got := interpreterOf(bytes.NewReader(file)); len(got) > maxInterpreter || got != "" && !bytes.Contains(file, []byte(got)) {
			t.Errorf("interpreter %q", got)
		}
		_ = elfMachine(bytes.NewReader(file)) // never panics
	})
}
