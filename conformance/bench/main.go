// Command bench drives berth and other registries side by side with the same
// load, in turns, and prints what each did and the ratio to berth. Servers that
// it starts keep their data below -dir and are stopped at the end.
//
//	go run ./bench -berth ../bin/berth -peer /usr/bin/docker-registry
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// result is what one target did under one load: one value for each round.
type result struct {
	Load   string    `json:"load"`
	Unit   string    `json:"unit"`
	Target string    `json:"target"`
	Values []float64 `json:"values"`
	P99ms  []float64 `json:"p99_ms"`
}

func (r result) median() float64 { return median(r.Values) }

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

type options struct {
	berth, dir   string
	peers, urls  []string
	rounds       int
	only         *regexp.Regexp
	json         bool
	cpuPerPushed map[string][]float64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse() (options, error) {
	o := options{cpuPerPushed: map[string][]float64{}}
	flag.StringVar(&o.berth, "berth", "", "berth `binary` to start")
	flag.StringVar(&o.dir, "dir", os.TempDir(), "`folder` for the servers' data")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each load runs on each registry")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	only := flag.String("only", "", "run only loads whose name matches this `regexp`")
	flag.Func("peer", "docker-registry or Distribution `binary` to start; may be repeated", func(s string) error { o.peers = append(o.peers, s); return nil })
	flag.Func("url", "another registry as `name=http://host:port`; may be repeated", func(s string) error { o.urls = append(o.urls, s); return nil })
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	var err error
	o.only, err = regexp.Compile(*only)
	return o, err
}

func run(ctx context.Context) (err error) {
	o, err := parse()
	if err != nil {
		return err
	}
	targets, err := o.targets()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "berth-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, t := range targets {
		if _, err := t.up(ctx, filepath.Join(dir, t.name)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.down()) }()
	}
	results, err := o.measure(ctx, targets)
	if err != nil {
		return err
	}
	var cpu, peak []result
	for _, t := range targets {
		if t.cmd != nil {
			cpu = append(cpu, result{Load: "server CPU per GB pushed", Unit: "s", Target: t.name, Values: o.cpuPerPushed[t.name]})
			peak = append(peak, result{Load: "peak memory", Unit: "MiB", Target: t.name, Values: []float64{t.peak()}})
		}
	}
	results = slices.Concat(results, cpu, peak)
	if o.json {
		return json.NewEncoder(os.Stdout).Encode(results)
	}
	return show(targets, results)
}

func (o options) targets() ([]*target, error) {
	var targets []*target
	if o.berth != "" {
		targets = append(targets, berthTarget(o.berth))
	}
	for _, p := range o.peers {
		targets = append(targets, peerTarget(p))
	}
	for _, u := range o.urls {
		name, raw, _ := strings.Cut(u, "=")
		t, err := urlTarget(name, raw)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	if len(targets) == 0 {
		return nil, errors.New("no registry to load: give -berth, -peer or -url")
	}
	return targets, nil
}

// measure runs every load on every target, in turns, so that a machine whose
// speed drifts is as unfair to one as to the other.
func (o options) measure(ctx context.Context, targets []*target) ([]result, error) {
	var results []result
	for _, l := range loads {
		if !o.only.MatchString(l.name) {
			continue
		}
		rows := make([]result, len(targets))
		for round := range o.rounds {
			for i, t := range targets {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				b := &bench{addr: t.addr, round: round + 1, clients: l.clients}
				value, err := o.once(l, t, b)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", t.name, l.name, err)
				}
				rows[i].Load, rows[i].Unit, rows[i].Target = l.name, l.unit, t.name
				rows[i].Values = append(rows[i].Values, value)
				rows[i].P99ms = append(rows[i].P99ms, float64(b.p99().Microseconds())/1000)
				fmt.Fprintf(os.Stderr, "%-32s %-16s %10.0f %s\n", l.name, t.name, value, l.unit)
			}
		}
		results = append(results, rows...)
	}
	return results, nil
}

func (o options) once(l load, t *target, b *bench) (float64, error) {
	if l.prepare != nil && b.round == 1 {
		if err := l.prepare(b); err != nil {
			return 0, err
		}
		b.latencies = nil
	}
	cpu := t.cpu()
	b.begin()
	work, err := l.run(b)
	if err != nil {
		return 0, err
	}
	took := time.Since(b.began).Seconds()
	if l.pushed && t.cmd != nil {
		o.cpuPerPushed[t.name] = append(o.cpuPerPushed[t.name], (t.cpu()-cpu).Seconds()/(work/1000))
	}
	return work / took, nil
}

// show prints a row for each load: the median of each target and, for all but
// the first, the first's as a multiple of it.
func show(targets []*target, results []result) error {
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprint(w, "load\tunit")
	for i, t := range targets {
		fmt.Fprintf(w, "\t%s", t.name)
		if i > 0 {
			fmt.Fprintf(w, "\t%s/%s", targets[0].name, t.name)
		}
	}
	fmt.Fprintln(w)
	first := map[string]float64{}
	last := ""
	for _, r := range results {
		if r.Load != last {
			if last != "" {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "%s\t%s", r.Load, r.Unit)
			last = r.Load
		}
		m := r.median()
		fmt.Fprintf(w, "\t%.4g", m)
		if _, ok := first[r.Load]; !ok {
			first[r.Load] = m
		} else if m > 0 {
			fmt.Fprintf(w, "\t%.2f", first[r.Load]/m)
		} else {
			fmt.Fprint(w, "\t-")
		}
	}
	fmt.Fprintln(w)
	return w.Flush()
}
