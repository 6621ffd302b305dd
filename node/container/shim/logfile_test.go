package shim

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// entry is a line of a log.
type entry struct{ stream, tag, text string }

// logEntries reads the files of a log, the oldest first, and how large the largest
// is.
func logEntries(t testing.TB, path string) (entries []entry, names []string, largest int64) {
	t.Helper()
	for i := 0; ; i++ {
		name := path
		if i > 0 {
			name += "." + strconv.Itoa(i)
		}
		if _, err := os.Stat(name); err != nil {
			break
		}
		names = append([]string{name}, names...)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, int64(len(b)))
		for line := range strings.Lines(string(b)) {
			f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil || len(f) != 4 || !strings.HasSuffix(line, "\n") {
				t.Fatalf("%s: line %q is damaged", name, line)
			}
			entries = append(entries, entry{f[1], f[2], f[3]})
		}
	}
	return entries, names, largest
}

func newLog(t testing.TB, path string, size int64, files int) *logFile {
	t.Helper()
	l, err := openLog(path, size, files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.f.Close() })
	return l
}

func TestLogRotation(t *testing.T) {
	for _, tc := range []struct {
		name  string
		size  int64
		files int
		kept  bool // everything
	}{
		{"none", 0, 0, true},
		{"much room", 1 << 20, 3, true},
		{"three files", 1000, 3, false},
		{"two files", 1000, 2, false},
		{"one file", 1000, 1, false},
		{"files for one line each", 1, 50, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			l := newLog(t, path, tc.size, tc.files)
			var want []entry
			longest := int64(0)
			for i := range 300 {
				stream := []string{"stdout", "stderr"}[i%2]
				text := strings.Repeat("x", i%97) + strconv.Itoa(i)
				longest = max(longest, int64(len(text))+44)
				if i%7 == 0 {
					l.write(stream, []byte(text))
					want = append(want, entry{stream, "P", text})
					continue
				}
				l.write(stream, []byte(text+"\n"+text+"\n"))
				want = append(want, entry{stream, "F", text}, entry{stream, "F", text})
			}
			got, names, largest := logEntries(t, path)
			if len(got) == 0 || len(got) > len(want) || fmt.Sprint(got) != fmt.Sprint(want[len(want)-len(got):]) {
				t.Fatalf("%d entries are not the last of what was written:\n%v", len(got), got)
			}
			switch {
			case tc.kept && len(got) != len(want):
				t.Errorf("%d entries of %d", len(got), len(want))
			case tc.size > 0 && largest > max(tc.size, longest):
				t.Errorf("a file has %d bytes, want at most %d", largest, tc.size)
			case !tc.kept && len(names) != tc.files:
				t.Errorf("there are %q, want %d files", names, tc.files)
			}
			if _, err := os.Stat(path + newSuffix); err == nil {
				t.Error("there is a file that is no part of the log")
			}
			if l.notWritten.Load() != nil || l.notRotated.Load() != nil {
				t.Error("warnings")
			}
		})
	}
}

// TestLogGoesOn opens a log again: behind half a line, and with fewer files.
func TestLogGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := newLog(t, path, 200, 5)
	for i := range 40 {
		l.write("stdout", fmt.Appendln(nil, "line", i))
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("2026-11-30T00:00:00Z stdout F to"); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	l = newLog(t, path, 200, 2)
	l.write("stdout", []byte("behind\n"))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Split(b, []byte("\n")); !bytes.HasSuffix(lines[len(lines)-2], []byte(" stdout F behind")) {
		t.Errorf("log ends with %q", b)
	}
	for i := range 40 {
		l.write("stdout", fmt.Appendln(nil, "line", i))
	}
	if _, names, _ := logEntries(t, path); len(names) != 2 {
		t.Errorf("there are %q, want two", names)
	}
}

// TestLogCannotRotate puts a directory in the way: nothing is lost, and it goes on
// when the directory is gone.
func TestLogCannotRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.MkdirAll(path+".1/x", 0o700); err != nil {
		t.Fatal(err)
	}
	l := newLog(t, path, 200, 2)
	for i := range 20 {
		l.write("stdout", fmt.Appendln(nil, "line", i))
	}
	b, err := os.ReadFile(path)
	if err != nil || bytes.Count(b, []byte("\n")) != 20 {
		t.Errorf("the log has %q, %v; want 20 lines", b, err)
	}
	if why := l.notRotated.Load(); why == nil || !strings.Contains(*why, path+".1") {
		t.Errorf("warning %v, want one about %s.1", why, path)
	}
	if err := os.RemoveAll(path + ".1"); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		l.write("stdout", fmt.Appendln(nil, "line", i))
	}
	if _, names, _ := logEntries(t, path); len(names) != 2 {
		t.Errorf("there are %q, want two files again", names)
	}
}

// TestLogFull fills the file system: lines that have no room are left out as a
// whole, and those that have room again are not.
func TestLogFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	filler, path := filepath.Join(dir, "filler"), filepath.Join(dir, "log")
	if err := os.WriteFile(filler, make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLog(t, path, 8<<10, 4)
	for i := range 1000 {
		l.write("stdout", fmt.Appendln(nil, "line", i, strings.Repeat("x", 300)))
	}
	if why := l.notWritten.Load(); why == nil || !strings.Contains(*why, "no space left") {
		t.Errorf("warning %v, want one about the space", why)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	l.write("stdout", []byte("room again\n"))
	got, _, _ := logEntries(t, path) // which looks for damaged lines
	if last := got[len(got)-1]; last.text != "room again" {
		t.Errorf("the last line is %v", last)
	}
}

// TestRunsDoNotShareALine ends a run in the middle of a line.
func TestRunsDoNotShareALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	o := output{name: "stdout", log: newLog(t, path, 0, 0)}
	o.begin()
	o.keep([]byte("no end"))
	o.begin()
	o.keep([]byte("next\n"))
	o.begin()
	if got, _, _ := logEntries(t, path); fmt.Sprint(got) != "[{stdout P no end} {stdout F } {stdout F next}]" {
		t.Errorf("log %v", got)
	}
}

func FuzzLog(f *testing.F) {
	f.Add([]byte("a\nb"), uint8(3), uint16(100))
	f.Add(bytes.Repeat([]byte("\n"), 100), uint8(2), uint16(1))
	f.Fuzz(func(t *testing.T, text []byte, files uint8, size uint16) {
		path := filepath.Join(t.TempDir(), "log")
		l := newLog(t, path, int64(size), int(files))
		var parts [][]byte
		for b := text; len(b) > 0; {
			n := min(len(b), 1+int(size)%40)
			l.write("stdout", b[:n])
			parts, b = append(parts, b[:n]), b[n:]
		}
		got, _, _ := logEntries(t, path)
		var out strings.Builder
		for _, e := range got {
			out.WriteString(e.text)
			if e.tag == "F" {
				out.WriteByte('\n')
			}
		}
		if !bytes.HasSuffix(text, []byte(out.String())) || size == 0 && out.Len() != len(text) {
			t.Errorf("%q in parts of %d is logged as %q", text, len(parts), out.String())
		}
	})
}
