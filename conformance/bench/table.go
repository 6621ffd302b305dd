package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// result is what one target did under one load: one value for each round.
type result struct {
	Load   string    `json:"load"`
	Unit   string    `json:"unit"`
	Target string    `json:"target"`
	Values []float64 `json:"values"`           // in Unit
	P99    []float64 `json:"p99_ms,omitempty"` // latency that one request in a hundred exceeds
	CPU    []float64 `json:"cpu_ms,omitempty"` // of the server, for one request or one megabyte
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

// show prints a row for each load: of each target the median of its rounds and
// the processor time of one request in microseconds, or of a gigabyte in
// seconds; and behind all but the first, the first's median as a multiple of
// theirs.
func show(out io.Writer, targets []*target, results []result) error {
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	fmt.Fprint(w, "load\tunit")
	for i, t := range targets {
		fmt.Fprintf(w, "\t%s\tCPU", t.name)
		if i > 0 {
			fmt.Fprint(w, "\tratio")
		}
	}
	fmt.Fprintln(w)
	for i, r := range results {
		if slices.ContainsFunc(results[:i], func(s result) bool { return s.Load == r.Load }) {
			continue
		}
		fmt.Fprintf(w, "%s\t%s", r.Load, r.Unit)
		for i, t := range targets {
			at := slices.IndexFunc(results, func(s result) bool { return s.Load == r.Load && s.Target == t.name })
			if at < 0 || len(results[at].Values) == 0 {
				fmt.Fprint(w, "\t-\t")
			} else {
				fmt.Fprintf(w, "\t%.4g\t%s", median(results[at].Values), processor(results[at]))
			}
			switch {
			case i == 0:
			case at < 0 || median(results[at].Values) == 0:
				fmt.Fprint(w, "\t")
			default:
				fmt.Fprintf(w, "\t%.2f", median(r.Values)/median(results[at].Values))
			}
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func processor(r result) string {
	switch {
	case r.CPU == nil:
		return ""
	case r.Unit == "MB/s":
		return fmt.Sprintf("%.2f s/GB", median(r.CPU))
	}
	return fmt.Sprintf("%.0f µs", 1000*median(r.CPU))
}
