package server

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"berth.internal/auth"
	"berth.internal/internal/control"
	"berth.internal/internal/httpx"
	"berth.internal/internal/oci"
	"berth.internal/server/registry"
)

// metrics counts what the front door sees.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sent     prometheus.Counter
	received prometheus.Counter
	limited  *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_http_requests_total", Help: "Requests answered.",
		}, []string{"endpoint", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_http_request_seconds", Help: "Time from the header of a request to the end of its answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
		}, []string{"endpoint"}),
		sent:     prometheus.NewCounter(prometheus.CounterOpts{Name: "berth_http_sent_bytes_total", Help: "Bytes of bodies sent."}),
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "berth_http_received_bytes_total", Help: "Bytes of bodies announced by clients."}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_http_limited_total", Help: "Requests refused since they exceeded a limit of the configuration.",
		}, []string{"limit"}),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.requests, m.seconds, m.sent, m.received, m.limited,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}
}

func (m *metrics) observe(r *http.Request, w *httpx.Recorder, took time.Duration) {
	e := endpoint(r.URL.Path)
	m.requests.WithLabelValues(e, method(r.Method), strconv.Itoa(w.Status)).Inc()
	m.seconds.WithLabelValues(e).Observe(took.Seconds())
	m.sent.Add(float64(w.Bytes))
	m.received.Add(float64(max(r.ContentLength, 0)))
}

// endpoint puts a path in one of a few classes: a label must not grow with what
// clients send.
func endpoint(path string) string {
	if strings.HasPrefix(path, control.Base+"/") {
		return "control"
	}
	if strings.HasPrefix(path, authPath) {
		return "auth"
	}
	for _, part := range []string{"/blobs/uploads/", "/manifests/", "/blobs/", "/referrers/", "/tags/", "/_catalog"} {
		if strings.Contains(path, part) {
			return strings.Trim(part, "/")
		}
	}
	return "other"
}

func method(m string) string {
	switch m {
	case "GET", "HEAD", "PUT", "POST", "PATCH", "DELETE":
		return m
	}
	return "other"
}

// guard lets those read the metrics who may.
func (s *Server) guard(next http.Handler) http.Handler {
	return httpx.Handle(registry.Render, func(w http.ResponseWriter, r *http.Request) error {
		access := s.now.Load().Metrics
		if access == MetricsPublic {
			next.ServeHTTP(w, r)
			return nil
		}
		s.identify(r)
		v := visitorOf(r)
		kind := v.Owner.Kind
		switch {
		case v.err != nil:
			return s.refuse(r, "", registry.Pull, v)
		case kind == auth.Socket:
		case access == MetricsAdmin && !s.identities.InUse():
			return oci.Denied.With("the metrics are for administrators: a server without users shows them on its admin socket only", nil)
		case !s.identities.InUse() && kind == auth.Anonymous: // as all the rest
		case kind == auth.Anonymous:
			return httpx.WithHeader(oci.Unauthorized.With("the metrics are for who logs in: give Prometheus a basic_auth, such as a robot's; or set metrics: public", nil), "WWW-Authenticate", basicChallenge)
		case access == MetricsAdmin:
			if d := s.decider.Decide(v.Caller, "", auth.Admin); !d.Allowed {
				return oci.Denied.With(d.Why, nil)
			}
		case kind != auth.User && kind != auth.Robot:
			return oci.Denied.With("the metrics are for users and robots", nil)
		}
		next.ServeHTTP(w, r)
		return nil
	})
}
