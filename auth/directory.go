package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// Directory knows users that are kept elsewhere, such as by LDAP. Its methods may be
// called by several goroutines at the same time, and return in bounded time.
type Directory interface {
	// Login returns who has that name and password. Errors: ErrCredentials;
	// ErrUnavailable.
	Login(ctx context.Context, name, password string) (Person, error)

	// Lookup returns who has that name, if they could log in. Errors: as of Login.
	Lookup(ctx context.Context, name string) (Person, error)
}

// Person is a user of a Directory.
type Person struct {
	Name   string   // as the directory spells it, which may ignore what is upper case
	Groups []string // with names that a policy can name
	ID     string   // another one when what was given out before is void; for no one to read
}

// ErrUnavailable says that a Directory does not answer. What follows it is for the
// log.
var ErrUnavailable = errors.New("the directory of users does not answer")

// DirectoryConfig says where the users are that the server does not keep itself.
type DirectoryConfig struct {
	Directory Directory // nil: there are none

	// Recheck is for how long what the directory said of somebody counts, without
	// a question: so long can they still come in who are gone.
	Recheck time.Duration

	// Outage is for how long it counts while the directory does not answer.
	Outage time.Duration
}

// How much a directory is asked, and how it is spared while it does not answer.
const (
	directoryAtOnce  = 8
	directoryWaiting = 64

	directoryPatience = 10 * time.Second // of who waits
	directoryPause    = 3 * time.Second  // after a failure
	maxPeople         = 20_000           // that are remembered
)

// directory asks a Directory, and remembers what it said.
type directory struct {
	DirectoryConfig
	log     *slog.Logger
	turns   queue
	flights singleflight.Group

	mu     sync.Mutex
	people map[string]seen
	failed error     // why it did not answer the last time; nil: it did
	until  time.Time // then it may be asked again, by one
	trying bool      // that one does
}

// seen is what the directory said of somebody.
type seen struct {
	person Person
	gone   bool
	at     time.Time
}

func newDirectory(cfg DirectoryConfig, log *slog.Logger) *directory {
	return &directory{DirectoryConfig: cfg, log: log, turns: newQueue(directoryAtOnce, directoryWaiting), people: map[string]seen{}}
}

// ask lets question ask the directory, when it is its turn. After a failure it fails
// for directoryPause, without asking, and then for all but one until that one is
// answered, so that nobody waits for what is down. Errors: ErrCredentials;
// ErrUnavailable; ErrBusy.
func (d *directory) ask(ctx context.Context, question func(context.Context) (Person, error)) (p Person, err error) {
	if err := d.paused(); err != nil {
		return Person{}, err
	}
	waits, cancel := context.WithTimeout(ctx, directoryPatience)
	defer cancel()
	busy := d.turns.do(waits, func() {
		if err = d.begin(); err == nil { // it may have failed meanwhile
			err = ErrUnavailable // if it panics
			defer func() { d.learn(ctx, err) }()
			p, err = question(ctx)
		}
	})
	if errors.Is(busy, context.DeadlineExceeded) {
		busy = ErrBusy
	}
	if busy != nil {
		return Person{}, busy
	}
	if err == nil && (checkName(p.Name) != nil || p.ID == "") {
		d.log.WarnContext(ctx, "the directory has a user whose name is none here, who cannot log in", "user", p.Name)
		err = ErrCredentials
	}
	return p, err
}

// paused returns why the directory is not asked now.
func (d *directory) paused() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pause()
}

// pause is paused. mu is held.
func (d *directory) pause() error {
	if d.trying || time.Now().Before(d.until) {
		return d.failed
	}
	return nil
}

// begin is paused for who asks if it is not. learn comes after it.
func (d *directory) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.pause()
	if err == nil {
		d.trying = d.failed != nil
	}
	return err
}

// learn remembers whether the directory answers.
func (d *directory) learn(ctx context.Context, err error) {
	d.mu.Lock()
	before := d.failed
	d.trying = false
	if errors.Is(err, ErrUnavailable) {
		d.failed, d.until = err, time.Now().Add(directoryPause)
	} else {
		d.failed, d.until = nil, time.Time{}
	}
	now := d.failed
	d.mu.Unlock()
	switch {
	case before == nil && now != nil:
		d.log.ErrorContext(ctx, "the directory does not answer: its users cannot log in; who has goes on for a while", "outage", d.Outage.String(), "error", now)
	case before != nil && now == nil:
		d.log.InfoContext(ctx, "the directory answers again")
	}
}

// amiss returns why the directory did not answer the last time, if that is not long
// ago: without questions nobody knows.
func (d *directory) amiss() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.until) > d.Outage {
		return nil
	}
	return d.failed
}

// login asks the directory whether the password is right.
func (d *directory) login(ctx context.Context, name, password string) (Person, error) {
	p, err := d.ask(ctx, func(ctx context.Context) (Person, error) { return d.Directory.Login(ctx, name, password) })
	if err == nil {
		d.remember(p.Name, seen{person: p, at: time.Now()})
	}
	return p, err
}

// person returns who has exactly that name: as it was said not long ago, or as the
// directory says now. Errors: as of ask.
func (d *directory) person(ctx context.Context, name string) (Person, error) {
	if checkName(name) != nil {
		return Person{}, ErrCredentials
	}
	d.mu.Lock()
	known, found := d.people[name]
	d.mu.Unlock()
	age := time.Since(known.at)
	if found && age < d.Recheck {
		if known.gone {
			return Person{}, ErrCredentials
		}
		return known.person, nil
	}
	answer, err, _ := d.flights.Do(name, func() (any, error) {
		return d.ask(context.WithoutCancel(ctx), func(ctx context.Context) (Person, error) { return d.Directory.Lookup(ctx, name) })
	})
	p, _ := answer.(Person)
	if err == nil && p.Name != name { // somebody, but not this one
		err = ErrCredentials
	}
	switch {
	case err == nil:
		d.remember(name, seen{person: p, at: time.Now()})
	case errors.Is(err, ErrCredentials):
		d.remember(name, seen{gone: true, at: time.Now()})
	case found && !known.gone && age < d.Outage:
		return known.person, nil
	}
	return p, err
}

// knows tells whether the directory has said that there is somebody of that name.
func (d *directory) knows(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, found := d.people[name]
	return found && !known.gone
}

// remember makes room, if there is none, by forgetting others, any of them.
func (d *directory) remember(name string, s seen) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.people) >= maxPeople {
		for old := range d.people {
			if delete(d.people, old); len(d.people) < maxPeople*9/10 {
				break
			}
		}
	}
	d.people[name] = s
}

// epoch is that of a user of the directory.
func (p Person) epoch() string { return secretHash("directory\x00" + p.Name + "\x00" + p.ID) }

// here tells whether the server itself keeps a user of that name. Such a user, also a
// disabled one, hides one of the directory.
func (s *Service) here(name string) bool {
	if r, _ := s.users.get(name); r != nil {
		return true
	}
	return s.InHtpasswd(name)
}

// InHtpasswd tells whether the htpasswd file has a user of that name.
func (s *Service) InHtpasswd(name string) bool {
	_, found := s.htpasswd.user(name)
	return found
}

// byDirectory returns who of the directory has the name and the password, and whether
// it was asked. Right passwords are remembered as those of the server's own users are;
// whether their owner may still come in is asked again and again.
func (s *Service) byDirectory(ctx context.Context, name, password, address string) (_ Caller, fresh bool, _ error) {
	key := s.loginKey(User, name, password)
	known, found := s.logins.get(key)
	age := time.Since(known.at)
	if found && !known.right && age < wrongLife {
		return Caller{}, false, ErrCredentials
	}
	if found && known.right && age < loginLife {
		c, epoch, err := s.state(ctx, User, known.name, "")
		if err != nil || epoch == known.epoch {
			return c, false, err
		}
	}
	trusts := found && known.right && age < trusted
	answer, err, _ := s.flights.Do(string(key[:]), func() (any, error) {
		return s.tryDirectory(context.WithoutCancel(ctx), name, password, address, trusts)
	})
	p, _ := answer.(Person)
	switch {
	case errors.Is(err, ErrCredentials):
		s.logins.put(key, login{at: time.Now()})
		return Caller{}, true, err
	case err != nil:
		return Caller{}, true, err
	}
	s.logins.put(key, login{name: p.Name, epoch: p.epoch(), right: true, at: time.Now()})
	c, _, err := s.state(ctx, User, p.Name, "")
	return c, true, err
}

// tryDirectory asks the directory whether the password is right. trusts: it was, not
// long ago, and is not counted.
func (s *Service) tryDirectory(ctx context.Context, name, password, address string, trusts bool) (Person, error) {
	if err := s.directory.paused(); err != nil {
		return Person{}, err
	}
	if !trusts {
		if wait, ok := s.addresses.take(network(address)); !ok {
			return Person{}, &LimitedError{wait}
		}
		// The directory may take ANN for ann, and so many guesses for one.
		if wait, ok := s.accounts.take(strings.ToLower(name)); !ok {
			return Person{}, &LimitedError{wait}
		}
	}
	// An empty password is none: LDAP servers take it for a wish to be nobody, and
	// say yes (RFC 4513, section 5.1.2).
	if checkName(name) != nil || password == "" || len(password) > PasswordMax {
		return Person{}, ErrCredentials
	}
	p, err := s.directory.login(ctx, name, password)
	if err == nil && s.here(p.Name) {
		s.log.WarnContext(ctx, "a user of the directory cannot log in: the server keeps another one of that name", "user", p.Name)
		return Person{}, ErrCredentials
	}
	return p, err
}

// Lookup returns the user or robot of that name, as if they had logged in. Errors:
// ErrUnknown, also if they are shut out; ErrUnavailable; ErrBusy.
func (s *Service) Lookup(ctx context.Context, kind Kind, name string) (Caller, error) {
	c, _, err := s.state(ctx, kind, name, "")
	if errors.Is(err, ErrCredentials) {
		return c, fmt.Errorf("%s %.80q: %w, or it may not log in", kind, name, ErrUnknown)
	}
	return c, err
}

// Amiss returns why the directory of users, if there is one, did not answer the last
// time it was asked, if that is not long ago.
func (s *Service) Amiss() error {
	if s.directory == nil {
		return nil
	}
	return s.directory.amiss()
}
