package server

import (
	"fmt"
	"hash/maphash"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth.internal/auth"
	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
)

// Limits bound how much of the server some may have at the expense of others. What
// exceeds them is answered with 429 and Retry-After (spec, "Error Codes",
// TOOMANYREQUESTS). Each server counts for itself. The admin socket, the node of
// berth up, /healthz and /readyz are not limited.
//
// There are none by default: only a site knows how many machines share a robot, or
// an address behind a proxy or NAT. Guesses at passwords are limited always.
type Limits struct {
	// Caller holds for each account, and for each address of callers without one.
	Caller Limit `yaml:"caller"`

	// Address holds for each address, whoever comes from there; of IPv6 for each
	// network of 64 bits. Those that TrustedProxies name count, not the proxies'.
	Address Limit `yaml:"address"`
}

// Limit is a bound for one of many.
type Limit struct {
	// Requests is how many there may be in a second, on average. Zero: any number.
	Requests int `yaml:"requests"`

	// Burst is how many there may be at once after a pause. Zero: as many as in ten
	// seconds.
	Burst int `yaml:"burst"`

	// Transfers is how many blobs may be sent or received at the same time. Zero: any
	// number.
	Transfers int `yaml:"transfers"`
}

func (l Limit) on() bool { return l.Requests > 0 || l.Transfers > 0 }

// maxRequests is more than a server can answer in a second.
const maxRequests = 10_000_000

func (l Limit) validate(key string) (errs []error) {
	wrong := func(what string) { errs = append(errs, fmt.Errorf("limits.%s.%s", key, what)) }
	if l.Requests < 0 || l.Requests > maxRequests {
		wrong(fmt.Sprintf("requests: must be between 0 and %d; 0 is without a limit", maxRequests))
	}
	if l.Burst < 0 || l.Burst > maxRequests {
		wrong(fmt.Sprintf("burst: must be between 0 and %d; 0 is as many as in ten seconds", maxRequests))
	}
	if l.Burst > 0 && l.Requests == 0 {
		wrong("burst: means nothing without requests")
	}
	if l.Transfers < 0 {
		wrong("transfers: must not be negative; 0 is without a limit")
	}
	return errs
}

// whom is what is limited: an account, or an address.
type whom struct {
	kind    auth.Kind
	name    string
	address netip.Addr // of IPv6, the first of its network of 64 bits
}

// usage is what somebody has used.
type usage struct {
	free   int64 // when all requests so far would have come, at the most allowed rate, in ns
	active int   // transfers
}

const (
	limitShards = 64
	maxUsages   = 4096 // of a shard, of callers that transfer nothing
)

// limiter enforces a Limit on many. A request costs a lock of one of 64 parts, a
// look into a map and no allocation.
type limiter struct {
	what      string // caller or address
	interval  int64  // ns for a request; 0: requests are not limited
	slack     int64  // how many ns somebody may be ahead
	transfers int
	began     time.Time
	seed      maphash.Seed
	refused   prometheus.Counter
	shards    [limitShards]struct {
		mu  sync.Mutex
		all map[whom]*usage
	}
}

// newLimiter returns nil if there is no limit.
func newLimiter(what string, l Limit, refused *prometheus.CounterVec) *limiter {
	if !l.on() {
		return nil
	}
	m := &limiter{what: what, transfers: l.Transfers, began: time.Now(), seed: maphash.MakeSeed(), refused: refused.WithLabelValues(what)}
	if l.Requests > 0 {
		burst := int64(l.Burst)
		if burst == 0 {
			burst = 10 * int64(l.Requests)
		}
		m.interval = int64(time.Second) / int64(l.Requests)
		m.slack = (burst - 1) * m.interval
	}
	for i := range m.shards {
		m.shards[i].all = map[whom]*usage{}
	}
	return m
}

// take counts a request at now, since the limiter began. If it is one too many, it
// says how long to wait.
func (m *limiter) take(who whom, transfer bool, now time.Duration) (wait time.Duration, ok bool) {
	transfer = transfer && m.transfers > 0
	if m.interval == 0 && !transfer {
		return 0, true
	}
	s := &m.shards[maphash.Comparable(m.seed, who)%limitShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.all[who]
	if u == nil {
		if len(s.all) >= maxUsages {
			forget(s.all, int64(now))
		}
		u = new(usage)
		s.all[who] = u
	}
	if transfer && u.active >= m.transfers {
		return time.Second, false
	}
	if m.interval > 0 {
		u.free = max(u.free, int64(now))
		if ahead := u.free - int64(now) - m.slack; ahead > 0 {
			return time.Duration(ahead), false
		}
		u.free += m.interval
	}
	if transfer {
		u.active++
	}
	return 0, true
}

// done ends a transfer.
func (m *limiter) done(who whom) {
	s := &m.shards[maphash.Comparable(m.seed, who)%limitShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.all[who]; u != nil { // those that transfer are not forgotten
		if u.active--; u.active == 0 && m.interval == 0 {
			delete(s.all, who)
		}
	}
}

// forget removes those who have used nothing lately, and if that is not enough some
// of the others, but nobody who transfers.
func forget(all map[whom]*usage, now int64) {
	for who, u := range all {
		if u.active == 0 && u.free <= now {
			delete(all, who)
		}
	}
	for who, u := range all {
		if len(all) < maxUsages*9/10 {
			return
		}
		if u.active == 0 {
			delete(all, who)
		}
	}
}

// addressOf is the address that r counts for.
func (s *Server) addressOf(r *http.Request) whom {
	proxies := s.now.Load().proxies
	if len(proxies) == 0 { // most often, and it is for every request
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		return network(r.RemoteAddr, peer.Addr(), err)
	}
	text := proxies.client(r)
	a, err := netip.ParseAddr(text)
	return network(text, a, err)
}

// network is whom an address counts for; err says that text is none, as of a listener
// that is no network's.
func network(text string, a netip.Addr, err error) whom {
	if err != nil {
		return whom{name: text}
	}
	if a = a.Unmap().WithZone(""); a.Is6() {
		p, _ := a.Prefix(64) // cannot fail
		a = p.Addr()
	}
	return whom{address: a}
}

// callerOf is whom r counts for by its login.
func (s *Server) callerOf(r *http.Request) whom {
	if v := visitorOf(r); v.err == nil && v.Owner.Kind != auth.Anonymous {
		return whom{kind: v.Owner.Kind, name: v.Owner.Name}
	}
	return s.addressOf(r)
}

// transfers tells whether r moves a blob.
func transfers(r *http.Request) bool {
	if !strings.Contains(r.URL.Path, "/blobs/") {
		return false
	}
	return r.Method == http.MethodGet || r.ContentLength != 0
}

// unlimited tells whether r comes from where nothing is limited, or asks how the
// server is.
func unlimited(r *http.Request) bool {
	return isAdmin(r) || r.Context().Value(nodeKey{}) != nil || r.URL.Path == "/healthz" || r.URL.Path == "/readyz"
}

// limited asks the limiter of the configuration in force whether next may answer r.
func limited(m func() *limiter, who func(*http.Request) whom, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := m()
		if m == nil || unlimited(r) {
			next.ServeHTTP(w, r)
			return
		}
		one, transfer := who(r), transfers(r)
		wait, ok := m.take(one, transfer, time.Since(m.began))
		if !ok {
			m.refuse(w, r, wait)
			return
		}
		if transfer && m.transfers > 0 {
			defer m.done(one)
		}
		next.ServeHTTP(w, r)
	})
}

// refuse answers a request too many.
func (m *limiter) refuse(w http.ResponseWriter, r *http.Request, wait time.Duration) {
	m.refused.Inc()
	seconds := max(1, int((wait+time.Second-1)/time.Second))
	httpx.Handle(render, func(http.ResponseWriter, *http.Request) error {
		message := fmt.Sprintf("too much at once from this %s: try again in %d seconds; its administrator sets limits.%s", m.what, seconds, m.what)
		return httpx.WithHeader(oci.TooManyRequests.With(message, nil), "Retry-After", strconv.Itoa(seconds))
	}).ServeHTTP(w, r)
}
