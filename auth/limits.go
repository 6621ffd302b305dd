package auth

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How often a password may be tried. A login that was right not long ago is not
// counted, so that who guesses at an account does not lock its owner out of the
// machines where they work.
const (
	accountBurst = 10
	addressBurst = 200
	accountEvery = 6 * time.Second
	addressEvery = 500 * time.Millisecond

	maxBuckets = 10_000 // of accounts, and of addresses
)

// buckets limits something for each of many keys, of which it knows at most
// maxBuckets.
type buckets struct {
	every rate.Limit
	burst int

	mu  sync.Mutex
	all map[string]*rate.Limiter
}

func newBuckets(every time.Duration, burst int) *buckets {
	return &buckets{every: rate.Every(every), burst: burst, all: map[string]*rate.Limiter{}}
}

// of returns the bucket of key.
func (b *buckets) of(key string) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.all[key]
	if l == nil {
		if len(b.all) >= maxBuckets {
			b.shrink()
		}
		l = rate.NewLimiter(b.every, b.burst)
		b.all[key] = l
	}
	return l
}

// shrink forgets full buckets, which say nothing, and if that is not enough some
// of the others.
func (b *buckets) shrink() {
	now := time.Now()
	for key, l := range b.all {
		if l.TokensAt(now) >= float64(b.burst) {
			delete(b.all, key)
		}
	}
	for key := range b.all {
		if len(b.all) < maxBuckets*9/10 {
			return
		}
		delete(b.all, key)
	}
}

// take takes one from the bucket of key, or says when there will be one again.
func (b *buckets) take(key string) (wait time.Duration, ok bool) {
	l := b.of(key)
	now := time.Now()
	if l.AllowN(now, 1) {
		return 0, true
	}
	return time.Duration((1 - l.TokensAt(now)) / float64(b.every) * float64(time.Second)), false
}

// network is what an address is counted as: of IPv6, where everybody has many,
// the network of 64 bits.
func network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	if a = a.Unmap().WithZone(""); a.Is6() {
		p, _ := a.Prefix(64) // cannot fail
		return p.String()
	}
	return a.String()
}
