package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth.internal/internal/follow"
)

// TLS says where the server's certificate comes from: from files in PEM, which are
// read again when they change, and on SIGHUP, or by ACME.
type TLS struct {
	// Cert holds the certificate, and after it those between it and its CA.
	// Default none: the registry speaks plain HTTP.
	Cert string `yaml:"cert"`

	// Key holds its private key.
	Key string `yaml:"key"`

	// ClientCA is a file of PEM certificates of CAs. A client that shows a
	// certificate by one of them, made for clients, is the user whose name to log in
	// with is its common name: NAME, or robot+NAME. So they must certify nobody
	// else. A header Authorization counts before it. The file is read again when it
	// changes, and on SIGHUP. Default none: certificates of clients are not asked for.
	ClientCA string `yaml:"client_ca"`

	// ACME gets certificates by itself, in place of Cert and Key.
	ACME ACME `yaml:"acme"`
}

func (t TLS) on() bool { return t.Cert != "" || t.ACME.named() }

// keeper keeps the certificates of the server.
type keeper interface {
	load(ctx context.Context) error // before the listener is served
	run(ctx context.Context)        // from then on, until ctx ends
	reload()
	certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	protocols() []string       // of its own, beside HTTP
	amiss(now time.Time) error // what an administrator should look after
	expires() time.Time        // of the first that ends; zero: there is none
}

func newKeeper(cfg Config, log *slog.Logger) keeper {
	if cfg.TLS.ACME.named() {
		return newACME(cfg, log)
	}
	return newCertificate(cfg.TLS, log)
}

// expiryWarning is how long before its end a certificate is reported.
const expiryWarning = 14 * 24 * time.Hour

// certificate is the one in force. It follows its files; what cannot be read
// there changes nothing.
type certificate struct {
	TLS
	log   *slog.Logger
	files *follow.Files
	now   atomic.Pointer[tls.Certificate]
	wrong atomic.Pointer[error] // why what the files hold is not in force
}

func newCertificate(cfg TLS, log *slog.Logger) *certificate {
	return &certificate{TLS: cfg, log: log, files: follow.New(cfg.Cert, cfg.Key)}
}

// load puts what the files hold in force.
func (c *certificate) load(ctx context.Context) error {
	cert, err := c.read()
	if err != nil {
		c.wrong.Store(&err)
		return err
	}
	c.wrong.Store(nil)
	c.now.Store(cert)
	c.log.InfoContext(ctx, "the certificate is in force", "names", cert.Leaf.DNSNames, "addresses", cert.Leaf.IPAddresses, "expires", cert.Leaf.NotAfter)
	if err := c.amiss(time.Now()); err != nil {
		c.log.WarnContext(ctx, "the certificate ends soon, or has ended", "error", err)
	}
	return nil
}

func (c *certificate) read() (*tls.Certificate, error) {
	certPEM, err := os.ReadFile(c.Cert)
	if err != nil {
		return nil, fmt.Errorf("tls.cert: %w", err)
	}
	keyPEM, err := os.ReadFile(c.Key)
	if err != nil {
		return nil, fmt.Errorf("tls.key: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("tls: %s with the key %s: %w", c.Cert, c.Key, err)
	}
	return &cert, nil
}

// run follows the files until ctx ends.
func (c *certificate) run(ctx context.Context) {
	c.files.Run(ctx, func() {
		if err := c.load(ctx); err != nil {
			c.log.ErrorContext(ctx, "the certificate cannot be read: the one before it stays in force", "error", err)
		}
	})
}

func (c *certificate) reload() { c.files.Ask() }

func (c *certificate) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.now.Load(), nil
}

func (c *certificate) protocols() []string { return nil }

func (c *certificate) expires() time.Time {
	if cert := c.now.Load(); cert != nil {
		return cert.Leaf.NotAfter
	}
	return time.Time{}
}

// tlsConfig is how the server speaks TLS.
func (s *Server) tlsConfig() *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// http.Server makes itself ready for HTTP/2 once, at its first listener, which
		// may be the admin socket: there it looks only here whether it is wanted.
		NextProtos:     append([]string{"h2", "http/1.1"}, s.cert.protocols()...),
		GetCertificate: s.cert.certificate,
	}
	if s.clients != nil {
		s.clients.demand(cfg)
	}
	return cfg
}

// amiss tells what an administrator should look after.
func (c *certificate) amiss(now time.Time) error {
	if wrong := c.wrong.Load(); wrong != nil {
		return *wrong
	}
	cert := c.now.Load()
	if cert == nil {
		return nil // Serve has not been called
	}
	switch end := cert.Leaf.NotAfter; {
	case now.After(end):
		return fmt.Errorf("tls.cert: %s has ended on %s: clients refuse it; put a new one there", c.Cert, end.UTC().Format(time.DateTime))
	case end.Sub(now) < expiryWarning:
		return fmt.Errorf("tls.cert: %s ends on %s: put a new one there", c.Cert, end.UTC().Format(time.DateTime))
	}
	return nil
}

// expiry is the metric of when the first certificate of k ends.
func expiry(k keeper) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berth_tls_certificate_expiry_timestamp_seconds", Help: "When the certificate in force ends, in Unix time.",
	}, func() float64 {
		if end := k.expires(); !end.IsZero() {
			return float64(end.Unix())
		}
		return 0
	})
}
