// Package control speaks the control API with a server: over its admin socket,
// or over its address.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"berth.internal/internal/control"
	"berth.internal/internal/socket"
)

// maxAnswer is the largest answer that is read, in bytes.
const maxAnswer = 64 << 20

// Client speaks with one server. Its methods may be called by several
// goroutines at the same time.
type Client struct {
	base  string // URL without control.Base
	where string // for messages
	http  *http.Client
}

// Socket returns a client of the server whose admin socket is at path.
func Socket(path string) *Client {
	return &Client{
		base: "http://server", where: path,
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return socket.Dial(ctx, path) },
		}},
	}
}

// New returns a client of the server at address, a URL such as
// http://127.0.0.1:5000. A transport of nil means the usual one.
func New(address string, transport http.RoundTripper) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return nil, errors.New("the address of a server is a URL with host and port, such as http://127.0.0.1:5000")
	}
	return &Client{base: u.Scheme + "://" + u.Host, where: u.Host, http: &http.Client{Transport: transport}}, nil
}

// Close gives its connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get asks for what path, below control.Base, names, with the options that
// request holds in a wire type, and reads it into answer. Errors: *control.Error;
// others, if there was no answer: see socket.Dial.
func (c *Client) Get(ctx context.Context, path string, request, answer any) error {
	return c.Do(ctx, http.MethodGet, path, request, answer)
}

// Replace puts request at path, where revision must be what is there: zero if
// there is nothing. Errors: *control.Error, with status 412 if it is not; others
// as of Get.
func (c *Client) Replace(ctx context.Context, path string, revision uint64, request, answer any) error {
	return c.do(ctx, http.MethodPut, path, http.Header{"If-Match": {strconv.FormatUint(revision, 10)}}, request, answer)
}

// Do makes one request. In a GET or DELETE the fields of request go into the
// query, else they are the body; nil is none. answer may be nil. Errors as of
// Get.
func (c *Client) Do(ctx context.Context, method, path string, request, answer any) error {
	return c.do(ctx, method, path, http.Header{}, request, answer)
}

func (c *Client) do(ctx context.Context, method, path string, header http.Header, request, answer any) error {
	at := c.base + control.Base + path
	var body io.Reader
	if request != nil {
		encoded, err := json.Marshal(request)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		if method == http.MethodGet || method == http.MethodDelete {
			query, err := queryOf(encoded)
			if err != nil {
				return fmt.Errorf("%s %s: %w", method, path, err)
			}
			at += "?" + query.Encode()
		} else {
			body = bytes.NewReader(encoded)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, at, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header = header
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		return fmt.Errorf("%s %s of %s: %w", method, path, c.where, err)
	}
	defer resp.Body.Close()
	return c.read(resp, method+" "+path, answer)
}

// read reads the answer to a request.
func (c *Client) read(resp *http.Response, what string, answer any) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s of %s: the answer ended before its time: %w", what, c.where, err)
	case len(raw) > maxAnswer:
		return fmt.Errorf("%s of %s: the answer is larger than %d bytes", what, c.where, maxAnswer)
	case resp.StatusCode >= 400:
		var failure control.Failure
		if json.Unmarshal(raw, &failure) != nil || failure.Error == nil {
			return fmt.Errorf("%s of %s: answered %s, but not as a berth server does: %.200q", what, c.where, resp.Status, bytes.TrimSpace(raw))
		}
		return failure.Error.At(resp.StatusCode)
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(raw, answer); err != nil { // what it does not know it ignores
		return fmt.Errorf("%s of %s: read the answer: %w", what, c.where, err)
	}
	return nil
}

// queryOf turns a JSON object into query parameters.
func queryOf(object []byte) (url.Values, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(object, &members); err != nil {
		return nil, err
	}
	query := url.Values{}
	for name, value := range members {
		var text string
		if json.Unmarshal(value, &text) != nil {
			text = string(value)
		}
		query.Set(name, text)
	}
	return query, nil
}
