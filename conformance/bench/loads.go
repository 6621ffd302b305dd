package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load is one row of the table. prepare fills the registry once; run is timed.
type load struct {
	name    string
	unit    string // MB/s or /s
	clients int
	prepare func(b *bench) error
	run     func(b *bench) (work float64, err error) // work in units of unit × seconds
	pushed  bool                                     // counts for CPU seconds per GB pushed
}

// bench is one registry under one load.
type bench struct {
	addr    string
	round   int
	clients int

	began time.Time

	mu        sync.Mutex
	latencies []time.Duration
}

// begin restarts the clock, for a load that had to prepare something first.
func (b *bench) begin() { b.began = time.Now() }

const (
	mib       = 1 << 20
	duration  = 2 * time.Second // of the loads that repeat one request
	imageType = "application/vnd.oci.image.manifest.v1+json"
)

var loads = []load{
	{name: "push one 256 MiB blob", unit: "MB/s", clients: 1, pushed: true, run: func(b *bench) (float64, error) {
		return pushBlobs(b, "big", 1, 256*mib)
	}},
	{name: "push 16 x 16 MiB", unit: "MB/s", clients: 8, pushed: true, run: func(b *bench) (float64, error) {
		return pushBlobs(b, "medium", 16, 16*mib)
	}},
	{name: "push 4 KiB blobs", unit: "/s", clients: 8, run: func(b *bench) (float64, error) {
		if _, err := pushBlobs(b, "small", 3000, 4096); err != nil {
			return 0, err
		}
		return 3000, nil
	}},
	{name: "push manifests, one repository", unit: "/s", clients: 8, prepare: func(b *bench) error { return pushImage(b, "manifests", nil) }, run: func(b *bench) (float64, error) {
		return pushManifests(b, "manifests", 2000)
	}},
	{name: "push 2000 tags, one repository", unit: "/s", clients: 16, prepare: func(b *bench) error { return pushImage(b, "tags2000", nil) }, run: func(b *bench) (float64, error) {
		return pushManifests(b, "tags2000", 2000)
	}},
	{name: "pull one 256 MiB blob", unit: "MB/s", clients: 8, prepare: func(b *bench) error { return putBlob(b, "pull", blob(1, 256*mib)) }, run: func(b *bench) (float64, error) {
		p := "/v2/pull/blobs/" + digestOf(blob(1, 256*mib))
		return b.times(16, func(c *conn, _ int) (float64, error) {
			a, err := c.do("GET", p, "", nil, 200)
			return float64(a.size) / 1e6, err
		})
	}},
	{name: "GET manifest by tag", unit: "/s", clients: 64, prepare: func(b *bench) error { return pushImage(b, "get", []string{"latest"}) }, run: repeat("GET", "/v2/get/manifests/latest")},
	{name: "HEAD blob", unit: "/s", clients: 8, prepare: func(b *bench) error { return putBlob(b, "head", blob(2, 4096)) }, run: repeat("HEAD", "/v2/head/blobs/"+digestOf(blob(2, 4096)))},
	{name: "GET 4 KiB blob", unit: "/s", clients: 8, prepare: func(b *bench) error { return putBlob(b, "getblob", blob(3, 4096)) }, run: repeat("GET", "/v2/getblob/blobs/"+digestOf(blob(3, 4096)))},
	{name: "list 500 tags", unit: "/s", clients: 8, prepare: func(b *bench) error { return pushImage(b, "tags500", names(500)) }, run: repeat("GET", "/v2/tags500/tags/list")},
	{name: "HEAD by tag, 10000 tags", unit: "/s", clients: 8, prepare: func(b *bench) error { return pushImage(b, "tags10000", names(10000)) }, run: repeat("HEAD", "/v2/tags10000/manifests/t05000")},
	{name: "catalog of 10000, n=100", unit: "/s", clients: 8, prepare: manyRepositories, run: repeat("GET", "/v2/_catalog?n=100")},
}

func names(n int) []string {
	tags := make([]string, n)
	for i := range tags {
		tags[i] = fmt.Sprintf("t%05d", i)
	}
	return tags
}

// blob returns size bytes that no seed shares with another.
func blob(seed uint64, size int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// times runs f n times, spread over b.clients connections, and returns the sum
// of the work they report.
func (b *bench) times(n int, f func(c *conn, i int) (float64, error)) (float64, error) {
	var next atomic.Int64
	return b.each(func(c *conn) (float64, error) {
		var sum float64
		for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
			began := time.Now()
			work, err := f(c, int(i))
			if err != nil {
				return sum, err
			}
			b.took(time.Since(began))
			sum += work
		}
		return sum, nil
	})
}

// each runs f once for each client, at the same time.
func (b *bench) each(f func(c *conn) (float64, error)) (float64, error) {
	var wg sync.WaitGroup
	sums, errs := make([]float64, b.clients), make([]error, b.clients)
	for i := range b.clients {
		wg.Go(func() {
			c, err := dial(b.addr)
			if err != nil {
				errs[i] = err
				return
			}
			defer c.Close()
			sums[i], errs[i] = f(c)
		})
	}
	wg.Wait()
	var sum float64
	for i := range sums {
		if errs[i] != nil {
			return 0, errs[i]
		}
		sum += sums[i]
	}
	return sum, nil
}

func (b *bench) took(d time.Duration) {
	b.mu.Lock()
	b.latencies = append(b.latencies, d)
	b.mu.Unlock()
}

// p99 returns the latency that one request in a hundred exceeds.
func (b *bench) p99() time.Duration {
	if len(b.latencies) == 0 {
		return 0
	}
	slices.Sort(b.latencies)
	return b.latencies[len(b.latencies)*99/100]
}

func repeat(method, path string) func(b *bench) (float64, error) {
	return func(b *bench) (float64, error) {
		end := time.Now().Add(duration)
		return b.each(func(c *conn) (float64, error) {
			n := 0.0
			for ; time.Now().Before(end); n++ {
				if _, err := c.do(method, path, "Accept: "+imageType+"\r\n", nil, 200); err != nil {
					return n, err
				}
			}
			return n, nil
		})
	}
}

// pushBlobs pushes n new blobs, each by POST and PUT, and returns the number of
// megabytes. Making and hashing the bytes is not timed.
func pushBlobs(b *bench, repo string, n, size int) (float64, error) {
	made := make([][]byte, n)
	digests := make([]string, n)
	for i := range made {
		made[i] = blob(uint64(b.round)<<32|uint64(size)<<8|uint64(i+1)<<40, size)
		digests[i] = digestOf(made[i])
	}
	b.begin()
	return b.times(n, func(c *conn, i int) (float64, error) {
		return float64(size) / 1e6, push(c, repo, digests[i], made[i])
	})
}

func push(c *conn, repo, digest string, body []byte) error {
	a, err := c.do("POST", "/v2/"+repo+"/blobs/uploads/", "", nil, 202)
	if err != nil {
		return err
	}
	to := path(a.location)
	if strings.Contains(to, "?") {
		to += "&digest=" + digest
	} else {
		to += "?digest=" + digest
	}
	_, err = c.do("PUT", to, "Content-Type: application/octet-stream\r\n", body, 201)
	return err
}

func putBlob(b *bench, repo string, body []byte) error {
	c, err := dial(b.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return push(c, repo, digestOf(body), body)
}

// image returns an image manifest of config blob(4) that differs by n.
func image(n int) []byte {
	config := blob(4, 200)
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[],"annotations":{"n":"%d"}}`,
		imageType, digestOf(config), len(config), n)
}

// pushImage pushes one image and puts all the tags on it.
func pushImage(b *bench, repo string, tags []string) error {
	if err := putBlob(b, repo, blob(4, 200)); err != nil {
		return err
	}
	_, err := b.times(len(tags), func(c *conn, i int) (float64, error) {
		_, err := c.do("PUT", "/v2/"+repo+"/manifests/"+tags[i], "Content-Type: "+imageType+"\r\n", image(0), 201)
		return 1, err
	})
	return err
}

func pushManifests(b *bench, repo string, n int) (float64, error) {
	b.begin()
	return b.times(n, func(c *conn, i int) (float64, error) {
		p := fmt.Sprintf("/v2/%s/manifests/r%d-%d", repo, b.round, i)
		_, err := c.do("PUT", p, "Content-Type: "+imageType+"\r\n", image(b.round*100000+i), 201)
		return 1, err
	})
}

func manyRepositories(b *bench) error {
	_, err := b.times(10000, func(c *conn, i int) (float64, error) {
		repo := fmt.Sprintf("catalog/r%05d", i)
		if err := push(c, repo, digestOf(blob(4, 200)), blob(4, 200)); err != nil {
			return 0, err
		}
		_, err := c.do("PUT", "/v2/"+repo+"/manifests/latest", "Content-Type: "+imageType+"\r\n", image(0), 201)
		return 1, err
	})
	return err
}
