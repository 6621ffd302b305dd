package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"berth.internal/storage"
)

// keyMark begins an API key, so that scanners for leaked secrets know what it is.
const keyMark = "berth_key_"

const (
	keyIDSize      = 8 // letters of the part of a key that names it
	maxKeys        = 100
	maxDescription = 200 // bytes
)

// Key is an API key of a user: a password beside the password.
type Key struct {
	ID          string
	User        string
	Description string // for people
	Created     time.Time
	Expires     time.Time // then it is good for nothing any more; zero: never
	Grants      []Grant   // what it is good for at most; nil: for what its user may do
}

// userKey is a key as Records keeps it, at apikeys/USER/ID. It never changes.
type userKey struct {
	Hash        string    `json:"hash"`
	Epoch       string    `json:"epoch"` // of the account
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires,omitzero"`
	Grants      []Grant   `json:"grants,omitempty"`
}

func (k *userKey) key(user, id string) Key {
	return Key{ID: id, User: user, Description: k.Description, Created: k.Created, Expires: k.Expires, Grants: k.Grants}
}

// IsKey tells whether a password is an API key, by its look.
func IsKey(password string) bool { return strings.HasPrefix(password, keyMark) }

// parseKey returns the part of an API key that names it: berth_key_ID_SECRET.
func parseKey(text string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(text, keyMark)
	id, secret, cut := strings.Cut(rest, "_")
	if !ok || !cut || len(id) != keyIDSize || len(secret) != len(rand.Text()) {
		return "", false
	}
	return id, true
}

func checkDescription(text string) error {
	if len(text) > maxDescription || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return invalid("a description has at most %d bytes, in one line", maxDescription)
	}
	return nil
}

// AddKey makes an API key for the user, and returns the text that is shown as the
// password, which nobody can learn again. Of k, User, Description, Expires and
// Grants count. It is good until it expires or is removed, or until the account's
// epoch changes: with a new password, or when it is disabled. by is who makes it: a
// key that is made with a key ends no later than that. Errors: ErrInvalid,
// ErrUnknown; those of a Directory.
func (s *Service) AddKey(ctx context.Context, by Caller, k Key) (made Key, text string, err error) {
	err = checkDescription(k.Description)
	if k.Grants != nil {
		err = errors.Join(err, checkGrants("a key", k.Grants))
	}
	if !k.Expires.IsZero() && !k.Expires.After(time.Now()) {
		err = errors.Join(err, invalid("the key would have expired already, at %s", k.Expires.Format(time.RFC3339)))
	}
	if err != nil {
		return made, "", err
	}
	if k.Expires, err = s.within(by, k); err != nil {
		return made, "", err
	}
	_, epoch, err := s.state(ctx, User, k.User, "")
	if errors.Is(err, ErrCredentials) {
		return made, "", fmt.Errorf("%s %.80q: %w, or it is disabled", User, k.User, ErrUnknown)
	} else if err != nil {
		return made, "", err
	}
	if err := s.removeKeys(ctx, k.User, epoch); err != nil {
		return made, "", err
	}
	if len(s.apiKeys.below(k.User+"/")) >= maxKeys {
		return made, "", invalid("a user has at most %d keys: delete one first", maxKeys)
	}
	const tries = 5
	for try := 1; ; try++ {
		id, secret := rand.Text()[:keyIDSize], rand.Text()
		text = keyMark + id + "_" + secret
		r := &userKey{
			Hash: secretHash(text), Epoch: epoch, Description: k.Description, Created: time.Now().UTC().Truncate(time.Second),
			Expires: k.Expires.UTC().Truncate(time.Second), Grants: k.Grants,
		}
		_, err = s.apiKeys.put(ctx, k.User+"/"+id, r, 0)
		if err == nil {
			return r.key(k.User, id), text, nil
		}
		if !errors.Is(err, storage.ErrConflict) || try == tries {
			return made, "", err
		}
	}
}

// within returns when a key that by makes for itself ends. With a key that ends
// none is made that does not: a stolen one must not live on in others.
func (s *Service) within(by Caller, k Key) (time.Time, error) {
	if by.Key == "" || by.Kind != User || by.Name != k.User {
		return k.Expires, nil
	}
	mine, _ := s.apiKeys.get(by.Name + "/" + by.Key)
	switch {
	case mine == nil || mine.Expires.IsZero():
	case k.Expires.IsZero():
		return mine.Expires, nil
	case k.Expires.After(mine.Expires):
		return k.Expires, invalid("this key is made with a key that ends at %s, and cannot end later: make it with the password", mine.Expires.Format(time.RFC3339))
	}
	return k.Expires, nil
}

// APIKeys returns the user's API keys, the oldest first. Of users that are not
// berth's own there may be some that are void.
func (s *Service) APIKeys(user string) []Key {
	keys := []Key{}
	for _, name := range s.apiKeys.below(user + "/") {
		if r, _ := s.apiKeys.get(name); r != nil {
			keys = append(keys, r.key(user, strings.TrimPrefix(name, user+"/")))
		}
	}
	slices.SortStableFunc(keys, func(a, b Key) int { return a.Created.Compare(b.Created) })
	return keys
}

// RemoveKey deletes an API key; what was given out for it is void. Errors:
// ErrUnknown.
func (s *Service) RemoveKey(ctx context.Context, user, id string) error {
	name := user + "/" + id
	_, rev := s.apiKeys.get(name)
	unknown := fmt.Errorf("key %.40q of %.80q: %w", id, user, ErrUnknownKey)
	if rev == 0 {
		return unknown
	}
	if err := s.apiKeys.remove(ctx, name, rev); storage.IsNotFound(err) {
		return unknown
	} else if err != nil {
		return err
	}
	return s.dropRefresh(ctx, User, user, func(r refreshRecord) bool { return r.Key == id }, refreshMost)
}

// removeKeys deletes the user's keys that are void, since the account is at epoch;
// empty: all.
func (s *Service) removeKeys(ctx context.Context, user, epoch string) error {
	for _, name := range s.apiKeys.below(user + "/") {
		r, rev := s.apiKeys.get(name)
		if r == nil || r.Epoch == epoch {
			continue
		}
		err := s.apiKeys.remove(ctx, name, rev)
		if err != nil && !storage.IsNotFound(err) && !errors.Is(err, storage.ErrConflict) {
			return err
		}
	}
	return nil
}

// byKey returns who logs in with an API key, and whether that was not done for some
// time. It costs one fast hash.
func (s *Service) byKey(ctx context.Context, name, text, address string) (_ Caller, fresh bool, _ error) {
	id, ok := parseKey(text)
	hash := ""
	if r, _ := s.apiKeys.get(name + "/" + id); ok && r != nil {
		hash = r.Hash
	}
	if !sameSecret(hash, text) {
		// Nobody guesses 130 bits; the limit saves the log.
		if wait, ok := s.addresses.take(network(address)); !ok {
			return Caller{}, true, &LimitedError{wait}
		}
		return Caller{}, true, ErrCredentials
	}
	key := sha256.Sum256([]byte(hash))
	if known, found := s.logins.get(key); !found || time.Since(known.at) >= loginLife {
		fresh = true
		s.logins.put(key, login{at: time.Now()})
	}
	c, _, err := s.state(ctx, User, name, id)
	return c, fresh, err
}

// limit narrows c, whose account is at epoch, to what its key is good for. ok is
// false if that is nothing any more.
func (s *Service) limit(c Caller, epoch, id string) (_ Caller, ok bool) {
	r, _ := s.apiKeys.get(c.Name + "/" + id)
	if c.Kind != User || r == nil || r.Epoch != epoch || !r.Expires.IsZero() && !time.Now().Before(r.Expires) {
		return Caller{}, false
	}
	c.Key, c.Limits = id, r.Grants
	return c, true
}
