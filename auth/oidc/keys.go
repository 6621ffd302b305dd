package oidc

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"berth.internal/auth"
)

// How an issuer is asked for its keys.
const (
	keysFresh = 10 * time.Minute // keys as old are asked for again, beside the requests
	keysMost  = time.Hour        // older ones verify nothing
	keysPause = time.Second      // between two times
	failPause = 5 * time.Second  // after a failure
	fetchMost = 10 * time.Second // for all of it
	maxAnswer = 1 << 20          // bytes of one answer
	maxKeys   = 100
	minRSA    = 2048 // bits
)

// algorithms are those that a token may be signed with. Of a symmetric one the
// issuer would have to share the key.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

var errSignature = errors.New("its signature is not right")

// provider keeps the keys that an issuer publishes. Who needs others than there
// are waits for one fetch that all share, and for no other issuer.
type provider struct {
	url    string
	ca     string
	pem    []byte // what was in the file ca
	file   string // with its keys; empty: it is asked
	client *http.Client
	log    *slog.Logger
	now    func() time.Time
	pause  time.Duration // between two fetches

	cancel  context.CancelFunc
	working sync.WaitGroup
	ctx     context.Context // of its fetches

	mu     sync.Mutex
	closed bool
	keys   *keySet   // nil: none yet
	failed error     // of the last fetch
	next   time.Time // before which there is no other
	flight *flight   // the fetch that is under way
}

// keySet is what an issuer has published. It does not change.
type keySet struct {
	all  []jose.JSONWebKey
	at   time.Time
	meta metadata
}

// metadata is what else an issuer publishes about itself.
type metadata struct {
	Keys string `json:"jwks_uri"`
}

type flight struct {
	done chan struct{}
	keys *keySet
	err  error
}

// newProvider asks nothing yet. ca and keys are files, or empty.
func newProvider(issuer, ca, keys string, log *slog.Logger) (*provider, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = 64 << 10
	transport.MaxIdleConnsPerHost = 1
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	var pem []byte
	if ca != "" {
		var err error
		if pem, err = os.ReadFile(ca); err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s holds no certificate in PEM", ca)
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	p := &provider{url: issuer, ca: ca, pem: pem, file: keys, log: log, now: time.Now, pause: keysPause}
	p.client = &http.Client{Transport: bounded{transport}, Timeout: fetchMost, CheckRedirect: followed}
	if keys != "" {
		var err error
		if p.keys, err = p.readFile(); err != nil {
			return nil, fmt.Errorf("keys: %w", err)
		}
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// is tells whether this is the provider of one, also by what its files say now.
func (p *provider) is(one Issuer) bool {
	if p.url != one.URL || p.ca != one.CA || p.file != one.Keys {
		return false
	}
	if p.ca == "" {
		return true
	}
	pem, err := os.ReadFile(p.ca)
	return err == nil && bytes.Equal(pem, p.pem)
}

// close ends what is under way.
func (p *provider) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.working.Wait()
	p.client.CloseIdleConnections()
}

// followed lets redirects lead only where an issuer may be.
func followed(r *http.Request, before []*http.Request) error {
	if len(before) > 3 {
		return errors.New("it redirects more than three times")
	}
	return secure(r.URL)
}

// bounded cuts answers that are too large.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{&limited{r: resp.Body, left: maxAnswer}, resp.Body}
	}
	return resp, err
}

type limited struct {
	r    io.Reader
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// CloseIdleConnections is for http.Client.
func (b bounded) CloseIdleConnections() {
	if c, ok := b.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// VerifySignature implements oidc.KeySet. A key that is not known may be newer
// than those that are: then the issuer is asked again, once a second at most.
// Errors: errSignature; auth.ErrIssuer; ctx's.
func (p *provider) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(raw, algorithms)
	if err != nil {
		return nil, errForm
	}
	began := p.now()
	keys, err := p.known(ctx)
	if err != nil {
		return nil, err
	}
	payload, known := keys.verify(jws)
	if payload != nil {
		return payload, nil
	}
	if !known && keys.at.Before(began) {
		if keys, err = p.fetch(ctx, keys); err != nil {
			return nil, err
		}
		if payload, known = keys.verify(jws); payload != nil {
			return payload, nil
		}
	}
	if !known {
		return nil, errors.New("it is signed with a key that the issuer has not published, or not any more")
	}
	return nil, errSignature
}

// verify returns the payload if a key has signed it. known tells whether there is
// a key that should have.
func (k *keySet) verify(jws *jose.JSONWebSignature) (payload []byte, known bool) {
	if len(jws.Signatures) != 1 {
		return nil, true
	}
	head := jws.Signatures[0].Header
	for i := range k.all {
		key := &k.all[i]
		if head.KeyID != "" && key.KeyID != head.KeyID || key.Algorithm != "" && key.Algorithm != head.Algorithm {
			continue
		}
		known = known || head.KeyID != ""
		if payload, err := jws.Verify(key.Key); err == nil {
			return payload, true
		}
	}
	return nil, known
}

// known returns the keys, if need be as soon as the issuer has told them.
func (p *provider) known(ctx context.Context) (*keySet, error) {
	p.mu.Lock()
	keys, age := p.keys, time.Duration(0)
	if keys != nil {
		if age = p.now().Sub(keys.at); age > keysFresh && age <= keysMost && !p.now().Before(p.next) {
			p.start()
		}
	}
	p.mu.Unlock()
	if keys == nil || age > keysMost {
		return p.fetch(ctx, nil)
	}
	return keys, nil
}

// fetch returns keys newer than old. Errors: auth.ErrIssuer; ctx's.
func (p *provider) fetch(ctx context.Context, old *keySet) (*keySet, error) {
	p.mu.Lock()
	if old != nil && p.keys != old { // meanwhile by somebody else
		keys := p.keys
		p.mu.Unlock()
		return keys, nil
	}
	if p.failed != nil && p.now().Before(p.next) { // who comes now does not wait for what will fail again
		err := p.failed
		p.mu.Unlock()
		return nil, err
	}
	f := p.start()
	p.mu.Unlock()
	select {
	case <-f.done:
		return f.keys, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// start begins a fetch as soon as one may be, unless one is under way. mu is held.
func (p *provider) start() *flight {
	if p.flight != nil {
		return p.flight
	}
	f := &flight{done: make(chan struct{})}
	if p.closed { // by who has taken the issuer out of the configuration just now
		f.err = fmt.Errorf("%w: %s is not asked any more", auth.ErrIssuer, p.url)
		close(f.done)
		return f
	}
	p.flight = f
	pause := p.next.Sub(p.now())
	p.working.Go(func() {
		if pause > 0 {
			timer := time.NewTimer(pause)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-p.ctx.Done():
			}
		}
		f.keys, f.err = p.ask()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.flight, p.failed = nil, f.err
		if f.err != nil {
			p.next = p.now().Add(failPause)
		} else {
			p.next, p.keys = p.now().Add(p.pause), f.keys
		}
		close(f.done)
	})
	return f
}

// trouble returns why the issuer's keys cannot be had; nil also if nobody has
// asked for them.
func (p *provider) trouble() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// ask asks the issuer what it publishes.
func (p *provider) ask() (*keySet, error) {
	ctx, cancel := context.WithTimeout(p.ctx, fetchMost)
	defer cancel()
	keys, err := p.read(oidc.ClientContext(ctx, p.client))
	if err == nil {
		return keys, nil
	}
	const most = 300 // bytes; the issuer's whole answer may be in it
	text := strings.ToValidUTF8(err.Error(), "")
	err = fmt.Errorf("%w: %s: %.*s", auth.ErrIssuer, p.url, most, text)
	if p.ctx.Err() == nil {
		p.log.Warn("the keys of an issuer of tokens cannot be read", "issuer", p.url, "error", err)
	}
	return nil, err
}

func (p *provider) read(ctx context.Context) (*keySet, error) {
	if p.file != "" {
		return p.readFile()
	}
	published, err := oidc.NewProvider(ctx, p.url)
	if err != nil {
		return nil, err
	}
	keys := &keySet{at: p.now()}
	if err := published.Claims(&keys.meta); err != nil {
		return nil, err
	}
	at, err := url.Parse(keys.meta.Keys)
	if err != nil || at.Host == "" {
		return nil, errors.New("it does not say where its keys are")
	}
	if err := secure(at); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("its keys: %s", resp.Status)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("its keys: %w", err)
	}
	keys.all, err = parseKeys(text)
	return keys, err
}

// readFile reads the issuer's keys from a file.
func (p *provider) readFile() (*keySet, error) {
	keys := &keySet{at: p.now()}
	f, err := os.Open(p.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxAnswer+1))
	if err == nil && len(text) > maxAnswer {
		err = fmt.Errorf("%s has more than %d bytes", p.file, maxAnswer)
	}
	if err != nil {
		return nil, err
	}
	keys.all, err = parseKeys(text)
	return keys, err
}

// parseKeys reads a JWK set (RFC 7517). Keys that are for something else, or of a
// kind that is not known or not safe, do not count.
func parseKeys(text []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("its keys: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("it has more than %d keys", maxKeys)
	}
	var all []jose.JSONWebKey
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) != nil || key.Use != "" && key.Use != "sig" || !safe(key) {
			continue
		}
		all = append(all, key)
	}
	if len(all) == 0 {
		return nil, errors.New("it publishes no key that tokens can be checked with")
	}
	return all, nil
}

// safe tells whether a key is a public one that is long enough.
func safe(key jose.JSONWebKey) bool {
	if key.Algorithm != "" && !slices.Contains(algorithms, jose.SignatureAlgorithm(key.Algorithm)) {
		return false
	}
	switch k := key.Key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSA
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}
