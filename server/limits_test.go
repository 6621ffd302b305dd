package server

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth.internal/auth"
)

func testLimiter(l Limit) *limiter { return newLimiter("caller", l, newMetrics().limited) }

func TestLimiter(t *testing.T) {
	ann, bob := whom{kind: auth.User, name: "ann"}, whom{kind: auth.User, name: "bob"}
	m := testLimiter(Limit{Requests: 10, Burst: 5})
	for i := range 5 {
		if _, ok := m.take(ann, false, 0); !ok {
			t.Fatalf("request %d of a burst of 5 is refused", i+1)
		}
	}
	wait, ok := m.take(ann, false, 0)
	if ok || wait != 100*time.Millisecond {
		t.Errorf("a request too many = %s, %v, want to wait for 100ms", wait, ok)
	}
	if _, ok := m.take(bob, false, 0); !ok {
		t.Error("somebody else is refused")
	}
	if _, ok := m.take(ann, false, 99*time.Millisecond); ok {
		t.Error("a request is allowed too early")
	}
	if _, ok := m.take(ann, false, 100*time.Millisecond); !ok {
		t.Error("a request after the wait is refused")
	}
	n := 0 // one that asks all the time gets what is allowed on average
	for now := time.Second; now < 11*time.Second; now += time.Millisecond {
		if _, ok := m.take(ann, false, now); ok {
			n++
		}
	}
	if n < 100 || n > 106 {
		t.Errorf("%d requests in 10 s, want 100 and a burst of 5", n)
	}

	m = testLimiter(Limit{Transfers: 2})
	for range 2 {
		if _, ok := m.take(ann, true, 0); !ok {
			t.Fatal("a transfer of two is refused")
		}
	}
	if _, ok := m.take(ann, true, 0); ok {
		t.Error("a third transfer is allowed")
	}
	if _, ok := m.take(ann, false, 0); !ok {
		t.Error("a request that is no transfer is refused")
	}
	m.done(ann)
	if _, ok := m.take(ann, true, 0); !ok {
		t.Error("a transfer after the end of one is refused")
	}
	if testLimiter(Limit{}) != nil {
		t.Error("no limit is one")
	}
}

// TestLimiterForgets comes from more addresses than are remembered: memory is
// bounded, and those who transfer are not forgotten.
func TestLimiterForgets(t *testing.T) {
	m := testLimiter(Limit{Requests: 1, Burst: 1, Transfers: 1})
	ann := whom{kind: auth.User, name: "ann"}
	if _, ok := m.take(ann, true, 0); !ok {
		t.Fatal("the first transfer is refused")
	}
	const many = 2 * limitShards * maxUsages
	for i := range many {
		m.take(whom{address: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, false, 0)
	}
	n := 0
	for i := range m.shards {
		n += len(m.shards[i].all)
	}
	if n > limitShards*maxUsages {
		t.Errorf("%d are remembered, want %d at most", n, limitShards*maxUsages)
	}
	if _, ok := m.take(ann, true, time.Minute); ok {
		t.Error("a transfer was forgotten")
	}
}

// TestLimits asks a server with limits.
func TestLimits(t *testing.T) {
	s, secret := people(t, func(c *Config) {
		c.Limits = Limits{Caller: Limit{Requests: 1, Burst: 3}, Address: Limit{Requests: 1, Burst: 20}}
		c.TrustedProxies = []string{"192.0.2.1"} // of httptest
	})
	robot := "robot+ci:" + secret
	statuses := func(n int, who, method, path string, header ...string) string {
		var all []string
		for range n {
			w := as(t, s, who, method, path, "", header...)
			all = append(all, strconv.Itoa(w.Code))
			if w.Code != 429 {
				continue
			}
			if w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "limits.") {
				t.Errorf("%s %s = 429 %v %s, without saying when and why", method, path, w.Header(), w.Body)
			}
			if code := map[bool]string{false: `"TOOMANYREQUESTS"`, true: `"too_many"`}[strings.HasPrefix(path, "/berth")]; !strings.Contains(w.Body.String(), code) {
				t.Errorf("%s %s = %s, want %s", method, path, w.Body, code)
			}
		}
		return strings.Join(all, " ")
	}
	const tags, server = "/v2/team/app/tags/list", "/berth/v1/server"
	for _, tc := range []struct {
		name, who, path, from, want string
	}{
		{"a robot", robot, tags, "10.0.0.1", "404 404 404 429 429"},
		{"the same from elsewhere", robot, tags, "10.0.0.2", "429 429 429 429 429"},
		{"a user beside it", "ann:password of ann", tags, "10.0.0.2", "404 404 404 429 429"},
		{"nobody", "", tags, "10.0.0.3", "401 401 401 429 429"},
		{"a wrong password", "ann:wrong", tags, "10.0.0.4", "401 401 401 429 429"},
		{"nobody at the control API", "", server, "10.0.0.5", "401 401 401 429 429"},
		{"the same network of IPv6", "", tags, "2001:db8::1", "401 401 401 429 429"},
		{"another address there", "", tags, "2001:db8::ffff:2", "429 429 429 429 429"},
		{"another network", "", tags, "2001:db8:0:1::1", "401 401 401 429 429"},
		{"how it is", "", "/healthz", "10.0.0.3", strings.TrimSpace(strings.Repeat("200 ", 50))},
		{"all from there", "", "/auth/jwks", "10.0.0.3", strings.Repeat("200 ", 15) + "429"},
	} {
		n := strings.Count(tc.want, " ") + 1
		if tc.name == "nobody at the control API" {
			tc.want = strings.ReplaceAll(tc.want, "401", strings.Fields(statuses(1, "", "GET", server, "X-Forwarded-For", "10.0.0.99"))[0])
		}
		if got := statuses(n, tc.who, "GET", tc.path, "X-Forwarded-For", tc.from); got != tc.want {
			t.Errorf("%s: GET %s = %s, want %s", tc.name, tc.path, got, tc.want)
		}
	}
	for range 30 { // by the admin socket nothing is limited
		r := httptest.NewRequestWithContext(asAdmin(t.Context()), "GET", tags, nil)
		w := httptest.NewRecorder()
		if s.Handler().ServeHTTP(w, r); w.Code != 404 {
			t.Fatalf("by the admin socket = %d", w.Code)
		}
	}
}

// TestTransfersAreLimited holds uploads open.
func TestTransfersAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, end := make(chan struct{}, 10), make(chan struct{})
		m := testLimiter(Limit{Transfers: 3})
		h := limited(func() *limiter { return m }, func(*http.Request) whom { return whom{name: "x"} }, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			begun <- struct{}{}
			<-end
		}))
		ask := func(method, path, body string) int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
			return w.Code
		}
		var all sync.WaitGroup
		for _, method := range []string{"PATCH", "PUT", "POST"} {
			all.Go(func() {
				if code := ask(method, "/v2/a/blobs/uploads/x", "content"); code != 200 {
					t.Errorf("%s = %d", method, code)
				}
			})
		}
		synctest.Wait()
		for _, tc := range []struct {
			method, path, body string
			want               int
		}{
			{"GET", "/v2/a/blobs/sha256:x", "", 429},
			{"PATCH", "/v2/a/blobs/uploads/y", "content", 429},
		} {
			if code := ask(tc.method, tc.path, tc.body); code != tc.want {
				t.Errorf("%s %s = %d beside three transfers, want %d", tc.method, tc.path, code, tc.want)
			}
		}
		if len(begun) != 3 {
			t.Errorf("%d requests have begun", len(begun))
		}
		close(end)
		all.Wait()
		for _, free := range []string{"HEAD /v2/a/blobs/sha256:x", "GET /v2/a/manifests/1", "GET /v2/a/blobs/sha256:x", "POST /v2/a/blobs/uploads/"} {
			method, path, _ := strings.Cut(free, " ")
			if code := ask(method, path, ""); code != 200 {
				t.Errorf("%s = %d after all transfers, want 200", free, code)
			}
		}
	})
}

func TestMetricsAccess(t *testing.T) {
	for _, tc := range []struct {
		metrics                      MetricsFor
		anonymous, bob, robot, admin int
	}{
		{MetricsPublic, 200, 200, 200, 200},
		{MetricsUsers, 401, 200, 200, 200},
		{MetricsAdmin, 401, 403, 403, 200},
	} {
		s, secret := people(t, func(c *Config) { c.Metrics = tc.metrics })
		for who, want := range map[string]int{"": tc.anonymous, "bob:password of bob": tc.bob, "robot+ci:" + secret: tc.robot, "ann:password of ann": tc.admin} {
			w := as(t, s, who, "GET", "/metrics", "")
			if w.Code != want || (want == 200) != strings.Contains(w.Body.String(), "berth_http_sent_bytes_total") {
				t.Errorf("metrics: %s: GET /metrics as %.5q = %d, want %d", tc.metrics, who, w.Code, want)
			}
			if want == 401 && w.Header().Get("WWW-Authenticate") != basicChallenge {
				t.Errorf("metrics: %s: the challenge is %q", tc.metrics, w.Header().Get("WWW-Authenticate"))
			}
		}
		s, _ = newServer(t, func(c *Config) { c.Metrics = tc.metrics })
		if w, want := as(t, s, "", "GET", "/metrics", ""), map[bool]int{true: 403, false: 200}[tc.metrics == MetricsAdmin]; w.Code != want {
			t.Errorf("metrics: %s: GET /metrics without users = %d, want %d", tc.metrics, w.Code, want)
		}
	}
}

// BenchmarkLimits measures what limits cost a request that they let pass.
func BenchmarkLimits(b *testing.B) {
	for _, callers := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := &Server{}
			s.now.Store(&current{})
			m := newLimiter("address", Limit{Requests: maxRequests, Transfers: 1 << 20}, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"limit"}))
			h := limited(func() *limiter { return m }, s.addressOf, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			requests := make([]*http.Request, callers)
			for i := range requests {
				requests[i] = httptest.NewRequestWithContext(b.Context(), "GET", "/v2/a/blobs/sha256:x", nil)
				requests[i].RemoteAddr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 5000).String()
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				h.ServeHTTP(nil, requests[i%callers])
			}
		})
	}
}

// TestLimitsChange puts limits in force while the server runs.
func TestLimitsChange(t *testing.T) {
	s, _ := newServer(t, nil)
	codes := func() string {
		var all []string
		for range 4 {
			all = append(all, strconv.Itoa(as(t, s, "", "GET", "/v2/", "").Code))
		}
		return strings.Join(all, " ")
	}
	for _, tc := range []struct {
		limits Limits
		want   string
	}{
		{Limits{}, "200 200 200 200"},
		{Limits{Caller: Limit{Requests: 1, Burst: 2}}, "200 200 429 429"},
		{Limits{Caller: Limit{Requests: 1, Burst: 2}}, "429 429 429 429"}, // the same again
		{Limits{Address: Limit{Requests: 1, Burst: 3}}, "200 200 200 429"},
		{Limits{}, "200 200 200 200"},
	} {
		cfg := s.now.Load().Config
		cfg.Limits = tc.limits
		if err := s.adopt(cfg); err != nil {
			t.Fatal(err)
		}
		if got := codes(); got != tc.want {
			t.Errorf("with the limits %+v = %s, want %s", tc.limits, got, tc.want)
		}
	}
}
