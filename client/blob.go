package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob opens length bytes of blob d of repo, from byte offset on; all that
// follows if length is negative. The bytes are not verified: who has read the
// whole blob compares its digest. Reading ends with io.ErrUnexpectedEOF if the
// registry sends fewer bytes than it said; a connection that stands still for
// a minute is given up. Errors: ErrNotFound; *Error with status 416 if the blob
// has no byte at offset; errors.ErrUnsupported if the registry sends whole blobs
// only.
func (r *Registry) Blob(ctx context.Context, repo string, d digest.Digest, offset, length int64) (io.ReadCloser, error) {
	c, err := r.blobCall(http.MethodGet, "pull", repo, d)
	if err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fmt.Errorf("%s: offset %d is negative", c.doing, offset)
	}
	if length == 0 {
		return http.NoBody, nil
	}
	if offset > 0 || length > 0 {
		rng := fmt.Sprintf("bytes=%d-", offset)
		if length > 0 {
			rng += strconv.FormatInt(offset+length-1, 10)
		}
		c.header = http.Header{"Range": {rng}}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	resp, err := r.do(ctx, c) //nolint:bodyclose // the caller closes it with what is returned
	if err != nil {
		cancel(nil)
		return nil, err
	}
	b := &body{r: resp.Body, c: resp.Body, left: resp.ContentLength, cancel: cancel, stall: r.stall}
	b.timer = time.AfterFunc(r.stall, func() { cancel(errStalled) })
	b.timer.Stop()
	b.explain = func(err error) error { return r.failed(ctx, c, err) }
	if err := b.limit(resp, offset, length); err != nil {
		_ = b.Close() // the answer is refused already
		return nil, fmt.Errorf("%s in %s: %w", c.doing, r.Host(), err)
	}
	return b, nil
}

// HasBlob asks whether repo holds blob d, and returns its descriptor: digest
// and size, the latter -1 if the registry does not say.
func (r *Registry) HasBlob(ctx context.Context, repo string, d digest.Digest) (v1.Descriptor, bool, error) {
	return r.hasBlob(ctx, repo, d, pullScope(repo))
}

func (r *Registry) hasBlob(ctx context.Context, repo string, d digest.Digest, scope string) (v1.Descriptor, bool, error) {
	c, err := r.blobCall(http.MethodHead, "look for", repo, d)
	if err != nil {
		return v1.Descriptor{}, false, err
	}
	c.scope = scope
	resp, err := r.do(ctx, c)
	switch {
	case isNotFound(err):
		return v1.Descriptor{}, false, nil
	case err != nil:
		return v1.Descriptor{}, false, err
	}
	return v1.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: resp.ContentLength}, true, drain(resp)
}

// DeleteBlob takes blob d from repo. Errors: ErrNotFound.
func (r *Registry) DeleteBlob(ctx context.Context, repo string, d digest.Digest) error {
	c, err := r.blobCall(http.MethodDelete, "delete", repo, d)
	if err != nil {
		return err
	}
	c.retry, c.scope = false, deleteScope(repo)
	resp, err := r.do(ctx, c)
	if err != nil {
		return err
	}
	return drain(resp)
}

func (r *Registry) blobCall(method, verb, repo string, d digest.Digest) (call, error) {
	if err := checkName(repo, d.String()); err != nil {
		return call{}, err
	}
	return call{
		method: method,
		url:    r.path(repo, "blobs", d.String()),
		scope:  pullScope(repo),
		retry:  true,
		doing:  verb + " " + repo + "@" + d.String(),
		repo:   repo, blob: d.String(),
	}, nil
}

// body is a blob on its way in.
type body struct {
	r       io.Reader
	c       io.Closer
	left    int64 // bytes to come; negative: unknown
	cancel  context.CancelCauseFunc
	stall   time.Duration
	timer   *time.Timer // runs while somebody waits for bytes
	explain func(error) error
}

// limit makes sure that the answer is what was asked for.
func (b *body) limit(resp *http.Response, offset, length int64) error {
	switch asked := offset > 0 || length > 0; {
	case resp.StatusCode == http.StatusPartialContent && asked:
		first, last, size, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return err
		}
		want := size - 1 // -2: the registry does not tell the size
		if length > 0 && (size < 0 || offset+length < size) {
			want = offset + length - 1
		}
		if first != offset || want >= 0 && last != want {
			return fmt.Errorf("the registry sent bytes %d-%d instead of those from %d on", first, last, offset)
		}
		b.left = last - first + 1
	case resp.StatusCode == http.StatusOK && asked:
		return fmt.Errorf("the registry sends whole blobs only: %w", errors.ErrUnsupported)
	case resp.StatusCode == http.StatusOK:
	default:
		return fmt.Errorf("the registry answered %s", printable(resp.Status))
	}
	return nil
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	b.timer.Reset(b.stall)
	n, err := b.r.Read(p)
	b.timer.Stop()
	if b.left > 0 {
		b.left -= int64(n)
	}
	switch {
	case err == io.EOF && b.left > 0:
		return n, io.ErrUnexpectedEOF
	case err != nil && err != io.EOF:
		return n, b.explain(err)
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	err := b.c.Close()
	b.cancel(nil)
	return err
}

// parseContentRange reads "bytes first-last/size" (RFC 9110, section 14.4).
// first and last are inclusive; size is -1 if it is "*".
func parseContentRange(s string) (first, last, size int64, err error) {
	bad := func() (int64, int64, int64, error) {
		return 0, 0, 0, fmt.Errorf("the registry sent an invalid Content-Range %q", printable(s))
	}
	span, ok := strings.CutPrefix(s, "bytes ")
	span, total, okSize := strings.Cut(span, "/")
	from, to, okSpan := strings.Cut(span, "-")
	if !ok || !okSize || !okSpan {
		return bad()
	}
	f, errFirst := strconv.ParseUint(from, 10, 63)
	l, errLast := strconv.ParseUint(to, 10, 63)
	n, errSize := strconv.ParseUint(total, 10, 63)
	if total == "*" {
		n, errSize = 0, nil
	}
	if errFirst != nil || errLast != nil || errSize != nil || f > l || total != "*" && l >= n {
		return bad()
	}
	if total == "*" {
		return int64(f), int64(l), -1, nil
	}
	return int64(f), int64(l), int64(n), nil
}
