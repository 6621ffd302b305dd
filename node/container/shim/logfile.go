package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// logFile takes lines of all streams in the form of Kubernetes' CRI. A file that
// is full is renamed to path.1, that to path.2 and so on, and the last one goes.
// Nothing about the log ends the container: what could not be written is lost, and
// a warning.
type logFile struct {
	path  string
	max   int64 // bytes of a file; 0: without end
	files int   // how many there are at most; 1 at least

	mu   sync.Mutex
	f    *os.File // nil: no log is kept
	size int64    // of f, as far as it was written here
	full int64    // size at which the next file is begun
	line []byte

	notWritten, notRotated atomic.Pointer[string] // why, the first time
}

// newSuffix is of the file that the log goes on in, until it has its place.
const newSuffix = ".new"

// openLog opens a log, to go on behind what is in it. "": none.
func openLog(path string, size int64, files int) (*logFile, error) {
	l := &logFile{path: path, max: size, files: max(files, 1), full: size}
	if path == "" {
		return l, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), f.Close())
	}
	l.f, l.size = f, info.Size()
	// A shim that was killed while it wrote may have left half a line: what follows
	// shall not become part of it.
	last := []byte{'\n'}
	if l.size > 0 {
		_, _ = f.ReadAt(last, l.size-1)
	}
	if last[0] != '\n' {
		l.line = append(l.line, '\n')
		l.flush(1)
	}
	return l, nil
}

// write adds what was read from a stream as one line for each line in it, and
// one marked P for what has no end yet. Nothing is held back.
func (l *logFile) write(stream string, b []byte) {
	if l.f == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UTC()
	for len(b) > 0 {
		begin := len(l.line)
		tag, rest := " F ", []byte(nil)
		text := b
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			text, rest = b[:i], b[i+1:]
		} else {
			tag = " P "
		}
		l.line = now.AppendFormat(l.line, "2006-01-02T15:04:05.000000000Z07:00")
		l.line = append(append(append(l.line, ' '), stream...), tag...)
		l.line = append(append(l.line, text...), '\n')
		b = rest
		if l.max > 0 && l.size+int64(len(l.line)) > l.full && l.size+int64(begin) > 0 {
			l.flush(begin)
			l.rotate()
		}
	}
	l.flush(len(l.line))
	if cap(l.line) > 4*logLine {
		l.line = nil // a burst of empty lines shall not stay in memory
	}
}

// flush writes the first n bytes of l.line, which are whole lines, and keeps the
// rest.
func (l *logFile) flush(n int) {
	if n == 0 {
		return
	}
	done, err := l.f.Write(l.line[:n])
	if err != nil {
		keepFirst(&l.notWritten, err)
		half := done - (bytes.LastIndexByte(l.line[:done], '\n') + 1)
		if info, err := l.f.Stat(); err == nil && half > 0 {
			_ = l.f.Truncate(info.Size() - int64(half)) // if not even that works, a reader leaves the line out
		}
		done -= half
	}
	l.size += int64(done)
	l.line = append(l.line[:0], l.line[n:]...)
}

// rotate begins the next file. If it cannot, this one goes on, and it is tried
// again when as much again is in it.
func (l *logFile) rotate() {
	next, err := os.OpenFile(l.path+newSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o640)
	if err == nil {
		if err = l.shift(); err != nil {
			err = errors.Join(err, next.Close(), os.Remove(l.path+newSuffix))
		}
	}
	if err != nil {
		keepFirst(&l.notRotated, err)
		l.full = l.size + l.max
		return
	}
	_ = l.f.Close()
	l.f, l.size, l.full = next, 0, l.max
}

// shift gives every file its next name, the oldest first. Readers rely on it: a
// file is complete once there is another one at path.
func (l *logFile) shift() error {
	name := func(i int) string { return l.path + "." + strconv.Itoa(i) }
	for i := l.files; os.Remove(name(i)) == nil; i++ { // there were more allowed once
	}
	for i := l.files - 1; i > 1; i-- {
		if err := os.Rename(name(i-1), name(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if l.files > 1 {
		if err := os.Rename(l.path, name(1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(l.path+newSuffix, l.path); err != nil {
		if l.files > 1 {
			err = errors.Join(err, os.Rename(name(1), l.path))
		}
		return err
	}
	return nil
}

func keepFirst(p *atomic.Pointer[string], err error) {
	text := err.Error()
	p.CompareAndSwap(nil, &text)
}

// noteLog makes what went wrong with the log a warning. s.mu is held.
func (s *shim) noteLog() {
	if s.out.log == nil {
		return
	}
	if why := s.out.log.notWritten.Load(); why != nil {
		s.warn("write log: " + *why)
	}
	if why := s.out.log.notRotated.Load(); why != nil {
		s.warn("rotate log: " + *why)
	}
}
