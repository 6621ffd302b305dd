package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ours runs what only berth can do, or only in reasonable time: who asks,
// collecting while it serves, and starting with many blobs. Each round has a server of its
// own.
func (o options) ours(ctx context.Context, dir string, progress io.Writer) ([]result, error) {
	var results []result
	for _, story := range []struct {
		name string
		run  func(ctx context.Context, data string) ([]result, error)
	}{
		{"auth", o.auth},
		{"collect", o.collect},
		{"start", o.start},
		{"node", o.node},
	} {
		if !o.only.MatchString(story.name) {
			continue
		}
		for round := range o.rounds {
			data := filepath.Join(dir, fmt.Sprint(story.name, round))
			rows, err := story.run(ctx, data)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", story.name, err)
			}
			for _, r := range rows {
				fmt.Fprintf(progress, "%-34s %-16s %10.4g %s\n", r.Load, r.Target, median(r.Values), r.Unit)
				at := slices.IndexFunc(results, func(s result) bool { return s.Load == r.Load && s.Target == r.Target })
				if at < 0 {
					results = append(results, r)
				} else {
					results[at].Values = append(results[at].Values, r.Values...)
				}
			}
			if err := os.RemoveAll(data); err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

// collect compares pushes of images while the collector frees blobs with such
// pushes before and after.
func (o options) collect(ctx context.Context, data string) (rows []result, err error) {
	s := o.sizes
	// Nothing is collected now: the first round is over before there is
	// anything, and no second one comes.
	t := berthTarget(o.berths[0], "BERTH_GRACE=1ms", "BERTH_COLLECT_INTERVAL=1h")
	if _, err := t.up(ctx, data); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.down()) }()
	fill := &bench{target: t, clients: 8}
	base := blob(uint64(time.Now().UnixNano()), s.freedSize)
	if _, err := fill.times(s.freed, func(c *conn, i int) (float64, error) {
		return 1, pushWhole(c, "garbage", append(fmt.Append(nil, i, " "), base...))
	}); err != nil {
		return nil, err
	}
	before, n := &bench{target: t, clients: 8}, new(atomic.Int64)
	end := time.Now().Add(2 * s.duration)
	if err := before.pushImages(n, func() bool { return time.Now().Before(end) }); err != nil {
		return nil, err
	}
	if err := t.down(); err != nil {
		return nil, err
	}

	// All of it is due now, and nothing of what comes.
	began := time.Now()
	t.start = berthTarget(o.berths[0], "BERTH_GRACE=1h", "BERTH_COLLECT_INTERVAL=10ms").start
	if _, err := t.up(ctx, data); err != nil {
		return nil, err
	}
	during, collected := &bench{target: t, clients: 8}, make(chan struct{})
	watched := make(chan error, 1)
	go func() {
		defer close(collected)
		watched <- t.collected(ctx, s.freed)
	}()
	err = during.pushImages(n, func() bool {
		select {
		case <-collected:
			return false
		default:
			return true
		}
	})
	if err = errors.Join(err, <-watched); err != nil {
		return nil, err
	}
	took := time.Since(began)
	after := &bench{target: t, clients: 8}
	end = time.Now().Add(2 * s.duration)
	if err := after.pushImages(n, func() bool { return time.Now().Before(end) }); err != nil {
		return nil, err
	}
	quiet := &bench{latencies: slices.Concat(before.latencies, after.latencies)}
	row := func(load, unit string, value float64) {
		rows = append(rows, result{Load: load, Unit: unit, Target: t.name, Values: []float64{value}})
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	row("p99 of pushes", "ms", ms(quiet.p99()))
	row(fmt.Sprintf("p99 while %d blobs are freed", s.freed), "ms", ms(during.p99()))
	row("of p99 without", "x", ms(during.p99())/ms(quiet.p99()))
	row("freed", "/s", float64(s.freed)/took.Seconds())
	return rows, nil
}

// pushImages pushes small images, as fast as it goes, while more says so: a new
// layer that goes to a file, and a manifest with a new tag. n counts them.
func (b *bench) pushImages(n *atomic.Int64, more func() bool) error {
	if err := putBlob(b, "pushed", blob(4, 200)); err != nil {
		return err
	}
	base := blob(5, 128<<10)
	_, err := b.each(func(c *conn) (float64, error) {
		for more() {
			i := int(n.Add(1))
			layer := append(fmt.Append(nil, i, " "), base...)
			digest, manifest := digestOf(layer), image(i, layer)
			began := time.Now()
			if err := push(c, "pushed", digest, layer); err != nil {
				return 0, err
			}
			p := fmt.Sprintf("/v2/pushed/manifests/t%d", i)
			if _, err := c.do("PUT", p, "Content-Type: "+imageType+"\r\n", manifest, 201); err != nil {
				return 0, err
			}
			b.took(time.Since(began))
		}
		return 0, nil
	})
	return err
}

// pushWhole pushes a blob with one request.
func pushWhole(c *conn, repo string, body []byte) error {
	_, err := c.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+digestOf(body), "Content-Type: application/octet-stream\r\n", body, 201)
	return err
}

// collected returns when the collector has deleted n files.
func (t *target) collected(ctx context.Context, n int) error {
	for {
		got, err := t.metric(ctx, "berth_gc_deleted_total")
		if err != nil || got >= float64(n) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (t *target) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.addr+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(all) {
		if v, ok := strings.CutPrefix(string(line), name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(v), 64)
		}
	}
	return 0, fmt.Errorf("%s has no metric %s", t.name, name)
}

// start measures how long berth takes until it answers, after it was killed and
// its index has left the memory.
func (o options) start(ctx context.Context, data string) (rows []result, err error) {
	t := berthTarget(o.berths[0])
	if _, err := t.up(ctx, data); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.down()) }()
	fill := &bench{target: t, clients: 16}
	if _, err := fill.times(o.sizes.stored, func(c *conn, i int) (float64, error) {
		return 1, pushWhole(c, fmt.Sprint("stored/", i%100), blob(uint64(i), 4096))
	}); err != nil {
		return nil, err
	}
	row := result{Load: fmt.Sprintf("start with %d blobs", o.sizes.stored), Unit: "ms", Target: t.name}
	for range o.sizes.starts {
		if err := t.end(syscall.SIGKILL); err != nil {
			return nil, err
		}
		if err := forget(filepath.Join(data, "registry", "index.db")); err != nil {
			return nil, err
		}
		took, err := t.up(ctx, data)
		if err != nil {
			return nil, err
		}
		row.Values = append(row.Values, took.Seconds()*1000)
	}
	return []result{row}, nil
}

// forget takes the file out of the page cache.
func forget(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
