package auth

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"berth.internal/storage"
)

const (
	keyLife   = 30 * 24 * time.Hour // then another key signs
	keyRetire = keyLife + time.Hour // until then it verifies: longer than what it has signed
)

// keys are those that sign tokens, the same on every server, at auth/keys/ID. With a
// secret key file they are encrypted there, so that who gets hold of a backup cannot
// sign tokens; keys in the clear are then good for nothing.
type keys struct {
	all  *mirror[keyRecord]
	seal cipher.AEAD // nil: they are kept in the clear
	log  *slog.Logger

	mu     sync.Mutex
	parsed map[string]*ecdsa.PrivateKey
	closed map[string]bool // keys that this server cannot read, and has said so
	asked  *rate.Limiter   // for keys that another server may have made just now
}

// keyRecord is a key as Records keeps it.
type keyRecord struct {
	Private []byte    `json:"private,omitempty"` // ASN.1, as in SEC 1
	Sealed  []byte    `json:"sealed,omitempty"`  // the same, encrypted for the key's id
	Created time.Time `json:"created"`
}

func newKeys(records storage.Records, seal cipher.AEAD, log *slog.Logger) *keys {
	return &keys{
		all: newMirror[keyRecord](records, "auth/keys/", log), seal: seal, log: log,
		parsed: map[string]*ecdsa.PrivateKey{}, closed: map[string]bool{}, asked: rate.NewLimiter(10, 10),
	}
}

// keyNameSize is how long the name of a key is, in letters, and oldKeyNameSize how
// long it was. Each token names its key, and each letter of it is sent with every
// request.
const (
	keyNameSize    = 10
	oldKeyNameSize = 26
)

// minSecretKey and maxSecretKey bound what a secret key file holds, in bytes.
const (
	minSecretKey = 32
	maxSecretKey = 64 << 10
)

// readSeal returns what encrypts keys by the secret in the file at path, or nil if
// that is empty.
func readSeal(path string) (cipher.AEAD, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("secret_key_file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecretKey+1))
	if err != nil {
		return nil, fmt.Errorf("secret_key_file: %w", err)
	}
	secret := bytes.TrimSpace(text)
	if len(secret) < minSecretKey || len(text) > maxSecretKey {
		return nil, fmt.Errorf("secret_key_file: %s must hold %d to %d bytes that nobody can guess: make them with head -c 32 /dev/urandom | base64", path, minSecretKey, maxSecretKey)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "berth: keys of tokens", 32)
	if err != nil {
		return nil, fmt.Errorf("secret_key_file: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("secret_key_file: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// signing returns the newest key that this server can read. If that is too old it
// makes another one, and removes those that nothing valid is signed with.
func (k *keys) signing(ctx context.Context) (id string, key *ecdsa.PrivateKey, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	var newest time.Time
	for _, name := range k.all.names() {
		r, _ := k.all.get(name)
		if r == nil || !r.Created.After(newest) || now.Sub(r.Created) >= keyLife {
			continue
		}
		if parsed := k.parse(name, r); parsed != nil {
			id, key, newest = name, parsed, r.Created
		}
	}
	if key != nil {
		return id, key, nil
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return "", nil, fmt.Errorf("make a key for tokens: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", nil, fmt.Errorf("make a key for tokens: %w", err)
	}
	id = rand.Text()[:keyNameSize]
	r := &keyRecord{Private: der, Created: now.UTC()}
	if k.seal != nil {
		r.Private, r.Sealed = nil, k.seal.Seal(nil, nil, der, []byte(id))
	}
	if _, err := k.all.put(ctx, id, r, 0); err != nil {
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
	if r == nil && (len(id) == keyNameSize || len(id) == oldKeyNameSize) && k.asked.Allow() {
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
	if key := k.parse(id, r); key != nil {
		return &key.PublicKey, nil
	}
	return nil, nil
}

// parse reads a key once; nil: it cannot be read, or must not be used. mu is held.
func (k *keys) parse(id string, r *keyRecord) *ecdsa.PrivateKey {
	if key := k.parsed[id]; key != nil {
		return key
	}
	key, err := k.open(id, r)
	if err != nil {
		if !k.closed[id] {
			k.closed[id] = true
			k.log.Warn("a key for tokens is not used: what is signed with it is refused", "key", id, "reason", err)
		}
		return nil
	}
	k.parsed[id] = key
	return key
}

func (k *keys) open(id string, r *keyRecord) (*ecdsa.PrivateKey, error) {
	der := r.Private
	switch {
	case k.seal == nil && r.Sealed != nil:
		return nil, errors.New("it is encrypted, and there is no secret_key_file")
	case k.seal != nil && r.Sealed == nil:
		return nil, errors.New("it was kept in the clear, before there was a secret_key_file: others may know it")
	case k.seal != nil:
		var err error
		if der, err = k.seal.Open(nil, nil, r.Sealed, []byte(id)); err != nil {
			return nil, errors.New("it is encrypted with another secret_key_file")
		}
	}
	key, err := x509.ParseECPrivateKey(der)
	if err == nil && key.Curve != elliptic.P256() {
		err = fmt.Errorf("its curve is %s", key.Curve.Params().Name)
	}
	return key, err
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
