package auth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth.internal/internal/lazyregexp"
	"berth.internal/storage"
)

// GroupAdmins is the group whose users may do everything, unless the policy says
// otherwise.
const GroupAdmins = "admins"

// RobotPrefix begins the name that a robot logs in with. No user's name holds a
// plus, and neither a shell nor a URL path minds one.
const RobotPrefix = "robot+"

// secretPrefix begins a robot's secret, so that scanners for leaked secrets know
// what it is.
const secretPrefix = "berth_robot_"

// The failures of logins and accounts.
var (
	ErrCredentials = errors.New("the name or the password is wrong")
	ErrBusy        = errors.New("too many logins at the same time")
	ErrExists      = errors.New("the name is taken")
	ErrUnknown     = errors.New("there is no such account")
	ErrUnknownKey  = errors.New("there is no such key")
	ErrInvalid     = errors.New("invalid") // what follows it is for people
)

// Account is a user or a robot.
type Account struct {
	Kind     Kind
	Name     string
	Groups   []string  // of a user
	Disabled bool      // cannot log in
	Expires  time.Time // of a robot: then it cannot log in any more; zero: never
	Grants   []Grant   // of a robot: what it may do at most
	Created  time.Time
	Revision uint64  // of its record
	Origin   *Origin // of a user who logs in by an issuer; must not be changed
}

// record is an account as Records keeps it, at users/NAME or robots/NAME.
type record struct {
	Hash     string    `json:"hash"`
	Groups   []string  `json:"groups,omitempty"`
	Disabled bool      `json:"disabled,omitempty"`
	Expires  time.Time `json:"expires,omitzero"`
	Grants   []Grant   `json:"grants,omitempty"`
	Created  time.Time `json:"created"`
	Origin   *Origin   `json:"origin,omitempty"` // of a user without a hash, who logs in by an issuer

	// Epoch is another one after each change that ends what was given out on the
	// strength of the old password. It is random: an account that is deleted and
	// made again is another account.
	Epoch string `json:"epoch"`
}

// newEpoch makes an epoch. It is no secret, and in every token.
func newEpoch() string { return rand.Text()[:13] }

func (r *record) account(kind Kind, name string, rev uint64) Account {
	return Account{
		Kind: kind, Name: name, Groups: r.Groups, Disabled: r.Disabled, Expires: r.Expires, Grants: r.Grants,
		Created: r.Created, Revision: rev, Origin: r.Origin,
	}
}

var (
	nameGrammar  = lazyregexp.New(`^[a-zA-Z0-9][a-zA-Z0-9._@-]{0,63}$`)
	groupGrammar = lazyregexp.New(`^[a-zA-Z0-9][a-zA-Z0-9._@/-]{0,63}$`)
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

func checkName(name string) error {
	if !nameGrammar().MatchString(name) {
		return invalid("%.80q is not a name: it has 1 to 64 letters, digits and . _ - @, and begins with a letter or digit", name)
	}
	return nil
}

func checkPassword(password string) error {
	if len(password) < PasswordMin || len(password) > PasswordMax {
		return invalid("a password has %d to %d bytes", PasswordMin, PasswordMax)
	}
	if IsKey(password) {
		return invalid("a password does not begin with %s, as API keys do", keyMark)
	}
	return nil
}

const (
	maxGroups = 100
	maxGrants = 100
)

func checkGroups(groups []string) error {
	if len(groups) > maxGroups {
		return invalid("a user is in at most %d groups", maxGroups)
	}
	for _, g := range groups {
		if !groupGrammar().MatchString(g) {
			return invalid("%.80q is not the name of a group: it has 1 to 64 letters, digits and . _ - @ /", g)
		}
	}
	return nil
}

func checkGrants(of string, grants []Grant) error {
	if len(grants) == 0 || len(grants) > maxGrants {
		return invalid("%s has 1 to %d grants, such as team/** with pull", of, maxGrants)
	}
	for _, g := range grants {
		if g.Repositories == "" || len(g.Repositories) > 255 { // who calls knows what a pattern is
			return invalid("%.80q is not a pattern of repositories such as team/**", g.Repositories)
		}
		if len(g.Actions) == 0 {
			return invalid("the grant for %s has no actions", g.Repositories)
		}
		for _, a := range g.Actions {
			if !slices.Contains(Actions(), a) || a == Admin {
				return invalid("%.80q is not an action of %s: these are pull, push, overwrite and delete", string(a), of)
			}
		}
	}
	return nil
}

// mirrorOf returns where accounts of a kind are.
func (s *Service) mirrorOf(kind Kind) *mirror[record] {
	if kind == Robot {
		return s.robots
	}
	return s.users
}

// Account returns the account of that kind and name. Errors: ErrUnknown.
func (s *Service) Account(kind Kind, name string) (Account, error) {
	r, rev := s.mirrorOf(kind).get(name)
	if r == nil || kind != User && kind != Robot {
		return Account{}, fmt.Errorf("%s %.80q: %w", kind, name, ErrUnknown)
	}
	return r.account(kind, name, rev), nil
}

// Accounts returns up to n accounts of that kind, in order of their names, after
// the name after.
func (s *Service) Accounts(kind Kind, after string, n int) []Account {
	m := s.mirrorOf(kind)
	names := m.names()
	i, found := slices.BinarySearch(names, after)
	if found {
		i++
	}
	var all []Account
	for _, name := range names[i:] {
		if len(all) == n {
			break
		}
		if r, rev := m.get(name); r != nil {
			all = append(all, r.account(kind, name, rev))
		}
	}
	return all
}

// AddUser makes a user. Of a, Name, Groups and Disabled count. Errors: ErrInvalid,
// ErrExists, ErrBusy.
func (s *Service) AddUser(ctx context.Context, a Account, password string) (Account, error) {
	if err := errors.Join(checkName(a.Name), checkGroups(a.Groups), checkPassword(password)); err != nil {
		return Account{}, err
	}
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return Account{}, err
	}
	return s.add(ctx, User, a.Name, record{Hash: hash, Groups: a.Groups, Disabled: a.Disabled})
}

// AddRobot makes a robot, and returns the secret that it logs in with, which
// nobody can learn again. Of a, Name, Disabled, Expires and Grants count. Errors:
// ErrInvalid, ErrExists.
func (s *Service) AddRobot(ctx context.Context, a Account) (made Account, secret string, err error) {
	if err := errors.Join(checkName(a.Name), checkGrants("a robot", a.Grants)); err != nil {
		return made, "", err
	}
	if !a.Expires.IsZero() && !a.Expires.After(time.Now()) {
		return made, "", invalid("the robot would have expired already, at %s", a.Expires.Format(time.RFC3339))
	}
	secret = secretPrefix + rand.Text()
	made, err = s.add(ctx, Robot, a.Name, record{
		Hash: secretHash(secret), Disabled: a.Disabled, Expires: a.Expires.UTC().Truncate(time.Second), Grants: a.Grants,
	})
	return made, secret, err
}

func (s *Service) add(ctx context.Context, kind Kind, name string, r record) (Account, error) {
	r.Created, r.Epoch = time.Now().UTC().Truncate(time.Second), newEpoch()
	rev, err := s.mirrorOf(kind).put(ctx, name, &r, 0)
	if errors.Is(err, storage.ErrConflict) {
		return Account{}, fmt.Errorf("%s %s: %w", kind, name, ErrExists)
	} else if err != nil {
		return Account{}, err
	}
	return r.account(kind, name, rev), nil
}

// Edit is a change of an account; nil leaves a part as it is.
type Edit struct {
	Password *string // of a user; ends all that the old one has opened
	Groups   *[]string
	Disabled *bool
	Expires  *time.Time // of a robot
	Grants   *[]Grant   // of a robot

	// Revision, if not zero, is the one that is changed: Edit fails with
	// storage.ErrConflict if somebody was faster.
	Revision uint64
}

// Change changes an account. Errors: ErrUnknown, ErrInvalid, ErrBusy;
// storage.ErrConflict.
func (s *Service) Change(ctx context.Context, kind Kind, name string, e Edit) (Account, error) {
	var hash string
	if e.Password != nil {
		if kind != User {
			return Account{}, invalid("the secret of a %s cannot be changed: make another one", kind)
		}
		err := checkPassword(*e.Password)
		if err == nil {
			hash, err = s.hasher.hash(ctx, *e.Password)
		}
		if err != nil {
			return Account{}, err
		}
	}
	m := s.mirrorOf(kind)
	const tries = 5
	for try := 1; ; try++ {
		old, rev := m.get(name)
		if old == nil {
			return Account{}, fmt.Errorf("%s %.80q: %w", kind, name, ErrUnknown)
		}
		if e.Revision != 0 && e.Revision != rev {
			return Account{}, fmt.Errorf("%s %s is at revision %d: %w", kind, name, rev, storage.ErrConflict)
		}
		r, err := e.apply(*old, kind, hash)
		if err != nil {
			return Account{}, err
		}
		rev, err = m.put(ctx, name, &r, rev)
		switch {
		case err == nil:
			if kind == User && r.Epoch != old.Epoch {
				err = s.removeKeys(ctx, name, r.Epoch)
			}
			return r.account(kind, name, rev), err
		case !errors.Is(err, storage.ErrConflict) || e.Revision != 0 || try == tries:
			return Account{}, err
		}
		if err := m.refresh(ctx, name); err != nil {
			return Account{}, err
		}
	}
}

// apply returns r with the change.
func (e Edit) apply(r record, kind Kind, hash string) (record, error) {
	if r.Origin != nil && (e.Groups != nil || hash != "") {
		return r, invalid("the groups of this user are what %s says at each login, and the password is there, too: change them there", r.Origin.Issuer)
	}
	if e.Groups != nil {
		if kind != User {
			return r, invalid("a %s has no groups", kind)
		}
		if err := checkGroups(*e.Groups); err != nil {
			return r, err
		}
		r.Groups = *e.Groups
	}
	if (e.Expires != nil || e.Grants != nil) && kind != Robot {
		return r, invalid("a %s has neither expiry nor grants", kind)
	}
	if e.Grants != nil {
		if err := checkGrants("a robot", *e.Grants); err != nil {
			return r, err
		}
		r.Grants, r.Epoch = *e.Grants, newEpoch()
	}
	if e.Expires != nil {
		r.Expires = e.Expires.UTC().Truncate(time.Second)
	}
	if e.Disabled != nil {
		if *e.Disabled && !r.Disabled { // also what it has now must not work again later
			r.Epoch = newEpoch()
		}
		r.Disabled = *e.Disabled
	}
	if hash != "" {
		r.Hash, r.Epoch = hash, newEpoch()
	}
	return r, nil
}

// ChangePassword gives a user of the server's own, who has the password old, another
// one. Address is the caller's, as of Basic. Errors: ErrUnknown, if there is no such
// user, or it is not of the server's own; those of Basic and of Change.
func (s *Service) ChangePassword(ctx context.Context, name, old, fresh, address string) error {
	if _, err := s.Account(User, name); err != nil {
		return err
	}
	if IsKey(old) {
		return ErrCredentials
	}
	if _, _, err := s.Basic(ctx, name, old, address); err != nil {
		return err
	}
	_, err := s.Change(ctx, User, name, Edit{Password: &fresh})
	return err
}

// Remove deletes an account; all that it has opened is shut. Errors: ErrUnknown.
func (s *Service) Remove(ctx context.Context, kind Kind, name string) error {
	m := s.mirrorOf(kind)
	const tries = 5
	for try := 1; ; try++ {
		old, rev := m.get(name)
		if old == nil {
			return fmt.Errorf("%s %.80q: %w", kind, name, ErrUnknown)
		}
		err := m.remove(ctx, name, rev)
		if err == nil {
			if kind == User {
				err = s.removeKeys(ctx, name, "")
			}
			return errors.Join(err, s.dropRefresh(ctx, kind, name, func(refreshRecord) bool { return true }, 0))
		}
		if !errors.Is(err, storage.ErrConflict) && !storage.IsNotFound(err) || try == tries {
			return err
		}
		if err := m.refresh(ctx, name); err != nil {
			return err
		}
	}
}

// subject is how tokens name an account: kind:name.
func subject(kind Kind, name string) string { return string(kind) + ":" + name }

func parseSubject(s string) (Kind, string, bool) {
	kind, name, ok := strings.Cut(s, ":")
	return Kind(kind), name, ok
}

// state is what of an account counts for who has logged in: the groups and limits
// it has now, and those of its API key if it was used. The epoch is another one when
// what was given out before is void. Errors: ErrCredentials if nobody may come in by
// it any more; of a directory's users ErrUnavailable and ErrBusy.
func (s *Service) state(ctx context.Context, kind Kind, name, key string) (c Caller, epoch string, err error) {
	ok := false
	switch kind {
	case User:
		if r, _ := s.users.get(name); r != nil {
			c, epoch = Caller{Kind: User, Name: name, Groups: r.Groups}, r.Epoch
			ok = !r.Disabled && (r.Origin == nil || s.vouched(name, *r.Origin))
		} else if hash, found := s.htpasswd.user(name); found {
			c, epoch, ok = Caller{Kind: User, Name: name}, secretHash(hash), true
		} else if s.directory != nil {
			p, err := s.directory.person(ctx, name)
			if err != nil {
				return Caller{}, "", err
			}
			c, epoch, ok = Caller{Kind: User, Name: name, Groups: p.Groups}, p.epoch(), true
		}
	case Robot:
		if r, _ := s.robots.get(name); r != nil {
			c, epoch = Caller{Kind: Robot, Name: name, Limits: r.Grants}, r.Epoch
			ok = !r.Disabled && (r.Expires.IsZero() || time.Now().Before(r.Expires))
		}
	}
	if ok && key != "" {
		c, ok = s.limit(c, epoch, key)
	}
	if !ok {
		return Caller{}, "", ErrCredentials
	}
	return c, epoch, nil
}
