package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	wire "berth.internal/internal/control"
	"berth.internal/internal/socket"
	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// TestLocalNode comes as the node of berth up, which may pull and nothing else,
// and over the same way as somebody else.
func TestLocalNode(t *testing.T) {
	for _, users := range []bool{true, false} {
		t.Run(map[bool]string{true: "with users", false: "without"}[users], func(t *testing.T) {
			cfg := DefaultConfig()
			loop := socket.NewLoop()
			cfg.LocalNode = loop
			index := mem.NewIndex(kv.Options{})
			s, err := Open(t.Context(), cfg, storage.Drivers{Store: new(mem.Store), Index: index, Records: index}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if users {
				if _, err := s.identities.AddUser(t.Context(), auth.Account{Name: "ann", Groups: []string{auth.GroupAdmins}}, "password of ann"); err != nil {
					t.Fatal(err)
				}
			}
			address := onTLS(t, s) // without TLS
			rules := policy.Default()
			rules.Rules = append(rules.Rules, policy.Rule{Subject: "node:local", Repositories: "closed/**", Deny: []auth.Action{auth.Pull}})
			eventually(t, func() bool { _, err := s.policy.Put(context.Background(), rules, 0); return err == nil })
			inside := &http.Client{Transport: &http.Transport{DialContext: loop.Dial}}
			t.Cleanup(inside.CloseIdleConnections)
			ask := func(c *http.Client, method, path string, change func(*http.Request)) (int, string) {
				t.Helper()
				r, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				change(r)
				resp, err := c.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return resp.StatusCode, string(b)
			}
			node := func(r *http.Request) { r.Header.Set(wire.NodeHeader, "local") }
			for _, tc := range []struct {
				method, path string
				want         int
			}{
				{"GET", "/v2/", 200},
				{"GET", "/v2/team/app/manifests/1", 404},
				{"GET", "/v2/closed/app/manifests/1", 403},
				{"POST", "/v2/team/app/blobs/uploads/", 403},
				{"DELETE", "/v2/team/app/manifests/1", 403},
				{"GET", wire.Base + "/policy", 403},
				{"GET", wire.Base + "/users", 403},
			} {
				if code, body := ask(inside, tc.method, tc.path, node); code != tc.want {
					t.Errorf("the node's %s %s = %d %s, want %d", tc.method, tc.path, code, body, tc.want)
				}
			}
			stranger := map[bool]int{true: 401, false: 404}[users]
			if code, _ := ask(inside, "GET", "/v2/team/app/manifests/1", func(*http.Request) {}); code != stranger {
				t.Errorf("without the header = %d, want %d", code, stranger)
			}
			if code, _ := ask(http.DefaultClient, "GET", "/v2/team/app/manifests/1", node); code != stranger {
				t.Errorf("the header from outside = %d, want %d", code, stranger)
			}
			if !users {
				return
			}
			if code, _ := ask(inside, "GET", "/v2/", func(r *http.Request) { r.SetBasicAuth("ann", "wrong") }); code != 401 {
				t.Errorf("a wrong password from inside = %d, want 401", code)
			}
			if code, body := ask(inside, "GET", "/v2/_catalog", func(r *http.Request) { r.SetBasicAuth("ann", "password of ann") }); code != 200 || !strings.Contains(body, "repositories") {
				t.Errorf("a user from inside = %d %s, want 200", code, body)
			}
		})
	}
}
