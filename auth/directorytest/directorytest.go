// Package directorytest is the contract of auth.Directory as tests, and a directory in
// memory that keeps it, for tests of what stands on one.
package directorytest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth.internal/auth"
)

// Fixture is a directory with two users: ann, with the password "password of ann", in
// the groups dev and ops; and bob, with "password of bob", in none.
type Fixture struct {
	Directory auth.Directory
	Prefix    string                                 // of the groups' names
	Remove    func(t *testing.T, name string)        // takes a user out
	Add       func(t *testing.T, name string)        // adds a user like bob
	Regroup   func(t *testing.T, name, group string) // takes the user out of the group
	Stop      func(t *testing.T)                     // makes the server go away; called last
}

// Run tests a directory, which it changes.
func Run(t *testing.T, f Fixture) {
	ctx := t.Context()
	groups := []string{f.Prefix + "dev", f.Prefix + "ops"}
	ann, err := f.Directory.Login(ctx, "ann", "password of ann")
	if err != nil || ann.Name != "ann" || ann.ID == "" || !slices.Equal(ann.Groups, groups) {
		t.Fatalf("Login(ann) = %+v, %v", ann, err)
	}
	bob, err := f.Directory.Login(ctx, "bob", "password of bob")
	if err != nil || bob.Name != "bob" || len(bob.Groups) != 0 || bob.ID == ann.ID {
		t.Errorf("Login(bob) = %+v, %v", bob, err)
	}
	if again, err := f.Directory.Lookup(ctx, "ann"); err != nil || again.Name != "ann" || again.ID != ann.ID || !slices.Equal(again.Groups, groups) {
		t.Errorf("Lookup(ann) = %+v, %v, want what Login said, %+v", again, err, ann)
	}
	// However it takes what is upper case, it says how the name is spelt.
	if p, err := f.Directory.Login(ctx, "ANN", "password of ann"); err == nil && p.Name != "ann" || err != nil && !errors.Is(err, auth.ErrCredentials) {
		t.Errorf("Login(ANN) = %+v, %v", p, err)
	}
	for _, pair := range [][2]string{
		{"ann", "wrong"},
		{"ann", ""},
		{"ann", "password of bob"},
		{"ann", "password of ann\x00"},
		{"ann", "\x00"},
		{"eve", "password of eve"},
		{"eve", ""},
		{"", ""},
		{"*", "password of ann"},
		{"a*", "password of ann"},
		{"ann)(uid=*", "password of ann"},
		{"*)(uid=ann", "password of ann"},
		{"ann)(|(uid=*", "password of ann"},
		{`ann\2a`, "password of ann"},
		{"ann\x00", "password of ann"},
		{"ann,ou=people", "password of ann"},
		{"{dn}", "password of ann"},
	} {
		if p, err := f.Directory.Login(ctx, pair[0], pair[1]); !errors.Is(err, auth.ErrCredentials) {
			t.Errorf("Login(%q, %q) = %+v, %v, want ErrCredentials", pair[0], pair[1], p, err)
		}
	}
	for _, name := range []string{"eve", "", "*", "a*", "ann)(uid=*", "*)(uid=ann"} {
		if p, err := f.Directory.Lookup(ctx, name); !errors.Is(err, auth.ErrCredentials) {
			t.Errorf("Lookup(%q) = %+v, %v, want ErrCredentials", name, p, err)
		}
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if p, err := f.Directory.Login(ctx, "bob", "password of bob"); err != nil || p.Name != "bob" {
				t.Errorf("one of many Login(bob) = %+v, %v", p, err)
			}
		})
	}
	all.Wait()
	f.Regroup(t, "ann", "ops")
	if p, err := f.Directory.Lookup(ctx, "ann"); err != nil || !slices.Equal(p.Groups, groups[:1]) {
		t.Errorf("Lookup(ann) after she has left ops = %+v, %v", p, err)
	}
	f.Remove(t, "bob")
	_, err = f.Directory.Lookup(ctx, "bob")
	if _, login := f.Directory.Login(ctx, "bob", "password of bob"); !errors.Is(err, auth.ErrCredentials) || !errors.Is(login, auth.ErrCredentials) {
		t.Errorf("of a user who is removed: %v, %v", err, login)
	}
	f.Add(t, "bob")
	if p, err := f.Directory.Lookup(ctx, "bob"); err != nil || p.ID == bob.ID {
		t.Errorf("another user of the same name = %+v, %v, want an ID that is not that of the one before", p, err)
	}
	f.Stop(t)
	_, err = f.Directory.Lookup(ctx, "ann")
	if _, login := f.Directory.Login(ctx, "ann", "password of ann"); !errors.Is(err, auth.ErrUnavailable) || !errors.Is(login, auth.ErrUnavailable) {
		t.Errorf("of a server that is stopped: %v, %v, want ErrUnavailable", err, login)
	}
}

// Memory is a directory in memory. The zero value is empty.
type Memory struct {
	mu     sync.Mutex
	people map[string]entry // by lower-case name
	down   bool
	asked  int
	stuck  chan struct{} // not nil: questions wait until it is closed
}

type entry struct {
	auth.Person
	password string
}

// Put adds a user, or changes one.
func (m *Memory) Put(p auth.Person, password string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.people == nil {
		m.people = map[string]entry{}
	}
	m.people[strings.ToLower(p.Name)] = entry{p, password}
}

// Delete takes a user out.
func (m *Memory) Delete(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.people, strings.ToLower(name))
}

// Down makes it answer nothing, or again something.
func (m *Memory) Down(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

// Stick makes questions wait until release is called.
func (m *Memory) Stick() (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stuck := make(chan struct{})
	m.stuck = stuck
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.stuck = nil
		close(stuck)
	}
}

// Asked is how many questions it was asked.
func (m *Memory) Asked() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

func (m *Memory) find(name string) (entry, error) {
	m.mu.Lock()
	stuck := m.stuck
	m.asked++
	m.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return entry{}, auth.ErrUnavailable
	}
	e, ok := m.people[strings.ToLower(name)]
	if !ok {
		return e, auth.ErrCredentials
	}
	return e, nil
}

// Login implements auth.Directory.
func (m *Memory) Login(_ context.Context, name, password string) (auth.Person, error) {
	e, err := m.find(name)
	if err == nil && (password == "" || e.password != password) {
		err = auth.ErrCredentials
	}
	if err != nil {
		return auth.Person{}, err
	}
	return e.Person, nil
}

// Lookup implements auth.Directory.
func (m *Memory) Lookup(_ context.Context, name string) (auth.Person, error) {
	e, err := m.find(name)
	if err != nil {
		return auth.Person{}, err
	}
	return e.Person, nil
}
