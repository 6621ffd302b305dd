package image

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// segmentSize is how many bytes of a blob one request asks for. Each segment is
// a file of its own, whose length says how much of it has arrived: a pull that
// was killed goes on from there.
const segmentSize = 8 << 20

const (
	firstPause = 500 * time.Millisecond
	lastPause  = 15 * time.Second
	// someBytes is how much a request must bring to count as a success.
	someBytes = 64 << 10
)

// Why a connection was given up.
var (
	errStalled = errors.New("no byte arrived")
	errBody    = errors.New("the connection broke")
)

// download brings one blob into the directory dir, several segments at once,
// and can be read from its beginning meanwhile.
type download struct {
	store    *Store
	src      Source
	repo     string
	blob     v1.Descriptor
	dir      string
	progress func(received int64)

	mu       sync.Mutex
	more     *sync.Cond // have has grown, or the context ended
	have     []int64    // bytes that have arrived of each segment
	received int64      // sum of have

	pos  int64 // of Read
	file *os.File
	ctx  context.Context // of Read, whose signature has none
}

// openDownload finds what an earlier download of the blob has left in dir.
func openDownload(ctx context.Context, s *Store, src Source, repo string, blob v1.Descriptor, dir string) (*download, error) {
	d := &download{store: s, src: src, repo: repo, blob: blob, dir: dir, ctx: ctx}
	d.more = sync.NewCond(&d.mu)
	d.have = make([]int64, (blob.Size+segmentSize-1)/segmentSize)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		i, err := strconv.Atoi(f.Name())
		if err != nil || i < 0 || i >= len(d.have) {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return nil, err
		}
		d.have[i] = min(info.Size(), d.length(i))
		d.received += d.have[i]
	}
	return d, nil
}

// length returns the bytes of segment i.
func (d *download) length(i int) int64 {
	return min(segmentSize, d.blob.Size-int64(i)*segmentSize)
}

func (d *download) segment(i int) string { return filepath.Join(d.dir, strconv.Itoa(i)) }

// run downloads what is missing.
func (d *download) run(ctx context.Context) error {
	err := d.segments(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		return d.retry(ctx, d.whole)
	}
	return err
}

// segments downloads what is missing of each segment. Errors:
// errors.ErrUnsupported if the registry does not do ranges.
func (d *download) segments(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range d.have {
		if d.have[i] == d.length(i) { // not being written yet
			continue
		}
		select {
		case d.store.conns <- struct{}{}:
		case <-ctx.Done():
			return cmp.Or(g.Wait(), context.Cause(ctx))
		}
		g.Go(func() error {
			defer func() { <-d.store.conns }()
			return d.retry(ctx, func(ctx context.Context, stall *time.Timer) (int64, error) { return d.part(ctx, stall, i) })
		})
	}
	return g.Wait()
}

// retry makes requests until one succeeds. A request says how many new bytes it
// brought, also when it failed, and resets the timer with each.
func (d *download) retry(ctx context.Context, request func(context.Context, *time.Timer) (int64, error)) error {
	pause := firstPause
	for failed := 0; ; {
		n, err := d.watch(ctx, request)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !passing(err):
			return err
		case n >= someBytes:
			failed, pause = 0, firstPause
		}
		if failed++; failed > d.store.o.Retries {
			return fmt.Errorf("gave up after %d attempts: %w", failed, err)
		}
		d.store.o.Logger.Warn("download interrupted, going on", "repo", d.repo, "digest", d.blob.Digest,
			"received_bytes", d.total(), "size_bytes", d.blob.Size, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause = min(2*pause, lastPause)
	}
}

// watch makes one request, and ends it when its timer does.
func (d *download) watch(ctx context.Context, request func(context.Context, *time.Timer) (int64, error)) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(d.store.o.Stall, func() {
		cancel(fmt.Errorf("%w for %s", errStalled, d.store.o.Stall))
	})
	defer stall.Stop()
	n, err := request(ctx, stall)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause // says more than what came of it
	}
	return n, err
}

// passing says whether a request that failed may succeed when it is made again.
// What a registry answered is final: asking again where that helps is the
// Source's affair.
func passing(err error) bool {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return false // our own disk's; a full one would pass for a net.Error, which syscall.Errno is
	}
	var network net.Error
	return errors.Is(err, errBody) || errors.Is(err, errStalled) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network)
}

// part requests the rest of segment i.
func (d *download) part(ctx context.Context, stall *time.Timer, i int) (int64, error) {
	have := d.have[i] // nobody else writes it
	body, err := d.open(ctx, int64(i)*segmentSize+have, d.length(i)-have)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	return d.receive(body, stall, i)
}

// whole requests the blob from its beginning, passing over what is there
// already: the one way there is if the registry does not do ranges.
func (d *download) whole(ctx context.Context, stall *time.Timer) (received int64, err error) {
	select {
	case d.store.conns <- struct{}{}:
		defer func() { <-d.store.conns }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	stall.Reset(d.store.o.Stall)
	body, err := d.open(ctx, 0, d.blob.Size)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	for i := range d.have {
		for left := d.have[i]; left > 0; {
			n, err := io.CopyN(io.Discard, body, min(left, chunkSize))
			stall.Reset(d.store.o.Stall)
			if err != nil {
				return received, fmt.Errorf("%w: %w", errBody, err)
			}
			left -= n
		}
		n, err := d.receive(body, stall, i)
		received += n
		if err != nil {
			return received, err
		}
	}
	return received, nil
}

// receive appends to segment i what it lacks.
func (d *download) receive(body io.Reader, stall *time.Timer, i int) (received int64, err error) {
	f, err := os.OpenFile(d.segment(i), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, chunkSize)
	for left := d.length(i) - d.have[i]; left > 0; {
		n, err := body.Read(buf[:min(left, chunkSize)])
		stall.Reset(d.store.o.Stall)
		if _, err := f.Write(buf[:n]); err != nil {
			return received, err
		}
		left, received = left-int64(n), received+int64(n)
		d.arrived(i, int64(n))
		end := errors.Is(err, io.EOF)
		if end && left > 0 {
			end, err = false, fmt.Errorf("the registry sent %d bytes less than the manifest says", left)
		}
		if err != nil && !end {
			return received, fmt.Errorf("%w: %w", errBody, err)
		}
	}
	return received, nil
}

// open begins to read length bytes of the blob. The whole of it is asked for
// without a range.
func (d *download) open(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
	if data := d.blob.Data; int64(len(data)) == d.blob.Size { // the manifest has it inline
		return io.NopCloser(bytes.NewReader(data[offset : offset+length])), nil
	}
	if length == d.blob.Size {
		length = -1
	}
	return d.src.Blob(ctx, d.repo, d.blob.Digest, offset, length)
}

// arrived counts n new bytes of segment i and wakes the reader.
func (d *download) arrived(i int, n int64) {
	d.mu.Lock()
	d.have[i] += n
	d.received += n
	received := d.received
	d.mu.Unlock()
	d.more.Broadcast()
	d.store.metrics.bytes.Add(float64(n))
	d.progress(received)
}

func (d *download) total() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.received
}

// Read reads the blob from its beginning, waiting for what has not arrived. It
// ends early, with the cause, when the context of openDownload does.
func (d *download) Read(p []byte) (int, error) {
	if d.pos == d.blob.Size {
		return 0, io.EOF
	}
	i, off := int(d.pos/segmentSize), d.pos%segmentSize
	have, err := d.await(i, off)
	if err != nil {
		return 0, err
	}
	if d.file == nil {
		if d.file, err = os.Open(d.segment(i)); err != nil {
			return 0, err
		}
	}
	n, err := d.file.ReadAt(p[:min(int64(len(p)), have-off)], off)
	if err != nil && n == 0 {
		return 0, err
	}
	d.pos += int64(n)
	if off+int64(n) == d.length(i) {
		return n, d.closeFile()
	}
	return n, nil
}

// await waits until segment i has more than off bytes.
func (d *download) await(i int, off int64) (have int64, err error) {
	stop := context.AfterFunc(d.ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.more.Broadcast()
	})
	defer stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.have[i] <= off {
		if d.ctx.Err() != nil {
			return 0, context.Cause(d.ctx)
		}
		d.more.Wait()
	}
	return d.have[i], nil
}

func (d *download) closeFile() error {
	if d.file == nil {
		return nil
	}
	f := d.file
	d.file = nil
	return f.Close()
}
