package host

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
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

// rotated is a log in three files; one line goes from the first to the second, and
// the last has no end.
func rotated(t *testing.T) string {
	t.Helper()
	path := logFile(t, "stdout P seven", "stdout F teen", "stdout P no end")
	for name, lines := range map[string][]string{
		".1": {"stderr F hree", "stdout F four", "garbage", "stderr P fi", "stdout F six", "stderr F ve"},
		".2": {"stdout F one", "stdout F two", "stderr P t"},
	} {
		if err := os.Rename(logFile(t, lines...), path+name); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestReadRotatedLog(t *testing.T) {
	path := rotated(t)
	if err := os.Mkdir(path+".3", 0o700); err != nil { // of somebody else
		t.Fatal(err)
	}
	for tail, want := range map[int]string{
		-1: "one\ntwo\nthree\nfour\nfisix\nve\nseventeen\nno end",
		0:  "",
		1:  "seventeen\nno end",
		2:  "ve\nseventeen\nno end",
		3:  "fisix\nve\nseventeen\nno end",
		5:  "three\nfour\nfisix\nve\nseventeen\nno end",
		6:  "two\nthree\nfour\nfisix\nve\nseventeen\nno end",
		7:  "one\ntwo\nthree\nfour\nfisix\nve\nseventeen\nno end",
		8:  "one\ntwo\nthree\nfour\nfisix\nve\nseventeen\nno end",
	} {
		t.Run(fmt.Sprint("tail ", tail), func(t *testing.T) {
			var got strings.Builder
			err := readLog(t.Context(), path, LogOptions{Stdout: true, Stderr: true, Tail: tail}, nil, func(e LogEntry) error {
				got.Write(e.Text)
				return nil
			})
			if err != nil || got.String() != want {
				t.Errorf("readLog = %q %v, want %q", got.String(), err, want)
			}
		})
	}
	// The newest file is missing between two steps of a rotation.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	err := readLog(t.Context(), path, LogOptions{Stdout: true, Tail: -1}, nil, func(e LogEntry) error {
		got.Write(e.Text)
		return nil
	})
	if err != nil || got.String() != "one\ntwo\nfour\nsix\n" {
		t.Errorf("without the newest file: %q, %v", got.String(), err)
	}
}

// rotate does what the shim does to a log of that many files, and returns the new
// file.
func rotate(t *testing.T, path string, files int) *os.File {
	t.Helper()
	next, err := os.Create(path + ".new")
	if err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return fmt.Sprintf("%s.%d", path, i) }
	for i := files - 1; i > 0; i-- {
		from := name(i - 1)
		if i == 1 {
			from = path
		}
		if err := os.Rename(from, name(i)); err != nil && !missing(err) {
			t.Fatal(err)
		}
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return next
}

// TestLogFilesInOrder opens the files of a log while they are renamed all the time.
func TestLogFilesInOrder(t *testing.T) {
	const files = 5
	dir, err := os.MkdirTemp("/dev/shm", "berth-test-*") // where renaming is fast
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "log")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			f := rotate(t, path, files)
			if _, err := fmt.Fprint(f, n); err != nil {
				t.Error(err)
			}
			_ = f.Close()
		}
	}()
	defer func() { <-stopped }()
	defer close(stop)
	for range 5000 {
		opened, err := logFiles(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		before := -1
		for i, f := range opened {
			text, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.Atoi(string(text))
			if err != nil { // the youngest, empty yet, or the first of all
				continue
			}
			if i > 0 && before >= 0 && n != before+1 {
				t.Fatalf("file %d after %d", n, before)
			}
			before = n
		}
		closeFiles(opened)
	}
}

// TestFollowRotation follows a log whose files get few lines each, as fast as it
// goes without removing a file that was not read yet.
func TestFollowRotation(t *testing.T) {
	for _, tc := range []struct{ files, lines int }{{1, 1}, {2, 1}, {3, 2}, {9, 1}, {5, 7}} {
		t.Run(fmt.Sprintf("%d files of %d lines", tc.files, tc.lines), func(t *testing.T) {
			const lines = 1000
			path := logFile(t)
			done, read := make(chan struct{}), make(chan error, 1)
			seen := make(chan int, lines)
			go func() {
				n := 0
				read <- readLog(t.Context(), path, LogOptions{Stdout: true, Follow: true, Tail: -1}, done, func(e LogEntry) error {
					if want := fmt.Sprintln(n); string(e.Text) != want {
						return fmt.Errorf("line %q, want %q", e.Text, want)
					}
					seen <- n
					n++
					return nil
				})
			}()
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			last := -1 // what was read
			for n := range lines {
				if n > 0 && n%tc.lines == 0 {
					// Before the oldest file goes all of it was read.
					for last < n-1-(tc.files-1)*tc.lines {
						select {
						case last = <-seen:
						case err := <-read:
							t.Fatal(err)
						}
					}
					_ = f.Close()
					f = rotate(t, path, tc.files)
				}
				if _, err := fmt.Fprintf(f, "2026-11-21T00:00:00Z stdout F %d\n", n); err != nil {
					t.Fatal(err)
				}
			}
			_ = f.Close()
			close(done)
			if err := <-read; err != nil {
				t.Fatal(err)
			}
			for len(seen) > 0 {
				last = <-seen
			}
			if last != lines-1 {
				t.Errorf("the last line read is %d, want %d", last, lines-1)
			}
		})
	}
}

// TestFollowFromTheTail begins in an older file and goes on over a rotation.
func TestFollowFromTheTail(t *testing.T) {
	path := rotated(t)
	done, lines, read := make(chan struct{}), make(chan string), make(chan error, 1)
	go func() {
		read <- readLog(t.Context(), path, LogOptions{Stdout: true, Stderr: true, Follow: true, Tail: 2}, done, func(e LogEntry) error {
			lines <- string(e.Text)
			return nil
		})
	}()
	for _, want := range []string{"ve\n", "seven", "teen\n", "no end"} {
		if got := <-lines; got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	f := rotate(t, path, 3)
	defer f.Close()
	if _, err := f.WriteString("2026-11-21T00:00:01Z stdout F after\n"); err != nil {
		t.Fatal(err)
	}
	if got := <-lines; got != "after\n" {
		t.Fatalf("after the rotation: %q", got)
	}
	close(done)
	if err := <-read; err != nil {
		t.Error(err)
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
			if got := count(tail); got != min(tail, all) {
				t.Fatalf("the last %d of %d lines are %d", tail, all, got)
			}
		}
	})
}
