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

// sizes is how much of each load there is.
type sizes struct {
	big, medium         int // bytes of a blob
	mediums, smalls     int // how many such blobs, and of 4 KiB
	manifests, tags     int
	manyTags, manyRepos int
	freed, freedSize    int // blobs that the collector takes away, and the bytes of each
	stored              int // blobs that are there at a start
	starts              int
	lives               int           // of containers
	running, many       int           // containers at a time: to weigh, and as many as a node shall hold
	duration            time.Duration // of the loads that repeat one request
}

func full() sizes {
	return sizes{
		big: 256 * mib, medium: 16 * mib, mediums: 16, smalls: 3000, manifests: 2000, tags: 500,
		manyTags: 10_000, manyRepos: 10_000, freed: 10_000, freedSize: 65 << 10, stored: 100_000, starts: 5, duration: 2 * time.Second,
		lives: 100, running: 100, many: 500,
	}
}

// small is enough to see that everything works, and too little to measure.
func small() sizes {
	return sizes{
		big: 2 * mib, medium: mib, mediums: 2, smalls: 20, manifests: 20, tags: 20,
		manyTags: 20, manyRepos: 20, freed: 50, freedSize: 65 << 10, stored: 50, starts: 1, duration: 20 * time.Millisecond,
		lives: 3, running: 3, many: 6,
	}
}

// load is one row of the table. prepare fills the registry once; run is timed.
type load struct {
	name    string
	unit    string // MB/s or /s
	clients int
	prepare func(b *bench) error
	run     func(b *bench) (work float64, err error) // work in units of unit × seconds
	beyond  bool                                     // no load of the marks: there is more in the registry than they assume
	lists   bool                                     // no floor: which lists nothing
}

// bench is one registry under one load.
type bench struct {
	target  *target
	round   int
	clients int
	header  string // of every request: lines, each ended by CRLF

	began time.Time
	cpu   time.Duration // that the server had taken when it began

	mu        sync.Mutex
	latencies []time.Duration
}

// begin restarts the clocks, for a load that had to prepare something first.
func (b *bench) begin() { b.cpu, b.began = b.target.cpu(), time.Now() }

const (
	mib       = 1 << 20
	imageType = "application/vnd.oci.image.manifest.v1+json"
)

// loads returns all rows of the table that every registry can do, those of the
// marks first.
func loads(s sizes) []load {
	get := func(method, path string) func(b *bench) (float64, error) {
		return func(b *bench) (float64, error) { return b.repeat(s.duration, method, path) }
	}
	manifests := func(repo string) load {
		return load{
			unit: "/s", prepare: func(b *bench) error { return pushImage(b, repo, nil) },
			run: func(b *bench) (float64, error) { return pushManifests(b, repo, s.manifests) },
		}
	}
	repository, tags := manifests("manifests"), manifests("tags")
	repository.name, repository.clients = "push manifests, one repository", 8
	tags.name, tags.clients = fmt.Sprintf("push %d tags, 16 clients", s.manifests), 16
	big := fmt.Sprintf("one %d MiB blob", s.big/mib)
	return []load{
		{name: "push " + big, unit: "MB/s", clients: 1, run: func(b *bench) (float64, error) {
			return pushBlobs(b, "big", 1, s.big)
		}},
		{name: fmt.Sprintf("push %d x %d MiB", s.mediums, s.medium/mib), unit: "MB/s", clients: 8, run: func(b *bench) (float64, error) {
			return pushBlobs(b, "medium", s.mediums, s.medium)
		}},
		{name: "push 4 KiB blobs", unit: "/s", clients: 8, run: func(b *bench) (float64, error) {
			_, err := pushBlobs(b, "small", s.smalls, 4096)
			return float64(s.smalls), err
		}},
		repository,
		tags,
		{name: "pull " + big, unit: "MB/s", clients: 8, prepare: func(b *bench) error { return putBlob(b, "pull", blob(1, s.big)) }, run: func(b *bench) (float64, error) {
			p := "/v2/pull/blobs/" + digestOf(blob(1, s.big))
			b.begin()
			return b.times(16, func(c *conn, _ int) (float64, error) {
				a, err := c.do("GET", p, "", nil, 200)
				return float64(a.size) / 1e6, err
			})
		}},
		{name: "GET manifest by tag", unit: "/s", clients: 64, prepare: func(b *bench) error { return pushImage(b, "get", []string{"latest"}) }, run: get("GET", "/v2/get/manifests/latest")},
		{name: "HEAD blob", unit: "/s", clients: 8, prepare: func(b *bench) error { return putBlob(b, "head", blob(2, 4096)) }, run: get("HEAD", "/v2/head/blobs/"+digestOf(blob(2, 4096)))},
		{name: "GET 4 KiB blob", unit: "/s", clients: 8, prepare: func(b *bench) error { return putBlob(b, "getblob", blob(3, 4096)) }, run: get("GET", "/v2/getblob/blobs/"+digestOf(blob(3, 4096)))},
		{name: fmt.Sprintf("list %d tags", s.tags), unit: "/s", clients: 8, lists: true, prepare: func(b *bench) error { return pushImage(b, "listed", names(s.tags)) }, run: get("GET", "/v2/listed/tags/list")},
		{name: fmt.Sprintf("HEAD by tag, %d tags", s.manyTags), unit: "/s", clients: 8, beyond: true, prepare: func(b *bench) error { return pushImage(b, "many", names(s.manyTags)) }, run: get("HEAD", fmt.Sprintf("/v2/many/manifests/t%05d", s.manyTags/2))},
		{name: fmt.Sprintf("catalog of %d, n=100", s.manyRepos), unit: "/s", clients: 8, beyond: true, lists: true, prepare: func(b *bench) error { return manyRepositories(b, s.manyRepos) }, run: get("GET", "/v2/_catalog?n=100")},
	}
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
			c, err := dial(b.target.addr)
			if err != nil {
				errs[i] = err
				return
			}
			defer c.Close()
			c.header = b.header
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

// repeat sends the same request until the time is over, once at least, and
// returns how often.
func (b *bench) repeat(d time.Duration, method, path string) (float64, error) {
	end := time.Now().Add(d)
	return b.each(func(c *conn) (float64, error) {
		n := 0.0
		for ; n == 0 || time.Now().Before(end); n++ {
			if _, err := c.do(method, path, "Accept: "+imageType+"\r\n", nil, 200); err != nil {
				return n, err
			}
		}
		return n, nil
	})
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
	c, err := dial(b.target.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.header = b.header
	return push(c, repo, digestOf(body), body)
}

// image returns an image manifest of config blob(4), and the layers given, that
// differs by n.
func image(n int, layers ...[]byte) []byte {
	config := blob(4, 200)
	descriptors := make([]string, len(layers))
	for i, l := range layers {
		descriptors[i] = fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":%d}`, digestOf(l), len(l))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[%s],"annotations":{"n":"%d"}}`,
		imageType, digestOf(config), len(config), strings.Join(descriptors, ","), n)
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

func manyRepositories(b *bench, n int) error {
	_, err := b.times(n, func(c *conn, i int) (float64, error) {
		repo := fmt.Sprintf("catalog/r%05d", i)
		if err := push(c, repo, digestOf(blob(4, 200)), blob(4, 200)); err != nil {
			return 0, err
		}
		_, err := c.do("PUT", "/v2/"+repo+"/manifests/latest", "Content-Type: "+imageType+"\r\n", image(0), 201)
		return 1, err
	})
	return err
}
