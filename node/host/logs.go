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
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
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

// readLog calls fn with each entry of the log at file that opts asks for, the
// files that it was rotated to among it. When it follows it goes on until done is
// closed and everything written before that was read, or until ctx ends, which is
// no error.
//
// It holds files by descriptor, so that their names may change meanwhile. What the
// shim removes before it was reached is lost to a reader, who never holds a
// container up.
func readLog(ctx context.Context, file string, opts LogOptions, done <-chan struct{}, fn func(LogEntry) error) error {
	var changed <-chan struct{}
	if opts.Follow {
		w, err := watchDir(filepath.Dir(file))
		if missing(err) {
			return fmt.Errorf("open log: %w", err)
		}
		if err != nil {
			return err
		}
		defer w.close()
		changed = w.changed
	}
	files, err := logFiles(file, nil)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if len(files) == 0 {
		return fmt.Errorf("open log %s: %w", file, fs.ErrNotExist)
	}
	r := logReader{files: files, opts: opts}
	defer r.close()
	if opts.Tail >= 0 {
		if err := r.seekTail(opts.Tail); err != nil {
			return fmt.Errorf("find the end of %s: %w", file, err)
		}
	}
	for {
		over := !opts.Follow
		select {
		case <-done: // what is in the files now is all there will be
			over = true
		default:
		}
		more, err := r.readAll(ctx, fn)
		if err != nil || !more {
			return err
		}
		if opts.Follow {
			switch next, err := r.next(file); {
			case err != nil:
				return fmt.Errorf("follow log: %w", err)
			case next:
				continue
			}
		}
		if over || ctx.Err() != nil {
			return nil
		}
		select {
		case <-changed:
		case <-done:
		case <-ctx.Done():
			return nil
		}
	}
}

// maxMissing is after how many names of a log in a row that are not there nobody
// looks further: the shim may be renaming them right now.
const maxMissing = 4

// logFiles opens the files of the log at path that are younger than last, the
// oldest first.
func logFiles(path string, last os.FileInfo) ([]*os.File, error) {
	for range 100 {
		files, ok, err := scanLog(path, last)
		if err == nil && ok {
			slices.Reverse(files)
			return files, nil
		}
		closeFiles(files)
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s is rotated faster than it can be opened", path)
}

// scanLog is logFiles, the youngest first. Files are renamed to higher numbers
// only, so who looks from low to high misses none that was there when it began.
// One that it meets again has been renamed meanwhile; what it met in between came
// later. ok is false if the first one was removed meanwhile: what is after it may
// be in any order.
func scanLog(path string, last os.FileInfo) (files []*os.File, ok bool, err error) {
	var infos []os.FileInfo
	for i, miss := 0, 0; miss < maxMissing; i++ {
		name := path
		if i > 0 {
			name += "." + strconv.Itoa(i)
		}
		f, info, err := openFile(name)
		switch {
		case missing(err):
			miss++
			continue
		case err != nil:
			return files, false, err
		case last != nil && os.SameFile(info, last):
			_ = f.Close()
			return files, true, nil
		}
		miss = 0
		if !info.Mode().IsRegular() {
			_ = f.Close()
			continue
		}
		if at := slices.IndexFunc(infos, func(s os.FileInfo) bool { return os.SameFile(s, info) }); at >= 0 {
			_ = f.Close()
			closeFiles(files[at+1:])
			files, infos = files[:at+1], infos[:at+1]
			continue
		}
		files, infos = append(files, f), append(infos, info)
	}
	if len(files) == 0 {
		return nil, true, nil
	}
	// While the first one has a name, all that came later was left out above.
	var first unix.Stat_t
	if err := unix.Fstat(int(files[0].Fd()), &first); err != nil {
		return files, false, err
	}
	return files, first.Nlink > 0, nil
}

// openFile opens a file and says what it is.
func openFile(name string) (*os.File, os.FileInfo, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // read only
	}
}

// logReader reads entries off files of which the last may still grow.
type logReader struct {
	files []*os.File    // the one that is being read, and those after it
	from  *bufio.Reader // of the first of files
	half  []byte        // of a line whose end is not written yet
	opts  LogOptions
}

func (r *logReader) close() { closeFiles(r.files) }

// readAll reads to the end of the last file. more is false if nothing after that
// can be wanted.
func (r *logReader) readAll(ctx context.Context, fn func(LogEntry) error) (more bool, err error) {
	for {
		if r.from == nil {
			r.from = bufio.NewReaderSize(r.files[0], 64<<10)
		}
		if more, err := r.drain(ctx, fn); err != nil || !more {
			return false, err
		}
		if len(r.files) == 1 {
			return true, nil
		}
		closeFiles(r.files[:1])
		r.files, r.half = r.files[1:], nil // half a line at the end of a file that is complete stays half
		r.from.Reset(r.files[0])
	}
}

// next goes on with the files that have followed the one that was read to its end,
// and reports whether there are any. A file is complete once it has a successor.
func (r *logReader) next(file string) (bool, error) {
	info, err := r.files[0].Stat()
	if err != nil {
		return false, err
	}
	later, err := logFiles(file, info)
	r.files = append(r.files, later...)
	return len(later) > 0, err
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

// seekTail goes to where the last n lines of all files begin.
func (r *logReader) seekTail(n int) error {
	for i, f := range slices.Backward(r.files) {
		if n == 0 && i == len(r.files)-1 {
			closeFiles(r.files[:i])
			r.files = r.files[i:]
			_, err := f.Seek(0, io.SeekEnd)
			return err
		}
		found, err := seekTail(f, &n)
		if err != nil {
			return err
		}
		if found {
			closeFiles(r.files[:i])
			r.files = r.files[i:]
			return nil
		}
	}
	return nil // all there is
}

// seekTail moves f to where its last n lines begin, if more than these begin in
// it, otherwise to its beginning; n is then how many of them are missing. It reads
// backwards, and no more than it has to.
func seekTail(f *os.File, n *int) (found bool, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	const block = 64 << 10
	var tail []byte // from the first newline seen so far to the end of its line
	whole := false  // behind the last newline is what is not written to its end
	for at := end; at > 0; {
		size := min(int64(block), at)
		at -= size
		buf := make([]byte, size, size+int64(len(tail)))
		if _, err := f.ReadAt(buf, at); err != nil {
			return false, err
		}
		buf = append(buf, tail...)
		for {
			i := bytes.LastIndexByte(buf, '\n')
			if i < 0 {
				break
			}
			if line := buf[i+1:]; whole && endsLine(line) {
				if *n--; *n < 0 {
					// buf[:i] ends before the line that was one too many, so
					// what is wanted begins behind that line.
					_, err := f.Seek(at+int64(i)+1+int64(len(line))+1, io.SeekStart)
					return true, err
				}
			}
			buf, whole = buf[:i], true
		}
		if len(buf) > maxLogLine {
			return false, fmt.Errorf("a line of the log is longer than %d bytes", maxLogLine)
		}
		tail = buf
	}
	if whole && endsLine(tail) {
		if *n--; *n < 0 {
			_, err = f.Seek(int64(len(tail))+1, io.SeekStart)
			return true, err
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return false, err
}

// endsLine reports whether the entry, without its newline, ends a line of
// output.
func endsLine(entry []byte) bool {
	e, err := parseLogLine(entry)
	return err == nil && !e.Partial
}

// missing reports that a file is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
