package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"berth.internal/auth"
	wire "berth.internal/internal/control"
	"berth.internal/internal/follow"
)

// clients knows the CAs whose certificates let clients in. It follows its file;
// what cannot be read there changes nothing.
type clients struct {
	path  string
	log   *slog.Logger
	files *follow.Files
	now   atomic.Pointer[x509.CertPool]
	wrong atomic.Pointer[error] // why what the file holds is not in force
}

func newClients(path string, log *slog.Logger) *clients {
	return &clients{path: path, log: log, files: follow.New(path)}
}

// load puts what the file holds in force.
func (c *clients) load(ctx context.Context) error {
	pool, n, err := readCAs(c.path)
	if err != nil {
		err = fmt.Errorf("tls.client_ca: %w", err)
		c.wrong.Store(&err)
		return err
	}
	c.wrong.Store(nil)
	c.now.Store(pool)
	c.log.InfoContext(ctx, "certificates of clients are accepted", "file", c.path, "authorities", n)
	return nil
}

// run follows the file until ctx ends.
func (c *clients) run(ctx context.Context) {
	c.files.Run(ctx, func() {
		if err := c.load(ctx); err != nil {
			c.log.ErrorContext(ctx, "the CAs of clients cannot be read: those before stay in force", "error", err)
		}
	})
}

// amiss tells what an administrator should look after.
func (c *clients) amiss() error {
	if wrong := c.wrong.Load(); wrong != nil {
		return *wrong
	}
	return nil
}

// maxCAs is the largest file of CAs, in bytes.
const maxCAs = 4 << 20

// readCAs reads certificates of CAs in PEM, and how many there are.
func readCAs(path string) (*x509.CertPool, int, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	rest, err := io.ReadAll(io.LimitReader(f, maxCAs+1))
	switch {
	case err != nil:
		return nil, 0, err
	case len(rest) > maxCAs:
		return nil, 0, fmt.Errorf("%s is larger than %d bytes", path, maxCAs)
	}
	pool := x509.NewCertPool()
	for n := 0; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if n == 0 {
				return nil, 0, fmt.Errorf("%s holds no certificate in PEM", path)
			}
			return pool, n, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, 0, fmt.Errorf("%s holds a %s: put only certificates of CAs there", path, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return nil, 0, fmt.Errorf("%s: certificate %d: %w", path, n+1, err)
		case !cert.IsCA:
			return nil, 0, fmt.Errorf("%s: certificate %d, of %s, is not of a CA", path, n+1, cert.Subject)
		}
		pool.AddCert(cert)
	}
}

// demand makes base ask clients for a certificate. What they send is verified
// with their requests: so a bad one is answered with its reason, one that ends or
// whose CA is taken away is refused from then on, on connections that are open, too,
// and one that is none of our business harms nobody who logs in otherwise.
func (c *clients) demand(base *tls.Config) {
	base.ClientAuth = tls.RequestClientCert
	var last atomic.Pointer[tls.Config] // for the pool that was in force last
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pool := c.now.Load()
		cfg := last.Load()
		if cfg == nil || cfg.ClientCAs != pool {
			cfg = base.Clone()
			cfg.GetConfigForClient, cfg.ClientCAs = nil, pool // clients choose a certificate by it
			last.Store(cfg)
		}
		return cfg, nil
	}
}

// certificateError says why a client's certificate lets nobody in. Its text is for
// the client.
type certificateError struct{ reason string }

func (e *certificateError) Error() string { return "the client certificate is not valid: " + e.reason }

func noCertificate(format string, args ...any) error {
	return &certificateError{fmt.Sprintf(format, args...)}
}

var commonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// verify returns the name to log in with of who has the certificate, the first of
// chain, and until when that is good.
func verify(chain []*x509.Certificate, pool *x509.CertPool, now time.Time) (name string, until time.Time, err error) {
	leaf := chain[0]
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	verified, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return "", until, noCertificate("it is by no CA that this registry accepts")
	case err != nil:
		return "", until, noCertificate("%v", err)
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth): // one without any usage is for all, also a CA's own
		return "", until, noCertificate("it is not made for clients: its extended key usage must be clientAuth")
	}
	names := 0
	for _, n := range leaf.Subject.Names {
		if n.Type.Equal(commonName) {
			names++
		}
	}
	if name = leaf.Subject.CommonName; names != 1 || name == "" {
		return "", until, noCertificate("its subject must have one common name, the user's")
	}
	for _, c := range verified[0] {
		if until.IsZero() || c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	return name, until, nil
}

// badFor is for how long a certificate is not verified again that was bad.
const badFor = time.Minute

// peerOf is what became of the certificate that came with a connection.
type peerOf struct {
	mu    sync.Mutex
	pool  *x509.CertPool // it was verified with; nil: never
	until time.Time      // then it is verified again
	name  string
	err   error
}

// peerKey is the key of a connection's peerOf.
type peerKey struct{}

// remember gives a connection its peerOf.
func (c *clients) remember(ctx context.Context) context.Context {
	return context.WithValue(ctx, peerKey{}, new(peerOf))
}

// name returns the name that the sender of r has by its certificate; shown is
// false if it has sent none. The signatures of a connection's certificate are
// verified once; fresh is true when they are.
func (c *clients) name(r *http.Request) (name string, shown, fresh bool, err error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", false, false, nil
	}
	p, ok := r.Context().Value(peerKey{}).(*peerOf)
	if !ok {
		return "", false, false, nil // not by our listener
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now, pool := time.Now(), c.now.Load(); p.pool != pool || now.After(p.until) {
		p.pool, fresh = pool, true
		if p.name, p.until, p.err = verify(r.TLS.PeerCertificates, pool, now); p.err != nil {
			p.until = now.Add(badFor)
		}
	}
	return p.name, true, fresh, p.err
}

// certified returns who sends r by its certificate, if it has sent one, and records
// who is let in or shut out by it. Errors: *certificateError.
func (s *Server) certified(r *http.Request) (c auth.Caller, shown bool, err error) {
	if s.clients == nil {
		return c, false, nil
	}
	name, shown, fresh, err := s.clients.name(r)
	if !shown {
		return c, false, err
	}
	defer func() {
		switch {
		case err != nil:
			s.shutOut(r, "certificate", err)
		case fresh:
			s.audit.Add(r, wire.AuditRecord{Who: subjectOf(c), Credential: "certificate", Action: "login", Decision: wire.AuditAllowed})
		}
	}()
	if err != nil {
		return c, true, err
	}
	if c, err = s.identities.Certified(r.Context(), name); errors.Is(err, auth.ErrCredentials) {
		err = noCertificate("there is no account %.80q, or it may not log in", name)
	}
	return c, true, err
}
