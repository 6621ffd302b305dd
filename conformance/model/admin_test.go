package model_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
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

// collect asks for a round of the collector beside those that it does anyway.
func (c *client) collect(ctx context.Context) {
	q := request{method: http.MethodPost, path: "/berth/v1/gc", admin: true, header: map[string]string{"Content-Type": "application/json"}, body: []byte("{}")}
	if a := c.send(ctx, q); a != nil && a.status != http.StatusAccepted && !strings.Contains(string(a.body), `"conflict"`) {
		c.unexpected(a, q)
	}
}
