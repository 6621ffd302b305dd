package shim

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// logLine is how many bytes are read, and so how long a line of the log gets at
// most before it is split.
const logLine = 16 << 10

// output carries one stream of the container to its log and to whoever is
// attached.
type output struct {
	name string
	log  *logFile

	mu    sync.Mutex
	sinks []*os.File
	ended bool
}

// attach adds a sink, which gets all that is read from now on.
func (o *output) attach(sink *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		_ = sink.Close()
		return
	}
	o.sinks = append(o.sinks, sink)
}

// begin makes it ready for a run.
func (o *output) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = false
}

// copy carries until from ends, and closes all sinks then.
func (o *output) copy(from *os.File) {
	buf := make([]byte, logLine)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			o.log.write(o.name, buf[:n])
			o.tee(buf[:n])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.rest(from, buf)
		}
		if err != nil {
			break
		}
	}
	_ = from.Close()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	closeAll(o.sinks)
	o.sinks = nil
}

// maxPipe is the most that a pipe holds, unless root has made it larger.
const maxPipe = 1 << 20

// rest carries what is in the pipe already: somebody outside of the container
// holds its other end, so it may never end, and may write faster than this reads.
func (o *output) rest(from *os.File, buf []byte) {
	raw, err := from.SyscallConn()
	if err != nil {
		return
	}
	for n, left := 1, maxPipe; n > 0 && left > 0; left -= n {
		if err := raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }); err != nil {
			return
		}
		if n > 0 {
			o.log.write(o.name, buf[:n])
			o.tee(buf[:n])
		}
	}
}

// tee writes b to all sinks. Who does not read holds the container up, as a
// terminal would; who is gone is dropped.
func (o *output) tee(b []byte) {
	o.mu.Lock()
	sinks := o.sinks
	o.mu.Unlock()
	for _, s := range sinks {
		if _, err := s.Write(b); err != nil {
			o.drop(s)
		}
	}
}

// hurry drops those attached who have not read the rest within limit.
func (o *output) hurry(limit time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.sinks {
		_ = s.SetWriteDeadline(time.Now().Add(limit))
	}
}

func (o *output) drop(sink *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var left []*os.File
	for _, s := range o.sinks {
		if s != sink {
			left = append(left, s)
		}
	}
	o.sinks = left
	_ = sink.Close()
}

// logFile takes lines of all streams in the form of Kubernetes' CRI.
type logFile struct {
	mu   sync.Mutex
	f    *os.File // nil: no log is kept
	line []byte
	lost error // the first error of writing
}

// write adds what was read from a stream as one line for each line in it, and
// one marked P for what has no end yet. Nothing is held back.
func (l *logFile) write(stream string, b []byte) {
	if l.f == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line = l.line[:0]
	now := time.Now().UTC()
	for len(b) > 0 {
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
	}
	if _, err := l.f.Write(l.line); err != nil && l.lost == nil {
		l.lost = err
	}
	if cap(l.line) > 4*logLine {
		l.line = nil // a burst of empty lines shall not stay in memory
	}
}
