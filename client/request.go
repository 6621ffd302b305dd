package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

const (
	maxAttempts   = 5                // of one request, or of an upload that gets nowhere
	maxRedirects  = 10               // of one request
	maxRetryAfter = 30 * time.Second // a registry that wants us away for longer has refused
)

// call is one request, and what to say about it.
type call struct {
	method string
	url    *url.URL
	header http.Header
	body   func() (io.ReadCloser, error) // nil: none. Opened anew for each attempt
	size   int64                         // of body
	scope  string                        // rights to ask the token service for
	retry  bool                          // may be repeated although it may have arrived

	doing    string // "pull manifest team/app:1", for errors
	repo     string
	manifest string // tag or digest that is asked for
	blob     string // digest that is asked for
}

// do makes the request, as often as it is safe to and may help, and returns an
// answer below 400, whose body the caller closes. Errors: *Error; others, if
// there was no answer.
func (r *Registry) do(ctx context.Context, c call) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		resp, err := r.send(ctx, c)
		if err == nil && resp.StatusCode < 400 {
			return resp, nil
		}
		if err == nil {
			err = r.answered(c, resp)
		}
		if !c.retry && !turnedAway(err) || attempt == maxAttempts || !r.passing(err) || ctx.Err() != nil {
			return nil, err
		}
		if err := r.wait(ctx, attempt, err); err != nil {
			return nil, err
		}
	}
}

// turnedAway says that the request has certainly done nothing, so that every kind of
// request may be repeated.
func turnedAway(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusTooManyRequests
}

// send makes the request once, or twice if the registry asks who is there.
func (r *Registry) send(ctx context.Context, c call) (*http.Response, error) {
	for known := false; ; known = true {
		req, err := r.request(ctx, c)
		if err != nil {
			return nil, err
		}
		resp, err := r.http.Do(req)
		if err != nil {
			return nil, r.failed(ctx, c, err)
		}
		r.met.Store(true)
		r.warn(resp.Header)
		if resp.StatusCode != http.StatusUnauthorized || known {
			return resp, nil
		}
		again, err := r.auth.learn(resp, c.scope, req.Header.Get("Authorization"))
		if err != nil {
			return nil, errors.Join(r.failed(ctx, c, err), drain(resp))
		}
		if !again {
			return resp, nil
		}
		if err := drain(resp); err != nil {
			return nil, r.failed(ctx, c, err)
		}
	}
}

func (r *Registry) request(ctx context.Context, c call) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, c.method, c.url.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.doing, err)
	}
	maps.Copy(req.Header, c.header)
	req.Header.Set("User-Agent", r.agent)
	if sameOrigin(req.URL, r.base) {
		maps.Copy(req.Header, r.header)
		v, err := r.auth.header(ctx, c.scope)
		if err != nil {
			return nil, r.failed(ctx, c, err)
		}
		if v != "" {
			req.Header.Set("Authorization", v)
		}
	}
	if c.body != nil && c.size > 0 {
		if req.Body, err = c.body(); err != nil {
			return nil, &sourceError{err}
		}
		req.ContentLength = c.size
	}
	return req, nil
}

// wait lets some time pass before the attempt after the given one.
func (r *Registry) wait(ctx context.Context, attempt int, err error) error {
	d := r.backoff(attempt)
	var e *Error
	if errors.As(err, &e) && e.retryAfter > 0 {
		d = e.retryAfter
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), err)
	}
}

// passing says whether the failure may be gone at the next attempt.
func (r *Registry) passing(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return !final(err) && (r.met.Load() || !errors.Is(err, syscall.ECONNREFUSED))
	}
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return e.retryAfter <= maxRetryAfter
	case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// checkRedirect takes the credentials off a request that leaves the registry:
// net/http does so only when the host's name changes, not for another port or
// plain http.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirected to %s, which is neither http nor https", req.URL.Scheme)
	}
	if !sameOrigin(req.URL, via[0].URL) {
		req.Header.Del("Authorization")
	}
	return nil
}

func sameOrigin(a, b *url.URL) bool { return a.Scheme == b.Scheme && a.Host == b.Host }

// follow resolves a Location or Link that came with resp. One that names the
// registry's host keeps the registry's scheme: behind a proxy that ends TLS,
// registries name themselves http.
func (r *Registry) follow(resp *http.Response, location string) (*url.URL, error) {
	u, err := resp.Request.URL.Parse(location)
	if err != nil || location == "" || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("the registry at %s sent a location that is none", r.Host())
	}
	if u.Host == r.base.Host {
		u.Scheme = r.base.Scheme
	}
	return u, nil
}

// retryAfter reads Retry-After, in seconds or as a date; zero if there is none.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// drain reads what little is left of the body, so that its connection can be
// used again, and closes it.
func drain(resp *http.Response) error {
	_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBody))
	return errors.Join(err, resp.Body.Close())
}
