package model_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// session is an upload under way.
type session struct {
	holding
	path  string
	size  int    // bytes that arrived
	saved window // of the request that was last told so
}

func (s session) String() string { return fmt.Sprintf("upload of %s", s.holding) }

// upload pushes a blob in one of the ways there are.
func (c *client) upload(ctx context.Context, h holding) bool {
	if c.chance(30) {
		q := request{
			method: http.MethodPost, path: "/v2/" + h.repo + "/blobs/uploads/", query: url.Values{"digest": {h.of.digest.String()}}, body: h.of.body,
			what: "in one request " + h.String(), effect: effect{puts: []holding{h}},
		}
		a := c.send(ctx, q)
		return a != nil && c.created(a, q, h)
	}
	s, there := c.beginUpload(ctx, h)
	if s == nil {
		return there
	}
	switch c.random.IntN(3) {
	case 0: // all with the PUT
	case 1: // in chunks, as docker does
		if !c.patch(ctx, s, len(h.of.body), false) {
			return false
		}
	case 2:
		for s.size < len(h.of.body) && c.chance(70) {
			if !c.patch(ctx, s, s.size+1+c.random.IntN(len(h.of.body)-s.size), true) {
				return false
			}
		}
	}
	return c.finish(ctx, s)
}

// beginUpload opens an upload. Instead of that it may find that the blob can be
// mounted from another repository.
func (c *client) beginUpload(ctx context.Context, h holding) (s *session, there bool) {
	q := request{method: http.MethodPost, path: "/v2/" + h.repo + "/blobs/uploads/", what: "for " + h.String(), about: []fmt.Stringer{h}}
	from := c.repo()
	mount := c.chance(40)
	if mount {
		q.query = url.Values{"mount": {h.of.digest.String()}, "from": {from}}
		q.effect.puts = []holding{h}
		q.about = append(q.about, holding{from, h.of})
		q.what = fmt.Sprintf("mount %s from %s", h, from)
		q.did = func(a *answer) (effect, bool) { return effect{}, a.status == http.StatusAccepted }
	}
	a := c.send(ctx, q)
	switch {
	case a == nil:
		return nil, false
	case mount && a.status == http.StatusCreated:
		c.present(a.op, holding{from, h.of})
		c.promised(a.op, h, c.grace)
		return nil, true
	case a.status != http.StatusAccepted || a.header.Get("Location") == "":
		c.unexpected(a, q)
		return nil, false
	case mount:
		c.absent(a.op, holding{from, h.of})
	}
	return &session{holding: h, path: a.header.Get("Location"), saved: a.window}, false
}

// patch sends bytes up to the position end.
func (c *client) patch(ctx context.Context, s *session, end int, ranged bool) bool {
	q := request{method: http.MethodPatch, path: s.path, body: s.of.body[s.size:end], header: map[string]string{}, what: fmt.Sprintf("%d to %d of %s", s.size, end, s), about: []fmt.Stringer{s}}
	if ranged {
		q.header["Content-Range"] = fmt.Sprintf("%d-%d", s.size, end-1)
	} else {
		q.reader = &slowly{body: q.body, pause: c.slow}
	}
	a := c.send(ctx, q)
	switch {
	case a == nil:
		return false
	case a.status == http.StatusAccepted && a.header.Get("Range") == fmt.Sprintf("0-%d", end-1):
		s.size, s.saved = end, a.window
		return true
	}
	c.gone(a, q, s)
	return false
}

// finish sends what is missing and the digest.
func (c *client) finish(ctx context.Context, s *session) bool {
	q := request{
		method: http.MethodPut, path: s.path, query: url.Values{"digest": {s.of.digest.String()}}, body: s.of.body[s.size:],
		what: fmt.Sprintf("the end of %s from %d", s, s.size), effect: effect{puts: []holding{s.holding}}, about: []fmt.Stringer{s},
	}
	if c.slow > 0 {
		q.reader = &slowly{body: q.body, pause: c.slow}
	}
	a := c.send(ctx, q)
	if a == nil {
		return false
	}
	if a.status != http.StatusCreated {
		c.gone(a, q, s)
		return false
	}
	if c.chance(10) {
		after := request{method: http.MethodGet, path: s.path, what: "the ended " + s.String(), about: []fmt.Stringer{s}}
		if a := c.send(ctx, after); a != nil && a.code() != "BLOB_UPLOAD_UNKNOWN" {
			c.complain(a.op, []fmt.Stringer{s}, "an upload goes on after its end")
		}
	}
	return c.created(a, q, s.holding)
}

func (c *client) created(a *answer, q request, h holding) bool {
	if a.status != http.StatusCreated {
		c.unexpected(a, q)
		return false
	}
	c.promised(a.op, h, c.grace)
	return true
}

// gone judges the answer to an upload that did not go on: it may have expired.
func (c *client) gone(a *answer, q request, s *session) {
	if a.code() != "BLOB_UPLOAD_UNKNOWN" || a.to < s.saved.from+c.expiry {
		c.complain(a.op, append(q.subjects(), s), "an upload must go on")
	}
}

// leaveUpload begins an upload and leaves it.
func (c *client) leaveUpload(ctx context.Context) {
	h := holding{c.repo(), c.blob()}
	s, _ := c.beginUpload(ctx, h)
	if s == nil || !c.patch(ctx, s, 1+c.random.IntN(len(h.of.body)), c.chance(50)) {
		return
	}
	const most = 10
	if c.left = append(c.left, *s); len(c.left) > most {
		c.left = c.left[1:]
	}
}

// goOn goes on with an upload that was left, or gives it up.
func (c *client) goOn(ctx context.Context) {
	if len(c.left) == 0 {
		return
	}
	s := c.left[len(c.left)-1]
	c.left = c.left[:len(c.left)-1]
	if c.chance(20) {
		q := request{method: http.MethodDelete, path: s.path, what: "the " + s.String(), about: []fmt.Stringer{s}}
		if a := c.send(ctx, q); a != nil && a.status != http.StatusNoContent {
			c.gone(a, q, &s)
		}
		return
	}
	size, ok := c.progress(ctx, &s)
	if ok && size != s.size {
		c.complain(&op{what: "goOn"}, []fmt.Stringer{s}, "%s has %d bytes, and %d were acknowledged", s, size, s.size)
	}
	if ok {
		c.finish(ctx, &s)
	}
}

// progress asks how far an upload is.
func (c *client) progress(ctx context.Context, s *session) (size int, ok bool) {
	q := request{method: http.MethodGet, path: s.path, what: "the " + s.String(), about: []fmt.Stringer{s}}
	a := c.send(ctx, q)
	if a == nil {
		return 0, false
	}
	if a.status == http.StatusNoContent {
		last, err := strconv.Atoi(strings.TrimPrefix(a.header.Get("Range"), "0-"))
		if err == nil {
			c.note(a.op, fmt.Sprint(last+1))
			return last + 1, true
		}
	}
	c.gone(a, q, s)
	return 0, false
}

// breakOff breaks a PATCH off in the middle, asks how much has arrived and goes
// on from there.
func (c *client) breakOff(ctx context.Context) {
	h := holding{c.repo(), c.blob()}
	s, _ := c.beginUpload(ctx, h)
	if s == nil {
		return
	}
	part := 1 + c.random.IntN(len(h.of.body)-1)
	c.send(ctx, request{
		method: http.MethodPatch, path: s.path, what: fmt.Sprintf("%d bytes of %s, then break off", part, s), about: []fmt.Stringer{s},
		reader: io.MultiReader(bytes.NewReader(h.of.body[:part]), brokenOff{}),
	})
	size, ok := c.progress(ctx, s)
	if !ok {
		return
	}
	if size <= 1 { // of no byte and of one, the answer is the same
		return
	}
	s.size = size
	c.finish(ctx, s)
}

// pushSlowly lets an upload rest until it may expire, and then sends the rest of
// it slowly.
func (c *client) pushSlowly(ctx context.Context) {
	h := holding{c.repo(), c.blob()}
	s, _ := c.beginUpload(ctx, h)
	size := len(h.of.body)
	if s == nil || !c.patch(ctx, s, size/2, true) || !c.pause(ctx, c.expiry*time.Duration(30+c.random.IntN(80))/100) {
		return
	}
	c.slow = c.expiry * time.Duration(c.random.IntN(80)) / 100
	defer func() { c.slow = 0 }()
	if c.chance(50) || c.patch(ctx, s, size/2+1+size/4, false) {
		c.finish(ctx, s)
	}
}

// slowly is a body that comes in two parts, with a pause between them.
type slowly struct {
	body  []byte
	pause time.Duration
	sent  int
}

func (s *slowly) Read(p []byte) (int, error) {
	part := s.body[s.sent:]
	switch half := len(s.body) / 2; {
	case len(part) == 0:
		return 0, io.EOF
	case s.sent < half:
		part = s.body[s.sent:half]
	case s.pause > 0:
		<-time.After(s.pause)
		s.pause = 0
	}
	n := copy(p, part)
	s.sent += n
	return n, nil
}

// brokenOff is the end of a body that does not come.
type brokenOff struct{}

func (brokenOff) Read([]byte) (int, error) { return 0, errBrokenOff }
