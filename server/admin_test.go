package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	wire "berth.internal/internal/control"
	"berth.internal/internal/socket"
	"berth.internal/server/control"
	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// serving runs s on an address and an admin socket until stop is called or the
// test ends, and returns a client of each.
func serving(t *testing.T, s *Server) (tcp, admin func(method, path, body string) (int, string), stop func()) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "admin.sock")
	a, err := socket.Listen(t.Context(), path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, a) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve() = %v", err)
		}
		if _, err := socket.Dial(context.Background(), path); err == nil {
			t.Error("the admin socket is served after the end")
		}
	})
	client := func(dial func(ctx context.Context) (net.Conn, error)) func(method, path, body string) (int, string) {
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
		t.Cleanup(transport.CloseIdleConnections)
		return func(method, path, body string) (int, string) {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), method, "http://server"+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if body != "" {
				req.Header.Set("Content-Type", "application/json")
			}
			resp, err := transport.RoundTrip(req)
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
	}
	return client(func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", l.Addr().String())
		}), client(func(ctx context.Context) (net.Conn, error) {
			return socket.Dial(ctx, path)
		}), stop
}

// TestControlAccess asks for every operation of the control API on both ways
// in, under each policy for strangers.
func TestControlAccess(t *testing.T) {
	for _, anonymous := range []Anonymous{AnonymousNone, AnonymousPull, AnonymousPush} {
		t.Run(string(anonymous), func(t *testing.T) {
			s, _ := newServer(t, func(c *Config) { c.Anonymous = anonymous })
			tcp, admin, _ := serving(t, s)
			for _, op := range control.Table() {
				administers := op.Needs == control.Admin || op.Needs == control.Self
				path, body := wire.Base+strings.ReplaceAll(op.Path, "{id}", "none"), ""
				switch {
				case op.Needs == control.Everyone || administers:
				case op.Method == "GET" || op.Method == "DELETE":
					path += "?repo=none"
				default:
					body = `{"repo":"none"}`
				}
				if status, answer := admin(op.Method, path, body); status == http.StatusForbidden {
					t.Errorf("%s %s by the admin socket = %d %s", op.Method, op.Path, status, answer)
				}
				allowed := op.Needs == control.Everyone || op.Needs == control.Pull ||
					!administers && anonymous != AnonymousPull
				status, answer := tcp(op.Method, path, body)
				if (status != http.StatusForbidden) != allowed {
					t.Errorf("%s %s, which needs %s, by TCP = %d %s, want it allowed: %v", op.Method, op.Path, op.Needs, status, answer, allowed)
				}
				if administers && !strings.Contains(answer, "registry/admin.sock") {
					t.Errorf("%s %s by TCP = %s, want it to name the socket", op.Method, op.Path, answer)
				}
			}
			want := http.StatusAccepted
			if status, answer := admin("POST", "/v2/a/blobs/uploads/", ""); status != want {
				t.Errorf("a push by the admin socket = %d %s, want %d", status, answer, want)
			}
		})
	}
}

// TestControlInTheServer looks at what the front door adds to the control API.
func TestControlInTheServer(t *testing.T) {
	s, index := newServer(t, func(c *Config) { c.Version = "v1.2.3" })
	tcp, _, _ := serving(t, s)
	status, answer := tcp("GET", wire.Base+"/server", "")
	if want := fmt.Sprintf(`{"name":%q,"ready":true,"version":"v1.2.3","features":[`, s.name); status != 200 || !strings.HasPrefix(answer, want) {
		t.Errorf("GET /server = %d %s, want %s…", status, answer, want)
	}
	status, answer = tcp("GET", wire.Base+"/nowhere", "")
	if want := `{"error":{"code":"unsupported","message":"this server has no such path`; status != 404 || !strings.HasPrefix(answer, want) || !strings.Contains(answer, `"request_id":"`) {
		t.Errorf("GET /nowhere = %d %s, want %s… and a request id", status, answer, want)
	}
	if _, metrics := tcp("GET", "/metrics", ""); !strings.Contains(metrics, `berth_http_requests_total{code="200",endpoint="control",method="GET"} 1`) {
		t.Error("/metrics does not count the requests of the control API")
	}
	s.storage.Index = mute{Index: index}
	if status, answer := tcp("GET", wire.Base+"/server", ""); status != 200 || !strings.Contains(answer, `"ready":false`) || strings.Contains(answer, "/srv") {
		t.Errorf("GET /server without an index = %d %s", status, answer)
	}
	s.storage.Index = mute{Index: index, bug: true}
	if status, answer := tcp("GET", wire.Base+"/server", ""); status != 500 || !strings.HasPrefix(answer, `{"error":{"code":"internal"`) {
		t.Errorf("GET /server with a bug = %d %s, want 500 in the API's JSON", status, answer)
	}
}

// stuck deletes nothing before it is told to give up.
type stuck struct{ storage.Store }

func (stuck) Delete(ctx context.Context, _ ...storage.Key) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestShutdownEndsJobs stops a server while a job waits for the collector, and a
// client for the job.
func TestShutdownEndsJobs(t *testing.T) {
	index := mem.NewIndex(kv.Options{})
	if err := index.Intend(t.Context(), "nobody's", 0); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.ShutdownTimeout = time.Minute // longer than this test may take
	s, err := Open(t.Context(), cfg, storage.Drivers{Store: stuck{new(mem.Store)}, Index: index, Records: index}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	arrived, inner := make(chan struct{}), s.handler
	s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "watch=2" {
			close(arrived)
		}
		inner.ServeHTTP(w, r)
	})
	_, admin, stop := serving(t, s)
	status, answer := admin("POST", wire.Base+"/gc", "")
	var job wire.Job
	if err := json.Unmarshal([]byte(answer), &job); err != nil || status != http.StatusAccepted {
		t.Fatalf("POST /gc = %d %s, %v", status, answer, err)
	}
	watched := make(chan string, 1)
	go func() {
		// The first piece of news is that it waits; the second one its end.
		_, answer := admin("GET", job.Path+"?watch=2", "")
		watched <- answer
	}()
	<-arrived
	stop()
	if answer := <-watched; !strings.Contains(answer, `"state":"failed"`) || !strings.Contains(answer, "the server is stopping") {
		t.Errorf("the job at the end of its server: %s", answer)
	}
}
