package auth

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/bcrypt"
)

// hashes is how many passwords were hashed, by kind.
func hashes(t *testing.T, s *Service) map[string]int {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(s.Metrics()...)
	families, err := r.Gather()
	if err != nil || len(families) != 1 {
		t.Fatal(families, err)
	}
	n := map[string]int{}
	for _, m := range families[0].GetMetric() {
		n[m.GetLabel()[0].GetValue()] = int(m.GetCounter().GetValue())
	}
	return n
}

// TestSameWorkForEverybody counts what a wrong login costs the server, which is the
// time that the answer takes: it must not tell whether, or where, there is such an
// account.
func TestSameWorkForEverybody(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	var text []byte
	for name, cost := range map[string]int{"carl": bcrypt.MinCost, "dora": bcrypt.MinCost + 1} {
		hash, err := bcrypt.GenerateFromPassword([]byte("password of "+name), cost)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, name+":"+string(hash)+"\n"...)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		htpasswd string
		want     map[string]int // of a wrong login
	}{
		{"without htpasswd", "", map[string]int{kindArgon: 1, kindBcrypt: 0}},
		{"with htpasswd", file, map[string]int{kindArgon: 1, kindBcrypt: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, nil, func(c *Config) { c.Htpasswd = tc.htpasswd })
			cheap(t, s, "ann", "password of ann")
			cheap(t, s, "off", "password of off")
			yes := true
			if _, err := s.Change(t.Context(), User, "off", Edit{Disabled: &yes}); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"ann", "off", "carl", "nobody"} {
				before := hashes(t, s)
				if _, _, err := s.Basic(t.Context(), name, "wrong password", "192.0.2.1"); !errors.Is(err, ErrCredentials) {
					t.Fatalf("%s: %v", name, err)
				}
				after := hashes(t, s)
				for kind, want := range tc.want {
					if got := after[kind] - before[kind]; got != want {
						t.Errorf("a wrong password of %s takes %d hashes of %s, want %d", name, got, kind, want)
					}
				}
			}
			// The right password costs one, and again nothing.
			before := hashes(t, s)
			for range 100 {
				if _, _, err := s.Basic(t.Context(), "ann", "password of ann", "192.0.2.1"); err != nil {
					t.Fatal(err)
				}
			}
			if got := hashes(t, s)[kindArgon] - before[kindArgon]; got != 1 {
				t.Errorf("a hundred logins take %d hashes, want one", got)
			}
			if cost, err := bcrypt.Cost([]byte(s.htpasswd.decoy())); tc.htpasswd != "" && (err != nil || cost != bcrypt.MinCost+1) {
				t.Errorf("nobody's hash costs %d, %v: it must cost what the slowest does", cost, err)
			}
		})
	}
}
