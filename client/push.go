package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth.internal/internal/oci"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// PushOptions says how to push a blob.
type PushOptions struct {
	MountFrom string              // repository of the same registry that may hold the blob; empty: none
	Progress  func(through int64) // told how many bytes have been sent; after a break it goes back; may be nil
}

// PushResult is how a blob came to be in the registry.
type PushResult int

// The three ways.
const (
	Uploaded PushResult = iota // sent
	Existed                    // it was there already
	Mounted                    // taken over from another repository
)

func (p PushResult) String() string {
	switch p {
	case Existed:
		return "existed"
	case Mounted:
		return "mounted"
	}
	return "uploaded"
}

// chunkSize is how much of a large blob is sent with one request: a registry
// that is restarted, or that drops what a broken request brought, has the chunks
// before.
const chunkSize = 64 << 20

// cancelPatience is how long a failed push takes to tell the registry to
// forget what it got.
const cancelPatience = 5 * time.Second

// sourceError is a failure to read what is to be sent: sending it once more
// does not help.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// PushBlob lets repo hold the blob desc (its Digest and Size): it is there
// already, is mounted from another repository, or is uploaded. open returns the
// blob's bytes from an offset on. After a broken connection the upload goes on
// where the registry says it stopped; it fails after several attempts in a row
// that brought nothing. The registry verifies the digest; a failed upload is
// cancelled.
func (r *Registry) PushBlob(ctx context.Context, repo string, desc v1.Descriptor, open func(offset int64) (io.ReadCloser, error), o PushOptions) (PushResult, error) {
	if _, ok, err := r.hasBlob(ctx, repo, desc.Digest, pushScope(repo)); err != nil || ok {
		return Existed, err
	}
	u := &upload{r: r, repo: repo, desc: desc, open: open, progress: o.Progress}
	mounted, err := u.start(ctx, o.MountFrom)
	if err != nil || mounted {
		return Mounted, err
	}
	return u.run(ctx)
}

// upload is one blob on its way out.
type upload struct {
	r        *Registry
	repo     string
	desc     v1.Descriptor
	open     func(int64) (io.ReadCloser, error)
	progress func(int64)

	session *url.URL // nil: none is open
	held    int64    // bytes that the registry has
	chunk   int64    // bytes to send with one request
	broken  bool     // it has broken off: what a PATCH brought often stays, what a PUT brought does not
}

// run sends the blob, with as many attempts as bring it on.
func (u *upload) run(ctx context.Context) (PushResult, error) {
	for attempt := 1; ; attempt++ {
		err := u.attempt(ctx)
		if err == nil {
			return Uploaded, nil
		}
		if u.session != nil && u.lost(err) {
			u.session, u.held = nil, 0
		} else if !u.r.passing(err) {
			attempt = maxAttempts
		}
		if ctx.Err() != nil || attempt == maxAttempts {
			u.cancel(ctx)
			return 0, err
		}
		if err := u.r.wait(ctx, attempt, err); err != nil {
			u.cancel(ctx)
			return 0, err
		}
		// The answer may have been lost after the blob had arrived.
		if _, ok, herr := u.r.hasBlob(ctx, u.repo, u.desc.Digest, pushScope(u.repo)); herr == nil && ok {
			return Uploaded, nil
		}
		before := u.held
		u.broken = true
		u.ask(ctx)
		if u.held > before {
			attempt = 0
		}
	}
}

// lost says that the registry knows nothing of the upload any more, or not what
// we know of it. After a break that may be a request of before, which it only now
// stops writing.
func (u *upload) lost(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Status == http.StatusNotFound || e.Status == http.StatusRequestedRangeNotSatisfiable ||
		u.broken && e.Code == oci.BlobUploadInvalid.Code)
}

// attempt sends what the registry does not hold yet.
func (u *upload) attempt(ctx context.Context) error {
	if u.session == nil {
		if _, err := u.start(ctx, ""); err != nil {
			return err
		}
	}
	for {
		rest := u.desc.Size - u.held
		if rest <= u.chunk && (rest == 0 || !u.broken) {
			return u.send(ctx, http.MethodPut, rest)
		}
		if err := u.send(ctx, http.MethodPatch, min(rest, u.chunk)); err != nil {
			return err
		}
	}
}

// start opens an upload session, or has the blob mounted: end-4a, end-11. A
// registry that cannot mount opens a session.
func (u *upload) start(ctx context.Context, from string) (mounted bool, err error) {
	to := u.r.path(u.repo, "blobs", "uploads")
	to.Path += "/"
	c := u.call(http.MethodPost, to)
	if from != "" && from != u.repo {
		to.RawQuery = url.Values{"mount": {u.desc.Digest.String()}, "from": {from}}.Encode()
		c.scope += " " + pullScope(from)
	}
	c.retry = true // at worst a session is left that nobody uses
	resp, err := u.r.do(ctx, c)
	if err != nil {
		return false, err
	}
	if err := drain(resp); err != nil {
		return false, u.r.failed(ctx, c, err)
	}
	if resp.StatusCode == http.StatusCreated && from != "" {
		return true, nil
	}
	u.held, u.chunk = 0, u.r.chunk
	if least, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil {
		u.chunk = max(u.chunk, least)
	}
	u.session, err = u.r.follow(resp, resp.Header.Get("Location"))
	return false, err
}

// send sends size bytes from u.held on: with PATCH to go on, end-5, or with PUT
// to finish, end-6.
func (u *upload) send(ctx context.Context, method string, size int64) error {
	to := *u.session
	if method == http.MethodPut {
		q := to.Query()
		q.Set("digest", u.desc.Digest.String())
		to.RawQuery = q.Encode()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := u.call(method, &to)
	c.header = http.Header{"Content-Type": {"application/octet-stream"}}
	c.size = size
	if size > 0 && (method == http.MethodPatch || u.held > 0) {
		c.header.Set("Content-Range", fmt.Sprintf("%d-%d", u.held, u.held+size-1))
	}
	var out *outgoing
	c.body = func() (io.ReadCloser, error) {
		rc, err := u.open(u.held)
		if err != nil {
			return nil, err
		}
		out = &outgoing{r: rc, left: size, through: u.held, progress: u.progress, stall: u.r.stall}
		out.timer = time.AfterFunc(out.stall, func() { cancel(errStalled) })
		return out, nil
	}
	resp, err := u.r.do(ctx, c)
	if err != nil {
		if out != nil && out.failed() != nil {
			return fmt.Errorf("%s: %w", c.doing, &sourceError{out.failed()})
		}
		return err
	}
	if method == http.MethodPatch {
		u.held += size
		u.session, err = u.r.follow(resp, resp.Header.Get("Location"))
	}
	return errors.Join(err, drain(resp))
}

// ask finds out how much the registry holds: end-13. If it does not know the
// session any more, or does not say, the next attempt begins anew.
func (u *upload) ask(ctx context.Context) {
	session := u.session
	u.session, u.held = nil, 0
	if session == nil {
		return
	}
	c := u.call(http.MethodGet, session)
	c.retry = true
	resp, err := u.r.do(ctx, c)
	if err != nil {
		return
	}
	held, ok := parseHeld(resp.Header.Get("Range"))
	next, err := u.r.follow(resp, resp.Header.Get("Location"))
	if derr := drain(resp); err == nil && derr == nil && ok && held <= u.desc.Size {
		u.session, u.held = next, held
	}
}

// cancel tells the registry to forget the upload: end-14. That it fails is of
// no consequence: sessions expire.
func (u *upload) cancel(ctx context.Context) {
	if u.session == nil {
		return
	}
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), cancelPatience)
	defer done()
	if resp, err := u.r.do(ctx, u.call(http.MethodDelete, u.session)); err == nil {
		_ = drain(resp)
	}
}

func (u *upload) call(method string, to *url.URL) call {
	return call{
		method: method, url: to, scope: pushScope(u.repo),
		doing: "push " + u.repo + "@" + u.desc.Digest.String(), repo: u.repo,
	}
}

// parseHeld reads the Range of an upload session, "0-<last>", and returns the
// number of bytes held. "0-0" is what a registry says of one byte and of none:
// it is taken as none, and one byte is sent twice at worst.
func parseHeld(s string) (int64, bool) {
	to, ok := strings.CutPrefix(strings.TrimPrefix(s, "bytes="), "0-")
	if !ok {
		return 0, false
	}
	last, err := strconv.ParseUint(to, 10, 62)
	if err != nil {
		return 0, false
	}
	if last == 0 {
		return 0, true
	}
	return int64(last) + 1, true
}

// outgoing is the body of a request: exactly left bytes. The transport may read
// it after the request has failed.
type outgoing struct {
	r        io.ReadCloser
	left     int64
	through  int64 // position in the blob
	progress func(int64)
	stall    time.Duration
	timer    *time.Timer // runs while the network has the bytes and nobody asks for more

	mu  sync.Mutex
	err error // of r
}

func (o *outgoing) Read(p []byte) (int, error) {
	o.timer.Stop()
	if o.left == 0 {
		return 0, io.EOF
	}
	n, err := o.r.Read(p[:min(int64(len(p)), o.left)])
	o.left -= int64(n)
	o.through += int64(n)
	if n > 0 && o.progress != nil {
		o.progress(o.through)
	}
	switch {
	case o.left == 0:
		return n, io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		o.mu.Lock()
		o.err = err
		o.mu.Unlock()
		return n, err
	}
	o.timer.Reset(o.stall)
	return n, nil
}

// failed returns the error of the source, if that is what ended the transfer.
func (o *outgoing) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

func (o *outgoing) Close() error {
	o.timer.Stop()
	return o.r.Close()
}
