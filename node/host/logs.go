package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// LogOptions says which of a container's output is wanted.
type LogOptions struct {
	Stdout, Stderr bool
	Follow         bool      // until the container has exited
	Since, Until   time.Time // zero: no bound; Since is inclusive, Until too
	Tail           int       // so many lines from the end; below 0: all
}

// LogEntry is output that was written at once: a line, or a part of one.
type LogEntry struct {
	Time    time.Time
	Stderr  bool
	Partial bool   // the line goes on in the stream's next entry
	Text    []byte // with the newline that ends the line; valid until the next entry
}

// maxLogLine is the longest line of a log file that is read, in bytes. The shim
// cuts output long before that.
const maxLogLine = 1 << 20

// errLogLine says that a line of a log file is not in the format of the
// Kubernetes runtime interface: "<RFC 3339 time> <stream> <F|P> <text>".
var errLogLine = errors.New("log line is damaged")

// parseLogLine reads a line of a log file, with its newline.
func parseLogLine(line []byte) (LogEntry, error) {
	stamp, rest, ok1 := bytes.Cut(line, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tag, text, ok3 := bytes.Cut(rest, []byte(" "))
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if !ok1 || !ok2 || !ok3 || err != nil {
		return LogEntry{}, errLogLine
	}
	e := LogEntry{Time: at, Stderr: string(stream) == "stderr", Partial: string(tag) == "P", Text: text}
	if !e.Stderr && string(stream) != "stdout" || !e.Partial && string(tag) != "F" {
		return LogEntry{}, errLogLine
	}
	if e.Partial {
		e.Text = bytes.TrimSuffix(text, []byte("\n"))
	}
	return e, nil
}

// readLog calls fn with each entry of the log file that opts asks for. When it
// follows it goes on until done is closed and everything written before that
// was read, or until ctx ends, which is no error.
func readLog(ctx context.Context, file string, opts LogOptions, done <-chan struct{}, fn func(LogEntry) error) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	if opts.Tail >= 0 {
		if err := seekTail(f, opts.Tail); err != nil {
			return fmt.Errorf("find the end of %s: %w", file, err)
		}
	}
	return readLogFrom(ctx, f, opts, done, fn)
}

// readLogFrom is readLog from where f is now.
func readLogFrom(ctx context.Context, f *os.File, opts LogOptions, done <-chan struct{}, fn func(LogEntry) error) error {
	var changed <-chan struct{}
	if opts.Follow {
		w, err := watchFile(f.Name())
		if err != nil {
			return err
		}
		defer w.close()
		changed = w.changed
	}
	r := logReader{from: bufio.NewReaderSize(f, 64<<10), opts: opts}
	for {
		over := !opts.Follow
		select {
		case <-done: // what is in the file now is all there will be
			over = true
		default:
		}
		more, err := r.drain(ctx, fn)
		if err != nil || !more || over || ctx.Err() != nil {
			return err
		}
		select {
		case <-changed:
		case <-done:
		case <-ctx.Done():
			return nil
		}
	}
}

// logReader reads entries off a file that may still grow.
type logReader struct {
	from *bufio.Reader
	half []byte // of a line whose end is not written yet
	opts LogOptions
}

// drain calls fn for the entries up to the end of the file. more is false if
// nothing after that can be wanted.
func (r *logReader) drain(ctx context.Context, fn func(LogEntry) error) (more bool, err error) {
	for ctx.Err() == nil {
		part, err := r.from.ReadSlice('\n')
		if err != nil || len(r.half) > 0 {
			r.half = append(r.half, part...)
			part = r.half
		}
		switch {
		case len(r.half) > maxLogLine:
			return false, fmt.Errorf("a line of the log is longer than %d bytes", maxLogLine)
		case errors.Is(err, io.EOF):
			return true, nil
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return false, fmt.Errorf("read log: %w", err)
		}
		r.half = r.half[:0]
		e, err := parseLogLine(part)
		if err != nil {
			continue // torn by a power cut
		}
		if !r.opts.Until.IsZero() && e.Time.After(r.opts.Until) {
			return false, nil
		}
		if e.Time.Before(r.opts.Since) || e.Stderr && !r.opts.Stderr || !e.Stderr && !r.opts.Stdout {
			continue
		}
		if err := fn(e); err != nil {
			return false, err
		}
	}
	return false, nil
}

// seekTail moves f to where its last n lines begin. It reads backwards, and no
// more than it has to.
func seekTail(f *os.File, n int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return err
	}
	const block = 64 << 10
	var tail []byte // from the first newline seen so far to the end of its line
	for at := end; at > 0; {
		size := min(int64(block), at)
		at -= size
		buf := make([]byte, size, size+int64(len(tail)))
		if _, err := f.ReadAt(buf, at); err != nil {
			return err
		}
		buf = append(buf, tail...)
		for {
			i := bytes.LastIndexByte(buf, '\n')
			if i < 0 {
				break
			}
			if line := buf[i+1:]; endsLine(line) {
				if n--; n < 0 {
					// buf[:i] ends before the line that was one too many, so
					// what is wanted begins behind that line.
					_, err := f.Seek(at+int64(i)+1+int64(len(line))+1, io.SeekStart)
					return err
				}
			}
			buf = buf[:i]
		}
		if len(buf) > maxLogLine {
			return fmt.Errorf("a line of the log is longer than %d bytes", maxLogLine)
		}
		tail = buf
	}
	if endsLine(tail) && n == 0 {
		_, err = f.Seek(int64(len(tail))+1, io.SeekStart)
		return err
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// endsLine reports whether the entry, without its newline, ends a line of
// output.
func endsLine(entry []byte) bool {
	e, err := parseLogLine(entry)
	return err == nil && !e.Partial
}

// missing reports that a file is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
