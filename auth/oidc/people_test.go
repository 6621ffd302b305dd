package oidc

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"berth.internal/auth"
)

// people are those of a registry that lets them in by f as corp.
func (f *fakeIssuer) people(change func(*People)) (*Issuers, Issuer) {
	f.t.Helper()
	p := &People{ClientID: "berth", Require: map[string]string{"hd": "example.com"}}
	if change != nil {
		change(p)
	}
	one := Issuer{Name: "corp", URL: f.URL, People: p}
	s, err := New([]Issuer{one}, slog.New(slog.DiscardHandler))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(s.Close)
	return s, one
}

// id makes an ID token of Ann, with changes.
func (f *fakeIssuer) id(change map[string]any) string {
	all := map[string]any{
		"aud": "berth", "sub": "1234", "preferred_username": "ann", "email": "ann@example.com", "email_verified": true, "hd": "example.com",
		"groups": []string{"dev", "/ops/night", "Domain Users", "admins"}, "project_path": nil, "namespace_path": nil, "nonce": "n",
	}
	maps.Copy(all, change)
	return f.good(all)
}

func TestIdentify(t *testing.T) {
	f := newIssuer(t)
	for _, tc := range []struct {
		name   string
		change map[string]any
		config func(*People)
		want   string // name and groups
		why    string
	}{
		{"good", nil, nil, "corp+ann [corp+dev corp+ops/night corp+admins]", ""},
		{"without groups", map[string]any{"groups": nil}, nil, "corp+ann []", ""},
		{"one group", map[string]any{"groups": "dev"}, nil, "corp+ann [corp+dev]", ""},
		{"groups that are no texts", map[string]any{"groups": []any{"dev", 1}}, nil, "corp+ann []", ""},
		{"groups elsewhere", map[string]any{"realm": map[string]any{"roles": []string{"r"}}}, func(p *People) { p.GroupsClaim = "realm/roles" }, "corp+ann [corp+r]", ""},
		{"by the address", nil, func(p *People) { p.UsernameClaim = "email" }, "corp+ann@example.com [corp+dev corp+ops/night corp+admins]", ""},
		{"by an address that is not verified", map[string]any{"email_verified": false}, func(p *People) { p.UsernameClaim = "email" }, "", "has not verified the address"},
		{"two audiences, for us", map[string]any{"aud": []string{"berth", "other"}, "azp": "berth"}, nil, "corp+ann [corp+dev corp+ops/night corp+admins]", ""},
		{"two audiences, for others", map[string]any{"aud": []string{"berth", "other"}, "azp": "other"}, nil, "", "it was issued to somebody else"},
		{"two audiences, for who knows", map[string]any{"aud": []string{"berth", "other"}}, nil, "", "it was issued to somebody else"},
		{"for another application", map[string]any{"aud": "other"}, nil, "", "it is for the audience"},
		{"a job's", map[string]any{"aud": audience}, nil, "", "it is for the audience"},
		{"old", map[string]any{"iat": time.Now().Add(-maxAge - time.Minute).Unix()}, nil, "", "it is older than 10m0s"},
		{"of unknown age", map[string]any{"iat": nil}, nil, "", "it is older than"},
		{"expired", map[string]any{"exp": time.Now().Add(-time.Second).Unix()}, nil, "", "it has expired"},
		{"of another domain", map[string]any{"hd": "evil.test"}, nil, "", `its claim hd is "evil.test"`},
		{"of no domain", map[string]any{"hd": nil}, nil, "", "it lacks the claim hd"},
		{"without a name", map[string]any{"preferred_username": nil}, nil, "", "cannot be the name of a user"},
		{"a name with a space", map[string]any{"preferred_username": "Ann Lee"}, nil, "", `its claim preferred_username is "Ann Lee", which cannot`},
		{"a name with a plus", map[string]any{"preferred_username": "x+ann"}, nil, "", "cannot be the name of a user"},
		{"a name with a slash", map[string]any{"preferred_username": "x/ann"}, nil, "", "cannot be the name of a user"},
		{"a name that is a path", map[string]any{"preferred_username": ".."}, nil, "", "cannot be the name of a user"},
		{"a long name", map[string]any{"preferred_username": strings.Repeat("a", 65)}, nil, "", "cannot be the name of a user"},
		{"a name of several", map[string]any{"preferred_username": []string{"ann", "bob"}}, nil, "", "cannot be the name of a user"},
		{"many groups", map[string]any{"groups": make([]string, maxGroups+1)}, nil, "", "it has more than 500 groups"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := f.people(tc.config)
			id, err := s.Identify(t.Context(), "corp", f.id(tc.change))
			if tc.why != "" {
				if !errors.Is(err, auth.ErrCredentials) || !strings.Contains(err.Error(), tc.why) {
					t.Errorf("Identify = %+v, %v, want it refused, since %s", id, err, tc.why)
				}
				return
			}
			if got := fmt.Sprint(id.Name, " ", id.Groups); err != nil || got != tc.want {
				t.Errorf("Identify = %s, %v, want %s", got, err, tc.want)
			}
			if !s.Vouches(id.Name, id.Origin) {
				t.Errorf("nobody vouches for %+v", id)
			}
		})
	}
	s, _ := f.people(nil)
	for name, token := range map[string]string{
		"forged":          sign(t, jose.RS256, otherKey, map[jose.HeaderKey]any{"kid": "one"}, f.claims(map[string]any{"aud": "berth"})),
		"an access token": sign(t, jose.RS256, rsaKey, map[jose.HeaderKey]any{"kid": "one", "typ": "at+jwt"}, f.claims(map[string]any{"aud": "berth"})),
	} {
		if _, err := s.Identify(t.Context(), "corp", token); outcome(err) != "refused" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A person is no job, and a job no person.
	if _, err := s.Verify(t.Context(), "corp", f.id(nil)); outcome(err) != "refused" {
		t.Errorf("a person as a job: %v", err)
	}
	if s.Whose(f.id(nil)) != "" {
		t.Error("an ID token would be taken as Bearer")
	}
	if _, err := f.issuers(nil).Identify(t.Context(), "ci", f.id(nil)); outcome(err) != "refused" {
		t.Errorf("a person by an issuer for jobs: %v", err)
	}
}

// TestVouches changes the configuration under who has logged in.
func TestVouches(t *testing.T) {
	f := newIssuer(t)
	s, one := f.people(nil)
	id, err := s.Identify(t.Context(), "corp", f.id(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*Issuer)
		want   bool
	}{
		{"as it is", func(*Issuer) {}, true},
		{"other groups", func(i *Issuer) { i.People.GroupsClaim = "roles" }, true},
		{"a wider rule", func(i *Issuer) { i.People.Require = map[string]string{"hd": "*"} }, true},
		{"no rule", func(i *Issuer) { i.People.Require = nil }, true},
		{"a narrower rule", func(i *Issuer) { i.People.Require = map[string]string{"hd": "other.test"} }, false},
		{"one more rule", func(i *Issuer) { i.People.Require = map[string]string{"hd": "example.com", "sub": "*"} }, false},
		{"another client", func(i *Issuer) { i.People.ClientID = "other" }, false},
		{"other names", func(i *Issuer) { i.People.UsernameClaim = "email" }, false},
		{"another issuer", func(i *Issuer) { i.URL = "https://other.test" }, false},
		{"another name", func(i *Issuer) { i.Name = "other" }, false},
		{"for jobs only", func(i *Issuer) {
			i.People, i.Jobs = nil, &Jobs{Audience: "a", Require: map[string]string{"sub": "**"}}
		}, false},
	} {
		i, p := one, *one.People
		i.People = &p
		tc.change(&i)
		if err := s.Set([]Issuer{i}); err != nil {
			t.Fatal(tc.name, err)
		}
		if got := s.Vouches(id.Name, id.Origin); got != tc.want {
			t.Errorf("%s: Vouches = %v, want %v", tc.name, got, tc.want)
		}
	}
	if s.Vouches("ann", id.Origin) || s.Vouches("", id.Origin) {
		t.Error("somebody vouches for a user of berth's own")
	}
}

func TestCheckPeople(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Issuer)
		want   string
	}{
		{"good", func(*Issuer) {}, ""},
		{"no client", func(i *Issuer) { i.People.ClientID = "" }, "oidc[0].people.client_id: must be"},
		{"a scope of two", func(i *Issuer) { i.People.Scopes = []string{"a b"} }, `oidc[0].people.scopes: "a b" is not a scope`},
		{"a claim with a space", func(i *Issuer) { i.People.UsernameClaim = "a b" }, `oidc[0].people.username_claim: "a b" is not`},
		{"another", func(i *Issuer) { i.People.GroupsClaim = "a b" }, `oidc[0].people.groups_claim: "a b" is not`},
		{"half a pattern", func(i *Issuer) { i.People.Require = map[string]string{"hd": "["} }, `oidc[0].people.require: hd: "[":`},
		{"for no time", func(i *Issuer) { i.People.Lasts = -1 }, "oidc[0].people.lasts: must not be negative"},
		{"jobs for the client", func(i *Issuer) {
			i.Jobs = &Jobs{Audience: "berth", Require: map[string]string{"sub": "*"}}
		}, "oidc[0].jobs.audience: must be another than"},
	} {
		i := Issuer{Name: "corp", URL: "https://corp.test", People: &People{ClientID: "berth"}}
		tc.change(&i)
		err := Check([]Issuer{i})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.want)) {
			t.Errorf("%s: Check = %v, want %q", tc.name, err, tc.want)
		}
	}
}
