package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"berth.internal/internal/datadir"
)

// ACME says how certificates are got from a CA that speaks ACME (RFC 8555), such
// as Let's Encrypt or one of the site's own. The CA checks that the hosts are this
// server by the TLS listener (tls-alpn-01, RFC 8737): it connects to port 443 of
// each host, which must lead to Listen.
type ACME struct {
	// Hosts are the names to get certificates for, by which clients reach the
	// registry. Default none: no ACME.
	Hosts []string `yaml:"hosts"`

	// Email is where the CA writes to about the certificates. Default none.
	Email string `yaml:"email"`

	// Directory is the URL of the CA's directory. Default that of Let's Encrypt.
	Directory string `yaml:"directory"`

	// DirectoryCA is a file of PEM certificates of CAs to trust beside the system's,
	// for the certificate of Directory. Default none.
	DirectoryCA string `yaml:"directory_ca"`

	// EABKeyID is the name of the key in EABKeyFile, for CAs that give accounts to
	// their customers only (RFC 8555, section 7.3.4). Default none.
	EABKeyID string `yaml:"eab_key_id"`

	// EABKeyFile is a file with that key, as the CA shows it: in base64url.
	EABKeyFile string `yaml:"eab_key_file"`

	// Cache is the directory for the account's key, and the certificates with their
	// keys. Default registry/acme in Data.
	Cache string `yaml:"cache"`

	// AcceptTerms says that the CA's terms of service are agreed to. It must be
	// true.
	AcceptTerms bool `yaml:"accept_terms"`
}

// named tells whether any of it was given.
func (a ACME) named() bool {
	return len(a.Hosts) > 0 || a.Email != "" || a.Directory != "" || a.DirectoryCA != "" || a.EABKeyID != "" || a.EABKeyFile != "" || a.Cache != "" || a.AcceptTerms
}

// validate returns all that is wrong with it.
func (a ACME) validate() (errs []error) {
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf("tls.acme."+format, args...)) }
	if len(a.Hosts) == 0 {
		wrong("hosts: must name the hosts to get certificates for")
	}
	for _, h := range a.Hosts {
		if net.ParseIP(h) != nil || !strings.Contains(h, ".") || strings.ContainsAny(h, ":/*@ ") || strings.ToLower(h) != h || len(h) > 253 || strings.Trim(h, ".") != h {
			wrong("hosts: %q is not the full name of a host in small letters, such as registry.example.com", h)
		}
	}
	if a.Email != "" && !strings.Contains(a.Email, "@") {
		wrong("email: %q is not an address", a.Email)
	}
	if a.Directory != "" {
		if u, err := url.Parse(a.Directory); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			wrong("directory: must be a URL that begins with https://")
		}
	}
	if (a.EABKeyID == "") != (a.EABKeyFile == "") {
		wrong("eab_key_id: needs eab_key_file beside it, and the other way round")
	}
	if !a.AcceptTerms {
		wrong("accept_terms: must be true: the CA gives certificates only to who agrees to its terms of service; its directory says where they are")
	}
	return errs
}

// acmeCerts are certificates by ACME. Only run asks the CA, so that clients, who
// could name any host as often as they like, do not use up what it allows.
type acmeCerts struct {
	ACME
	log     *slog.Logger
	manager *autocert.Manager
	life    context.Context // of requests to the CA, while run runs
	again   chan struct{}
	tried   chan struct{} // closed when all hosts have been tried once

	mu    sync.Mutex
	said  string // by the CA, the last time that it refused proof
	certs map[string]*tls.Certificate
	wrong map[string]error // why there is no new one
}

func newACME(cfg Config, log *slog.Logger) *acmeCerts {
	a := &acmeCerts{
		ACME: cfg.TLS.ACME, log: log, again: make(chan struct{}, 1), tried: make(chan struct{}),
		certs: map[string]*tls.Certificate{}, wrong: map[string]error{},
	}
	if a.Cache == "" {
		a.Cache = filepath.Join(cfg.Data, datadir.Registry, "acme")
	}
	if a.Directory == "" {
		a.Directory = autocert.DefaultACMEDirectory
	}
	return a
}

// load makes ready to ask the CA. It does not ask: that needs the listener.
func (a *acmeCerts) load(context.Context) error {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 30 * time.Second
	if a.DirectoryCA != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		text, err := os.ReadFile(a.DirectoryCA)
		if err != nil {
			return fmt.Errorf("tls.acme.directory_ca: %w", err)
		}
		if !pool.AppendCertsFromPEM(text) {
			return fmt.Errorf("tls.acme.directory_ca: %s holds no certificate in PEM", a.DirectoryCA)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	binding, err := a.binding()
	if err != nil {
		return fmt.Errorf("tls.acme.eab_key_file: %w", err)
	}
	if err := os.MkdirAll(a.Cache, 0o700); err != nil {
		return fmt.Errorf("tls.acme.cache: %w", err)
	}
	a.manager = &autocert.Manager{
		Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(a.Cache), HostPolicy: autocert.HostWhitelist(a.Hosts...), Email: a.Email,
		ExternalAccountBinding: binding,
		Client:                 &acme.Client{DirectoryURL: a.Directory, UserAgent: "berth", HTTPClient: &http.Client{Transport: &listening{a, t}}},
	}
	return nil
}

// binding is what the CA knows its customer by, nil if it need not.
func (a ACME) binding() (*acme.ExternalAccountBinding, error) {
	if a.EABKeyFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(a.EABKeyFile)
	if err != nil {
		return nil, err
	}
	key, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(string(text)), "="))
	if err != nil || len(key) == 0 {
		return nil, fmt.Errorf("%s does not hold a key in base64url", a.EABKeyFile) // without what it holds
	}
	return &acme.ExternalAccountBinding{KID: a.EABKeyID, Key: key}, nil
}

// listening ends requests to the CA with the server, and listens to what the CA says
// of proofs that it does not accept: the manager goes on to other ways then, and
// tells only that there are none left.
type listening struct {
	*acmeCerts
	next http.RoundTripper
}

// maxACME is the largest answer of a CA, in bytes.
const maxACME = 1 << 20

func (l *listening) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	life := l.life
	l.mu.Unlock()
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(life, func() { cancel(context.Cause(life)) })()
	resp, err := l.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxACME+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > maxACME:
		return nil, fmt.Errorf("the CA's answer is larger than %d bytes", maxACME)
	}
	if said := refusal(body); said != "" {
		l.mu.Lock()
		l.said = said
		l.mu.Unlock()
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// refusal returns why a proof was not accepted, of an answer that says so (RFC 8555,
// section 7.1.4), else "".
func refusal(body []byte) string {
	var authorization struct {
		Status     string `json:"status"`
		Challenges []struct {
			Error *struct {
				Detail string `json:"detail"`
			} `json:"error"`
		} `json:"challenges"`
	}
	if json.Unmarshal(body, &authorization) != nil || authorization.Status != acme.StatusInvalid {
		return ""
	}
	for _, c := range authorization.Challenges {
		if c.Error != nil {
			text := []rune(strings.Map(func(c rune) rune {
				if !unicode.IsPrint(c) { // it comes from others, and goes to terminals
					return ' '
				}
				return c
			}, strings.ToValidUTF8(c.Error.Detail, "")))
			return string(text[:min(len(text), 300)])
		}
	}
	return ""
}

// How often certificates are looked after: autocert renews those it has by itself.
const (
	acmeEvery = time.Hour   // when all is well
	acmeFirst = time.Minute // after a failure, twice as long after each more, up to acmeEvery: CAs count failures
)

// run gets the certificates that are missing, and keeps them, until ctx ends.
func (a *acmeCerts) run(ctx context.Context) {
	a.mu.Lock()
	a.life = ctx
	a.mu.Unlock()
	pause := acmeFirst
	for first := true; ; first = false {
		well := true
		for _, host := range a.Hosts {
			well = a.get(ctx, host) && well
		}
		if first {
			close(a.tried)
		}
		wait := acmeEvery
		if !well {
			wait, pause = pause, min(2*pause, acmeEvery)
		} else {
			pause = acmeFirst
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-a.again:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// get gets the certificate of host: that at hand, or a new one if it has none that
// is good.
func (a *acmeCerts) get(ctx context.Context, host string) bool {
	if ctx.Err() != nil {
		return false
	}
	a.mu.Lock()
	a.said = ""
	a.mu.Unlock()
	cert, err := a.manager.GetCertificate(&tls.ClientHelloInfo{
		ServerName: host, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}, // one with ECDSA
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			if a.said != "" {
				err = fmt.Errorf("the CA connects to port 443 of that host and does not find this server: %s: %w", a.said, err)
			}
			a.wrong[host] = fmt.Errorf("tls.acme: get a certificate for %s from %s: %w", host, a.Directory, err)
			a.log.ErrorContext(ctx, "there is no new certificate", "host", host, "error", a.wrong[host])
		}
		return false
	}
	delete(a.wrong, host)
	if old := a.certs[host]; old == nil || !old.Leaf.Equal(cert.Leaf) {
		a.log.InfoContext(ctx, "the certificate is in force", "names", cert.Leaf.DNSNames, "expires", cert.Leaf.NotAfter)
	}
	a.certs[host] = cert
	return true
}

// reload tries at once what has failed.
func (a *acmeCerts) reload() {
	select {
	case a.again <- struct{}{}:
	default: // it is about to
	}
}

// patienceACME is how long a client waits at the start for what the CA does.
const patienceACME = 10 * time.Second

// certificate answers a client, or the CA that wants proof.
func (a *acmeCerts) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Contains(hello.SupportedProtos, acme.ALPNProto) {
		if len(hello.SupportedProtos) != 1 { // the manager would take it for a client that wants a certificate
			return nil, errors.New("this protocol is for the CA alone")
		}
		return a.manager.GetCertificate(hello)
	}
	select {
	case <-a.tried:
	default:
		timer := time.NewTimer(patienceACME)
		defer timer.Stop()
		select {
		case <-a.tried:
		case <-timer.C:
		case <-hello.Context().Done():
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if cert := a.certs[strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))]; cert != nil {
		return cert, nil
	}
	if cert := a.certs[a.Hosts[0]]; cert != nil { // for who names another host or none; whether that will do is theirs to say
		return cert, nil
	}
	return nil, errors.New("there is no certificate yet")
}

func (a *acmeCerts) protocols() []string { return []string{acme.ALPNProto} }

// amiss tells what an administrator should look after.
func (a *acmeCerts) amiss(now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, host := range a.Hosts {
		cert := a.certs[host]
		switch {
		case a.wrong[host] != nil:
			errs = append(errs, a.wrong[host])
		case cert != nil && cert.Leaf.NotAfter.Sub(now) < cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)/6: // it is renewed at a third
			errs = append(errs, fmt.Errorf("tls.acme: the certificate for %s ends on %s and is not renewed: does %s answer?", host, cert.Leaf.NotAfter.UTC().Format(time.DateTime), a.Directory))
		}
	}
	return errors.Join(errs...)
}

// expires is when the first of the certificates ends; zero if there is none.
func (a *acmeCerts) expires() (first time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, cert := range a.certs {
		if end := cert.Leaf.NotAfter; first.IsZero() || end.Before(first) {
			first = end
		}
	}
	return first
}
