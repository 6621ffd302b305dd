// Command bench drives berth and other registries, and its node beside other
// engines and OCI runtimes, side by side with the same load, in turns, and prints what each did, what of the processor it took, and
// the ratio to berth. The column "floor" is the least that a server in Go could
// do with the same care of data: see floor.go and floor_exec.go. Servers that it starts keep their
// data below -dir and are stopped at the end.
//
//	go run ./bench -berth ../bin/berth -peer /usr/bin/docker-registry
//	go run ./bench -berth ../bin/berth -only '^node'
//
// The node's part needs root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	dir         string
	berths      []string
	peers, urls []string
	floor       bool
	rounds      int
	warm        bool
	only        *regexp.Regexp
	json        bool
	sizes       sizes
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// command is the program without the process around it.
func command(ctx context.Context, args []string, out, progress io.Writer) error {
	if len(args) > 0 && args[0] == floorCommand {
		return serveFloor(ctx, args[1:])
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	return run(ctx, o, out, progress)
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ExitOnError)
	f.Func("berth", "berth `binary` to start; may be repeated, to compare two", func(s string) error { o.berths = append(o.berths, s); return nil })
	f.StringVar(&o.dir, "dir", os.TempDir(), "`folder` for the servers' data")
	f.IntVar(&o.rounds, "rounds", 3, "how often each load runs on each registry")
	f.BoolVar(&o.floor, "floor", true, "also measure the least that a server in Go could do")
	f.BoolVar(&o.warm, "warm", true, "first touch the machine's free memory")
	f.BoolVar(&o.json, "json", false, "print JSON")
	tiny := f.Bool("tiny", false, "run small loads: not to measure, but to see that it works")
	only := f.String("only", "", "run only loads whose name matches this `regexp`")
	f.Func("peer", "docker-registry or Distribution `binary` to start; may be repeated", func(s string) error { o.peers = append(o.peers, s); return nil })
	f.Func("url", "another registry as `name=http://host:port`; may be repeated", func(s string) error { o.urls = append(o.urls, s); return nil })
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	o.sizes = full()
	if *tiny {
		o.sizes, o.warm = small(), false
	}
	var err error
	o.only, err = regexp.Compile(*only)
	return o, err
}

func run(ctx context.Context, o options, out, progress io.Writer) (err error) {
	targets, err := o.targets()
	if err != nil {
		return err
	}
	if o.warm {
		if err := warm(progress); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(o.dir, "berth-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if !o.loadsRegistries() {
		targets = targets[:0]
	}
	for _, t := range targets {
		if _, err := t.up(ctx, filepath.Join(dir, t.name)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.down()) }()
	}
	var results []result
	if len(targets) > 0 {
		if results, err = o.measure(ctx, targets, progress); err != nil {
			return err
		}
	}
	if len(o.berths) == 1 {
		ours, err := o.ours(ctx, dir, progress)
		if err != nil {
			return err
		}
		results = append(results, ours...)
	}
	if o.json {
		return json.NewEncoder(out).Encode(results)
	}
	return showAll(out, targets, results)
}

// loadsRegistries reports whether a load is chosen that all registries run.
func (o options) loadsRegistries() bool {
	return slices.ContainsFunc(loads(o.sizes), func(l load) bool { return o.only.MatchString(l.name) })
}

// showAll prints a table of registries, and one of what runs containers.
func showAll(out io.Writer, targets []*target, results []result) error {
	ofNodes := func(r result) bool { return strings.HasPrefix(r.Load, nodePrefix) }
	registries := slices.DeleteFunc(slices.Clone(results), ofNodes)
	nodes := slices.DeleteFunc(slices.Clone(results), func(r result) bool { return !ofNodes(r) })
	if len(registries) > 0 {
		if len(targets) == 0 {
			targets = []*target{{name: "berth"}}
		}
		if err := show(out, targets, registries); err != nil {
			return err
		}
	}
	if len(nodes) == 0 {
		return nil
	}
	if len(registries) > 0 {
		fmt.Fprintln(out)
	}
	return show(out, nodeTargets(), nodes)
}

// targets returns berth first: the others are compared with it.
func (o options) targets() ([]*target, error) {
	var targets []*target
	for i, b := range o.berths {
		t := berthTarget(b)
		if i > 0 {
			t.name = fmt.Sprint(t.name, i+1)
		}
		targets = append(targets, t)
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
	if o.floor {
		targets = append(targets, floorTarget())
	}
	return targets, nil
}

// measure runs every load on every target, in turns, so that a machine whose
// speed drifts is as unfair to one as to the other.
func (o options) measure(ctx context.Context, targets []*target, progress io.Writer) ([]result, error) {
	var results []result
	var marks, beyond bool // loads of either kind have run
	for _, l := range loads(o.sizes) {
		if !o.only.MatchString(l.name) {
			continue
		}
		if l.beyond && marks && !beyond {
			results = append(results, memory("", targets)...)
		}
		marks, beyond = marks || !l.beyond, beyond || l.beyond
		rows := make([]result, len(targets))
		for i, t := range targets {
			rows[i] = result{Load: l.name, Unit: l.unit, Target: t.name}
		}
		for round := range o.rounds {
			for i, t := range targets {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				if t.floor && l.lists {
					continue
				}
				b := &bench{target: t, round: round + 1, clients: l.clients}
				if err := l.once(b, &rows[i]); err != nil {
					return nil, fmt.Errorf("%s, %s: %w", t.name, l.name, err)
				}
				fmt.Fprintf(progress, "%-34s %-16s %10.0f %s\n", l.name, t.name, rows[i].Values[round], l.unit)
			}
		}
		results = append(results, rows...)
	}
	if beyond {
		return append(results, memory(", all loads", targets)...), nil
	}
	return append(results, memory("", targets)...), nil
}

// once runs the load one time and notes in r how it went.
func (l load) once(b *bench, r *result) error {
	if l.prepare != nil && b.round == 1 {
		if err := l.prepare(b); err != nil {
			return err
		}
		b.latencies = nil
	}
	b.begin()
	work, err := l.run(b)
	if err != nil {
		return err
	}
	took := time.Since(b.began)
	r.Values = append(r.Values, work/took.Seconds())
	r.P99 = append(r.P99, b.p99().Seconds()*1000)
	if b.target.cmd != nil {
		r.CPU = append(r.CPU, (b.target.cpu()-b.cpu).Seconds()*1000/work)
	}
	return nil
}

// memory tells the peak of each target so far: all that was resident, which
// with berth includes the pages of its index that the kernel has in memory
// anyhow, and what was the process's own.
func memory(when string, targets []*target) []result {
	var peak, own []result
	for _, t := range targets {
		if t.cmd == nil || t.floor { // the floor keeps all small blobs in memory
			continue
		}
		all, anonymous := t.memory()
		peak = append(peak, result{Load: "peak memory" + when, Unit: "MiB", Target: t.name, Values: []float64{all}})
		own = append(own, result{Load: "of it not of a file" + when, Unit: "MiB", Target: t.name, Values: []float64{anonymous}})
	}
	return slices.Concat(peak, own)
}
