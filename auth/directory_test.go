package auth_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/auth"
	"berth.internal/auth/directorytest"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// all decides that everybody may do everything.
type all struct{}

func (all) Decide(auth.Caller, string, auth.Action) auth.Decision {
	return auth.Decision{Allowed: true}
}

// TestMemory holds the directory that the tests below use to the contract of all.
func TestMemory(t *testing.T) {
	m := new(directorytest.Memory)
	m.Put(auth.Person{Name: "ann", Groups: []string{"dev", "ops"}, ID: "1"}, "password of ann")
	m.Put(auth.Person{Name: "bob", ID: "2"}, "password of bob")
	directorytest.Run(t, directorytest.Fixture{
		Directory: m,
		Remove:    func(_ *testing.T, name string) { m.Delete(name) },
		Add:       func(_ *testing.T, name string) { m.Put(auth.Person{Name: name, ID: "3"}, "password of "+name) },
		Regroup: func(_ *testing.T, name, _ string) {
			m.Put(auth.Person{Name: name, Groups: []string{"dev"}, ID: "1"}, "password of "+name)
		},
		Stop: func(*testing.T) { m.Down(true) },
	})
}

const (
	recheck = time.Minute
	outage  = 10 * time.Minute
)

// withDirectory returns a service over a directory with ann in it.
func withDirectory(t *testing.T) (*auth.Service, *directorytest.Memory) {
	t.Helper()
	m := new(directorytest.Memory)
	m.Put(auth.Person{Name: "ann", Groups: []string{"ldap+dev"}, ID: "1"}, "password of ann")
	s, err := auth.Open(t.Context(), auth.Config{
		Records: mem.NewIndex(kv.Options{}), Log: slog.New(slog.DiscardHandler),
		Directory: auth.DirectoryConfig{Directory: m, Recheck: recheck, Outage: outage},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, m
}

func basic(t *testing.T, s *auth.Service, name, password string) (auth.Caller, error) {
	t.Helper()
	c, _, err := s.Basic(t.Context(), name, password, "192.0.2.1")
	return c, err
}

// ways are all that ann can come in by.
type ways struct{ token, refresh, key string }

func open(t *testing.T, s *auth.Service) ways {
	t.Helper()
	c, err := basic(t, s, "ann", "password of ann")
	if err != nil || c.Kind != auth.User || c.Name != "ann" || !c.In("ldap+dev") || c.Limits != nil {
		t.Fatalf("Basic(ann) = %+v, %v", c, err)
	}
	token, err := s.Issue(t.Context(), c, nil, all{})
	if err != nil {
		t.Fatal(err)
	}
	refresh, err := s.IssueRefresh(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := s.AddKey(t.Context(), c, auth.Key{User: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	return ways{token.Value, refresh, key}
}

// try says what becomes of each way: of the password, token, refresh token and key.
func (w ways) try(t *testing.T, s *auth.Service) string {
	t.Helper()
	said := func(err error) string {
		switch {
		case err == nil:
			return "in"
		case errors.Is(err, auth.ErrCredentials), errors.Is(err, auth.ErrToken):
			return "out"
		case errors.Is(err, auth.ErrUnavailable):
			return "503"
		}
		return err.Error()
	}
	_, password := basic(t, s, "ann", "password of ann")
	_, token := s.Bearer(t.Context(), w.token)
	_, refresh := s.Refresh(t.Context(), w.refresh)
	_, key := basic(t, s, "ann", w.key)
	return fmt.Sprintf("password %s, token %s, refresh %s, key %s", said(password), said(token), said(refresh), said(key))
}

const (
	allIn     = "password in, token in, refresh in, key in"
	allOut    = "password out, token out, refresh out, key out"
	available = "password 503, token 503, refresh 503, key 503"
)

// TestRemovedFromDirectory lets users be removed, or become others, in the directory:
// they are out when what it said of them has to be asked again.
func TestRemovedFromDirectory(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*directorytest.Memory)
		want string
	}{
		{"removed", func(m *directorytest.Memory) { m.Delete("ann") }, allOut},
		{"another account", func(m *directorytest.Memory) { m.Put(auth.Person{Name: "ann", ID: "2"}, "other") }, allOut},
		{"new password", func(m *directorytest.Memory) { m.Put(auth.Person{Name: "ann", ID: "2"}, "password of ann") }, "password in, token out, refresh out, key out"},
		{"spelt otherwise", func(m *directorytest.Memory) { m.Put(auth.Person{Name: "Ann", ID: "1"}, "password of ann") }, "password out, token out, refresh out, key out"},
		{"other groups", func(m *directorytest.Memory) { m.Put(auth.Person{Name: "ann", ID: "1"}, "password of ann") }, allIn},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, m := withDirectory(t)
				w := open(t, s)
				tc.do(m)
				if got := w.try(t, s); got != allIn {
					t.Errorf("before it is asked again: %s", got)
				}
				time.Sleep(recheck)
				if got := w.try(t, s); got != tc.want {
					t.Errorf("after %s: %s, want %s", recheck, got, tc.want)
				}
				if tc.want == allOut {
					asked := m.Asked()
					for range 50 {
						w.try(t, s)
					}
					if more := m.Asked() - asked; more > 0 {
						t.Errorf("who is gone makes %d questions", more)
					}
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s, m := withDirectory(t)
		w := open(t, s)
		m.Put(auth.Person{Name: "ann", Groups: []string{"ldap+ops"}, ID: "1"}, "password of ann")
		time.Sleep(recheck)
		if session, err := s.Bearer(t.Context(), w.token); err != nil || !slices.Equal(session.Owner.Groups, []string{"ldap+ops"}) {
			t.Errorf("with other groups: %+v, %v", session, err)
		}
	})
}

// TestDirectoryIsDown lets who has logged in go on for a while, and tells others why
// they cannot.
func TestDirectoryIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := withDirectory(t)
		w := open(t, s)
		m.Down(true)
		time.Sleep(2 * recheck)
		if got := w.try(t, s); got != allIn {
			t.Errorf("while it is down: %s", got)
		}
		if err := s.Amiss(); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("Amiss() = %v", err)
		}
		if _, err := basic(t, s, "carl", "password of carl"); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("somebody else's login = %v", err)
		}
		asked := m.Asked()
		for i := range 1000 {
			w.try(t, s)
			_, _ = basic(t, s, fmt.Sprintf("user%d", i), "password")
		}
		if more := m.Asked() - asked; more > 0 {
			t.Errorf("it is asked %d times while it is down", more)
		}
		time.Sleep(outage)
		// The token's own five minutes are over as well.
		if got := w.try(t, s); got != "password 503, token out, refresh 503, key 503" {
			t.Errorf("after %s: %s", outage, got)
		}
		m.Down(false)
		time.Sleep(10 * time.Second)
		if got := w.try(t, s); got != "password in, token out, refresh in, key in" {
			t.Errorf("when it is back: %s", got)
		}
		if err := s.Amiss(); err != nil {
			t.Errorf("Amiss() = %v", err)
		}
	})
}

// TestNewServerWithDirectoryDown has tokens of before, and knows nobody.
func TestNewServerWithDirectoryDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := new(directorytest.Memory)
		m.Put(auth.Person{Name: "ann", Groups: []string{"ldap+dev"}, ID: "1"}, "password of ann")
		cfg := auth.Config{
			Records: mem.NewIndex(kv.Options{}), Log: slog.New(slog.DiscardHandler),
			Directory: auth.DirectoryConfig{Directory: m, Recheck: recheck, Outage: outage},
		}
		first, err := auth.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		w := open(t, first)
		m.Down(true)
		second, err := auth.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.try(t, second); got != available {
			t.Errorf("while it is down: %s", got)
		}
		if _, err := second.AddUser(t.Context(), auth.Account{Name: "root"}, "password of root"); err != nil {
			t.Fatal(err)
		}
		if _, err := basic(t, second, "root", "password of root"); err != nil {
			t.Errorf("a user of the server's own = %v", err)
		}
		m.Down(false)
		time.Sleep(5 * time.Second)
		if got := w.try(t, second); got != allIn {
			t.Errorf("when it is back: %s", got)
		}
	})
}

// TestStuckDirectory has a directory that takes long: few questions wait for it.
func TestStuckDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := withDirectory(t)
		release := m.Stick()
		var mu sync.Mutex
		said := map[string]int{}
		var callers sync.WaitGroup
		for i := range 500 {
			callers.Go(func() {
				// From many addresses, or the limit of one comes first.
				_, _, err := s.Basic(t.Context(), fmt.Sprintf("user%d", i), "password", fmt.Sprintf("192.0.2.%d", i%250))
				mu.Lock()
				defer mu.Unlock()
				said[fmt.Sprint(err)]++
			})
		}
		synctest.Wait()
		mu.Lock()
		turned := said[auth.ErrBusy.Error()]
		mu.Unlock()
		if asked := m.Asked(); asked > 8 || turned < 400 {
			t.Errorf("of 500, %d ask at once and %d are turned away", asked, turned)
		}
		time.Sleep(time.Minute) // those that wait are turned away, too
		synctest.Wait()
		mu.Lock()
		turned = said[auth.ErrBusy.Error()]
		mu.Unlock()
		if turned != 492 {
			t.Errorf("after a minute %d are turned away, want all but those that are answered, 492", turned)
		}
		release()
		callers.Wait()
	})
}

// TestOneTriesAgain has a directory that was down, and now takes long: who is known
// does not wait for it, and one question at a time finds out.
func TestOneTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := withDirectory(t)
		w := open(t, s)
		m.Down(true)
		time.Sleep(recheck)
		if got := w.try(t, s); got != allIn {
			t.Errorf("while it is down: %s", got)
		}
		time.Sleep(5 * time.Second)
		release := m.Stick()
		asked := m.Asked()
		var first sync.WaitGroup
		first.Go(func() { _, _ = basic(t, s, "bob", "password of bob") })
		synctest.Wait()
		began := time.Now()
		for i := range 100 {
			if got := w.try(t, s); got != allIn {
				t.Fatalf("while one asks: %s", got)
			}
			if _, err := basic(t, s, fmt.Sprintf("user%d", i), "password"); !errors.Is(err, auth.ErrUnavailable) {
				t.Fatalf("another one, while one asks = %v", err)
			}
		}
		if took, more := time.Since(began), m.Asked()-asked; took > 0 || more != 1 {
			t.Errorf("it took %s and %d questions, want no time and 1", took, more)
		}
		m.Down(false)
		release()
		first.Wait()
		if err := s.Amiss(); err != nil {
			t.Errorf("after an answer: %v", err)
		}
		if _, err := basic(t, s, "carl", "password"); !errors.Is(err, auth.ErrCredentials) {
			t.Errorf("after an answer: %v", err)
		}
		m.Down(true)
		if _, err := basic(t, s, "dora", "password"); !errors.Is(err, auth.ErrUnavailable) || s.Amiss() == nil {
			t.Errorf("down again: %v, %v", err, s.Amiss())
		}
		time.Sleep(2 * outage)
		if err := s.Amiss(); err != nil {
			t.Errorf("long after the last question: %v", err)
		}
	})
}

// TestGuessesAtDirectory counts wrong passwords, however the name is spelt, and caches
// right ones.
func TestGuessesAtDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m := withDirectory(t)
		open(t, s)
		asked := m.Asked()
		for range 100 {
			if _, err := basic(t, s, "ann", "password of ann"); err != nil {
				t.Fatal(err)
			}
		}
		if more := m.Asked() - asked; more > 0 {
			t.Errorf("the same password again makes %d questions", more)
		}
		limited := false
		for i := range 30 {
			_, err := basic(t, s, []string{"ann", "ANN", "Ann", "aNN"}[i%4], fmt.Sprintf("guess %d", i))
			_, limits := errors.AsType[*auth.LimitedError](err)
			limited = limited || limits
			if !limits && !errors.Is(err, auth.ErrCredentials) {
				t.Fatalf("guess %d = %v", i, err)
			}
		}
		if more := m.Asked() - asked; !limited || more > 11 {
			t.Errorf("30 guesses make %d questions, limited: %v", more, limited)
		}
		if _, err := basic(t, s, "ann", "password of ann"); err != nil {
			t.Errorf("ann herself, while others guess = %v", err)
		}
		asked = m.Asked()
		for _, name := range []string{"", "*", "a*", "ann)(uid=*", "ann\x00", "ann,ou=x", "a b"} {
			if _, err := basic(t, s, name, "password of ann"); !errors.Is(err, auth.ErrCredentials) {
				t.Errorf("Basic(%q) = %v", name, err)
			}
		}
		for range 3 {
			if _, err := basic(t, s, "bob", ""); !errors.Is(err, auth.ErrCredentials) {
				t.Errorf("an empty password = %v", err)
			}
		}
		if more := m.Asked() - asked; more > 0 {
			t.Errorf("what is no name, or no password, makes %d questions", more)
		}
	})
}

// TestOwnUsersHideOthers has a user of the server with the name of one of the
// directory.
func TestOwnUsersHideOthers(t *testing.T) {
	s, _ := withDirectory(t)
	w := open(t, s)
	if c, err := basic(t, s, "ANN", "password of ann"); err != nil || c.Name != "ann" {
		t.Errorf("as the directory takes the name: %+v, %v", c, err)
	}
	if _, err := s.AddUser(t.Context(), auth.Account{Name: "ann", Disabled: true}, "another password"); err != nil {
		t.Fatal(err)
	}
	if got := w.try(t, s); got != allOut {
		t.Errorf("hidden by a disabled user of the server: %s", got)
	}
	if _, err := basic(t, s, "ANN", "password of ann"); !errors.Is(err, auth.ErrCredentials) {
		t.Errorf("spelt otherwise = %v", err)
	}
	if _, err := basic(t, s, "Ann", "password of ann"); !errors.Is(err, auth.ErrCredentials) {
		t.Errorf("spelt otherwise, not remembered = %v", err)
	}
}

func TestLookup(t *testing.T) {
	s, m := withDirectory(t)
	if c, err := s.Lookup(t.Context(), auth.User, "ann"); err != nil || !c.In("ldap+dev") {
		t.Errorf("Lookup(ann) = %+v, %v", c, err)
	}
	for _, name := range []string{"eve", "ANN", "*", ""} {
		if _, err := s.Lookup(t.Context(), auth.User, name); !errors.Is(err, auth.ErrUnknown) {
			t.Errorf("Lookup(%q) = %v, want ErrUnknown", name, err)
		}
	}
	m.Down(true)
	if _, err := s.Lookup(t.Context(), auth.User, "bob"); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("Lookup(bob) = %v, want ErrUnavailable", err)
	}
	if !s.InUse() {
		t.Error("with a directory nobody could log in")
	}
}
