package ldap

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"berth.internal/auth"
	"berth.internal/auth/directorytest"
)

// TestContract holds the directory to its contract, in each of the ways to reach a
// server and to find groups there.
func TestContract(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(s *slapd, c *Config)
	}{
		{"ldaps", func(*slapd, *Config) {}},
		{"StartTLS", func(s *slapd, c *Config) {
			c.URL, c.StartTLS = fmt.Sprintf("ldap://127.0.0.1:%d", s.plain), true
		}},
		{"memberOf", func(_ *slapd, c *Config) { c.GroupBase, c.MemberOf = "", "memberOf" }},
		{"in the clear on this machine", func(s *slapd, c *Config) {
			c.URL, c.CA, c.GroupPrefix = fmt.Sprintf("ldap://127.0.0.1:%d", s.plain), "", ""
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := startSlapd(t)
			d := s.open(t, func(c *Config) { tc.change(s, c) })
			directorytest.Run(t, directorytest.Fixture{
				Directory: d, Prefix: d.cfg.GroupPrefix,
				Remove: func(t *testing.T, name string) {
					s.do(t, func(c *ldap.Conn) error { return c.Del(ldap.NewDelRequest("uid="+name+","+people, nil)) })
				},
				Add: func(t *testing.T, name string) { s.do(t, func(c *ldap.Conn) error { return addUser(c, name) }) },
				Regroup: func(t *testing.T, name, group string) {
					s.do(t, func(c *ldap.Conn) error {
						q := ldap.NewModifyRequest("cn="+group+","+groups, nil)
						q.Delete("member", []string{"uid=" + name + "," + people})
						return c.Modify(q)
					})
				},
				Stop: s.stop,
			})
		})
	}
}

func TestWhoMayLogIn(t *testing.T) {
	s := startSlapd(t)
	s.do(t, func(c *ldap.Conn) error {
		aliases := ldap.NewAddRequest("cn=several,"+people, nil)
		aliases.Attribute("objectClass", []string{"inetOrgPerson"})
		aliases.Attribute("uid", []string{"carl", "carlos"})
		for _, a := range []string{"cn", "sn"} {
			aliases.Attribute(a, []string{"several"})
		}
		aliases.Attribute("userPassword", []string{"password of carl"})
		return errors.Join(
			c.Add(aliases),
			add(c, "cn=twin1,"+people, "objectClass", "inetOrgPerson", "uid", "twin", "cn", "twin1", "sn", "x", "userPassword", "password of twin"),
			add(c, "cn=twin2,"+people, "objectClass", "inetOrgPerson", "uid", "twin", "cn", "twin2", "sn", "x", "userPassword", "password of twin"),
			add(c, "uid=nopass,"+people, "objectClass", "inetOrgPerson", "uid", "nopass", "cn", "x", "sn", "x"),
		)
	})
	for _, tc := range []struct {
		name, user string
		change     func(*Config)
		want       error
	}{
		{"in the required group", "ann", func(c *Config) { c.RequiredGroup = "dev" }, nil},
		{"not in the required group", "bob", func(c *Config) { c.RequiredGroup = "dev" }, auth.ErrCredentials},
		{"kept out by the filter", "bob", func(c *Config) { c.UserFilter = "(&(uid={user})(!(sn=bob)))" }, auth.ErrCredentials},
		{"with two names", "carl", nil, auth.ErrCredentials},
		{"twice", "twin", nil, auth.ErrCredentials},
		{"without a password", "nopass", nil, auth.ErrCredentials},
		{"elsewhere", "ann", func(c *Config) { c.UserBase = groups }, auth.ErrCredentials},
		{"a base that is not there", "ann", func(c *Config) { c.UserBase = "ou=no," + suffix }, auth.ErrUnavailable},
		{"a searcher with a wrong password", "ann", func(c *Config) { c.BindPasswordFile = filepath.Join(s.dir, "slapd.conf") }, auth.ErrUnavailable},
		{"a searcher who may not", "ann", func(c *Config) { c.BindDN, c.BindPasswordFile = "", "" }, auth.ErrUnavailable},
		{"a CA that is another's", "ann", func(c *Config) { c.CA = certificates(t, t.TempDir()) }, auth.ErrUnavailable},
		{"a name that is not in the certificate", "ann", func(c *Config) { c.URL = strings.Replace(c.URL, "127.0.0.1", "localhost", 1) }, auth.ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := s.open(t, tc.change)
			p, err := d.Login(t.Context(), tc.user, "password of "+tc.user)
			if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
				t.Errorf("Login() = %+v, %v, want %v", p, err, tc.want)
			}
			if err != nil && (strings.Contains(err.Error(), "secret-of") || strings.Contains(err.Error(), "password of")) {
				t.Errorf("the error tells a password: %v", err)
			}
		})
	}
}

// TestTooManyGroups has a user in more groups than are looked at: a rule may be for
// those that would be left out.
func TestTooManyGroups(t *testing.T) {
	s := startSlapd(t)
	s.do(t, func(c *ldap.Conn) error {
		for i := range 600 { // slapd itself gives 500
			if err := add(c, fmt.Sprintf("cn=g%d,%s", i, groups), "objectClass", "groupOfNames", "cn", fmt.Sprintf("g%d", i), "member", "uid=bob,"+people); err != nil {
				return err
			}
		}
		return nil
	})
	if p, err := s.open(t, nil).Login(t.Context(), "bob", "password of bob"); !errors.Is(err, auth.ErrCredentials) {
		t.Errorf("Login() = %d groups, %v, want ErrCredentials", len(p.Groups), err)
	}
	d := s.open(t, func(c *Config) { c.GroupBase, c.MemberOf = "", "memberOf" })
	if p, err := d.Login(t.Context(), "bob", "password of bob"); err != nil || len(p.Groups) != 600 {
		t.Errorf("Login() with memberOf = %d groups, %v", len(p.Groups), err)
	}
}

// TestSilentServer has a server that takes connections and says nothing.
func TestSilentServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tc := range []struct {
		name   string
		scheme string
		start  bool
	}{{"ldap", "ldap", false}, {"StartTLS", "ldap", true}, {"ldaps", "ldaps", false}} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.URL, cfg.StartTLS, cfg.UserBase, cfg.Timeout = tc.scheme+"://"+l.Addr().String(), tc.start, people, 200*time.Millisecond
			d, err := Open(cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if _, err := d.Login(t.Context(), "ann", "x"); !errors.Is(err, auth.ErrUnavailable) {
				t.Errorf("Login() = %v, want ErrUnavailable", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %s, with a timeout of %s", took, cfg.Timeout)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	good := DefaultConfig()
	good.URL, good.UserBase = "ldaps://ldap.example.com", people
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("nothing at all = %v", err)
	}
	for _, tc := range []struct {
		change func(*Config)
		says   string
	}{
		{func(c *Config) { c.URL = "ldap://ldap.example.com" }, "url: passwords would go to ldap.example.com in the clear"},
		{func(c *Config) { c.URL = "ldap://10.0.0.1:389" }, "in the clear"},
		{func(c *Config) { c.URL = "http://x" }, "url: must be like"},
		{func(c *Config) { c.URL = "ldaps://x/dc=a?uid" }, "url: must be like"},
		{func(c *Config) { c.URL = "ldaps://user:s3cret@x" }, "url: must be like"},
		{func(c *Config) { c.StartTLS = true }, "start_tls: ldaps://"},
		{func(c *Config) { c.URL = "" }, "url: needs"},
		{func(c *Config) { c.BindDN = reader }, "bind_dn: needs bind_password_file"},
		{func(c *Config) { c.UserBase = "" }, "user_base"},
		{func(c *Config) { c.UserBase = "people" }, "user_base: \"people\" is not a DN"},
		{func(c *Config) { c.UserFilter = "(uid=*)" }, "user_filter: must have {user}"},
		{func(c *Config) { c.UserFilter = "(uid={user}" }, "user_filter: \"(uid={user}\" is not a filter"},
		{func(c *Config) { c.GroupFilter = "(objectClass=*)" }, "group_filter: must have"},
		{func(c *Config) { c.GroupBase, c.MemberOf = groups, "memberOf" }, "member_of:"},
		{func(c *Config) { c.RequiredGroup = "dev" }, "required_group: needs"},
		{func(c *Config) { c.GroupPrefix = "my " }, "group_prefix"},
		{func(c *Config) { c.Timeout = 0 }, "timeout"},
		{func(c *Config) { c.Recheck = 2 * time.Hour }, "recheck"},
		{func(c *Config) { c.Outage = time.Second }, "outage"},
	} {
		c := good
		tc.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("Validate() = %v, want …%s…", err, tc.says)
		}
	}
	for _, change := range []func(*Config){
		func(c *Config) { c.URL = "ldap://127.0.0.1:389" },
		func(c *Config) { c.URL = "ldap://localhost" },
		func(c *Config) { c.URL, c.StartTLS = "ldap://ldap.example.com", true },
		func(c *Config) { c.URL, c.AllowClear = "ldap://ldap.example.com", true },
		func(c *Config) { c.GroupPrefix = "" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err != nil {
			t.Errorf("Validate(%+v) = %v", c, err)
		}
	}
}

func TestIdentity(t *testing.T) {
	entry := func(dn string, pairs ...string) *ldap.Entry {
		e := &ldap.Entry{DN: dn}
		for i := 0; i < len(pairs); i += 2 {
			e.Attributes = append(e.Attributes, ldap.NewEntryAttribute(pairs[i], []string{pairs[i+1]}))
		}
		return e
	}
	const dn = "uid=ann," + people
	base := identity(entry(dn, "entryUUID", "1"))
	for _, same := range []*ldap.Entry{entry(dn, "entryuuid", "1"), entry("uid=ann,ou=moved", "entryUUID", "1"), entry(dn, "entryUUID", "1", "cn", "Ann")} {
		if identity(same) != base {
			t.Errorf("%v is another one", same)
		}
	}
	seen := map[string]*ldap.Entry{base: nil}
	for _, other := range []*ldap.Entry{
		entry(dn), entry("uid=bob," + people), entry(dn, "entryUUID", "2"), entry(dn, "objectGUID", "\x00\x01"), entry(dn, "entryUUID", "1", "pwdChangedTime", "20300101000000Z"),
		entry(dn, "entryUUID", "1", "pwdLastSet", "20300101000000Z"),
	} {
		if before, twice := seen[identity(other)]; twice {
			t.Errorf("%v is the same as %v", other, before)
		}
		seen[identity(other)] = other
	}
	if identity(entry(dn)) != identity(entry(strings.ToUpper(dn))) {
		t.Error("a DN in upper case is another one")
	}
}

func TestGroupOf(t *testing.T) {
	for dn, want := range map[string]string{
		"cn=dev,ou=groups,dc=x": "dev", "CN=Dev\\2C ops,OU=g": "Dev, ops", "uid=ann,ou=people": "", "": "", "nonsense": "", "ou=x+cn=y,dc=z": "y",
	} {
		if got := groupOf(dn, "cn"); got != want {
			t.Errorf("groupOf(%q) = %q, want %q", dn, got, want)
		}
	}
}

// FuzzFill puts names into filters. As the server reads it, the filter must still ask
// for exactly that value, and nothing more.
func FuzzFill(f *testing.F) {
	for _, s := range []string{"ann", "*", "a*b", ")(uid=*", `\2a`, "\x00", "ä", "{dn}", "{user}", "(", "a)(|(b=c)"} {
		f.Add(s, "cn=x,dc=y")
		f.Add("ann", s)
	}
	f.Fuzz(func(t *testing.T, user, dn string) {
		p, err := ldap.CompileFilter(fill("(&(uid={user})(member={dn}))", user, dn))
		if err != nil {
			t.Fatalf("with %q and %q it is no filter: %v", user, dn, err)
		}
		var values []string
		for _, child := range p.Children {
			if child.Tag != ldap.FilterEqualityMatch || len(child.Children) != 2 {
				t.Fatalf("with %q and %q it asks for something else: %v", user, dn, child.Description)
			}
			values = append(values, child.Children[1].Data.String())
		}
		if !slices.Equal(values, []string{user, dn}) {
			t.Errorf("with %q and %q it asks for %q", user, dn, values)
		}
	})
}

// FuzzGroupOf reads DNs of groups as a server may send them.
func FuzzGroupOf(f *testing.F) {
	for _, s := range []string{"cn=dev,ou=groups", "cn=a\\,b", "cn=#0401", "=", "cn=", "cn=\\", "a=b+cn=c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := groupOf(s, "cn")
		if got != "" && !strings.Contains(s, "=") {
			t.Errorf("groupOf(%q) = %q", s, got)
		}
	})
}
