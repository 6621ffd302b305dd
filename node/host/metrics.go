package host

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what the host does.
type metrics struct {
	starts  *prometheus.CounterVec
	seconds prometheus.Histogram
}

func newMetrics() metrics {
	return metrics{
		starts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_node_starts_total", Help: "Starts of containers.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "berth_node_start_seconds", Help: "Time from the request to the running program.",
			Buckets: []float64{.002, .005, .01, .02, .05, .1, .2, .5, 1, 5},
		}),
	}
}

func (m metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.starts, m.seconds}
}

func (m metrics) started(took time.Duration, err error) {
	if err != nil {
		m.starts.WithLabelValues("failed").Inc()
		return
	}
	m.starts.WithLabelValues("started").Inc()
	m.seconds.Observe(took.Seconds())
}

// counts tells how many containers there are in each state.
type counts struct{ host *Host }

var containersDesc = prometheus.NewDesc("berth_node_containers", "Containers on the node.", []string{"state"}, nil)

func (c *counts) Describe(ch chan<- *prometheus.Desc) { ch <- containersDesc }

func (c *counts) Collect(ch chan<- prometheus.Metric) {
	n := map[Status]int{}
	for _, ctr := range c.host.List() {
		n[ctr.State.Status]++
	}
	for _, s := range []Status{Created, Running, Restarting, Exited, Removing, Dead} {
		ch <- prometheus.MustNewConstMetric(containersDesc, prometheus.GaugeValue, float64(n[s]), string(s))
	}
}
