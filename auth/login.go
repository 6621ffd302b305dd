package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"berth.internal/storage"
)

// Config is what a Service is made from.
type Config struct {
	Records storage.Records

	// Htpasswd is the path of a file of users with bcrypt hashes; empty: none.
	Htpasswd string

	// AdminPasswordFile is the path of a file with the first administrator's
	// password; empty: none. See Open.
	AdminPasswordFile string

	// SecretKeyFile is the path of a file whose content encrypts the keys of tokens in
	// Records; empty: they are there in the clear.
	SecretKeyFile string

	// Issuers are those whose tokens are accepted; nil: none.
	Issuers Issuers

	// Directory is where users are beside those of Records and Htpasswd.
	Directory DirectoryConfig

	Log *slog.Logger
}

// Service knows who may come in: users, robots, and what tokens say. It is safe
// for concurrent use. Make it with Open.
type Service struct {
	records   storage.Records
	log       *slog.Logger
	hasher    *hasher
	htpasswd  *htpasswd
	users     *mirror[record]
	robots    *mirror[record]
	apiKeys   *mirror[userKey]
	directory *directory // nil: there is none
	keys      *keys
	issuers   Issuers
	decoy     string // a hash of nobody's password

	secret  []byte // of this process, for logins
	flights singleflight.Group
	logins  cache[login]
	tokens  cache[verified]
	jobs    cache[verified] // tokens of jobs: their own, and those that we gave them

	accounts  *buckets
	addresses *buckets
}

// The user that AdminPasswordFile makes.
const firstAdmin = "admin"

// Open reads the accounts and keys. If there is no user and cfg names a file with
// a password, it makes the user admin in the group GroupAdmins.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	seal, err := readSeal(cfg.SecretKeyFile)
	if err != nil {
		return nil, err
	}
	s := &Service{
		records: cfg.Records, log: cfg.Log, hasher: newHasher(), issuers: cfg.Issuers,
		users:  newMirror[record](cfg.Records, "users/", cfg.Log),
		robots: newMirror[record](cfg.Records, "robots/", cfg.Log),
		keys:   newKeys(cfg.Records, seal, cfg.Log), apiKeys: newMirror[userKey](cfg.Records, "apikeys/", cfg.Log),
		decoy: decoy(), secret: random(32),
		logins: newCache[login](maxLogins), tokens: newCache[verified](maxTokens), jobs: newCache[verified](maxJobs),
		accounts: newBuckets(accountEvery, accountBurst), addresses: newBuckets(addressEvery, addressBurst),
	}
	if cfg.Directory.Directory != nil {
		s.directory = newDirectory(cfg.Directory, cfg.Log)
	}
	if s.htpasswd, err = openHtpasswd(cfg.Htpasswd, cfg.Log); err != nil {
		return nil, err
	}
	for _, load := range []func(context.Context) error{s.users.load, s.robots.load, s.apiKeys.load, s.keys.all.load} {
		if err := load(ctx); err != nil {
			return nil, fmt.Errorf("read accounts: %w", err)
		}
	}
	if cfg.AdminPasswordFile != "" && !s.hasOwn() {
		if err := s.firstAdmin(ctx, cfg.AdminPasswordFile); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Service) firstAdmin(ctx context.Context, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("admin_password_file: %w", err)
	}
	_, err = s.AddUser(ctx, Account{Name: firstAdmin, Groups: []string{GroupAdmins}}, strings.TrimRight(string(text), "\r\n"))
	switch {
	case errors.Is(err, ErrExists): // another server was faster
		return s.users.load(ctx)
	case err != nil:
		return fmt.Errorf("admin_password_file: %s: %w", path, err)
	}
	s.log.InfoContext(ctx, "made the first administrator", "user", firstAdmin)
	return nil
}

// MakeAdmin makes the user admin in the group GroupAdmins, and has the password
// shown, which is kept nowhere. What cannot be shown is not made.
func (s *Service) MakeAdmin(ctx context.Context, show func(name, password string) error) error {
	password := rand.Text()
	if _, err := s.AddUser(ctx, Account{Name: firstAdmin, Groups: []string{GroupAdmins}}, password); err != nil {
		return fmt.Errorf("make the first administrator: %w", err)
	}
	if err := show(firstAdmin, password); err != nil {
		return errors.Join(fmt.Errorf("show the first administrator's password: %w", err), s.Remove(ctx, User, firstAdmin))
	}
	s.log.InfoContext(ctx, "made the first administrator", "user", firstAdmin)
	return nil
}

// Run follows the changes that other servers make, until ctx ends.
func (s *Service) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, follow := range []func(context.Context){s.users.follow, s.robots.follow, s.apiKeys.follow, s.keys.all.follow} {
		all.Go(func() { follow(ctx) })
	}
	all.Wait()
}

// InUse tells whether there is anybody who could log in.
func (s *Service) InUse() bool {
	return s.directory != nil || s.htpasswd.path != "" || s.users.len() > 0 || s.robots.len() > 0 || s.issuers != nil && s.issuers.Some()
}

// LimitedError says that a password may not be tried now.
type LimitedError struct {
	After time.Duration // then it may
}

func (e *LimitedError) Error() string {
	return fmt.Sprintf("too many wrong passwords: try again in %d seconds", e.Seconds())
}

// Seconds is After in whole seconds, at least one.
func (e *LimitedError) Seconds() int { return max(1, int((e.After+time.Second-1)/time.Second)) }

const (
	loginLife = 5 * time.Minute // of a right password, until it is hashed again
	wrongLife = time.Minute     // of a wrong one
	trusted   = 24 * time.Hour  // for so long a right one is not limited

	maxLogins = 20_000
	maxTokens = 50_000
	maxJobs   = 2_000 // each with its claims, 2 KiB or so and 16 KiB at most
)

// login is what became of a password.
type login struct {
	name  string // of the account, if it is of a directory
	epoch string
	right bool
	at    time.Time
}

// Basic returns who has that name and password. Address is the caller's, without
// port. Right passwords are remembered for a short time, without the password, so
// that a client that sends one with each request costs one hash; fresh is true if
// it was not remembered. An API key of the user is as good as the password, within
// its limits. With the name OIDCPrefix+ISSUER the password is the token of a job.
// Errors: ErrCredentials; ErrBusy; ErrUnavailable; *LimitedError; ErrIssuer; ctx's.
func (s *Service) Basic(ctx context.Context, name, password, address string) (_ Caller, fresh bool, _ error) {
	if issuer, ok := strings.CutPrefix(name, OIDCPrefix); ok {
		return s.job(ctx, issuer, password, address)
	}
	kind, account := accountOf(name)
	if kind == User && IsKey(password) {
		return s.byKey(ctx, account, password, address)
	}
	if kind == User && s.directory != nil && !s.here(account) {
		return s.byDirectory(ctx, account, password, address)
	}
	c, epoch, shut := s.state(ctx, kind, account, "")
	key := s.loginKey(kind, account, password)
	known, found := s.logins.get(key)
	found = found && known.epoch == epoch
	age := time.Since(known.at)
	switch {
	case found && known.right && age < loginLife:
	case found && !known.right && age < wrongLife:
		return Caller{}, false, ErrCredentials
	default:
		fresh = true
		var counted string
		if !found || !known.right || age > trusted {
			counted = account
		}
		right, err, _ := s.flights.Do(string(key[:]), func() (any, error) {
			return s.try(context.WithoutCancel(ctx), kind, account, password, counted, address)
		})
		if err != nil {
			return Caller{}, true, err
		}
		s.logins.put(key, login{epoch: epoch, right: right.(bool), at: time.Now()})
		if !right.(bool) {
			return Caller{}, true, ErrCredentials
		}
	}
	return c, fresh, shut
}

// accountOf says whose the name is that somebody logs in with.
func accountOf(name string) (Kind, string) {
	if robot, ok := strings.CutPrefix(name, RobotPrefix); ok {
		return Robot, robot
	}
	return User, name
}

// Subject returns the account that logs in with name, such as user:ann, or "" if
// there is none.
func (s *Service) Subject(name string) string {
	kind, account := accountOf(name)
	known := false
	switch kind {
	case Robot:
		r, _ := s.robots.get(account)
		known = r != nil
	default:
		r, _ := s.users.get(account)
		_, listed := s.htpasswd.user(account)
		known = r != nil || listed || s.directory != nil && s.directory.knows(account)
	}
	if !known {
		return ""
	}
	return subject(kind, account)
}

// loginKey is the key of a login in the cache. Nobody else can make it, and it tells
// nothing of the password.
func (s *Service) loginKey(kind Kind, account, password string) [32]byte {
	mac := hmac.New(sha256.New, s.secret)
	for _, part := range []string{string(kind), "\x00", account, "\x00", password} {
		_, _ = mac.Write([]byte(part)) // never fails
	}
	return [32]byte(mac.Sum(nil))
}

// try tells whether the password is right, whether or not the account may be used.
// It takes as long for nobody's account as for somebody's. counted is the account
// whose tries are limited; empty: they are not.
func (s *Service) try(ctx context.Context, kind Kind, name, password, counted, address string) (bool, error) {
	if kind == Robot {
		r, _ := s.robots.get(name)
		hash := ""
		if r != nil {
			hash = r.Hash
		}
		if sameSecret(hash, password) {
			return true, nil
		}
		// Nobody guesses 130 bits; the limit saves the log.
		if wait, ok := s.addresses.take(network(address)); !ok {
			return false, &LimitedError{wait}
		}
		return false, nil
	}
	if counted != "" {
		if wait, ok := s.addresses.take(network(address)); !ok {
			return false, &LimitedError{wait}
		}
		if wait, ok := s.accounts.take(counted); !ok {
			return false, &LimitedError{wait}
		}
	}
	hash, known := "", false
	if r, _ := s.users.get(name); r != nil && r.Origin == nil {
		hash, known = r.Hash, true
	} else if hash, known = s.htpasswd.user(name); !known {
		if hash = s.htpasswd.decoy(); hash == "" {
			hash = s.decoy
		}
	}
	if len(password) > PasswordMax {
		password, known = "", false
	}
	right, err := s.hasher.verify(ctx, hash, password)
	if err != nil || right && known {
		return right, err
	}
	// Where there are hashes of both kinds, who is wrong waits for one of each, so
	// that the time does not tell whose account is of which kind, or of none.
	if other := s.otherDecoy(hash); other != "" {
		_, err = s.hasher.verify(ctx, other, password)
	}
	return false, err
}

// otherDecoy is a hash of the kind that hash is not, "" if nobody's is.
func (s *Service) otherDecoy(hash string) string {
	decoy := s.htpasswd.decoy()
	if decoy != "" && strings.HasPrefix(hash, bcryptMark) {
		return s.decoy
	}
	return decoy
}

// cache remembers a bounded number of things by hashes.
type cache[T any] struct {
	most int
	mu   *sync.RWMutex
	all  map[[32]byte]T
}

func newCache[T any](most int) cache[T] {
	return cache[T]{most: most, mu: new(sync.RWMutex), all: map[[32]byte]T{}}
}

func (c cache[T]) get(key [32]byte) (T, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v, ok := c.all[key]
	return v, ok
}

// put remembers v; if there is no room, it forgets others, any of them.
func (c cache[T]) put(key [32]byte, v T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) >= c.most {
		for old := range c.all {
			if delete(c.all, old); len(c.all) < c.most*9/10 {
				break
			}
		}
	}
	c.all[key] = v
}
