package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// logFile writes lines of "stream tag text", a second apart, to a log.
func logFile(t *testing.T, lines ...string) string {
	t.Helper()
	var b strings.Builder
	for i, l := range lines {
		fmt.Fprintf(&b, "%s %s\n", time.Unix(int64(1000+i), 0).UTC().Format(time.RFC3339Nano), l)
	}
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadLog(t *testing.T) {
	path := logFile(t, "stdout F one", "stderr F two", "stdout P th", "stdout F ree", "garbage", "stdout F four")
	both := LogOptions{Stdout: true, Stderr: true, Tail: -1}
	for _, tc := range []struct {
		name   string
		change func(*LogOptions)
		want   string
	}{
		{"everything", func(*LogOptions) {}, "one\ntwo\nthree\nfour\n"},
		{"stdout", func(o *LogOptions) { o.Stderr = false }, "one\nthree\nfour\n"},
		{"stderr", func(o *LogOptions) { o.Stdout = false }, "two\n"},
		{"tail 0", func(o *LogOptions) { o.Tail = 0 }, ""},
		{"tail 1", func(o *LogOptions) { o.Tail = 1 }, "four\n"},
		{"tail 2 is two lines, not two parts", func(o *LogOptions) { o.Tail = 2 }, "three\nfour\n"},
		{"tail of more than there is", func(o *LogOptions) { o.Tail = 99 }, "one\ntwo\nthree\nfour\n"},
		{"since", func(o *LogOptions) { o.Since = time.Unix(1003, 0) }, "ree\nfour\n"},
		{"until", func(o *LogOptions) { o.Until = time.Unix(1001, 0) }, "one\ntwo\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts := both
			tc.change(&opts)
			var got strings.Builder
			err := readLog(t.Context(), path, opts, nil, func(e LogEntry) error {
				got.Write(e.Text)
				return nil
			})
			if err != nil || got.String() != tc.want {
				t.Errorf("readLog = %q %v, want %q", got.String(), err, tc.want)
			}
		})
	}
}

// TestFollow reads a log that grows, to the end of the container.
func TestFollow(t *testing.T) {
	path := logFile(t, "stdout F first")
	done := make(chan struct{})
	lines := make(chan string)
	read := make(chan error, 1)
	go func() {
		read <- readLog(t.Context(), path, LogOptions{Stdout: true, Follow: true, Tail: -1}, done, func(e LogEntry) error {
			lines <- string(e.Text)
			return nil
		})
	}()
	if got := <-lines; got != "first\n" {
		t.Fatalf("first line %q", got)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, part := range []string{"2026-11-21T00:00:00Z stdout F sec", "ond\n"} { // a line that is written in two
		if _, err := f.WriteString(part); err != nil {
			t.Fatal(err)
		}
	}
	if got := <-lines; got != "second\n" {
		t.Fatalf("second line %q", got)
	}
	if _, err := f.WriteString("2026-11-21T00:00:01Z stdout F last\n"); err != nil {
		t.Fatal(err)
	}
	close(done)
	if got := <-lines; got != "last\n" {
		t.Fatalf("last line %q: what was written before the end is lost", got)
	}
	if err := <-read; err != nil {
		t.Errorf("readLog = %v", err)
	}
}

func TestFollowEndsWithItsClient(t *testing.T) {
	path := logFile(t)
	ctx, cancel := context.WithCancel(t.Context())
	read := make(chan error, 1)
	go func() {
		read <- readLog(ctx, path, LogOptions{Stdout: true, Follow: true, Tail: -1}, nil, func(LogEntry) error { return nil })
	}()
	cancel()
	if err := <-read; err != nil {
		t.Errorf("readLog = %v, want nothing", err)
	}
}

func FuzzReadLog(f *testing.F) {
	f.Add([]byte("2026-11-21T00:00:00Z stdout F a\n2026-11-21T00:00:01Z stderr P b\ntorn"), 1)
	f.Add([]byte("\n\n  \n"), 0)
	f.Fuzz(func(t *testing.T, text []byte, tail int) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		count := func(tail int) (lines int) {
			err := readLog(t.Context(), path, LogOptions{Stdout: true, Stderr: true, Tail: tail}, nil, func(e LogEntry) error {
				if !e.Partial {
					lines++
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return lines
		}
		all := count(-1)
		if tail %= 50; tail >= 0 {
			if got := count(tail); got > max(tail, 0) && got > all || got < min(tail, all) {
				t.Fatalf("the last %d of %d lines are %d", tail, all, got)
			}
		}
	})
}
