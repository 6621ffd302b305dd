package image

import (
	"bufio"
	"bytes"
	"context"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// chunkSize is how many bytes go from one stage to the next at a time, and
// chunksAhead how many chunks a stage may be ahead of the next.
const (
	chunkSize   = 128 << 10
	chunksAhead = 4
)

// maxWindow is how much memory a zstd layer may ask for, in bytes: what
// zstd --ultra --long=27 needs.
const maxWindow = 128 << 20

// stages run one layer's work as stages at the same time, each handing chunks
// to the next. The first to fail stops all.
type stages struct {
	ctx  context.Context // of this work only, never kept
	fail context.CancelCauseFunc
	wg   sync.WaitGroup
	free sync.Pool // of *chunk
}

type chunk struct {
	n   int
	buf [chunkSize]byte
}

func newStages(ctx context.Context) *stages {
	ctx, fail := context.WithCancelCause(ctx)
	return &stages{ctx: ctx, fail: fail, free: sync.Pool{New: func() any { return new(chunk) }}}
}

// run starts a stage, which writes to out; nil if it is the last.
func (s *stages) run(out *stream, stage func() error) {
	s.wg.Go(func() {
		err := stage()
		if err != nil {
			s.fail(err) // before the next stage sees its end
		}
		if out != nil {
			out.err = err
			close(out.ch)
		}
	})
}

// wait returns when all stages have ended, with the error of the first that
// failed.
func (s *stages) wait() error {
	s.wg.Wait()
	err := context.Cause(s.ctx)
	s.fail(nil)
	return err
}

// stream is what one stage writes and the next reads.
type stream struct {
	s   *stages
	ch  chan *chunk
	cur *chunk
	pos int
	err error // set before ch is closed
}

func (s *stages) stream() *stream {
	return &stream{s: s, ch: make(chan *chunk, chunksAhead)}
}

// Read implements io.Reader for the next stage.
func (st *stream) Read(p []byte) (int, error) {
	for st.cur == nil {
		c, ok := <-st.ch
		if !ok {
			if st.err != nil {
				return 0, st.err
			}
			return 0, io.EOF
		}
		if c.n > 0 {
			st.cur, st.pos = c, 0
		}
	}
	n := copy(p, st.cur.buf[st.pos:st.cur.n])
	if st.pos += n; st.pos == st.cur.n {
		st.s.free.Put(st.cur)
		st.cur = nil
	}
	return n, nil
}

// send hands c over to the next stage.
func (st *stream) send(c *chunk) error {
	select {
	case st.ch <- c:
		return nil
	case <-st.s.ctx.Done():
		return context.Cause(st.s.ctx)
	}
}

// fill sends all that r has. each sees every chunk first, and ends it with an
// error.
func (st *stream) fill(r io.Reader, each func([]byte) error) error {
	for {
		c := st.s.free.Get().(*chunk)
		var err error
		for c.n = 0; c.n < chunkSize && err == nil; { // not io.ReadFull, which hides that r broke off
			var n int
			n, err = r.Read(c.buf[c.n:])
			c.n += n
		}
		if err != nil && err != io.EOF {
			return err
		}
		if err := each(c.buf[:c.n]); err != nil {
			return err
		}
		if err := st.send(c); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
	}
}

// hash sends all that in has, after h has seen it.
func (st *stream) hash(in *stream, h hash.Hash) error {
	for c := range in.ch {
		h.Write(c.buf[:c.n])
		if err := st.send(c); err != nil {
			return err
		}
	}
	return in.err
}

// decompress returns the plain content of r, by what its first bytes say: gzip,
// zstd, or neither.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, chunkSize)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(br)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}
