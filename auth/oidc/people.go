package oidc

import (
	"context"
	"fmt"
	"strings"
	"time"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	"berth.internal/internal/lazyregexp"
)

const (
	// maxAge is how old an ID token may be that somebody logs in with. Who has
	// found an older one logs in with nothing.
	maxAge    = 10 * time.Minute
	maxGroups = 500 // of a person
)

// userGrammar is that of users of berth's own, so that logins, too, can be written
// everywhere.
var userGrammar = lazyregexp.New(`^[a-zA-Z0-9][a-zA-Z0-9._@-]{0,63}$`)

// Logins implements auth.Issuers.
func (s *Issuers) Logins() []auth.LoginIssuer {
	list := []auth.LoginIssuer{}
	for _, i := range s.now.Load().all {
		if p := i.People; p != nil {
			list = append(list, auth.LoginIssuer{Name: i.Name, URL: i.URL, ClientID: p.ClientID, Scopes: p.Scopes})
		}
	}
	return list
}

// Identify implements auth.Issuers.
func (s *Issuers) Identify(ctx context.Context, name, raw string) (auth.Identity, error) {
	i := s.now.Load().byName[name]
	if i == nil || i.People == nil {
		return auth.Identity{}, &auth.RefusedError{Why: fmt.Sprintf("this registry knows no issuer %.40q that people log in by", name)}
	}
	p := i.People
	t, err := i.verify(ctx, raw, p.ClientID)
	if err != nil {
		return auth.Identity{}, err
	}
	now := i.now()
	switch {
	case t.party != "" && t.party != p.ClientID, t.party == "" && len(t.audience) > 1:
		return auth.Identity{}, i.refuse("it was issued to somebody else")
	case t.issued.IsZero() || now.Sub(t.issued) > maxAge:
		return auth.Identity{}, i.refuse("it is older than %s: log in again", maxAge)
	}
	id := auth.Identity{Origin: auth.Origin{
		Issuer: i.URL, Client: p.ClientID, Username: p.UsernameClaim, Subject: t.subject, Claims: map[string]string{}, Until: now.Add(p.Lasts).UTC().Truncate(time.Second),
	}}
	for _, claim := range sorted(p.Require) {
		value, ok := t.claims[claim]
		if !ok {
			return auth.Identity{}, i.refuse("it lacks the claim %s, which this registry requires", claim)
		}
		if !policy.Match(p.Require[claim], value) {
			return auth.Identity{}, i.refuse("its claim %s is %q, which this registry does not accept", claim, value)
		}
		id.Origin.Claims[claim] = value
	}
	user := t.claims[p.UsernameClaim]
	switch {
	case !userGrammar().MatchString(user):
		return auth.Identity{}, i.refuse("its claim %s is %.80q, which cannot be the name of a user: that has 1 to 64 letters, digits and . _ - @", p.UsernameClaim, user)
	case p.UsernameClaim == "email" && t.claims["email_verified"] == "false":
		return auth.Identity{}, i.refuse("the issuer has not verified the address %s", user)
	}
	id.Name = auth.Of(i.Name, user)
	groups := t.lists[p.GroupsClaim]
	if one, ok := t.claims[p.GroupsClaim]; ok {
		groups = []string{one}
	}
	if len(groups) > maxGroups {
		return auth.Identity{}, i.refuse("it has more than %d groups", maxGroups)
	}
	for _, g := range groups {
		if g = strings.TrimPrefix(g, "/"); groupGrammar().MatchString(g) {
			id.Groups = append(id.Groups, auth.Of(i.Name, g))
		}
	}
	return id, nil
}

// Vouches implements auth.Issuers.
func (s *Issuers) Vouches(user string, o auth.Origin) bool {
	name, _, _ := auth.CutIssuer(user)
	i := s.now.Load().byName[name]
	if i == nil || i.People == nil || i.URL != o.Issuer || i.People.ClientID != o.Client || i.People.UsernameClaim != o.Username {
		return false
	}
	for claim, pattern := range i.People.Require {
		if value, ok := o.Claims[claim]; !ok || !policy.Match(pattern, value) {
			return false
		}
	}
	return true
}
