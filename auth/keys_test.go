package auth

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// TestSealedKeys keeps the keys of tokens encrypted, with the right secret, another
// one and none.
func TestSealedKeys(t *testing.T) {
	records := mem.NewIndex(kv.Options{})
	dir := t.TempDir()
	secret := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.Repeat(name, minSecretKey)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one, two := secret("one"), secret("two")
	with := func(file string) *Service { return open(t, records, func(c *Config) { c.SecretKeyFile = file }) }
	issue := func(s *Service) string {
		t.Helper()
		token, err := s.Issue(t.Context(), Caller{Kind: User, Name: "ann"}, nil, all{})
		if err != nil {
			t.Fatal(err)
		}
		return token.Value
	}
	accepted := func(s *Service, token string) bool {
		t.Helper()
		_, err := s.Bearer(t.Context(), token)
		if err != nil && !errors.Is(err, ErrToken) {
			t.Fatal(err)
		}
		return err == nil
	}
	s := with(one)
	cheap(t, s, "ann", "password of ann")
	sealed := issue(s)
	id, key, err := s.keys.signing(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	record, err := records.Get(t.Context(), "auth/keys/"+id)
	if err != nil {
		t.Fatal(err)
	}
	var kept keyRecord
	if err := json.Unmarshal(record.Value, &kept); err != nil || kept.Private != nil || len(kept.Sealed) == 0 || bytes.Contains(kept.Sealed, der[7:39]) {
		t.Errorf("the key is kept as %s, %v", record.Value, err)
	}

	if !accepted(with(one), sealed) {
		t.Error("another server with the same secret refuses the token")
	}
	for name, file := range map[string]string{"another secret": two, "no secret": ""} {
		s := with(file)
		if accepted(s, sealed) {
			t.Errorf("a server with %s accepts the token", name)
		}
		if !accepted(s, issue(s)) {
			t.Errorf("a server with %s cannot make tokens", name)
		}
		if keys, err := s.Keys(t.Context()); err != nil || len(keys) != 1 {
			t.Errorf("a server with %s publishes %d keys, %v, want its own", name, len(keys), err)
		}
	}
	// A key in the clear may be in somebody's backup.
	clear := issue(with(""))
	if s := with(one); accepted(s, clear) || !accepted(s, sealed) {
		t.Error("a server with a secret accepts what was signed with a key in the clear, or not what it had signed")
	}
	// Under another name it is no key.
	if _, err := records.Put(t.Context(), "auth/keys/AAAAAAAAAAAAAAAAAAAAAAAAAA", record.Value, 0); err != nil {
		t.Fatal(err)
	}
	if keys, err := with(one).Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("a key that was copied to another name counts: %v, %v", keys, err)
	}

	short := filepath.Join(dir, "short")
	if err := os.WriteFile(short, []byte(strings.Repeat("x", minSecretKey-1)+"\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{short, filepath.Join(dir, "none")} {
		if _, err := Open(t.Context(), Config{Records: records, SecretKeyFile: path, Log: s.log}); err == nil || !strings.Contains(err.Error(), "secret_key_file: ") || strings.Contains(err.Error(), "xxx") {
			t.Errorf("Open() with the secret of %s = %v", path, err)
		}
	}
}
