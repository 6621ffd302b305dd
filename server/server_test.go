package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/auth"
	"berth.internal/server/registry"
	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

func newServer(t *testing.T, change func(*Config)) (*Server, *kv.Index) {
	t.Helper()
	cfg := DefaultConfig()
	if change != nil {
		change(&cfg)
	}
	index := mem.NewIndex(kv.Options{})
	s, err := Open(t.Context(), cfg, storage.Drivers{Store: new(mem.Store), Index: index, Records: index}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s, index
}

func get(t *testing.T, h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
	return w
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   []string // what the error says, each at the beginning of a line
	}{
		{"defaults", func(*Config) {}, nil},
		{"IPv6 loopback", func(c *Config) { c.Listen = "[::1]:5000" }, nil},
		{"localhost", func(c *Config) { c.Listen = "localhost:5000" }, nil},
		{"proxies", func(c *Config) { c.TrustedProxies = []string{"10.0.0.0/8", "::1", "nginx"} }, []string{`trusted_proxies: "nginx"`}},
		{"immutable tags", func(c *Config) {
			c.Trash, c.ImmutableTags = -1, []TagPattern{{"team/**", "{V,v}*"}, {"team/[", "v*"}, {"a", ""}, {"Team", "a/b"}}
		}, []string{
			"trash: ", `immutable_tags[1].repositories: "team/[": `, `immutable_tags[2].tags: a pattern of tags is missing`,
			`immutable_tags[3].repositories: "Team": no repository has the character 'T'`, `immutable_tags[3].tags: "a/b": `,
		}},
		{"ACME", func(c *Config) {
			c.TLS.ACME = ACME{Hosts: []string{"registry.example.com"}, Directory: "https://ca.example.com/", Email: "a@example.com", AcceptTerms: true}
			c.TLS.ClientCA = "ca.crt"
		}, nil},
		{"bad ACME", func(c *Config) {
			c.TLS = TLS{Cert: "a", Key: "b", ACME: ACME{Hosts: []string{"localhost", "::1", "Registry.example.com"}, Directory: "ca", Email: "a", EABKeyID: "k"}}
		}, []string{
			"tls.acme: gets", `tls.acme.hosts: "localhost"`, `tls.acme.hosts: "::1"`, `tls.acme.hosts: "Registry`,
			"tls.acme.email: ", "tls.acme.directory: ", "tls.acme.eab_key_id: ", "tls.acme.accept_terms: ",
		}},
		{"LDAP", func(c *Config) {
			c.LDAP.URL, c.LDAP.UserBase = "ldaps://ldap.example.com", "ou=people,dc=example,dc=com"
		}, nil},
		{"bad LDAP", func(c *Config) { c.LDAP.URL, c.LDAP.Timeout = "ldap://ldap.example.com", 0 }, []string{
			"ldap.url: passwords would go to ldap.example.com in the clear", "ldap.user_base: ", "ldap.timeout: ",
		}},
		{"limits", func(c *Config) {
			c.Limits = Limits{Caller: Limit{Requests: 100, Burst: 1000, Transfers: 10}, Address: Limit{Requests: -1, Burst: 5, Transfers: -1}}
			c.Metrics = "everybody"
		}, []string{"metrics: ", "limits.address.requests: ", "limits.address.transfers: "}},
		{"a burst of nothing", func(c *Config) { c.Limits.Caller.Burst = 5 }, []string{"limits.caller.burst: "}},
		{"CAs of clients without TLS", func(c *Config) { c.TLS.ClientCA = "ca.crt" }, []string{"tls.client_ca: needs"}},
		{"everything at once", func(c *Config) {
			*c = Config{Listen: "nowhere", Anonymous: "all", Sparse: "some", ShutdownTimeout: -1}
		}, []string{"listen: ", "data: ", "anonymous: ", "metrics: ", "sparse: ", "max_manifest: ", "upload_expiry: ", "grace: ", "collect.untagged_grace: ", "collect.dangling_grace: ", "collect.orphan_grace: ", "collect.interval: ", "collect.rate: ", "scrub.rate: ", "audit.file_size: ", "audit.files: ", "shutdown_timeout: "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := DefaultConfig()
			tc.change(&cfg)
			err := cfg.Validate()
			if (err == nil) != (tc.want == nil) {
				t.Fatalf("Validate() = %v, want %q", err, tc.want)
			}
			if err == nil {
				return
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tc.want) {
				t.Fatalf("Validate() = %q, want %d lines", lines, len(tc.want))
			}
			for i, want := range tc.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("line %d is %q, want %q…", i+1, lines[i], want)
				}
			}
		})
	}
}

// TestPublic opens servers that other machines reach.
func TestPublic(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		opens  bool
	}{
		{"loopback", func(*Config) {}, true},
		{"IPv6 loopback", func(c *Config) { c.Listen = "[::1]:5000" }, true},
		{"other machines", func(c *Config) { c.Listen = "10.0.0.1:5000" }, false},
		{"all addresses", func(c *Config) { c.Listen = ":5000" }, false},
		{"a name that only looks like loopback", func(c *Config) { c.Listen = "127.0.0.1.example.com:5000" }, false},
		{"other machines may pull", func(c *Config) { c.Listen, c.Anonymous = ":5000", AnonymousPull }, true},
		{"a first administrator", func(c *Config) { c.Listen, c.AdminPasswordFile = ":5000", password }, true},
		{"a first administrator without a file", func(c *Config) { c.Listen, c.AdminPasswordFile = ":5000", password+"s" }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := DefaultConfig()
			tc.change(&cfg)
			index := mem.NewIndex(kv.Options{})
			_, err := Open(t.Context(), cfg, storage.Drivers{Store: new(mem.Store), Index: index, Records: index}, slog.New(slog.DiscardHandler))
			if (err == nil) != tc.opens {
				t.Fatalf("Open() = %v, want it to open: %v", err, tc.opens)
			}
			if cfg.AdminPasswordFile == "" && !tc.opens && (!errors.Is(err, ErrNoUsers) || cfg.CheckUsers() == nil) {
				t.Errorf("Open() = %v, CheckUsers() = %v, want ErrNoUsers", err, cfg.CheckUsers())
			}
		})
	}
}

// TestShowAdmin makes an administrator where there is nobody, once, and shows the
// password or makes none.
func TestShowAdmin(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Listen = ":5000"
	index := mem.NewIndex(kv.Options{})
	var name, password string
	shown, broken := 0, errors.New("the terminal is gone")
	open := func(err error) (*Server, error) {
		cfg.ShowAdmin = func(n, p string) error {
			name, password, shown = n, p, shown+1
			return err
		}
		return Open(t.Context(), cfg, storage.Drivers{Store: new(mem.Store), Index: index, Records: index}, slog.New(slog.DiscardHandler))
	}
	if _, err := open(broken); !errors.Is(err, broken) {
		t.Fatalf("Open() = %v, want what went wrong with showing", err)
	}
	for range 2 {
		s, err := open(nil)
		if err != nil {
			t.Fatal(err)
		}
		if shown != 2 {
			t.Errorf("shown %d times, want one more than what failed", shown)
		}
		if c, _, err := s.identities.Basic(t.Context(), name, password, "192.0.2.1"); err != nil || !c.In(auth.GroupAdmins) {
			t.Errorf("the password shown is that of %+v, %v", c, err)
		}
	}
}

func TestRules(t *testing.T) {
	cfg := DefaultConfig()
	cfg.ImmutableTags = []TagPattern{{"team/**", "v*"}, {"team/app", "[0-9]*.[0-9]*"}, {"*", "release"}, {"{dev,test}/*", "RC[0-9]"}}
	for _, tc := range []struct {
		repo, tag string
		want      bool
	}{
		{"team/app", "v1", true},
		{"team/app/deep", "v1", true},
		{"team/app", "latest", false},
		{"team/app", "1.0", true},
		{"team/other", "1.0", false},
		{"app", "release", true},
		{"team/app", "release", false}, // * has no slash
		{"other/app", "v1", false},
		{"test/app", "RC1", true},
		{"test/app", "rc1", false},
		{"test/app", "RC10", false},
	} {
		rules := cfg.rules(tc.repo)
		if got := rules.Immutable != nil && rules.Immutable(tc.tag); got != tc.want {
			t.Errorf("tag %s of %s is immutable: %v, want %v", tc.tag, tc.repo, got, tc.want)
		}
	}
}

func TestAnonymous(t *testing.T) {
	for _, tc := range []struct {
		anonymous Anonymous
		pull, put int
	}{{AnonymousNone, 404, 202}, {AnonymousPull, 404, 403}, {AnonymousPush, 404, 202}} {
		s, _ := newServer(t, func(c *Config) { c.Anonymous = tc.anonymous })
		if w := get(t, s.Handler(), "GET", "/v2/a/tags/list", ""); w.Code != tc.pull {
			t.Errorf("%s: pull = %d %s, want %d", tc.anonymous, w.Code, w.Body, tc.pull)
		}
		if w := get(t, s.Handler(), "POST", "/v2/a/blobs/uploads/", ""); w.Code != tc.put {
			t.Errorf("%s: push = %d %s, want %d", tc.anonymous, w.Code, w.Body, tc.put)
		}
	}
}

func TestHealthAndMetrics(t *testing.T) {
	s, index := newServer(t, nil)
	for _, path := range []string{"/healthz", "/readyz", "/v2/"} {
		if w := get(t, s.Handler(), "GET", path, ""); w.Code != 200 {
			t.Errorf("GET %s = %d", path, w.Code)
		}
	}
	w := get(t, s.Handler(), "GET", "/metrics", "")
	for _, want := range []string{`berth_http_requests_total{code="200",endpoint="other",method="GET"} 3`, "berth_gc_", "go_goroutines"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if w := get(t, s.Handler(), "GET", "/elsewhere", ""); w.Code != 404 || !strings.Contains(w.Body.String(), "/v2/") {
		t.Errorf("GET /elsewhere = %d %s, want 404 and where to go", w.Code, w.Body)
	}
	if err := index.Close(); err != nil {
		t.Fatal(err)
	}
}

// mute is an index that does not answer, or whose driver has a bug.
type mute struct {
	storage.Index
	bug bool
}

func (m mute) Repositories(context.Context, string, int) ([]string, error) {
	if m.bug {
		panic("a bug")
	}
	return nil, errors.New("input/output error at /srv/berth")
}

func TestNotReady(t *testing.T) {
	s, index := newServer(t, nil)
	s.storage.Index = mute{Index: index}
	w := get(t, s.Handler(), "GET", "/readyz", "")
	if w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "/srv") {
		t.Errorf("GET /readyz = %d %s, want 503 without what only the log may say", w.Code, w.Body)
	}
	if w := get(t, s.Handler(), "GET", "/healthz", ""); w.Code != http.StatusOK {
		t.Errorf("GET /healthz = %d, want 200: the process lives", w.Code)
	}
}

// TestPanic lets a request run into a bug: its client is told, and the next one
// is served.
func TestPanic(t *testing.T) {
	s, index := newServer(t, nil)
	s.storage.Index = mute{Index: index, bug: true}
	w := get(t, s.Handler(), "GET", "/readyz", "")
	if w.Code != http.StatusInternalServerError || !strings.HasPrefix(w.Body.String(), `{"errors":[{"code":"UNKNOWN"`) || strings.Contains(w.Body.String(), "bug") {
		t.Errorf("after a panic: %d %s, want 500 in the spec's JSON", w.Code, w.Body)
	}
	if w := get(t, s.Handler(), "GET", "/v2/", ""); w.Code != http.StatusOK {
		t.Errorf("GET /v2/ = %d, want 200", w.Code)
	}
}

// TestShutdownLetsTransfersEnd asks a server to stop in the middle of an upload
// and expects that to succeed, and the next connection to be refused.
func TestShutdownLetsTransfersEnd(t *testing.T) {
	s, _ := newServer(t, nil)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, nil) }()

	content := bytes.Repeat([]byte("berth"), 1<<16)
	body, feed := io.Pipe()
	url := "http://" + l.Addr().String() + "/v2/a/blobs/uploads/?digest=" + digest.FromBytes(content).String()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	// The client sends no byte of the body before the handler asks for it.
	req.Header.Set("Expect", "100-continue")
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
	status := make(chan int, 1)
	go func() {
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	if _, err := feed.Write(content[:1<<17]); err != nil {
		t.Fatal(err)
	}
	stop()
	for { // until the listener is closed
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			break
		}
		c.Close()
	}
	if _, err := feed.Write(content[1<<17:]); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if got := <-status; got != http.StatusCreated {
		t.Errorf("the upload under way = %d, want 201", got)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve() = %v", err)
	}
}

func TestShutdownDoesNotWaitForever(t *testing.T) {
	s, _ := newServer(t, func(c *Config) { c.ShutdownTimeout = time.Millisecond })
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, nil) }()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab"); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("Serve() = %v", err)
	}
}

func TestSparseModesAreTheRegistrys(t *testing.T) {
	for _, mode := range []registry.Sparse{registry.SparseNone, registry.SparseIndex, registry.SparseAll} {
		cfg := DefaultConfig()
		cfg.Sparse = mode
		if err := cfg.Validate(); err != nil {
			t.Errorf("sparse %s: %v", mode, err)
		}
	}
}

// TestServeEndsWithItsListeners lets one of two listeners fail.
func TestServeEndsWithItsListeners(t *testing.T) {
	for broken := range 2 {
		s, _ := newServer(t, nil)
		var l [2]net.Listener
		for i := range l {
			var lc net.ListenConfig
			var err error
			if l[i], err = lc.Listen(t.Context(), "tcp", "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
			defer l[i].Close()
		}
		l[broken].Close()
		if err := s.Serve(t.Context(), l[0], l[1]); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve() with listener %d closed = %v, want net.ErrClosed", broken, err)
		}
	}
}

// A server that is asked to stop while it starts has not failed.
func TestStopWhileStarting(t *testing.T) {
	s, _ := newServer(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := s.Serve(ctx, listenOnce(t), nil); err != nil {
		t.Errorf("Serve with a context that has ended = %v", err)
	}
}
