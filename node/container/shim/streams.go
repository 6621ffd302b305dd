package shim

import (
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
	name    string
	log     *logFile
	partial bool // what was logged last has no end of line yet
	buf     []byte

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

// begin makes it ready for a run, whose first line does not go on with the last
// one of the run before.
func (o *output) begin() {
	if o.partial {
		o.keep([]byte{'\n'})
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = false
}

// keep logs what was read.
func (o *output) keep(b []byte) {
	o.log.write(o.name, b)
	o.partial = b[len(b)-1] != '\n'
}

// copy carries until from ends, and closes all sinks then.
func (o *output) copy(from *os.File) {
	if o.buf == nil {
		o.buf = make([]byte, logLine)
	}
	buf := o.buf
	for {
		n, err := from.Read(buf)
		if n > 0 {
			o.keep(buf[:n])
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
			o.keep(buf[:n])
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
