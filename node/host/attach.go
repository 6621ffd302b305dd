package host

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"berth.internal/node/container"
)

// Input is what a client sends to a container. Its read deadline is how reading
// ends when nobody wants the input any more.
type Input interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

// Streams are a client's ends of a process's standard streams.
type Streams struct {
	Stdin Input // nil: none

	// Output takes what the process writes, one call at a time. An error means
	// that nobody reads any more. Nil: nothing is wanted.
	Output func(stderr bool, p []byte) error

	// detach is called when the client has left and the process shall go on. Nil: the
	// streams are closed then.
	detach func()
}

// AttachOptions say what of a container a client joins.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Logs                  bool // what it wrote before
	Stream                bool // what it writes from now on
}

// Attachment is a client that has joined a container, or waits for its start.
type Attachment struct {
	host   *Host
	ctr    *ctr
	opts   AttachOptions
	live   bool          // the container ran when it was joined
	run    *run          // the run that was joined
	joined chan struct{} // closed when streams and err are valid

	streams *container.Streams // nil: there was nothing to join
	err     error
}

// Attach joins a container, so that nothing it writes from now on is missed;
// one that does not run, from its next start on. Attachment.Run moves the bytes
// and must be called. Errors: ErrNotFound; ErrInvalid.
func (h *Host) Attach(ctx context.Context, ref string, opts AttachOptions) (*Attachment, error) {
	c, err := h.find(ref)
	if err != nil {
		return nil, err
	}
	opts.Stdin = opts.Stdin && opts.Stream && c.rec.Spec.OpenStdin
	a := &Attachment{host: h, ctr: c, opts: opts, joined: make(chan struct{})}
	c.mu.Lock()
	if opts.Stream && c.state.Status == Restarting {
		c.mu.Unlock()
		return nil, conflict("Container %s is restarting, wait until the container is running", c.rec.ID)
	}
	a.live = c.joinable
	a.run = c.run
	wait := opts.Stream && !a.live
	if wait {
		c.waiting = append(c.waiting, a)
	}
	c.mu.Unlock()
	switch {
	case !opts.Stream:
		a.join(nil, nil)
	case !wait:
		a.join(h.opts.Runtime.Attach(ctx, c.rec.ID, a.wanted()))
		if errors.Is(a.err, container.ErrStatus) { // it has just ended, or its only input is taken
			a.err = nil
		}
		if a.err != nil {
			return nil, a.err
		}
	}
	h.tell(c, "attach")
	return a, nil
}

// wanted returns the streams to join. The log has what was written before, and
// all that comes with it, so output is joined only where it is not read.
func (a *Attachment) wanted() container.AttachOptions {
	fromLog := a.opts.Logs && a.live
	return container.AttachOptions{
		Stdin: a.opts.Stdin, Stdout: a.opts.Stdout && !fromLog,
		Stderr: a.opts.Stderr && !fromLog && !a.ctr.rec.Spec.Tty, // a terminal has one output
	}
}

// join gives the attachment its streams, once.
func (a *Attachment) join(streams *container.Streams, err error) {
	a.streams, a.err = streams, err
	close(a.joined)
}

// connect joins everybody who waits for the start of the container, and from
// then on who comes. c.op is held, the program does not run yet.
func (h *Host) connect(ctx context.Context, c *ctr) {
	c.mu.Lock()
	waiting := c.waiting
	c.waiting, c.joinable = nil, true
	c.mu.Unlock()
	for _, a := range waiting {
		a.join(h.opts.Runtime.Attach(ctx, c.rec.ID, a.wanted()))
	}
}

// Run moves bytes until the container's run has ended, its output is read, or
// nobody reads it any more; or until ctx ends.
//
// Errors: ErrDetached if the client left and the container shall go on.
func (a *Attachment) Run(ctx context.Context, s Streams) (err error) {
	defer func() {
		a.leave()
		if errors.Is(err, ErrDetached) {
			a.host.tell(a.ctr, "detach")
		}
	}()
	if a.opts.Logs {
		if err := a.logs(ctx, s); err != nil || !a.opts.Stream {
			return err
		}
	}
	if err := a.host.until(ctx, a.joined); err != nil {
		return err
	}
	if a.err != nil || a.streams == nil {
		return a.err
	}
	if !a.opts.Stdin {
		s.Stdin = nil
	}
	return pump(ctx, a.streams, s)
}

// logs sends what the container has written before. Of one that ran when it was
// joined it sends everything to its end, by the side of the input.
func (a *Attachment) logs(ctx context.Context, s Streams) (err error) {
	input := make(chan struct{})
	var left error // valid once input is closed
	follow := a.live && a.opts.Stream
	if follow && a.streams != nil && a.streams.Stdin != nil && s.Stdin != nil {
		var leave context.CancelFunc
		ctx, leave = context.WithCancel(ctx)
		defer leave()
		go func() {
			defer close(input)
			if left = feed(a.streams.Stdin, s.Stdin); left != nil {
				leave()
			}
		}()
		defer func() {
			stopReading(s.Stdin)
			<-input
			err = errors.Join(err, left)
		}()
	}
	opts := LogOptions{Stdout: a.opts.Stdout, Stderr: a.opts.Stderr, Follow: follow, Tail: -1}
	err = readLog(ctx, a.ctr.path("log"), opts, a.run.ended, func(e LogEntry) error { return s.Output(e.Stderr, e.Text) })
	if missing(err) {
		return nil
	}
	return err
}

// leave gives up what the attachment has, or waits for.
func (a *Attachment) leave() {
	a.ctr.mu.Lock()
	for i, other := range a.ctr.waiting {
		if other == a {
			a.ctr.waiting = append(a.ctr.waiting[:i:i], a.ctr.waiting[i+1:]...)
			a.join(nil, nil)
			break
		}
	}
	a.ctr.mu.Unlock()
	<-a.joined // by now, or at once: a start that has taken it goes on
	if a.streams != nil {
		_ = a.streams.Close() // pipes; nothing is buffered
	}
}

// pump moves bytes between a process and a client until the process's output
// has ended, the client is gone, or ctx ends.
func pump(ctx context.Context, from *container.Streams, s Streams) error {
	defer context.AfterFunc(ctx, func() { _ = from.Close() })()
	var (
		mu     sync.Mutex // one call of Output at a time
		failed error
		tasks  sync.WaitGroup
	)
	if from.Stdin != nil && s.Stdin != nil {
		tasks.Go(func() {
			err := feed(from.Stdin, s.Stdin)
			switch {
			case err != nil && s.detach != nil:
				s.detach()
			case err != nil:
				mu.Lock()
				defer mu.Unlock()
				failed = err
				_ = from.Close()
			}
		})
	}
	var outputs sync.WaitGroup
	for _, out := range []struct {
		from   io.Reader
		stderr bool
	}{{from.Stdout, false}, {from.Stderr, true}} {
		if isNil(out.from) {
			continue
		}
		outputs.Go(func() {
			chunk := chunks.Get().(*[32 << 10]byte)
			defer chunks.Put(chunk)
			// A file would bring a buffer of its own.
			_, err := io.CopyBuffer(writerFunc(func(p []byte) error {
				mu.Lock()
				defer mu.Unlock()
				if s.Output == nil {
					return nil
				}
				return s.Output(out.stderr, p)
			}), struct{ io.Reader }{out.from}, chunk[:])
			if err != nil && !errors.Is(err, os.ErrClosed) {
				mu.Lock()
				defer mu.Unlock()
				if failed == nil {
					failed = err
				}
				_ = from.Close() // nobody reads the other one either
			}
		})
	}
	outputs.Wait()
	if s.Stdin != nil {
		stopReading(s.Stdin)
	}
	tasks.Wait()
	return failed
}

// chunks are what output is read into. Of a short process, to make and clear them anew
// would be a good part of the node's work.
var chunks = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// isNil reports an output that was not asked for.
func isNil(r io.Reader) bool {
	rc, ok := r.(io.ReadCloser)
	return r == nil || ok && rc == nil
}

// feed passes input on to its end, and ends the process's input with it. Errors:
// ErrDetached, if the client leaves and the process shall go on.
func feed(to io.WriteCloser, from io.Reader) error {
	_, err := io.Copy(to, from) // either side may leave at any time
	if errors.Is(err, ErrDetached) {
		return err
	}
	_ = to.Close()
	return nil
}

// stopReading ends a feed that waits for input.
func stopReading(in Input) { _ = in.SetReadDeadline(time.Unix(1, 0)) }

type writerFunc func(p []byte) error

func (f writerFunc) Write(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Logs calls fn with what the container wrote, as opts ask. It follows only one
// that runs. Errors: ErrNotFound, and fn's.
func (h *Host) Logs(ctx context.Context, ref string, opts LogOptions, fn func(LogEntry) error) error {
	c, err := h.find(ref)
	if err != nil {
		return err
	}
	c.mu.Lock()
	run := c.life
	opts.Follow = opts.Follow && c.state.Alive()
	c.mu.Unlock()
	err = readLog(ctx, c.path("log"), opts, run.ended, fn)
	if missing(err) {
		return nil // it was never started
	}
	return err
}
