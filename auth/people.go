package auth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"berth.internal/storage"
)

// LoginIssuer is an issuer that people log in by, as a client needs it.
type LoginIssuer struct {
	Name     string // in the configuration
	URL      string
	ClientID string
	Scopes   []string // beside openid
}

// Identity is what an ID token of an issuer says of a person.
type Identity struct {
	Name   string   // of the user: see Of
	Groups []string // as the policy calls them
	Origin Origin
}

// Origin is where a user comes from that berth has no password of. It is kept with
// the user, who may come in as long as an issuer of the configuration vouches for it.
type Origin struct {
	Issuer   string            `json:"issuer"`           // its URL
	Client   string            `json:"client"`           // whom its token was for
	Username string            `json:"username"`         // the claim that the name is from
	Subject  string            `json:"subject"`          // who it is for the issuer, for ever
	Claims   map[string]string `json:"claims,omitempty"` // those that were required
	Until    time.Time         `json:"until"`            // then they have to log in again
}

// Logins returns the issuers that people log in by.
func (s *Service) Logins() []LoginIssuer {
	if s.issuers == nil {
		return nil
	}
	return s.issuers.Logins()
}

// LogIn lets a person in with an ID token of the issuer, and remembers them as a user
// with the groups that it says. Until is when they have to do that again. A name
// belongs to whom the issuer first gave it, until the user is deleted. Errors:
// *RefusedError; ErrIssuer; *LimitedError; ctx's; others of Records.
func (s *Service) LogIn(ctx context.Context, issuer, token, address string) (c Caller, until time.Time, err error) {
	if s.issuers == nil {
		return c, until, &RefusedError{Why: "this registry accepts no tokens of others"}
	}
	id, err := s.issuers.Identify(ctx, issuer, token)
	if errors.Is(err, ErrCredentials) {
		// Nobody guesses signatures; the limit saves the log.
		if wait, ok := s.addresses.take(network(address)); !ok {
			return c, until, &LimitedError{wait}
		}
	}
	if err != nil {
		return c, until, err
	}
	refuse := func(format string, args ...any) error {
		return &RefusedError{Issuer: issuer, Why: fmt.Sprintf(format, args...)}
	}
	const tries = 5
	for try := 1; ; try++ {
		old, rev := s.users.get(id.Name)
		r := record{Created: time.Now().UTC().Truncate(time.Second), Epoch: rand.Text()}
		if old != nil {
			r = *old
		}
		switch {
		case old == nil:
		case r.Origin == nil || r.Origin.Issuer != id.Origin.Issuer || r.Origin.Subject != id.Origin.Subject:
			return c, until, refuse("the user %s is somebody else; an administrator can delete that one: berth user rm %s", id.Name, id.Name)
		case r.Disabled:
			return c, until, refuse("the user %s is disabled", id.Name)
		}
		r.Groups, r.Origin = id.Groups, &id.Origin
		_, err := s.users.put(ctx, id.Name, &r, rev)
		if err == nil {
			break
		}
		if !errors.Is(err, storage.ErrConflict) || try == tries {
			return c, until, err
		}
		if err := s.users.refresh(ctx, id.Name); err != nil {
			return c, until, err
		}
	}
	c, _, err = s.state(ctx, User, id.Name, "")
	return c, id.Origin.Until, err
}

// possible tells whether a user or robot could have the name, so that it can be part
// of a record's key.
func possible(name string) bool {
	if issuer, user, ok := CutIssuer(name); ok {
		return checkName(issuer) == nil && checkName(user) == nil
	}
	return checkName(name) == nil
}

// hasOwn tells whether there are users of berth's own.
func (s *Service) hasOwn() bool {
	return slices.ContainsFunc(s.users.names(), func(name string) bool { return checkName(name) == nil })
}

// vouched tells whether a user that is not berth's own may still come in.
func (s *Service) vouched(name string, o Origin) bool {
	return s.issuers != nil && time.Now().Before(o.Until) && s.issuers.Vouches(name, o)
}
