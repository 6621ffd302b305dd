package detach_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"berth.internal/internal/detach"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct{ keys, want string }{
		{"", "\x10\x11"},
		{"ctrl-a,x,ctrl-@,ctrl-[", "\x01x\x00\x1b"},
		{"ctrl-1", ""},
		{"ab", ""},
		{"a,,b", ""},
		{strings.Repeat("a,", 70) + "a", ""},
	} {
		got, err := detach.Parse(tc.keys)
		if string(got) != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("Parse(%q) = %q, %v, want %q", tc.keys, got, err, tc.want)
		}
	}
}

func TestReader(t *testing.T) {
	for _, tc := range []struct {
		keys, in, out string
		left          bool
	}{
		{"pq", "hello", "hello", false},
		{"pq", "hepqllo", "he", true},
		{"pq", "ppq", "p", true},
		{"pq", "papq", "pa", true},
		{"pq", "p", "p", false},
		{"aab", "aaab", "a", true},
		{"aab", "aacaab", "aac", true},
		{"x", "x", "", true},
		{"", "pq", "pq", false},
	} {
		for name, from := range map[string]io.Reader{"at once": strings.NewReader(tc.in), "key by key": iotest.OneByteReader(strings.NewReader(tc.in))} {
			out, err := io.ReadAll(detach.NewReader(from, []byte(tc.keys)))
			if string(out) != tc.out || errors.Is(err, detach.ErrDetached) != tc.left {
				t.Errorf("%q with keys %q, %s: %q, %v, want %q, left %v", tc.in, tc.keys, name, out, err, tc.out, tc.left)
			}
		}
	}
}

// FuzzReader compares with looking for the keys in all of the input.
func FuzzReader(f *testing.F) {
	f.Add([]byte("aab"), []byte("aaab"))
	f.Fuzz(func(t *testing.T, keys, in []byte) {
		if len(keys) > 64 {
			return
		}
		out, err := io.ReadAll(detach.NewReader(iotest.HalfReader(bytes.NewReader(in)), keys))
		want, left := in, false
		if i := bytes.Index(in, keys); i >= 0 && len(keys) > 0 {
			want, left = in[:i], true
		}
		if !bytes.Equal(out, want) || errors.Is(err, detach.ErrDetached) != left {
			t.Fatalf("keys %q in %q: %q, %v, want %q", keys, in, out, err, want)
		}
	})
}
