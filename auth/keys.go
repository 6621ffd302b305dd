package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"berth.internal/storage"
)

const (
	keyLife   = 30 * 24 * time.Hour // then another key signs
	keyRetire = keyLife + time.Hour // until then it verifies: longer than what it has signed
)

// keys are those that sign tokens, the same on every server, at auth/keys/ID.
type keys struct {
	all *mirror[keyRecord]

	mu     sync.Mutex
	parsed map[string]*ecdsa.PrivateKey
	asked  *rate.Limiter // for keys that another server may have made just now
}

// keyRecord is a key as Records keeps it.
type keyRecord struct {
	Private []byte    `json:"private"` // ASN.1, as in SEC 1
	Created time.Time `json:"created"`
}

func newKeys(records storage.Records, log *slog.Logger) *keys {
	return &keys{
		all: newMirror[keyRecord](records, "auth/keys/", log), parsed: map[string]*ecdsa.PrivateKey{}, asked: rate.NewLimiter(10, 10),
	}
}

// signing returns the newest key. If that is too old it makes another one, and
// removes those that nothing valid is signed with.
func (k *keys) signing(ctx context.Context) (id string, key *ecdsa.PrivateKey, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	var newest *keyRecord
	for _, name := range k.all.names() {
		r, _ := k.all.get(name)
		if r != nil && (newest == nil || r.Created.After(newest.Created)) {
			id, newest = name, r
		}
	}
	if newest != nil && now.Sub(newest.Created) < keyLife {
		key, err = k.parse(id, newest)
		return id, key, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return "", nil, fmt.Errorf("make a key for tokens: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", nil, fmt.Errorf("make a key for tokens: %w", err)
	}
	id = rand.Text()
	if _, err := k.all.put(ctx, id, &keyRecord{Private: der, Created: now.UTC()}, 0); err != nil {
		return "", nil, err
	}
	k.parsed[id] = key
	for _, name := range k.all.names() {
		if r, rev := k.all.get(name); r != nil && now.Sub(r.Created) > keyRetire {
			delete(k.parsed, name)
			_ = k.all.remove(ctx, name, rev) // it is refused in any case, and removed next time
		}
	}
	return id, key, nil
}

// public returns the key that verifies what id has signed, nil if there is none.
func (k *keys) public(ctx context.Context, id string) (*ecdsa.PublicKey, error) {
	r, _ := k.all.get(id)
	if r == nil && len(id) == len(rand.Text()) && k.asked.Allow() {
		if err := k.all.refresh(ctx, id); err != nil {
			return nil, err
		}
		r, _ = k.all.get(id)
	}
	if r == nil || time.Since(r.Created) > keyRetire {
		return nil, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	key, err := k.parse(id, r)
	if err != nil {
		return nil, err
	}
	return &key.PublicKey, nil
}

// parse reads a key once. mu is held.
func (k *keys) parse(id string, r *keyRecord) (*ecdsa.PrivateKey, error) {
	if key := k.parsed[id]; key != nil {
		return key, nil
	}
	key, err := x509.ParseECPrivateKey(r.Private)
	if err == nil && key.Curve != elliptic.P256() {
		err = fmt.Errorf("its curve is %s", key.Curve.Params().Name)
	}
	if err != nil {
		return nil, fmt.Errorf("read the key %s for tokens: %w", id, err)
	}
	k.parsed[id] = key
	return key, nil
}

// JWK is a public key, as in RFC 7517.
type JWK struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y"`
	ID        string `json:"kid"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
}

// Keys returns the public keys that verify tokens, for others who want to.
func (s *Service) Keys(ctx context.Context) ([]JWK, error) {
	all := []JWK{}
	for _, id := range s.keys.all.names() {
		key, err := s.keys.public(ctx, id)
		if err != nil {
			return nil, err
		}
		if key == nil {
			continue
		}
		point, err := key.Bytes() // 4, X, Y
		if err != nil {
			return nil, fmt.Errorf("encode the key %s: %w", id, err)
		}
		enc, half := base64.RawURLEncoding, (len(point)-1)/2
		all = append(all, JWK{
			KeyType: "EC", Curve: "P-256", X: enc.EncodeToString(point[1 : 1+half]), Y: enc.EncodeToString(point[1+half:]),
			ID: id, Use: "sig", Algorithm: "ES256",
		})
	}
	return all, nil
}
