package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"berth.internal/auth/oidc"
	"berth.internal/auth/policy"
	"berth.internal/internal/config"
	wire "berth.internal/internal/control"
	"berth.internal/server/registry"
	"berth.internal/storage"
	"berth.internal/storage/care"
)

// followed returns the keys of the configuration that are put in force while the
// server runs. All others need a restart.
func followed() []string {
	return []string{
		"oidc", "trusted_proxies", "limits.caller.requests", "limits.caller.burst", "limits.caller.transfers",
		"limits.address.requests", "limits.address.burst", "limits.address.transfers", "metrics", "sparse", "max_manifest", "grace", "trash", "immutable_tags",
		"collect.interval", "collect.rate", "collect.untagged_grace", "collect.dangling_grace", "collect.orphan_grace",
		"scrub.interval", "scrub.rate", "audit.enabled", "audit.pulls", "audit.file_size", "audit.files", "shutdown_timeout",
	}
}

// current is the configuration in force, and what is made of it for each request. It
// is replaced as a whole.
type current struct {
	Config
	proxies proxies

	byCaller, byAddress *limiter // nil: there is no such limit

	waiting []string // keys that have changed and need a restart
	problem string   // why a later version is not in force
}

// adopt puts cfg in force for requests that come; waiting needs a restart.
func (s *Server) adopt(cfg Config, waiting ...string) error {
	p, err := parseProxies(cfg.TrustedProxies)
	if err != nil {
		return fmt.Errorf("trusted_proxies: %w", err)
	}
	next := &current{Config: cfg, proxies: p, waiting: waiting}
	if before := s.now.Load(); before != nil && before.Limits == cfg.Limits {
		next.byCaller, next.byAddress = before.byCaller, before.byAddress
	} else { // transfers under way do not count for new limits
		next.byCaller = newLimiter("caller", cfg.Limits.Caller, s.metrics.limited)
		next.byAddress = newLimiter("address", cfg.Limits.Address, s.metrics.limited)
	}
	s.now.Store(next)
	return nil
}

func (s *Server) rules(repo string) storage.Rules { return s.now.Load().rules(repo) }

// client is the address that r comes from.
func (s *Server) client(r *http.Request) string { return s.now.Load().proxies.client(r) }

func (s *Server) limits() registry.Limits {
	now := s.now.Load()
	return registry.Limits{Sparse: now.Sparse, MaxManifest: int64(now.MaxManifest)}
}

// Reload reads the configuration again, puts in force what can be, and says what has
// changed since it was last read and what needs a restart. It reads the certificate,
// the CAs of clients and a policy's file, too, whether they have changed or not; what
// cannot be read there stays as it was. Errors: all that is wrong with the
// configuration; then nothing has changed.
func (s *Server) Reload(ctx context.Context) (wire.Reloaded, error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	before := s.now.Load()
	did := wire.Reloaded{Changed: []string{}, NeedRestart: []string{}}
	read := before.Config
	if s.cfg.Reread != nil {
		var others []string
		var err error
		if read, others, err = s.cfg.Reread(); err != nil {
			return did, s.notReloaded(ctx, before, err)
		}
		did.NeedRestart = append(did.NeedRestart, others...)
	}
	for _, key := range config.Changed(before.Config, read) {
		if slices.Contains(followed(), key) {
			did.Changed = append(did.Changed, key)
		} else {
			did.NeedRestart = append(did.NeedRestart, key)
		}
	}
	if err := s.issuers.Set(read.OIDC); err != nil { // a file that it names
		return wire.Reloaded{}, s.notReloaded(ctx, before, err)
	}
	next := *before
	config.Copy(&next.Config, read, did.Changed)
	if err := s.adopt(next.Config, did.NeedRestart...); err != nil { // Validate has looked
		return did, err
	}
	after := s.now.Load()
	s.collector.Set(after.Collect.Interval, after.Collect.Rate, after.rules(""))
	s.scrub.Set(care.ScrubConfig{Interval: after.Scrub.Interval, Rate: int64(after.Scrub.Rate)})
	s.audit.Set(after.Audit.settings())
	s.readFiles()
	s.log.InfoContext(ctx, "the configuration was read again", "changed", strings.Join(did.Changed, " "))
	if len(did.NeedRestart) > 0 {
		s.log.WarnContext(ctx, "some keys of the configuration have changed and need a restart", "keys", strings.Join(did.NeedRestart, " "))
	}
	return did, nil
}

// notReloaded tells that the configuration that was in force before still is.
func (s *Server) notReloaded(ctx context.Context, before *current, err error) error {
	s.log.ErrorContext(ctx, "the configuration cannot be read again: the one before it stays in force", "error", err)
	stays := *before
	stays.problem = err.Error()
	s.now.Store(&stays)
	return wire.Invalid.With("nothing was changed, since the configuration has mistakes:\n" + err.Error())
}

// Hangup is Reload when the process is told to by a signal.
func (s *Server) Hangup(ctx context.Context) {
	did, err := s.Reload(ctx) // which logs
	rec := wire.AuditRecord{Who: "server", Action: "config.reload", Detail: strings.Join(did.Changed, " "), Decision: wire.AuditAllowed}
	if err != nil {
		rec.Decision = wire.AuditFailed
	}
	s.audit.Add(nil, rec)
}

// settings are those in force, for administrators.
func (s *Server) settings() wire.Settings {
	now := s.now.Load()
	answer := wire.Settings{NeedRestart: append([]string{}, now.waiting...), Problem: now.problem}
	text, err := config.YAML(now.Config)
	var tree any
	if err == nil {
		err = yaml.Unmarshal(text, &tree)
	}
	if err == nil {
		answer.Config, err = json.Marshal(tree)
	}
	if err != nil { // of our own struct
		panic(err)
	}
	return answer
}

// CheckFiles returns all that is wrong with the files that the configuration names,
// each line beginning with the key. It changes nothing.
func (c Config) CheckFiles() error {
	var errs []error
	wrong := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	if c.Policy != "" {
		text, err := os.ReadFile(c.Policy)
		if err == nil {
			_, err = policy.Parse(c.Policy, text)
		}
		wrong("policy", err)
	}
	if c.TLS.Cert != "" && c.TLS.Key != "" {
		_, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key)
		wrong("tls.cert", err)
	}
	if c.TLS.ClientCA != "" {
		_, _, err := readCAs(c.TLS.ClientCA)
		wrong("tls.client_ca", err)
	}
	if err := oidc.CheckFiles(c.OIDC); err != nil {
		errs = append(errs, err)
	}
	_, err := c.TLS.ACME.binding()
	wrong("tls.acme.eab_key_file", err)
	for _, f := range []struct{ key, path string }{
		{"htpasswd", c.Htpasswd},
		{"admin_password_file", c.AdminPasswordFile},
		{"secret_key_file", c.SecretKeyFile},
		{"tls.acme.directory_ca", c.TLS.ACME.DirectoryCA},
	} {
		if f.path != "" {
			_, err := os.ReadFile(f.path)
			wrong(f.key, err)
		}
	}
	return errors.Join(errs...)
}
