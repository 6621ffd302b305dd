package model_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
)

// socket leads every request to the admin socket of the server with that data
// directory.
func socket(data string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(data, "registry", "admin.sock"))
	}}
}

// planCollection asks what the collector would do. What must stay is not in the
// answer.
func (c *client) planCollection(ctx context.Context) {
	q := request{method: http.MethodGet, path: "/berth/v1/gc", admin: true}
	a := c.send(ctx, q)
	if a == nil {
		return
	}
	var plan struct {
		Entries []struct {
			Kind, Repo, Digest string
			Goes               bool
		}
	}
	if a.status != http.StatusOK || json.Unmarshal(a.body, &plan) != nil {
		c.unexpected(a, q)
		return
	}
	for _, e := range plan.Entries {
		if !e.Goes || e.Kind != "blob" && e.Kind != "manifest" {
			continue
		}
		t := c.find(e.Digest, e.Kind == "manifest")
		if t == nil || !slices.Contains(repos, e.Repo) {
			c.unexpected(a, q)
			return
		}
		c.absent(a.op, holding{e.Repo, t})
	}
}

// job is work of the server that takes longer than a request.
type job struct {
	ID, Path, State string
	Revision        uint64
	Result, Error   json.RawMessage
}

// run starts a job and waits for its end. It returns nil if there is none,
// since another of its kind runs, or a server that was killed has left its lease
// on the work, or the server ends.
func (c *client) run(ctx context.Context, kind string, ask any) (*answer, *job) {
	q := request{method: http.MethodPost, path: "/berth/v1/" + kind, admin: true, header: map[string]string{"Content-Type": "application/json"}, body: encode(ask)}
	a := c.send(ctx, q)
	if a == nil || a.status == http.StatusConflict {
		return nil, nil
	}
	for {
		var j job
		if a.status/100 != 2 || json.Unmarshal(a.body, &j) != nil || j.ID == "" {
			c.unexpected(a, q)
			return nil, nil
		}
		c.note(a.op, j.State)
		switch {
		case j.State == "done":
			return a, &j
		case j.State == "failed" && bytes.Contains(j.Error, []byte(`"conflict"`)):
			return nil, nil
		case j.State != "running" && ctx.Err() == nil && !c.ending.Load():
			c.complain(a.op, nil, "job %s failed: %s", kind, j.Error)
			return nil, nil
		case j.State != "running":
			return nil, nil
		}
		q = request{method: http.MethodGet, path: j.Path, query: url.Values{"watch": {fmt.Sprint(j.Revision)}}, admin: true}
		if a = c.send(ctx, q); a == nil {
			return nil, nil
		}
	}
}

// collect asks for a round of the collector beside those that it does anyway.
func (c *client) collect(ctx context.Context) { c.run(ctx, "gc", struct{}{}) }

// check compares what the registry holds with what it says. There is nothing to
// find.
func (c *client) check(ctx context.Context, deep bool) {
	a, j := c.run(ctx, "fsck", map[string]bool{"deep": deep})
	if j == nil {
		return
	}
	var report struct {
		Findings []struct{ Kind, Digest, Key, What string }
	}
	if err := json.Unmarshal(j.Result, &report); err != nil || len(report.Findings) > 0 {
		c.complain(a.op, nil, "fsck found damage: %+v, %v", report.Findings, err)
	}
}

// scrub reads all content. None is damaged.
func (c *client) scrub(ctx context.Context) {
	a, j := c.run(ctx, "scrub", struct{}{})
	if j == nil {
		return
	}
	var state struct{ Damaged int }
	if err := json.Unmarshal(j.Result, &state); err != nil || state.Damaged > 0 {
		c.complain(a.op, nil, "the scrub found damage: %s, %v", j.Result, err)
	}
}
