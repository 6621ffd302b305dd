package server

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"berth.internal/auth/ldap"
	"berth.internal/auth/oidc"
	"berth.internal/auth/policy"
	"berth.internal/internal/units"
	"berth.internal/server/audit"
	"berth.internal/server/registry"
	"berth.internal/storage"
)

// Anonymous is what callers may do who have not said who they are.
type Anonymous string

// What anonymous callers may do.
const (
	AnonymousNone Anonymous = "none" // nothing; but on a loopback address without users, everything
	AnonymousPull Anonymous = "pull" // read everything
	AnonymousPush Anonymous = "push" // read, write and delete everything
)

// MetricsFor is who may read /metrics.
type MetricsFor string

// Who may read /metrics.
const (
	MetricsPublic MetricsFor = "public" // everybody
	MetricsUsers  MetricsFor = "users"  // users and robots
	MetricsAdmin  MetricsFor = "admin"  // who has the right admin
)

// Config is the configuration of berth serve.
type Config struct {
	// Listen is the TCP address to serve on, as host:port. It must be a loopback
	// address unless there are users or Anonymous says otherwise. Default
	// 127.0.0.1:5000.
	Listen string `yaml:"listen"`

	// TLS makes the registry speak HTTPS.
	TLS TLS `yaml:"tls"`

	// Data is the directory that keeps everything. Default /var/lib/berth.
	Data string `yaml:"data"`

	// Anonymous is what callers may do who have not said who they are: none,
	// pull or push. Default none: then a registry without users serves only
	// callers on its own machine, and those may do everything.
	Anonymous Anonymous `yaml:"anonymous"`

	// Policy is a YAML file that says who may do what. It is read again when it
	// changes, and on SIGHUP. Default none: the policy is that of berth policy.
	Policy string `yaml:"policy"`

	// Htpasswd is a file of users with bcrypt hashes, as htpasswd -B makes it. It
	// is read again when it changes. Default none.
	Htpasswd string `yaml:"htpasswd"`

	// AdminPasswordFile is a file with the password of the first administrator: if
	// there is no user, the user admin in the group admins is made with it.
	// Default none.
	AdminPasswordFile string `yaml:"admin_password_file"`

	// SecretKeyFile is a file of 32 bytes or more that nobody can guess, such as from
	// head -c 32 /dev/urandom | base64. With it the keys that sign tokens are
	// encrypted in the data directory, and so in backups; it must be the same for all
	// servers, and not be kept with the backups. Without the right one the server
	// makes other keys. Default none: they are in the clear.
	SecretKeyFile string `yaml:"secret_key_file"`

	// OIDC are issuers of signed tokens, each with name, issuer, ca or keys: jobs
	// (audience, require, groups) lets CI jobs in without a stored secret, people
	// (client_id, scopes, username_claim, groups_claim, require, lasts) lets people log
	// in with the account that they have there. See package auth/oidc. Default none.
	OIDC []oidc.Issuer `yaml:"oidc"`

	// LDAP is a server with users and groups: see package auth/ldap. Users of berth's
	// own come before those of the same name there. Default none.
	LDAP ldap.Config `yaml:"ldap"`

	// TrustedProxies are the addresses and networks of proxies in front of the
	// registry. What they say of a request, in X-Forwarded-For, -Proto and -Host,
	// is believed. Default none.
	TrustedProxies []string `yaml:"trusted_proxies"`

	// Limits bound how much one caller may ask. Default: not at all.
	Limits Limits `yaml:"limits"`

	// Metrics says who may read /metrics: public, users (who logs in as a user or a
	// robot) or admin. Without users everybody who reaches the registry may, unless it
	// is admin. Default users.
	Metrics MetricsFor `yaml:"metrics"`

	// Sparse says what a manifest may name that its repository does not hold:
	// none, index (children of an index), or all. Default none.
	Sparse registry.Sparse `yaml:"sparse"`

	// MaxManifest is the largest manifest accepted, in bytes. A larger one is
	// refused with 413 (spec, "Pushing Manifests"). Default 4 MiB.
	MaxManifest units.Bytes `yaml:"max_manifest"`

	// Reserve is how many bytes of its disk the registry leaves free: blobs are
	// refused with 507 when no more is free, so that names can be changed and
	// deleted on a full disk, too. At most a tenth of the disk counts. Zero: none.
	// Default 256 MiB.
	Reserve units.Bytes `yaml:"reserve"`

	// UploadExpiry is how long an upload may stand still before it is dropped.
	// Default 24h.
	UploadExpiry time.Duration `yaml:"upload_expiry"`

	// Grace is how long content is kept that no manifest names, so that the
	// manifest can still be pushed. Default 24h.
	Grace time.Duration `yaml:"grace"`

	// Trash is how long a manifest that was deleted, and a tag that was deleted
	// or moved, can be restored (berth repo history, berth repo restore). Until
	// then it takes space. Zero: not at all. Default 168h, a week.
	Trash time.Duration `yaml:"trash"`

	// ImmutableTags are those that are set once: they can be neither moved nor
	// deleted. Default none.
	ImmutableTags []TagPattern `yaml:"immutable_tags"`

	// Collect says what the collector takes away, and how fast.
	Collect Collect `yaml:"collect"`

	// Scrub says how often everything is read again, to find what the disk has
	// damaged.
	Scrub Scrub `yaml:"scrub"`

	// Audit says what is recorded of who did what.
	Audit Audit `yaml:"audit"`

	// ShutdownTimeout is how long transfers may go on after the server was asked
	// to stop. Default 30s.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`

	// LocalNode, if not nil, listens for the node in this process. It needs no
	// login: it is node:local in the policy, and may pull unless that forbids it.
	LocalNode net.Listener `yaml:"-"`

	// Reread reads the configuration again, as it is now, for Server.Reload. restart
	// are keys of other parts of the program that have changed and that only a restart
	// puts in force. Nil: it cannot be read again.
	Reread func() (cfg Config, restart []string, err error) `yaml:"-"`

	// ShowAdmin, if it is set, shows a person the password of the user admin, who is
	// made when other machines reach the registry and it has no users.
	ShowAdmin func(name, password string) error `yaml:"-"`

	// Version is berth's own, for the control API.
	Version string `yaml:"-"`
}

// Collect is the configuration of the collector, which runs while the server
// does.
type Collect struct {
	// Interval is the pause after a round. Default 1m.
	Interval time.Duration `yaml:"interval"`

	// Rate is how many entries of its queue the collector reviews in a second at
	// most, and how many files it deletes. Default 1000.
	Rate int `yaml:"rate"`

	// Untagged lets the collector take manifests that have lost their last tag
	// and that no index names, when UntaggedGrace is over. Default false: what was
	// pushed can be pulled by its digest until somebody deletes it.
	Untagged      bool          `yaml:"untagged"`
	UntaggedGrace time.Duration `yaml:"untagged_grace"` // default 24h

	// Dangling lets the collector take referrers without a tag, such as
	// signatures, when their subject has been gone for DanglingGrace. Default
	// false.
	Dangling      bool          `yaml:"dangling"`
	DanglingGrace time.Duration `yaml:"dangling_grace"` // default 24h

	// OrphanGrace is how long bytes are kept that no name was given to, since
	// the push broke off at its very end. It must be longer than that end takes.
	// Default 24h.
	OrphanGrace time.Duration `yaml:"orphan_grace"`
}

// Scrub is the configuration of the scrub.
type Scrub struct {
	// Interval is the time from the start of one pass over all content to the
	// start of the next. Zero: there are none by themselves. Default 168h, a week.
	Interval time.Duration `yaml:"interval"`

	// Rate is how many bytes a pass reads in a second. Default 16MiB.
	Rate units.Bytes `yaml:"rate"`
}

// Audit is the configuration of the audit log, which is in registry/audit/ in the
// data directory.
type Audit struct {
	// Enabled records each change, login and denial. Default true.
	Enabled bool `yaml:"enabled"`

	// Pulls records pulls, too: a line for each manifest and blob. Default false.
	Pulls bool `yaml:"pulls"`

	// FileSize is how large a file may be before the next one is begun. Default
	// 16MiB.
	FileSize units.Bytes `yaml:"file_size"`

	// Files is how many files are kept; the oldest go. Default 32: 512 MiB in all,
	// about a million records.
	Files int `yaml:"files"`

	// Dir is the directory; empty: nothing is recorded.
	Dir string `yaml:"-"`
}

func (a Audit) settings() audit.Settings {
	return audit.Settings{On: a.Enabled && a.Dir != "", Pulls: a.Pulls, FileSize: int64(a.FileSize), Files: a.Files}
}

// TagPattern matches tags of some repositories. Both patterns are as in a policy:
// * stands for any text without a slash, ? for one character, [a-z] for one of
// these and {a,b} for one of those; ** in Repositories for any words.
type TagPattern struct {
	Repositories string `yaml:"repositories"`
	Tags         string `yaml:"tags"`
}

// rules are those under which names change in repo.
func (c Config) rules(repo string) storage.Rules {
	rules := storage.Rules{
		Grace: c.Grace, Untagged: c.Collect.UntaggedGrace, Dangling: c.Collect.DanglingGrace,
		Trash: c.Trash, Orphan: c.Collect.OrphanGrace,
	}
	var patterns []string
	for _, p := range c.ImmutableTags {
		if policy.Match(p.Repositories, repo) {
			patterns = append(patterns, p.Tags)
		}
	}
	if patterns != nil {
		rules.Immutable = func(tag string) bool {
			return slices.ContainsFunc(patterns, func(p string) bool { return policy.Match(p, tag) })
		}
	}
	return rules
}

// DefaultConfig returns the configuration of a server that was told nothing.
func DefaultConfig() Config {
	return Config{
		Listen:       "127.0.0.1:5000",
		Data:         "/var/lib/berth",
		Anonymous:    AnonymousNone,
		Metrics:      MetricsUsers,
		Sparse:       registry.SparseNone,
		MaxManifest:  4 << 20,
		Reserve:      256 << 20,
		UploadExpiry: 24 * time.Hour,
		Grace:        24 * time.Hour,
		Trash:        7 * 24 * time.Hour,
		Collect: Collect{
			Interval: time.Minute, Rate: 1000,
			UntaggedGrace: 24 * time.Hour, DanglingGrace: 24 * time.Hour, OrphanGrace: 24 * time.Hour,
		},
		Scrub:           Scrub{Interval: 7 * 24 * time.Hour, Rate: 16 << 20},
		Audit:           Audit{Enabled: true, FileSize: 16 << 20, Files: 32},
		ShutdownTimeout: 30 * time.Second,
		LDAP:            ldap.DefaultConfig(),
	}
}

// Validate returns all that is wrong with the configuration, each line
// beginning with the key.
func (c Config) Validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		wrong("listen: %q is not an address such as 127.0.0.1:5000", c.Listen)
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		wrong("tls: needs both cert and key; berth tls init makes them")
	}
	if c.TLS.ACME.named() {
		if c.TLS.Cert != "" {
			wrong("tls.acme: gets certificates in place of tls.cert: leave one of the two away")
		}
		errs = append(errs, c.TLS.ACME.validate()...)
	}
	if c.TLS.ClientCA != "" && !c.TLS.on() {
		wrong("tls.client_ca: needs tls.cert and tls.key, or tls.acme, beside it: only over TLS do clients show certificates")
	}
	if c.Data == "" {
		wrong("data: must name a directory")
	}
	switch c.Anonymous {
	case AnonymousNone, AnonymousPull, AnonymousPush:
	default:
		wrong("anonymous: %q is none of none, pull, push", string(c.Anonymous))
	}
	if err := c.LDAP.Validate(); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			wrong("ldap.%s", line)
		}
	}
	if err := oidc.Check(c.OIDC); err != nil {
		errs = append(errs, err)
	}
	if _, err := parseProxies(c.TrustedProxies); err != nil {
		wrong("trusted_proxies: %w", err)
	}
	switch c.Metrics {
	case MetricsPublic, MetricsUsers, MetricsAdmin:
	default:
		wrong("metrics: %q is none of public, users, admin", string(c.Metrics))
	}
	errs = append(errs, c.Limits.Caller.validate("caller")...)
	errs = append(errs, c.Limits.Address.validate("address")...)
	errs = append(errs, c.validateContent()...)
	if c.ShutdownTimeout < 0 {
		wrong("shutdown_timeout: must not be negative")
	}
	return errors.Join(errs...)
}

// validateContent is the part of Validate about what is stored, for how long, and who
// looks after it.
func (c Config) validateContent() (errs []error) {
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch c.Sparse {
	case registry.SparseNone, registry.SparseIndex, registry.SparseAll:
	default:
		wrong("sparse: %q is none of none, index, all", string(c.Sparse))
	}
	if c.MaxManifest < 64<<10 || c.MaxManifest > 64<<20 {
		wrong("max_manifest: must be between 64KiB and 64MiB")
	}
	if c.Reserve < 0 {
		wrong("reserve: must not be negative")
	}
	if c.UploadExpiry <= 0 {
		wrong("upload_expiry: must be positive")
	}
	if c.Grace <= 0 {
		wrong("grace: must be positive")
	}
	if c.Trash < 0 {
		wrong("trash: must not be negative; 0 keeps nothing that is deleted")
	}
	for i, p := range c.ImmutableTags {
		if err := policy.CheckPattern(p.Repositories); err != nil {
			wrong("immutable_tags[%d].repositories: %w", i, err)
		}
		if err := policy.CheckTags(p.Tags); err != nil {
			wrong("immutable_tags[%d].tags: %w", i, err)
		}
	}
	if c.Collect.UntaggedGrace <= 0 {
		wrong("collect.untagged_grace: must be positive")
	}
	if c.Collect.DanglingGrace <= 0 {
		wrong("collect.dangling_grace: must be positive")
	}
	if c.Collect.OrphanGrace <= 0 {
		wrong("collect.orphan_grace: must be positive")
	}
	if c.Collect.Interval <= 0 {
		wrong("collect.interval: must be positive")
	}
	if c.Collect.Rate <= 0 {
		wrong("collect.rate: must be positive")
	}
	if c.Scrub.Interval < 0 {
		wrong("scrub.interval: must not be negative; 0 switches it off")
	}
	if c.Scrub.Rate < 1<<20 {
		wrong("scrub.rate: must be at least 1MiB")
	}
	if c.Audit.FileSize < 64<<10 {
		wrong("audit.file_size: must be at least 64KiB")
	}
	if c.Audit.Files < 2 {
		wrong("audit.files: must be at least 2")
	}
	return errs
}

// Public tells whether other machines reach the registry, and nothing but users
// keeps them out.
func (c Config) Public() bool {
	host, _, err := net.SplitHostPort(c.Listen)
	return c.Anonymous == AnonymousNone && (err != nil || !loopback(host))
}

// ErrNoUsers says that a public registry has no users.
var ErrNoUsers = errors.New("there are no users")

func (c Config) noUsers() error {
	return fmt.Errorf("listen: %s can be reached from other machines, and %w, so that everybody there could read and overwrite every image: "+
		"start it on a terminal once, where it makes one and shows the password, or put a password in a file and name that as admin_password_file, "+
		"or allow it with --anonymous pull or --anonymous push", c.Listen, ErrNoUsers)
}

// CheckUsers returns ErrNoUsers with what to do, if the configuration alone says
// that a public registry in a data directory that does not exist yet will have no
// users.
func (c Config) CheckUsers() error {
	if c.Public() && c.ShowAdmin == nil && c.Htpasswd == "" && c.AdminPasswordFile == "" && len(c.OIDC) == 0 && c.LDAP.URL == "" {
		return c.noUsers()
	}
	return nil
}

// loopback reports whether only this machine reaches the host.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
