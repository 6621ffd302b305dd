package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// Limits of a password, in bytes.
const (
	PasswordMin = 8
	PasswordMax = 1024
)

// The cost of a new password's hash: 19 MiB, two passes, one lane, the least
// that OWASP recommends for argon2id. A flood of logins must not take the memory
// of a small server.
const (
	hashMemory = 19 << 10 // KiB
	hashPasses = 2
	hashLanes  = 1
	hashSize   = 32
	saltSize   = 16
)

// The most that a stored hash may cost, since whoever can write records must not
// be able to take all memory with one login.
const (
	maxHashMemory = 256 << 10 // KiB
	maxHashPasses = 16
	maxHashLanes  = 16
)

// hasher hashes passwords, on as many processors as there are, and lets few wait.
type hasher struct {
	queue
	hashes *prometheus.CounterVec
}

// hashQueue is how many logins wait for a processor; more are turned away.
const hashQueue = 64

func newHasher() *hasher {
	h := &hasher{queue: newQueue(runtime.GOMAXPROCS(0), hashQueue), hashes: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "berth_auth_password_hashes_total", Help: "Passwords that were hashed, which is meant to be expensive.",
	}, []string{"kind"})}
	for _, kind := range []string{kindArgon, kindBcrypt} {
		h.hashes.WithLabelValues(kind)
	}
	return h
}

// queue does a few things at once, and lets a few wait.
type queue struct {
	running chan struct{}
	waiting chan struct{} // and running
}

func newQueue(atOnce, waiting int) queue {
	return queue{running: make(chan struct{}, atOnce), waiting: make(chan struct{}, atOnce+waiting)}
}

// The kinds of hashes.
const (
	kindArgon  = "argon2id"
	kindBcrypt = "bcrypt"
)

// Metrics returns what the service measures.
func (s *Service) Metrics() []prometheus.Collector { return []prometheus.Collector{s.hasher.hashes} }

// do runs work, which makes a hash of that kind. Errors: as of queue.do.
func (h *hasher) do(ctx context.Context, kind string, work func()) error {
	return h.queue.do(ctx, func() {
		h.hashes.WithLabelValues(kind).Inc()
		work()
	})
}

// do runs work as soon as it is its turn. Errors: ErrBusy; ctx's.
func (q queue) do(ctx context.Context, work func()) error {
	select {
	case q.waiting <- struct{}{}:
		defer func() { <-q.waiting }()
	default:
		return ErrBusy
	}
	select {
	case q.running <- struct{}{}:
		defer func() { <-q.running }()
	case <-ctx.Done():
		return ctx.Err()
	}
	work()
	return nil
}

// hash makes what is stored of a password, in the format of argon2's reference.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	salt := random(saltSize)
	var key []byte
	err := h.do(ctx, kindArgon, func() {
		key = argon2.IDKey([]byte(password), salt, hashPasses, hashMemory, hashLanes, hashSize)
	})
	return formatArgon(salt, key), err
}

// decoy is a hash of no password.
func decoy() string { return formatArgon(random(saltSize), random(hashSize)) }

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func formatArgon(salt, key []byte) string {
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, hashMemory, hashPasses, hashLanes,
		enc.EncodeToString(salt), enc.EncodeToString(key))
}

// argon is a parsed hash of argon2id.
type argon struct {
	memory, passes uint32
	lanes          uint8
	salt, key      []byte
}

var errHash = errors.New("it is no hash of a password that berth knows")

func parseArgon(s string) (argon, error) {
	var a argon
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return a, errHash
	}
	var rest string
	if n, _ := fmt.Sscanf(parts[3]+" .", "m=%d,t=%d,p=%d %s", &a.memory, &a.passes, &a.lanes, &rest); n != 4 || rest != "." {
		return a, errHash
	}
	var errSalt, errKey error
	a.salt, errSalt = base64.RawStdEncoding.DecodeString(parts[4])
	a.key, errKey = base64.RawStdEncoding.DecodeString(parts[5])
	if errSalt != nil || errKey != nil || len(a.salt) < 8 || len(a.key) < 16 || len(a.salt) > 64 || len(a.key) > 64 ||
		a.passes < 1 || a.passes > maxHashPasses || a.lanes < 1 || a.lanes > maxHashLanes || a.memory < 8 || a.memory > maxHashMemory {
		return a, errHash
	}
	return a, nil
}

// bcryptMark begins the hashes of bcrypt.
const bcryptMark = "$2"

// verify tells whether password is the one that was hashed. Errors: ErrBusy;
// ctx's; a hash that cannot be read.
func (h *hasher) verify(ctx context.Context, hash, password string) (ok bool, err error) {
	if strings.HasPrefix(hash, bcryptMark) {
		doErr := h.do(ctx, kindBcrypt, func() { err = bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) })
		switch {
		case doErr != nil:
			return false, doErr
		case errors.Is(err, bcrypt.ErrMismatchedHashAndPassword), errors.Is(err, bcrypt.ErrPasswordTooLong):
			return false, nil
		}
		return err == nil, err
	}
	a, err := parseArgon(hash)
	if err != nil {
		return false, err
	}
	err = h.do(ctx, kindArgon, func() {
		got := argon2.IDKey([]byte(password), a.salt, a.passes, a.memory, a.lanes, uint32(len(a.key)))
		ok = subtle.ConstantTimeCompare(got, a.key) == 1
	})
	return ok && err == nil, err
}

// secretHash is what is stored of a secret that berth made itself. It is random
// and long, so that nothing is gained by making its hash slow.
func secretHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// sameSecret tells whether hash is that of secret, in constant time.
func sameSecret(hash, secret string) bool {
	return subtle.ConstantTimeCompare([]byte(hash), []byte(secretHash(secret))) == 1
}
