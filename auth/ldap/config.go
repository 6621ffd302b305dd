package ldap

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Config says where the users of an LDAP server are, and how they are found.
type Config struct {
	// URL is ldaps://HOST[:PORT], or ldap://HOST[:PORT] with StartTLS. Default none:
	// there are no such users.
	URL string `yaml:"url"`

	// StartTLS makes a connection to ldap:// one with TLS before anything is said.
	StartTLS bool `yaml:"start_tls"`

	// AllowClear allows ldap:// without TLS to another machine: everybody on the way
	// reads all passwords. Default false.
	AllowClear bool `yaml:"allow_clear"`

	// CA is a PEM file of certificates to trust beside the system's, read at the
	// start. Default none.
	CA string `yaml:"ca"`

	// BindDN is who searches for users and groups, and BindPasswordFile a file with
	// the password, which is read again for each connection. Default nobody: the
	// server must let everybody search.
	BindDN           string `yaml:"bind_dn"`
	BindPasswordFile string `yaml:"bind_password_file"`

	// UserBase is the DN below which the users are.
	UserBase string `yaml:"user_base"`

	// UserFilter finds a user (RFC 4515): {user} is the name. Who must not log in,
	// such as who is disabled, must not be found. Default (uid={user}).
	UserFilter string `yaml:"user_filter"`

	// UserAttribute has the user's name as it counts in policies. Default uid.
	UserAttribute string `yaml:"user_attribute"`

	// GroupBase is the DN below which the groups are. Default none: there are none,
	// or those of MemberOf.
	GroupBase string `yaml:"group_base"`

	// GroupFilter finds the groups of a user: {user} is the name, {dn} the DN.
	// Default (|(member={dn})(uniqueMember={dn})(memberUid={user})).
	GroupFilter string `yaml:"group_filter"`

	// GroupAttribute has a group's name. Default cn.
	GroupAttribute string `yaml:"group_attribute"`

	// MemberOf is an attribute of users, such as memberOf, that has the DNs of their
	// groups: then these are not searched for. A group's name is then the value of
	// GroupAttribute at the beginning of its DN. Default none.
	MemberOf string `yaml:"member_of"`

	// GroupPrefix begins the names of these groups in policies, such as ldap+dev, so
	// that they are not taken for berth's own: a group admins of the LDAP server
	// administers nothing. Default ldap+.
	GroupPrefix string `yaml:"group_prefix"`

	// RequiredGroup is one, without GroupPrefix, that all must be in who log in.
	// Default none.
	RequiredGroup string `yaml:"required_group"`

	// Timeout is how long a question to the server may take in all. Default 5s.
	Timeout time.Duration `yaml:"timeout"`

	// Recheck is how long what the server said of somebody counts without a new
	// question: so long can they go on who are removed there. Default 1m.
	Recheck time.Duration `yaml:"recheck"`

	// Outage is how long it counts while the server does not answer. Default 10m.
	Outage time.Duration `yaml:"outage"`
}

// DefaultConfig returns what counts if nothing is said.
func DefaultConfig() Config {
	return Config{
		UserFilter: "(uid={user})", UserAttribute: "uid",
		GroupFilter: "(|(member={dn})(uniqueMember={dn})(memberUid={user}))", GroupAttribute: "cn", GroupPrefix: "ldap+",
		Timeout: 5 * time.Second, Recheck: time.Minute, Outage: 10 * time.Minute,
	}
}

// Validate returns all that is wrong, each line beginning with the key.
func (c Config) Validate() error {
	if c.URL == "" {
		if c.UserBase != "" || c.BindDN != "" || c.RequiredGroup != "" || c.StartTLS {
			return errors.New("url: needs the address of the server")
		}
		return nil
	}
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	u, err := parseURL(c.URL)
	switch {
	case err != nil:
		wrong("url: %w", err)
	case u.Scheme == "ldaps" && c.StartTLS:
		wrong("start_tls: ldaps:// speaks TLS from the beginning: leave it out")
	case u.Scheme == "ldap" && !c.StartTLS && !c.AllowClear && !loopback(u.Hostname()):
		wrong("url: passwords would go to %s in the clear: take ldaps://, or start_tls: true; allow_clear: true if that is really meant", u.Host)
	}
	if (c.BindDN == "") != (c.BindPasswordFile == "") {
		wrong("bind_dn: needs bind_password_file, and the other way round")
	}
	for _, dn := range [][2]string{{"bind_dn", c.BindDN}, {"user_base", c.UserBase}, {"group_base", c.GroupBase}} {
		if _, err := ldap.ParseDN(dn[1]); err != nil {
			wrong("%s: %q is not a DN such as ou=people,dc=example,dc=com", dn[0], dn[1])
		}
	}
	if c.UserBase == "" {
		wrong("user_base: must say below which DN the users are")
	}
	if err := checkFilter(c.UserFilter); err != nil {
		wrong("user_filter: %w", err)
	} else if !strings.Contains(c.UserFilter, "{user}") || strings.Contains(c.UserFilter, "{dn}") {
		wrong("user_filter: must have {user}, the name that is searched for, and not {dn}")
	}
	if err := checkFilter(c.GroupFilter); err != nil {
		wrong("group_filter: %w", err)
	} else if !strings.Contains(c.GroupFilter, "{user}") && !strings.Contains(c.GroupFilter, "{dn}") {
		wrong("group_filter: must have {user} or {dn}: else everybody is in all groups")
	}
	if c.UserAttribute == "" || c.GroupAttribute == "" {
		wrong("user_attribute, group_attribute: must name attributes")
	}
	if !usable(c.GroupPrefix + "x") {
		wrong("group_prefix: %q must be short, without spaces", c.GroupPrefix)
	}
	if c.GroupBase != "" && c.MemberOf != "" {
		wrong("member_of: groups are searched below group_base or named by member_of: give one of them")
	}
	if c.RequiredGroup != "" && c.GroupBase == "" && c.MemberOf == "" {
		wrong("required_group: needs group_base or member_of: else nobody is in any group")
	}
	if c.Timeout <= 0 || c.Timeout > time.Minute {
		wrong("timeout: must be more than 0 and at most 1m")
	}
	if c.Recheck <= 0 || c.Recheck > time.Hour {
		wrong("recheck: must be more than 0 and at most 1h")
	}
	if c.Outage < c.Recheck || c.Outage > 24*time.Hour {
		wrong("outage: must be at least recheck and at most 24h")
	}
	return errors.Join(errs...)
}

func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "ldap" && u.Scheme != "ldaps" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("must be like ldaps://ldap.example.com, or ldap://ldap.example.com:389, and no more")
	}
	return u, nil
}

// address is where u leads to, and with it the name in the server's certificate.
func address(u *url.URL) (hostPort, host string) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"ldap": "389", "ldaps": "636"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port), u.Hostname()
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkFilter refuses what is no filter once its places are filled.
func checkFilter(filter string) error {
	if _, err := ldap.CompileFilter(fill(filter, "name", "cn=name")); err != nil {
		return fmt.Errorf("%q is not a filter as in RFC 4515: %w", filter, err)
	}
	return nil
}

// fill puts a name and a DN in the places of a filter, so that they can be nothing but
// values there.
func fill(filter, user, dn string) string {
	return strings.NewReplacer("{user}", ldap.EscapeFilter(user), "{dn}", ldap.EscapeFilter(dn)).Replace(filter)
}

// groupOf returns the name of the group that a DN names: the value of the attribute at
// its beginning; empty if it begins otherwise.
func groupOf(text, attribute string) string {
	dn, err := ldap.ParseDN(text)
	if err != nil || len(dn.RDNs) == 0 {
		return ""
	}
	for _, part := range dn.RDNs[0].Attributes {
		if strings.EqualFold(part.Type, attribute) {
			return part.Value
		}
	}
	return ""
}
