package server

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"berth.internal/internal/control"
	"berth.internal/internal/httpx"
)

// metrics counts what the front door sees.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sent     prometheus.Counter
	received prometheus.Counter
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
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.requests, m.seconds, m.sent, m.received,
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
