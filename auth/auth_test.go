package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// open returns a service over records, or over new ones if that is nil.
func open(t *testing.T, records storage.Records, change func(*Config)) *Service {
	t.Helper()
	if records == nil {
		records = mem.NewIndex(kv.Options{})
	}
	cfg := Config{Records: records, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// cheap gives the user a hash that costs nearly nothing.
func cheap(t *testing.T, s *Service, name, password string, groups ...string) {
	t.Helper()
	if _, err := s.add(t.Context(), User, name, record{Hash: cheapHash(password), Groups: groups}); err != nil {
		t.Fatal(err)
	}
}

func cheapHash(password string) string {
	const salt = "sixteen bytes of"
	enc := base64.RawStdEncoding
	return "$argon2id$v=19$m=8,t=1,p=1$" + enc.EncodeToString([]byte(salt)) + "$" + enc.EncodeToString(argon2.IDKey([]byte(password), []byte(salt), 1, 8, 1, 32))
}

// all decides that everybody may do everything.
type all struct{}

func (all) Decide(Caller, string, Action) Decision { return Decision{Allowed: true} }

// pullOnly allows pull below team/.
type pullOnly struct{}

func (pullOnly) Decide(_ Caller, repo string, a Action) Decision {
	return Decision{Allowed: a == Pull && strings.HasPrefix(repo, "team/")}
}

func TestPasswords(t *testing.T) {
	s := open(t, nil, nil)
	const password = "correct horse"
	a, err := s.AddUser(t.Context(), Account{Name: "ann", Groups: []string{"x"}}, password)
	if err != nil || a.Kind != User || a.Revision == 0 {
		t.Fatalf("AddUser() = %+v, %v", a, err)
	}
	c, _, err := s.Basic(t.Context(), "ann", password, "192.0.2.1")
	if err != nil || c.Kind != User || c.Name != "ann" || !c.In("x") || c.Limits != nil {
		t.Errorf("Basic() = %+v, %v", c, err)
	}
	for _, pair := range [][2]string{{"ann", "wrong"}, {"ann", ""}, {"ann", strings.Repeat("x", PasswordMax+1)}, {"Ann", password}, {"eve", password}, {"", ""}, {"robot+ann", password}} {
		if _, _, err := s.Basic(t.Context(), pair[0], pair[1], "192.0.2.1"); !errors.Is(err, ErrCredentials) {
			t.Errorf("Basic(%q, %.20q) = %v, want ErrCredentials", pair[0], pair[1], err)
		}
	}
	for _, tc := range []struct {
		name, password string
		groups         []string
	}{{"", password, nil}, {"a b", password, nil}, {"a:b", password, nil}, {"robot+a", password, nil}, {"a/b", password, nil}, {"bob", "short", nil}, {"bob", password, []string{"a,b"}}} {
		if _, err := s.AddUser(t.Context(), Account{Name: tc.name, Groups: tc.groups}, tc.password); !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), password) {
			t.Errorf("AddUser(%q) = %v, want ErrInvalid without the password", tc.name, err)
		}
	}
	if _, err := s.AddUser(t.Context(), Account{Name: "ann"}, password); !errors.Is(err, ErrExists) {
		t.Errorf("AddUser(ann) again = %v", err)
	}
}

func TestHashes(t *testing.T) {
	const good = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	if _, err := parseArgon(good); err != nil {
		t.Errorf("parseArgon(%s) = %v", good, err)
	}
	for _, from := range [][2]string{
		{"argon2id", "argon2i"},
		{"v=19", "v=16"},
		{"m=19456", "m=4194304"},
		{"m=19456", "m=-1"},
		{"t=2", "t=0"},
		{"t=2", "t=1000"},
		{"p=1", "p=0"},
		{"p=1", "p=1,x=2"},
		{"$AAAAAAAAAAAAAAAAAAAAAA", "$AAAA"},
		{"$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "$AAAA"},
		{"$argon2id", "argon2id"},
	} {
		if bad := strings.Replace(good, from[0], from[1], 1); bad == good {
			t.Fatalf("%q is not in the hash", from[0])
		} else if _, err := parseArgon(bad); err == nil {
			t.Errorf("parseArgon(%s) is accepted", bad)
		}
	}
	if _, err := parseArgon(decoy()); err != nil {
		t.Errorf("the decoy = %v", err)
	}
}

func TestQueueOfHashes(t *testing.T) {
	h := newHasher()
	release := make(chan struct{})
	var all sync.WaitGroup
	for range cap(h.waiting) {
		h.waiting <- struct{}{} // somebody who waits
	}
	if err := h.do(t.Context(), kindArgon, func() {}); !errors.Is(err, ErrBusy) {
		t.Errorf("with a full queue: %v, want ErrBusy", err)
	}
	<-h.waiting
	for range cap(h.running) {
		h.running <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	all.Go(func() {
		if err := h.do(ctx, kindArgon, func() { t.Error("it runs without a processor") }); !errors.Is(err, context.Canceled) {
			t.Errorf("who goes away = %v", err)
		}
		close(release)
	})
	cancel()
	<-release
	all.Wait()
}

func TestRobots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, nil, nil)
		grants := []Grant{{Repositories: "team/**", Actions: []Action{Pull}}}
		a, secret, err := s.AddRobot(t.Context(), Account{Name: "ci", Grants: grants, Expires: time.Now().Add(time.Hour)})
		if err != nil || !strings.HasPrefix(secret, secretPrefix) || a.Kind != Robot {
			t.Fatalf("AddRobot() = %+v, %v", a, err)
		}
		c, _, err := s.Basic(t.Context(), "robot+ci", secret, "192.0.2.1")
		if err != nil || c.Kind != Robot || c.Name != "ci" || len(c.Limits) != 1 {
			t.Errorf("Basic() = %+v, %v", c, err)
		}
		for name, password := range map[string]string{"ci": secret, "robot+ci": secret[1:], "robot+": secret, "robot+cj": secret} {
			if _, _, err := s.Basic(t.Context(), name, password, "192.0.2.1"); !errors.Is(err, ErrCredentials) {
				t.Errorf("Basic(%s) = %v", name, err)
			}
		}
		token, err := s.Issue(t.Context(), c, []Access{{typeRepository, "team/app", []string{"pull", "push"}}}, pullOnly{})
		if err != nil || len(token.Access) != 1 || !slices.Equal(token.Access[0].Actions, []string{"pull"}) {
			t.Fatalf("Issue() = %+v, %v", token.Access, err)
		}
		refresh, err := s.IssueRefresh(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, _, err := s.Basic(t.Context(), "robot+ci", secret, "192.0.2.1"); !errors.Is(err, ErrCredentials) {
			t.Errorf("an expired robot = %v", err)
		}
		if _, err := s.Bearer(t.Context(), token.Value); !errors.Is(err, ErrToken) {
			t.Errorf("an expired robot's token = %v", err)
		}
		if _, err := s.Refresh(t.Context(), refresh); !errors.Is(err, ErrCredentials) {
			t.Errorf("an expired robot's refresh token = %v", err)
		}
		for _, bad := range []Account{
			{Name: "x"},
			{Name: "x", Grants: []Grant{{"team/**", nil}}},
			{Name: "x", Grants: []Grant{{"team/**", []Action{Admin}}}},
			{Name: "x", Grants: []Grant{{"", []Action{Pull}}}},
			{Name: "x", Grants: grants, Expires: time.Now()},
			{Name: "x+y", Grants: grants},
		} {
			if _, _, err := s.AddRobot(t.Context(), bad); !errors.Is(err, ErrInvalid) {
				t.Errorf("AddRobot(%+v) = %v, want ErrInvalid", bad, err)
			}
		}
	})
}

func TestHtpasswd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "htpasswd")
	write := func(users ...string) {
		var text strings.Builder
		for _, u := range users {
			hash, err := bcrypt.GenerateFromPassword([]byte("password of "+u), bcrypt.MinCost)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&text, "# %s\n%s:%s\n\n", u, u, hash)
		}
		if err := os.WriteFile(path+".new", []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("carl", "dora")
	synctest.Test(t, func(t *testing.T) {
		s := open(t, nil, func(c *Config) { c.Htpasswd = path })
		may := func(user string) bool {
			t.Helper()
			_, _, err := s.Basic(t.Context(), user, "password of "+user, "192.0.2.1")
			if err != nil && !errors.Is(err, ErrCredentials) {
				t.Fatal(err)
			}
			return err == nil
		}
		if !s.InUse() || !may("carl") || !may("dora") || may("eve") {
			t.Error("the users of the file are not those who may come in")
		}
		dora := Caller{Kind: User, Name: "dora"}
		token, err := s.Issue(t.Context(), dora, nil, all{})
		if err != nil {
			t.Fatal(err)
		}
		write("carl", "eve")
		time.Sleep(2 * htpasswdCheck)
		if !may("carl") || may("dora") || !may("eve") {
			t.Error("the file was not read again")
		}
		if _, err := s.Bearer(t.Context(), token.Value); !errors.Is(err, ErrToken) {
			t.Errorf("the token of who is no longer in the file = %v", err)
		}
		if err := os.WriteFile(path, []byte("carl:{SHA}x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * htpasswdCheck)
		if !may("carl") {
			t.Error("a file that cannot be read shuts its users out")
		}
	})
	if _, err := parseHtpasswd([]byte("a\nb:plain\na b:$2y$05$x\n")); err == nil || strings.Count(err.Error(), "line ") != 3 {
		t.Errorf("parseHtpasswd() = %v, want three lines", err)
	}
}

func TestFirstAdministrator(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(path, []byte("correct horse\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	records := mem.NewIndex(kv.Options{})
	s := open(t, records, func(c *Config) { c.AdminPasswordFile = path })
	if c, _, err := s.Basic(t.Context(), "admin", "correct horse", ""); err != nil || !c.In(GroupAdmins) {
		t.Errorf("Basic() = %+v, %v", c, err)
	}
	if err := os.WriteFile(path, []byte("another password"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, records, func(c *Config) { c.AdminPasswordFile = path })
	if _, _, err := s.Basic(t.Context(), "admin", "another password", ""); !errors.Is(err, ErrCredentials) {
		t.Errorf("the file changed a password that there was: %v", err)
	}
}

func TestLoginLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, nil, nil)
		cheap(t, s, "ann", "password of ann")
		cheap(t, s, "bob", "password of bob")
		s.decoy = cheapHash("nobody's")
		guess := func(user, password, address string) error {
			_, _, err := s.Basic(t.Context(), user, password, address)
			return err
		}
		if err := guess("ann", "password of ann", "192.0.2.1"); err != nil {
			t.Fatal(err)
		}
		var limited *LimitedError
		n := 0
		for ; n < 100; n++ {
			if errors.As(guess("ann", fmt.Sprint("guess ", n), fmt.Sprintf("198.51.100.%d", n)), &limited) {
				break
			}
		}
		if n != accountBurst-1 || limited.Seconds() < 1 || limited.Seconds() > int(accountEvery.Seconds()) {
			t.Errorf("%d guesses from many addresses are let through, then wait %d s", n, limited.Seconds())
		}
		// Who has logged in before is not shut out by the guesses of others; also
		// when the password has to be hashed again.
		for range 3 {
			if err := guess("ann", "password of ann", "192.0.2.1"); err != nil {
				t.Errorf("the owner = %v", err)
			}
			time.Sleep(loginLife + time.Second)
			for n := range accountBurst + 40 {
				_ = guess("ann", fmt.Sprint("more ", n), "198.51.100.7")
			}
		}
		// The same wrong password again is no guess.
		for range 100 {
			if err := guess("bob", "always the same", "192.0.2.9"); !errors.Is(err, ErrCredentials) {
				t.Fatalf("a wrong password again = %v", err)
			}
		}
		if err := guess("bob", "password of bob", "192.0.2.9"); err != nil {
			t.Errorf("bob = %v", err)
		}
		// One address, many accounts.
		n = 0
		for ; n < 1000; n++ {
			if errors.As(guess(fmt.Sprint("user", n), "a guess at it", fmt.Sprintf("2001:db8::%x", n+1)), &limited) {
				break
			}
		}
		if n < addressBurst || n > addressBurst+1 {
			t.Errorf("%d accounts can be guessed at from one network", n)
		}
		time.Sleep(time.Minute)
		if err := guess("user0", "another guess", "2001:db8::1"); !errors.Is(err, ErrCredentials) {
			t.Errorf("after a minute: %v", err)
		}
	})
}

func TestBucketsAreBounded(t *testing.T) {
	b := newBuckets(time.Minute, 2)
	b.take("kept")
	for i := range 3 * maxBuckets {
		b.of(fmt.Sprint(i))
	}
	if len(b.all) > maxBuckets {
		t.Errorf("%d buckets", len(b.all))
	}
	if b.all["kept"] == nil {
		t.Error("a bucket that says something was forgotten before those that say nothing")
	}
	c := newCache[int](100)
	for i := range 1000 {
		c.put([32]byte{byte(i), byte(i >> 8)}, i)
	}
	if len(c.all) > 100 {
		t.Errorf("%d entries in the cache", len(c.all))
	}
}

// TestForgery shows tokens that were not given out, or not to be believed any
// more.
func TestForgery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(24 * time.Hour) // so that there is a past
		s := open(t, nil, nil)
		cheap(t, s, "ann", "password of ann")
		_, epoch, _ := s.state(t.Context(), User, "ann", "")
		id, key, err := s.keys.signing(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		good := func() jwt.MapClaims {
			return jwt.MapClaims{
				"iss": ServiceName, "aud": ServiceName, "sub": "user:ann", "exp": now.Add(time.Minute).Unix(), "nbf": now.Unix(), "iat": now.Unix(), "jti": "x",
				"epoch": epoch, "access": []Access{{typeRepository, "a", []string{"pull"}}},
			}
		}
		with := func(claim string, value any) jwt.MapClaims {
			c := good()
			if c[claim] = value; value == nil {
				delete(c, claim)
			}
			return c
		}
		sign := func(method jwt.SigningMethod, kid any, key any, c jwt.MapClaims) string {
			token := jwt.NewWithClaims(method, c)
			if kid != nil {
				token.Header["kid"] = kid
			}
			text, err := token.SignedString(key)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		es := jwt.SigningMethodES256
		valid := sign(es, id, key, good())
		parts := strings.Split(valid, ".")
		public, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		wider, err := json.Marshal(with("sub", "user:admin"))
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct{ name, token string }{
			{"alg none", sign(jwt.SigningMethodNone, id, jwt.UnsafeAllowNoneSignatureType, good())},
			{"HMAC with the public key", sign(jwt.SigningMethodHS256, id, public, good())},
			{"another key", sign(es, id, other, good())},
			{"no kid", sign(es, nil, key, good())},
			{"a wrong kid", sign(es, rand.Text(), key, good())},
			{"a kid that is a path", sign(es, "../../users/ann", key, good())},
			{"a kid that is no text", sign(es, 7, key, good())},
			{"another audience", sign(es, id, key, with("aud", "other"))},
			{"no audience", sign(es, id, key, with("aud", nil))},
			{"another issuer", sign(es, id, key, with("iss", "other"))},
			{"expired", sign(es, id, key, with("exp", now.Add(-time.Minute).Unix()))},
			{"never expires", sign(es, id, key, with("exp", nil))},
			{"not yet", sign(es, id, key, with("nbf", now.Add(time.Minute).Unix()))},
			{"without nbf", sign(es, id, key, with("nbf", nil))},
			{"issued in the future", sign(es, id, key, with("iat", now.Add(time.Minute).Unix()))},
			{"another epoch", sign(es, id, key, with("epoch", "x"))},
			{"no epoch", sign(es, id, key, with("epoch", nil))},
			{"a user that is not there", sign(es, id, key, with("sub", "user:eve"))},
			{"the admin socket", sign(es, id, key, with("sub", "socket:"))},
			{"no subject", sign(es, id, key, with("sub", nil))},
			{"changed claims", parts[0] + "." + base64.RawURLEncoding.EncodeToString(wider) + "." + parts[2]},
			{"no signature", parts[0] + "." + parts[1] + "."},
			{"half", parts[0] + "." + parts[1]},
			{"nothing", ""},
		} {
			for range 2 { // whatever is remembered
				if session, err := s.Bearer(t.Context(), tc.token); !errors.Is(err, ErrToken) {
					t.Errorf("%s: Bearer() = %+v, %v, want ErrToken", tc.name, session, err)
				}
			}
		}
		session, err := s.Bearer(t.Context(), valid)
		if err != nil || session.Caller.Name != "ann" || session.Catalog || len(session.Caller.Limits) != 1 || session.Owner.Limits != nil {
			t.Fatalf("Bearer() = %+v, %v", session, err)
		}
		time.Sleep(time.Minute)
		if _, err := s.Bearer(t.Context(), valid); !errors.Is(err, ErrToken) {
			t.Errorf("a remembered token that has expired = %v", err)
		}
	})
}

// TestTwoServers changes accounts on one server, and looks at what another one
// remembers.
func TestTwoServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := mem.NewIndex(kv.Options{})
		one, two := open(t, records, nil), open(t, records, nil)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { one.Run(ctx) })
		running.Go(func() { two.Run(ctx) })
		defer running.Wait()
		defer stop()
		cheap(t, one, "ann", "password of ann", "x")
		synctest.Wait()
		ann, _, err := two.Basic(t.Context(), "ann", "password of ann", "")
		if err != nil || !ann.In("x") {
			t.Fatalf("Basic() on the other server = %+v, %v", ann, err)
		}
		token, err := one.Issue(t.Context(), ann, nil, all{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := two.Bearer(t.Context(), token.Value); err != nil {
			t.Fatalf("a token of the other server, with a key that is new: %v", err)
		}
		refresh, err := one.IssueRefresh(t.Context(), ann)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := two.Refresh(t.Context(), refresh); err != nil {
			t.Fatalf("a refresh token of the other server: %v", err)
		}
		groups := []string{"y"}
		if _, err := one.Change(t.Context(), User, "ann", Edit{Groups: &groups}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if session, err := two.Bearer(t.Context(), token.Value); err != nil || session.Owner.In("x") || !session.Owner.In("y") {
			t.Errorf("after a change of groups: %+v, %v", session, err)
		}
		if err := one.Remove(t.Context(), User, "ann"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for range 2 { // then she comes back, as another one
			if _, _, err := two.Basic(t.Context(), "ann", "password of ann", ""); !errors.Is(err, ErrCredentials) {
				t.Errorf("Basic() of who is gone = %v", err)
			}
			if _, err := two.Bearer(t.Context(), token.Value); !errors.Is(err, ErrToken) {
				t.Errorf("Bearer() of who is gone = %v", err)
			}
			if _, err := two.Refresh(t.Context(), refresh); !errors.Is(err, ErrCredentials) {
				t.Errorf("Refresh() of who is gone = %v", err)
			}
			if _, err := one.Account(User, "ann"); err != nil {
				cheap(t, one, "ann", "another password")
				synctest.Wait()
			}
		}
		if recs, _, err := records.List(t.Context(), refreshPrefix, "", 10); err != nil || len(recs) != 0 {
			t.Errorf("%d refresh tokens of who is gone, %v", len(recs), err)
		}
	})
}

func TestKeysRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, nil, nil)
		cheap(t, s, "ann", "password of ann")
		ann := Caller{Kind: User, Name: "ann"}
		issue := func() Token {
			t.Helper()
			token, err := s.Issue(t.Context(), ann, nil, all{})
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		issue()
		time.Sleep(keyLife - time.Second)
		last := issue()
		if n := s.keys.all.len(); n != 1 {
			t.Errorf("%d keys within %s", n, keyLife)
		}
		time.Sleep(2 * time.Second)
		issue()
		if n := s.keys.all.len(); n != 2 {
			t.Errorf("%d keys after %s, want the old one to stay", n, keyLife)
		}
		if _, err := s.Bearer(t.Context(), last.Value); err != nil {
			t.Errorf("a token of the old key = %v", err)
		}
		time.Sleep(keyRetire + time.Hour)
		issue()
		if keys, err := s.Keys(t.Context()); err != nil || len(keys) != 1 || s.keys.all.len() != 1 {
			t.Errorf("%d keys verify, %d are kept, %v, want the newest only", len(keys), s.keys.all.len(), err)
		}
	})
}

func TestRefreshTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, nil, nil)
		cheap(t, s, "ann", "password of ann")
		ann := Caller{Kind: User, Name: "ann"}
		var tokens []string
		for range refreshMost + 5 {
			token, err := s.IssueRefresh(t.Context(), ann)
			if err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, token)
			time.Sleep(time.Second)
		}
		good := 0
		for _, token := range tokens {
			if _, err := s.Refresh(t.Context(), token); err == nil {
				good++
			}
		}
		_, errFirst := s.Refresh(t.Context(), tokens[0])
		_, errLast := s.Refresh(t.Context(), tokens[len(tokens)-1])
		if good != refreshMost || errFirst == nil || errLast != nil {
			t.Errorf("%d refresh tokens are good, the first: %v, the last: %v", good, errFirst, errLast)
		}
		recs, _, err := s.records.List(t.Context(), "", "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			if strings.Contains(r.Key+string(r.Value), tokens[len(tokens)-1]) || strings.Contains(string(r.Value), "password of") {
				t.Errorf("the record %s holds a secret", r.Key)
			}
		}
		for _, bad := range []string{"", "x", refreshMark, refreshMark + ".x", refreshMark + base64.RawURLEncoding.EncodeToString([]byte("user:../x")) + ".x"} {
			if _, err := s.Refresh(t.Context(), bad); !errors.Is(err, ErrCredentials) {
				t.Errorf("Refresh(%q) = %v", bad, err)
			}
		}
		time.Sleep(refreshLife)
		if _, err := s.Refresh(t.Context(), tokens[len(tokens)-1]); !errors.Is(err, ErrCredentials) {
			t.Errorf("after %s: %v", refreshLife, err)
		}
	})
}

func TestScopes(t *testing.T) {
	for _, tc := range []struct {
		scopes []string
		want   string // as JSON; empty: an error
	}{
		{nil, `null`},
		{[]string{"repository:team/app:pull,push"}, `[{"type":"repository","name":"team/app","actions":["pull","push"]}]`},
		{[]string{"repository:a:push repository:a:pull,pull", "repository:b:*"}, `[{"type":"repository","name":"a","actions":["pull","push"]},{"type":"repository","name":"b","actions":["*"]}]`},
		{[]string{"repository(plugin):a:pull"}, `[{"type":"repository","name":"a","actions":["pull"]}]`},
		{[]string{"registry:catalog:*"}, `[{"type":"registry","name":"catalog","actions":["*"]}]`},
		{[]string{"registry:catalog:pull", "registry:other:*", "x:y:z", "repository:a:fly", "repository:UPPER:pull", "repository:host:5000/a:pull"}, `null`},
		{[]string{"repository:a:pull,fly"}, `[{"type":"repository","name":"a","actions":["pull"]}]`},
		{[]string{"repository"}, ""},
		{[]string{"repository:a"}, ""},
		{[]string{":a:pull"}, ""},
		{[]string{"repository::pull"}, ""},
		{[]string{strings.Repeat("x:y:z ", maxScopes+1)}, ""},
	} {
		got, err := ParseScopes(tc.scopes)
		text, _ := json.Marshal(got)
		if (err != nil) != (tc.want == "") || err == nil && string(text) != tc.want {
			t.Errorf("ParseScopes(%.60q) = %s, %v, want %s", tc.scopes, text, err, tc.want)
		}
	}
}

func FuzzScopes(f *testing.F) {
	for _, seed := range []string{"repository:a/b:pull,push", "registry:catalog:*", "repository(plugin):a:*", "a:b:c d:e:f", "repository:h:1/a:pull", "::", ":", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		asked, err := ParseScopes([]string{text})
		if err != nil {
			return
		}
		// What is understood can be said again and means the same.
		var again []string
		for _, a := range asked {
			if a.Type == typeRepository && strings.ContainsAny(a.Name, ": *") {
				t.Errorf("ParseScopes(%q) has the name %q", text, a.Name)
			}
			again = append(again, a.Type+":"+a.Name+":"+strings.Join(a.Actions, ","))
		}
		if twice, err := ParseScopes(again); err != nil || fmt.Sprint(twice) != fmt.Sprint(asked) {
			t.Errorf("ParseScopes(%q) = %v, of that %v, %v", text, asked, twice, err)
		}
		// Nobody gets more than policy allows.
		for _, a := range allowed(Caller{Kind: User, Name: "ann"}, asked, pullOnly{}) {
			if a.Type == typeRepository && (!strings.HasPrefix(a.Name, "team/") || !slices.Equal(a.Actions, []string{"pull"})) {
				t.Errorf("%q gives %v", text, a)
			}
		}
	})
}

// BenchmarkBasic is what a request with a password costs that was verified.
func BenchmarkBasic(b *testing.B) {
	s, err := Open(b.Context(), Config{Records: mem.NewIndex(kv.Options{}), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := s.AddUser(b.Context(), Account{Name: "ann"}, "password of ann"); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := s.Basic(b.Context(), "ann", "password of ann", "192.0.2.1"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBearer is what a request with a token costs that was verified.
func BenchmarkBearer(b *testing.B) {
	s, err := Open(b.Context(), Config{Records: mem.NewIndex(kv.Options{}), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	a, err := s.add(b.Context(), User, "ann", record{})
	if err != nil {
		b.Fatal(err)
	}
	token, err := s.Issue(b.Context(), Caller{Kind: User, Name: a.Name}, []Access{{typeRepository, "team/app", []string{"pull"}}}, all{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Bearer(b.Context(), token.Value); err != nil {
			b.Fatal(err)
		}
	}
}
