// Package ldap knows the users of an LDAP server: it finds them there, and tries
// their passwords by binding with them.
package ldap

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"berth.internal/auth"
)

const (
	maxGroups    = 1000     // of a user; more are refused, since rules may be for those that are left out
	maxAnswers   = 16 << 20 // bytes that a connection may bring
	maxPassword  = 1024     // bytes of the file of BindPassword
	maxGroupName = 100      // bytes; others are left out
)

// Directory is an auth.Directory. Make it with Open.
type Directory struct {
	cfg Config
	tls *tls.Config
	log *slog.Logger
}

// Open reads what cfg names. It does not connect: a server that is away comes back.
func Open(cfg Config, log *slog.Logger) (*Directory, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.URL == "" {
		return nil, errors.New("url: there is none")
	}
	u, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	d := &Directory{cfg: cfg, log: log, tls: &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s holds no PEM certificate", cfg.CA)
		}
		d.tls.RootCAs = pool
	}
	if cfg.BindPasswordFile != "" {
		if _, err := readPassword(cfg.BindPasswordFile); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// readPassword reads the first line of a file.
func readPassword(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("bind_password_file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPassword))
	if err != nil {
		return "", fmt.Errorf("bind_password_file: %w", err)
	}
	password, _, _ := strings.Cut(string(text), "\n")
	if password = strings.TrimRight(password, "\r"); password == "" {
		return "", fmt.Errorf("bind_password_file: %s has no password in its first line", path)
	}
	return password, nil
}

// Login implements auth.Directory.
func (d *Directory) Login(ctx context.Context, name, password string) (auth.Person, error) {
	// An empty password would be a bind as nobody, which servers allow (RFC 4513,
	// section 5.1.2).
	if password == "" || strings.ContainsRune(password, 0) {
		return auth.Person{}, auth.ErrCredentials
	}
	return d.with(ctx, func(conn *ldap.Conn) (auth.Person, error) {
		p, dn, err := d.find(ctx, conn, name)
		if err != nil {
			return p, err
		}
		err = conn.Bind(dn, password) // the last thing on this connection: now it is theirs
		switch {
		case err == nil:
			return p, nil
		case ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials):
		case down(err):
			return auth.Person{}, away("try a password", err)
		default:
			d.log.InfoContext(ctx, "the LDAP server does not let a user in", "user", p.Name, "error", err)
		}
		return auth.Person{}, auth.ErrCredentials
	})
}

// down tells whether a bind was not answered; what else is said is about the user, such
// as that they are locked.
func down(err error) bool {
	_, answered := errors.AsType[*ldap.Error](err)
	return !answered || ldap.IsErrorAnyOf(err, ldap.ErrorNetwork, ldap.LDAPResultBusy, ldap.LDAPResultUnavailable, ldap.LDAPResultServerDown,
		ldap.LDAPResultTimeout, ldap.LDAPResultConnectError, ldap.LDAPResultTimeLimitExceeded)
}

// away says that the server did not answer as it should.
func away(what string, err error) error {
	return fmt.Errorf("%w: %s: %w", auth.ErrUnavailable, what, err)
}

// Lookup implements auth.Directory.
func (d *Directory) Lookup(ctx context.Context, name string) (auth.Person, error) {
	return d.with(ctx, func(conn *ldap.Conn) (auth.Person, error) {
		p, _, err := d.find(ctx, conn, name)
		return p, err
	})
}

// with lets do speak on a connection of its own, which may search.
func (d *Directory) with(ctx context.Context, do func(*ldap.Conn) (auth.Person, error)) (auth.Person, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	conn, err := d.connect(ctx)
	if err != nil {
		return auth.Person{}, away("connect to "+d.cfg.URL, err)
	}
	defer func() { _ = conn.Close() }() // all that was asked is answered, or never will be
	if d.cfg.BindDN != "" {
		password, err := readPassword(d.cfg.BindPasswordFile)
		if err != nil {
			return auth.Person{}, away("bind", err)
		}
		if err := conn.Bind(d.cfg.BindDN, password); err != nil {
			return auth.Person{}, away("bind as bind_dn", err)
		}
	}
	return do(conn)
}

// connect dials, and speaks TLS unless the configuration allows to do without. The
// connection ends with ctx's time at the latest.
func (d *Directory) connect(ctx context.Context) (*ldap.Conn, error) {
	u, err := parseURL(d.cfg.URL)
	if err != nil {
		return nil, err
	}
	hostPort, _ := address(u)
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", hostPort)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline() // with sets one
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	var c net.Conn = &limited{Conn: raw, left: maxAnswers}
	if u.Scheme == "ldaps" {
		over := tls.Client(c, d.tls)
		if err := over.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		c = over
	}
	conn := ldap.NewConn(c, u.Scheme == "ldaps")
	conn.SetTimeout(d.cfg.Timeout)
	conn.Start()
	if d.cfg.StartTLS {
		if err := conn.StartTLS(d.tls); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return conn, nil
}

// limited is a connection that brings so much and no more.
type limited struct {
	net.Conn
	left int64 // used by who reads, one at a time
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("the server sent more than %d bytes", maxAnswers)
	}
	n, err := l.Conn.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// The attributes that tell one account from another of the same name, and when its
// password was changed; a server has some of them.
var (
	identities = []string{"entryUUID", "objectGUID", "nsUniqueId", "ipaUniqueID"}
	changes    = []string{"pwdChangedTime", "pwdLastSet", "krbLastPwdChange"}
)

// find searches for the one user of that name who may log in, and for their groups.
// Errors: auth.ErrCredentials if there is none.
func (d *Directory) find(ctx context.Context, conn *ldap.Conn, name string) (p auth.Person, dn string, err error) {
	ask := ldap.NewSearchRequest(d.cfg.UserBase, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 2, d.seconds(), false,
		fill(d.cfg.UserFilter, name, ""), slices.Concat([]string{d.cfg.UserAttribute}, identities, changes, d.memberOf()), nil)
	ask.EnforceSizeLimit = true
	found, err := conn.Search(ask)
	switch {
	case tooLarge(err) || err == nil && len(found.Entries) > 1:
		d.log.WarnContext(ctx, "several LDAP entries are found for one name, who cannot log in: make ldap.user_filter narrower", "user", name)
		return p, "", auth.ErrCredentials
	case err != nil:
		return p, "", away("search below user_base", err)
	case len(found.Entries) == 0:
		return p, "", auth.ErrCredentials
	}
	entry := found.Entries[0]
	names := entry.GetEqualFoldAttributeValues(d.cfg.UserAttribute)
	if len(names) != 1 || entry.DN == "" {
		// With several, somebody could be denied something by one name, and come by
		// another.
		d.log.WarnContext(ctx, "an LDAP entry has not one name, and cannot log in", "user", name, "attribute", d.cfg.UserAttribute, "names", len(names))
		return p, "", auth.ErrCredentials
	}
	groups, err := d.groups(ctx, conn, entry, names[0])
	if err != nil {
		return p, "", err
	}
	if required := d.cfg.RequiredGroup; required != "" && !slices.Contains(groups, d.cfg.GroupPrefix+required) {
		d.log.InfoContext(ctx, "an LDAP user is not in the required group, and cannot log in", "user", names[0], "group", required)
		return p, "", auth.ErrCredentials
	}
	return auth.Person{Name: names[0], Groups: groups, ID: identity(entry)}, entry.DN, nil
}

// tooLarge tells whether a search has found more than was asked for, or than the
// server gives.
func tooLarge(err error) bool {
	return errors.Is(err, ldap.ErrSizeLimitExceeded) || ldap.IsErrorAnyOf(err, ldap.LDAPResultSizeLimitExceeded, ldap.LDAPResultAdminLimitExceeded)
}

func (d *Directory) memberOf() []string {
	if d.cfg.MemberOf == "" {
		return nil
	}
	return []string{d.cfg.MemberOf}
}

// seconds is the time that the server may take for a search.
func (d *Directory) seconds() int { return max(1, int(d.cfg.Timeout/time.Second)) }

// identity is another one if the entry was made anew, or its password changed, as far
// as the server says so.
func identity(entry *ldap.Entry) string {
	h := sha256.New()
	write := func(b []byte) { fmt.Fprintf(h, "%d:%s", len(b), b) }
	id := []byte(strings.ToLower(entry.DN))
	for _, attribute := range identities {
		if v := entry.GetEqualFoldRawAttributeValue(attribute); len(v) > 0 {
			id = v
			break
		}
	}
	write(id)
	for _, attribute := range changes {
		write(entry.GetEqualFoldRawAttributeValue(attribute))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// groups returns the names of a user's groups, with their prefix, in order.
func (d *Directory) groups(ctx context.Context, conn *ldap.Conn, user *ldap.Entry, name string) ([]string, error) {
	var names []string
	crowd := false // the server does not tell all
	switch {
	case d.cfg.MemberOf != "":
		for _, dn := range user.GetEqualFoldAttributeValues(d.cfg.MemberOf) {
			names = append(names, groupOf(dn, d.cfg.GroupAttribute))
		}
	case d.cfg.GroupBase != "":
		ask := ldap.NewSearchRequest(d.cfg.GroupBase, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, maxGroups+1, d.seconds(), false,
			fill(d.cfg.GroupFilter, name, user.DN), []string{d.cfg.GroupAttribute}, nil)
		ask.EnforceSizeLimit = true
		found, err := conn.Search(ask)
		if err != nil && !tooLarge(err) {
			return nil, away("search below group_base", err)
		}
		crowd = err != nil
		for _, entry := range found.Entries {
			names = append(names, entry.GetEqualFoldAttributeValues(d.cfg.GroupAttribute)...)
		}
	}
	if crowd || len(names) > maxGroups {
		d.log.WarnContext(ctx, "an LDAP user is in too many groups, and cannot log in: make ldap.group_filter narrower", "user", name, "most", maxGroups)
		return nil, auth.ErrCredentials
	}
	var groups []string
	for _, group := range names {
		if usable(group) {
			groups = append(groups, d.cfg.GroupPrefix+group)
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups), nil
}

// usable tells whether a policy can name the group.
func usable(group string) bool {
	return group != "" && len(group) <= maxGroupName && !strings.ContainsFunc(group, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\uFFFD' })
}
