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
