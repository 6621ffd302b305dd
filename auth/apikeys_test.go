package auth

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// opened is what was given out for a key: the password itself, a token and a
// refresh token.
type opened struct{ key, token, refresh string }

func openWith(t *testing.T, s *Service, name, key string) opened {
	t.Helper()
	c, _, err := s.Basic(t.Context(), name, key, "192.0.2.1")
	if err != nil || c.Kind != User || c.Name != name || c.Key == "" {
		t.Fatalf("Basic(%s with a key) = %+v, %v", name, c, err)
	}
	token, err := s.Issue(t.Context(), c, []Access{{typeRepository, "team/app", []string{"pull"}}}, all{})
	if err != nil {
		t.Fatal(err)
	}
	refresh, err := s.IssueRefresh(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	o := opened{key, token.Value, refresh}
	if got := o.works(t, s, name); got != "key token refresh" {
		t.Fatalf("after a login with a key works: %q", got)
	}
	return o
}

// works names what of it is still good.
func (o opened) works(t *testing.T, s *Service, name string) string {
	t.Helper()
	var good []string
	if _, _, err := s.Basic(t.Context(), name, o.key, "192.0.2.1"); err == nil {
		good = append(good, "key")
	} else if !errors.Is(err, ErrCredentials) {
		t.Errorf("Basic() = %v", err)
	}
	if session, err := s.Bearer(t.Context(), o.token); err == nil && session.Owner.Name == name && session.Owner.Key != "" {
		good = append(good, "token")
	} else if !errors.Is(err, ErrToken) {
		t.Errorf("Bearer() = %+v, %v", session, err)
	}
	if c, err := s.Refresh(t.Context(), o.refresh); err == nil && c.Name == name && c.Key != "" {
		good = append(good, "refresh")
	} else if !errors.Is(err, ErrCredentials) {
		t.Errorf("Refresh() = %+v, %v", c, err)
	}
	return strings.Join(good, " ")
}

// TestKeyIsShut shuts out, by each way there is, who has logged in with a key.
func TestKeyIsShut(t *testing.T) {
	no, yes := false, true
	for _, tc := range []struct {
		name string
		do   func(s *Service, id string) error
		want string
	}{
		{"key deleted", func(s *Service, id string) error { return s.RemoveKey(t.Context(), "ann", id) }, ""},
		{"account deleted", func(s *Service, _ string) error { return s.Remove(t.Context(), User, "ann") }, ""},
		{"account disabled", func(s *Service, _ string) error {
			_, err := s.Change(t.Context(), User, "ann", Edit{Disabled: &yes})
			return err
		}, ""},
		{"disabled and enabled", func(s *Service, _ string) error {
			_, err := s.Change(t.Context(), User, "ann", Edit{Disabled: &yes})
			_, again := s.Change(t.Context(), User, "ann", Edit{Disabled: &no})
			return errors.Join(err, again)
		}, ""},
		{"new password", func(s *Service, _ string) error {
			password := "another password"
			_, err := s.Change(t.Context(), User, "ann", Edit{Password: &password})
			return err
		}, ""},
		{"account made again", func(s *Service, _ string) error {
			err := s.Remove(t.Context(), User, "ann")
			cheap(t, s, "ann", "password of ann")
			return err
		}, ""},
		{"other groups", func(s *Service, _ string) error {
			_, err := s.Change(t.Context(), User, "ann", Edit{Groups: &[]string{"dev"}})
			return err
		}, "key token refresh"},
		{"another key deleted", func(s *Service, id string) error {
			k, _, err := s.AddKey(t.Context(), Caller{}, Key{User: "ann"})
			return errors.Join(err, s.RemoveKey(t.Context(), "ann", k.ID))
		}, "key token refresh"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, nil, nil)
			cheap(t, s, "ann", "password of ann")
			k, text, err := s.AddKey(t.Context(), Caller{}, Key{User: "ann"})
			if err != nil {
				t.Fatal(err)
			}
			o := openWith(t, s, "ann", text)
			if err := tc.do(s, k.ID); err != nil {
				t.Fatal(err)
			}
			if got := o.works(t, s, "ann"); got != tc.want {
				t.Errorf("then works: %q, want %q", got, tc.want)
			}
			left, _, err := s.records.List(t.Context(), "", "", 100)
			for _, r := range left {
				if tc.want == "" && (strings.HasPrefix(r.Key, "apikeys/") || strings.HasPrefix(r.Key, refreshPrefix) && tc.name == "key deleted") {
					t.Errorf("%s is left", r.Key)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			// Another server, which reads what there is, thinks the same.
			if got := o.works(t, open(t, s.records, nil), "ann"); got != tc.want {
				t.Errorf("at another server works: %q, want %q", got, tc.want)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, nil, nil)
		cheap(t, s, "ann", "password of ann")
		cheap(t, s, "bob", "password of bob")
		narrow := []Grant{{Repositories: "team/**", Actions: []Action{Pull}}}
		k, text, err := s.AddKey(t.Context(), Caller{}, Key{User: "ann", Description: "of the laptop", Grants: narrow, Expires: time.Now().Add(time.Hour)})
		if err != nil || !strings.HasPrefix(text, "berth_key_"+k.ID+"_") || !IsKey(text) {
			t.Fatalf("AddKey() = %+v, %.14q, %v", k, text, err)
		}
		if list := s.APIKeys("ann"); len(list) != 1 || list[0].ID != k.ID || list[0].Description != "of the laptop" || len(s.APIKeys("an")) != 0 {
			t.Errorf("APIKeys() = %+v", list)
		}
		o := openWith(t, s, "ann", text)
		if c, _, err := s.Basic(t.Context(), "ann", text, "192.0.2.1"); err != nil || len(c.Limits) != 1 || c.Limits[0].Repositories != "team/**" {
			t.Errorf("with the key comes %+v, %v", c, err)
		}
		if session, err := s.Bearer(t.Context(), o.token); err != nil || len(session.Owner.Limits) != 1 {
			t.Errorf("with its token comes %+v, %v", session, err)
		}
		last := text[len(text)-1] ^ 1
		for _, pair := range [][2]string{{"bob", text}, {"Ann", text}, {"", text}, {"robot+ann", text}, {"ann", text[:len(text)-1]}, {"ann", text[:len(text)-1] + string(last)}, {"ann", keyMark}, {"ann", text + "x"}} {
			if _, _, err := s.Basic(t.Context(), pair[0], pair[1], "192.0.2.1"); !errors.Is(err, ErrCredentials) {
				t.Errorf("Basic(%s, …%s) = %v, want ErrCredentials", pair[0], pair[1][len(keyMark):], err)
			}
		}
		// A key costs no hash of a password, and no place in their queue.
		for range cap(s.hasher.waiting) {
			s.hasher.waiting <- struct{}{}
		}
		if got := o.works(t, s, "ann"); got != "key token refresh" {
			t.Errorf("while passwords wait works: %q", got)
		}
		time.Sleep(time.Hour)
		if got := o.works(t, s, "ann"); got != "" {
			t.Errorf("after its time works: %q", got)
		}
		if err := s.RemoveKey(t.Context(), "bob", k.ID); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("RemoveKey(bob's that is ann's) = %v", err)
		}
		for _, bad := range []Key{
			{User: "ann", Description: "two\nlines"},
			{User: "ann", Description: strings.Repeat("x", maxDescription+1)},
			{User: "ann", Expires: time.Now()},
			{User: "ann", Grants: []Grant{}},
			{User: "ann", Grants: []Grant{{"team/**", []Action{Admin}}}},
		} {
			if _, _, err := s.AddKey(t.Context(), Caller{}, bad); !errors.Is(err, ErrInvalid) {
				t.Errorf("AddKey(%+v) = %v, want ErrInvalid", bad, err)
			}
		}
		for _, nobody := range []string{"eve", "", "../users/ann", "ann/x"} {
			if _, _, err := s.AddKey(t.Context(), Caller{}, Key{User: nobody}); !errors.Is(err, ErrUnknown) {
				t.Errorf("AddKey(%s) = %v, want ErrUnknown", nobody, err)
			}
		}
		for len(s.APIKeys("bob")) < maxKeys {
			if _, _, err := s.AddKey(t.Context(), Caller{}, Key{User: "bob"}); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := s.AddKey(t.Context(), Caller{}, Key{User: "bob"}); !errors.Is(err, ErrInvalid) {
			t.Errorf("one key too many = %v", err)
		}
	})
}

// TestKeyByKey lets a key that ends make others, which must not outlive it.
func TestKeyByKey(t *testing.T) {
	s := open(t, nil, nil)
	cheap(t, s, "ann", "password of ann")
	end := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	k, _, err := s.AddKey(t.Context(), Caller{Kind: User, Name: "ann"}, Key{User: "ann", Expires: end})
	if err != nil {
		t.Fatal(err)
	}
	by := Caller{Kind: User, Name: "ann", Key: k.ID}
	if made, _, err := s.AddKey(t.Context(), by, Key{User: "ann"}); err != nil || !made.Expires.Equal(end) {
		t.Errorf("a key that says nothing of its end = %+v, %v, want %s", made, err, end)
	}
	if _, _, err := s.AddKey(t.Context(), by, Key{User: "ann", Expires: end.Add(time.Second)}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a key that ends later = %v", err)
	}
	if made, _, err := s.AddKey(t.Context(), by, Key{User: "ann", Expires: end.Add(-time.Minute)}); err != nil || made.Expires.After(end) {
		t.Errorf("a key that ends sooner = %+v, %v", made, err)
	}
	for _, free := range []Caller{{Kind: User, Name: "ann"}, {Kind: User, Name: "root", Key: k.ID}, {Kind: Socket}} {
		if made, _, err := s.AddKey(t.Context(), free, Key{User: "ann"}); err != nil || !made.Expires.IsZero() {
			t.Errorf("a key by %s = %+v, %v", free, made, err)
		}
	}
}

func TestPasswordLikeAKey(t *testing.T) {
	s := open(t, nil, nil)
	if _, err := s.AddUser(t.Context(), Account{Name: "ann"}, keyMark+"and more"); !errors.Is(err, ErrInvalid) {
		t.Errorf("AddUser() = %v, want ErrInvalid: nobody could log in with it", err)
	}
}

// FuzzParseKey holds keys to the form that AddKey makes.
func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"", keyMark, keyMark + "ABCDEFGH_ABCDEFGHIJKLMNOPQRSTUVWXYZ", keyMark + "ABCDEFGH", keyMark + "_", "berth_robot_X", keyMark + "ABCDEF/H_ABCDEFGHIJKLMNOPQRSTUVWXYZ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, ok := parseKey(s)
		parts := strings.SplitN(s, "_", 4)
		legal := len(parts) == 4 && slices.Equal(parts[:2], []string{"berth", "key"}) && len(parts[2]) == 8 && len(parts[3]) == 26
		if ok != legal || ok && id != parts[2] {
			t.Errorf("parseKey(%q) = %q, %v, want %v", s, id, ok, legal)
		}
	})
}
