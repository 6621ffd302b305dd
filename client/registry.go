// Package client speaks the distribution API with a registry, berth's own or
// any other: it pulls, pushes, resumes what broke, verifies what it gets, and
// says what is wrong in words that lead on.
package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options says which registry to speak with, and as whom.
type Options struct {
	// Registry is a URL, or a host with or without port. Without a scheme it is
	// http for a loopback address, unless CAFile is set, and https for any other.
	Registry string

	// Username and Password are what the registry, or the token service it
	// names, is shown when it asks. The user name <token> says that Password is
	// an identity token, as Docker keeps it. Empty: anonymous.
	Username, Password string

	// PasswordFile, if not empty, holds the password instead. It is read each time
	// the password is shown, so that a new one counts at once.
	PasswordFile string

	CAFile    string            // file of PEM certificates to trust beside the system's
	CA        []byte            // the certificates themselves, if CAFile is empty
	Transport http.RoundTripper // nil: one of the client's own; else CAFile, CA and Dial must be empty
	UserAgent string            // default "berth"

	// Warn is told of each warning that the registry sends with an answer, once
	// (spec, "Warnings"). It may be called by several goroutines. May be nil.
	Warn func(text string)

	// Header is sent with each request to the registry.
	Header http.Header

	// Dial connects to the registry, nil: as to any other address.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Registry is a registry to speak with. Its methods may be called by several
// goroutines at the same time.
type Registry struct {
	base    *url.URL
	agent   string
	header  http.Header
	http    *http.Client
	auth    *auth
	backoff func(attempt int) time.Duration // before attempt 1, 2, …
	stall   time.Duration                   // how long a transfer may stand still
	chunk   int64                           // see chunkSize
	met     atomic.Bool                     // it has answered: if it does not listen now, it may soon
	warned  func(text string)               // may be nil
	told    sync.Map                        // warnings that were passed on
}

// New makes a client. It does not connect. Errors: an address that is none, a
// CA file that cannot be read.
func New(o Options) (*Registry, error) {
	base, err := parseAddress(o.Registry)
	if err != nil {
		return nil, err
	}
	if o.CAFile != "" && !strings.Contains(o.Registry, "://") {
		base.Scheme = "https" // who trusts a CA wants TLS, on a loopback address, too
	}
	transport := o.Transport
	if transport == nil {
		if transport, err = newTransport(o.CAFile, o.CA, o.Dial); err != nil {
			return nil, err
		}
	} else if o.CAFile != "" || o.CA != nil || o.Dial != nil {
		return nil, errors.New("a transport excludes a CA file and a dialer")
	}
	if o.PasswordFile != "" {
		if o.Password != "" {
			return nil, errors.New("a password and a file with it exclude each other")
		}
		if _, err := readPassword(o.PasswordFile); err != nil {
			return nil, err
		}
	}
	r := &Registry{
		base:    base,
		agent:   o.UserAgent,
		header:  o.Header,
		http:    &http.Client{Transport: transport, CheckRedirect: checkRedirect},
		backoff: backoff,
		stall:   time.Minute,
		chunk:   chunkSize,
		warned:  o.Warn,
	}
	if r.agent == "" {
		r.agent = "berth"
	}
	r.auth = newAuth(base, r.http, o)
	return r, nil
}

// As returns a client of the same registry, over the same connections, for
// somebody else; see Options for the name and the password. It sends no
// Options.Header.
func (r *Registry) As(username, password string) *Registry {
	return &Registry{
		base: r.base, agent: r.agent, http: r.http, backoff: r.backoff, stall: r.stall, chunk: r.chunk, warned: r.warned,
		auth: newAuth(r.base, r.http, Options{Username: username, Password: password}),
	}
}

// Host returns the registry's host, with its port if the address has one.
func (r *Registry) Host() string { return r.base.Host }

// InTheClear tells whether others between here and there can read what is sent.
func (r *Registry) InTheClear() bool { return r.base.Scheme == "http" && !loopback(r.base.Hostname()) }

// URL is its address, without a path.
func (r *Registry) URL() string { return r.base.Scheme + "://" + r.base.Host }

// Transport trusts the registry's certificate and shows it the name and the
// password, for those who speak another API with the same server.
func (r *Registry) Transport() http.RoundTripper { return withBasic{r} }

// withBasic sends a request with Basic, to the registry's own host only.
type withBasic struct{ r *Registry }

func (b withBasic) RoundTrip(req *http.Request) (*http.Response, error) {
	a := b.r.auth
	if a.username != "" && a.username != identityToken && req.URL.Host == b.r.base.Host {
		password, err := a.password()
		if err != nil {
			if req.Body != nil {
				_ = req.Body.Close() // nobody will read it
			}
			return nil, err
		}
		req = req.Clone(req.Context())
		req.SetBasicAuth(a.username, password)
	}
	return b.r.http.Transport.RoundTrip(req)
}

// Ping checks that there is a registry, and that it accepts the credentials:
// end-1.
func (r *Registry) Ping(ctx context.Context) error {
	resp, err := r.do(ctx, call{method: http.MethodGet, url: r.base.JoinPath("v2/"), retry: true, doing: "ask for the distribution API"})
	if err != nil {
		return err
	}
	return drain(resp)
}

// parseAddress reads Options.Registry. What it refuses it does not repeat if a
// password may be in it.
func parseAddress(s string) (*url.URL, error) {
	raw := s
	if !strings.Contains(s, "://") {
		raw = "//" + s
	}
	u, err := url.Parse(raw)
	switch {
	case s == "":
		return nil, errors.New("no registry is named")
	case strings.Contains(s, "@"):
		return nil, errors.New("the registry's address must not hold a user or password; log in instead")
	case err != nil || u.Hostname() == "":
		return nil, fmt.Errorf("%q is not the address of a registry, such as registry.example.com:5000", s)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("registry %q: the address ends with the host and port", s)
	}
	switch u.Scheme {
	case "":
		u.Scheme = "https"
		if loopback(u.Hostname()) {
			u.Scheme = "http"
		}
	case "http", "https":
	default:
		return nil, fmt.Errorf("registry %q: the scheme must be http or https", s)
	}
	u.Path = "/"
	return u, nil
}

// loopback says whether host is this machine and no other.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func newTransport(caFile string, pem []byte, dial func(context.Context, string, string) (net.Conn, error)) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 5 * time.Minute, // a registry syncs a large blob before it answers
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   16,
		WriteBufferSize:       128 << 10,
		ReadBufferSize:        128 << 10,
		// Blobs are digested as they are stored, so nothing may unpack them.
		DisableCompression: true,
		// One connection for each blob is faster than HTTP/2's one for all.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	if dial != nil {
		t.DialContext, t.Proxy = dial, nil
	}
	if caFile != "" {
		var err error
		if pem, err = os.ReadFile(caFile); err != nil {
			return nil, fmt.Errorf("read the CA file: %w", err)
		}
	} else if len(pem) == 0 {
		return t, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the CA %s holds no PEM certificate", cmp.Or(caFile, "that is kept"))
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t, nil
}

// backoff is 0.2 s, doubled with each attempt up to 6.4 s, each between half
// and all of that so that many clients do not come back together.
func backoff(attempt int) time.Duration {
	d := 100 * time.Millisecond << min(attempt, 6)
	return d/2 + rand.N(d/2)
}
