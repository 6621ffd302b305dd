package image

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	bytes   prometheus.Counter
	seconds *prometheus.HistogramVec
}

func newMetrics() metrics {
	return metrics{
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_node_pull_bytes_total",
			Help: "Bytes of blobs that arrived from registries.",
		}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_node_pull_seconds",
			Help:    "How long pulls took, by result: ok, invalid (the registry's content is wrong), error.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 9), // 10 ms to 11 min
		}, []string{"result"}),
	}
}

func (m metrics) pulled(took time.Duration, err error) {
	result := "ok"
	switch {
	case errors.Is(err, ErrInvalid):
		result = "invalid"
	case err != nil:
		result = "error"
	}
	m.seconds.WithLabelValues(result).Observe(took.Seconds())
}

// Metrics returns what the store measures.
func (s *Store) Metrics() []prometheus.Collector {
	return []prometheus.Collector{s.metrics.bytes, s.metrics.seconds}
}
