package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"berth.internal/storage"
)

// ServiceName is the service that clients ask tokens for, and the audience and the
// issuer of these.
const ServiceName = "berth"

// TokenLife is how long a token is good for.
const TokenLife = 5 * time.Minute

// tokenNameSize is how long the name of a token is, in letters.
const tokenNameSize = 10

// tokenLeeway is how far the clocks of servers may be apart.
const tokenLeeway = 10 * time.Second

// ErrToken says that a token is not, or no longer, good for anything. Its text is
// for the log.
var ErrToken = errors.New("the token is not valid")

// ErrExpired is the ErrToken of a token that was good.
var ErrExpired = fmt.Errorf("%w: it has expired", ErrToken)

// Session is a caller by the credential that was shown.
type Session struct {
	Caller Caller // within the limits of the credential

	// Owner is who has the credential: Caller without the limits of a token.
	Owner Caller

	// Catalog says that the credential may list repositories: those that Owner may
	// pull.
	Catalog bool

	// Fresh says that the credential is one of an issuer that was not remembered: this
	// is a login.
	Fresh bool
}

// Token is what the token service gives out.
type Token struct {
	Value   string
	Issued  time.Time
	Expires time.Time
	Access  []Access // what it is good for
}

// claims are those of a token.
type claims struct {
	jwt.RegisteredClaims
	Access []Access `json:"access"`
	Epoch  string   `json:"epoch,omitempty"` // of the account
	Key    string   `json:"key,omitempty"`   // the API key that it was given out for

	Claims map[string]string `json:"claims,omitempty"` // of a job
}

// verified is what a token says that was verified. It holds no token.
type verified struct {
	kind    Kind
	name    string
	epoch   string
	key     string
	expires time.Time
	limits  []Grant
	catalog bool

	assertion *Assertion // of a job

	memo *atomic.Pointer[memo] // what it came to the last time
}

// memo is a session of a token, and the record of the account that it is of. As long
// as the record is the same, so is the session.
type memo struct {
	record  *record
	session Session
}

// Issue makes a token for c that is good for what c may do of what is asked.
func (s *Service) Issue(ctx context.Context, c Caller, asked []Access, d Decider) (Token, error) {
	now := time.Now()
	t := Token{Issued: now.Truncate(time.Second), Expires: now.Truncate(time.Second).Add(TokenLife), Access: allowed(c, asked, d)}
	if !c.Expires.IsZero() && c.Expires.Before(t.Expires) {
		t.Expires = c.Expires.Truncate(time.Second)
	}
	if !t.Expires.After(now) {
		return Token{}, ErrCredentials // it has expired meanwhile
	}
	epoch := ""
	if c.Kind != Anonymous && c.Kind != Job {
		var err error
		if _, epoch, err = s.state(ctx, c.Kind, c.Name, c.Key); err != nil {
			return Token{}, err
		}
	}
	id, key, err := s.keys.signing(ctx)
	if err != nil {
		return Token{}, err
	}
	unsigned := jwt.NewWithClaims(jwt.SigningMethodES256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: ServiceName, Subject: subject(c.Kind, c.Name), Audience: jwt.ClaimStrings{ServiceName}, ID: rand.Text()[:tokenNameSize],
			IssuedAt: jwt.NewNumericDate(t.Issued), NotBefore: jwt.NewNumericDate(t.Issued), ExpiresAt: jwt.NewNumericDate(t.Expires),
		},
		Access: t.Access, Epoch: epoch, Key: c.Key, Claims: c.Claims,
	})
	unsigned.Header["kid"] = id
	delete(unsigned.Header, "typ") // optional, and of our tokens there is one type
	if t.Value, err = unsigned.SignedString(key); err != nil {
		return Token{}, fmt.Errorf("sign a token: %w", err)
	}
	return t, nil
}

// Sum is the hash of a token, by which it is remembered.
type Sum [sha256.Size]byte

// SumOf hashes a token. Most are short enough for a copy that makes no
// garbage.
func SumOf(token string) Sum {
	var short [1024]byte
	if len(token) <= len(short) {
		return sha256.Sum256(short[:copy(short[:], token)])
	}
	return sha256.Sum256([]byte(token))
}

// Bearer returns who shows the token. A token that was verified is remembered by
// its hash; whether its owner may still come in is looked up each time. The token
// may also be one of an issuer. Errors: ErrToken, or for that ErrCredentials;
// ErrIssuer; others of Records. The session must not be changed.
func (s *Service) Bearer(ctx context.Context, token string) (*Session, error) {
	return s.BearerBySum(ctx, token, SumOf(token))
}

// BearerBySum is Bearer for who knows the sum of the token.
func (s *Service) BearerBySum(ctx context.Context, token string, key Sum) (*Session, error) {
	v, found := s.tokens.get(key)
	if !found {
		v, found = s.jobs.get(key)
	}
	if !found {
		if s.issuers != nil {
			if issuer := s.issuers.Whose(token); issuer != "" {
				c, fresh, err := s.job(ctx, issuer, token, "")
				return &Session{Caller: c, Owner: c, Catalog: true, Fresh: fresh}, err
			}
		}
		var err error
		if v, err = s.verify(ctx, token); err != nil {
			return nil, err
		}
		if v.kind == Job {
			s.jobs.put(key, v)
		} else {
			s.tokens.put(key, v)
		}
	}
	if !time.Now().Before(v.expires) {
		return nil, ErrExpired
	}
	owner := Caller{Kind: Anonymous}
	var of *record // if there is one, and it alone says who may come in
	switch v.kind {
	case Anonymous:
	case Job:
		var err error
		if owner, err = s.admit(v.assertion); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrToken, err)
		}
	default:
		// Before the state is looked up: then a change in between is one of the record.
		of, _ = s.mirrorOf(v.kind).get(v.name)
		if v.key != "" || of != nil && !of.Expires.IsZero() {
			of = nil
		}
		if last := v.memo.Load(); last != nil && of != nil && last.record == of {
			return &last.session, nil
		}
		c, epoch, err := s.state(ctx, v.kind, v.name, v.key)
		if errors.Is(err, ErrCredentials) || err == nil && epoch != v.epoch {
			return nil, fmt.Errorf("%w: it was given out before the account changed", ErrToken)
		} else if err != nil {
			return nil, err
		}
		owner = c
	}
	limited := owner
	limited.Limits = v.limits
	session := Session{Caller: limited, Owner: owner, Catalog: v.catalog}
	if of == nil {
		return &session, nil
	}
	m := &memo{record: of, session: session}
	v.memo.Store(m)
	return &m.session, nil
}

// verify reads a token that was not seen before.
func (s *Service) verify(ctx context.Context, token string) (verified, error) {
	var c claims
	var failed error // of ours
	_, err := jwt.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) {
		id, _ := t.Header["kid"].(string)
		key, err := s.keys.public(ctx, id)
		if err != nil {
			failed = err
			return nil, err
		}
		if key == nil {
			return nil, errors.New("it is signed with a key that is not, or no longer, ours")
		}
		return key, nil
	}, jwt.WithValidMethods([]string{jwt.SigningMethodES256.Alg()}), jwt.WithIssuer(ServiceName), jwt.WithAudience(ServiceName),
		jwt.WithExpirationRequired(), jwt.WithNotBeforeRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(tokenLeeway))
	if failed != nil {
		return verified{}, failed
	}
	if errors.Is(err, jwt.ErrTokenExpired) { // and its signature is ours
		return verified{}, ErrExpired
	}
	if err != nil {
		return verified{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	kind, name, ok := parseSubject(c.Subject)
	if !ok {
		return verified{}, fmt.Errorf("%w: it has no subject", ErrToken)
	}
	v := verified{kind: kind, name: name, epoch: c.Epoch, key: c.Key, expires: c.ExpiresAt.Time, memo: new(atomic.Pointer[memo])}
	v.limits, v.catalog = grants(c.Access)
	if kind == Job {
		if v.assertion, err = assertionOf(name, c.Claims, v.expires); err != nil {
			return verified{}, fmt.Errorf("%w: %w", ErrToken, err)
		}
	}
	return v, nil
}

const (
	refreshPrefix = "refresh/"
	refreshLife   = 30 * 24 * time.Hour
	refreshMost   = 200 // of one account; the oldest go
	refreshMark   = "berth_refresh_"
)

// refreshRecord is a refresh token as Records keeps it, at
// refresh/KIND/NAME/HASH.
type refreshRecord struct {
	Epoch   string    `json:"epoch"`         // of the account
	Key     string    `json:"key,omitempty"` // the API key that it was given out for
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
}

func refreshKeys(kind Kind, name string) string {
	return refreshPrefix + string(kind) + "/" + name + "/"
}

// IssueRefresh makes a refresh token for c, which gets tokens in place of the
// password, or the API key, for 30 days, and until that is changed or removed.
func (s *Service) IssueRefresh(ctx context.Context, c Caller) (string, error) {
	_, epoch, err := s.state(ctx, c.Kind, c.Name, c.Key)
	if err != nil {
		return "", err
	}
	now := time.Now().UTC()
	void := func(r refreshRecord) bool { return r.Epoch != epoch || now.After(r.Expires) }
	if err := s.dropRefresh(ctx, c.Kind, c.Name, void, refreshMost-1); err != nil {
		return "", err
	}
	token := refreshMark + base64.RawURLEncoding.EncodeToString([]byte(subject(c.Kind, c.Name))) + "." + rand.Text()
	value, err := json.Marshal(refreshRecord{Epoch: epoch, Key: c.Key, Created: now, Expires: now.Add(refreshLife)})
	if err != nil {
		return "", err
	}
	if _, err := s.records.Put(ctx, refreshKeys(c.Kind, c.Name)+secretHash(token), value, 0); err != nil {
		return "", fmt.Errorf("keep a refresh token: %w", err)
	}
	return token, nil
}

// Refresh returns whom the refresh token was made for. Errors: ErrCredentials;
// others of Records.
func (s *Service) Refresh(ctx context.Context, token string) (Caller, error) {
	rest, ok := strings.CutPrefix(token, refreshMark)
	who, _, _ := strings.Cut(rest, ".")
	text, err := base64.RawURLEncoding.DecodeString(who)
	kind, name, named := parseSubject(string(text))
	if !ok || !named || err != nil || !possible(name) || kind != User && kind != Robot {
		return Caller{}, ErrCredentials
	}
	stored, err := s.records.Get(ctx, refreshKeys(kind, name)+secretHash(token))
	if storage.IsNotFound(err) {
		return Caller{}, ErrCredentials
	} else if err != nil {
		return Caller{}, fmt.Errorf("look up a refresh token: %w", err)
	}
	var r refreshRecord
	if json.Unmarshal(stored.Value, &r) != nil || !time.Now().Before(r.Expires) {
		return Caller{}, ErrCredentials
	}
	c, epoch, err := s.state(ctx, kind, name, r.Key)
	if err == nil && r.Epoch != epoch {
		err = ErrCredentials
	}
	if err != nil {
		return Caller{}, err
	}
	return c, nil
}

// dropRefresh removes the account's refresh tokens that are void, and the oldest of
// the others until no more than keep are left.
func (s *Service) dropRefresh(ctx context.Context, kind Kind, name string, void func(refreshRecord) bool, keep int) error {
	type token struct {
		storage.Record
		created time.Time
	}
	var good []token
	drop := func(r storage.Record) error {
		err := s.records.Delete(ctx, r.Key, r.Revision)
		if storage.IsNotFound(err) || errors.Is(err, storage.ErrConflict) {
			return nil // by somebody else
		}
		if err != nil {
			return fmt.Errorf("remove a refresh token: %w", err)
		}
		return nil
	}
	const batch = 1000 // more than there can be but for a race
	recs, _, err := s.records.List(ctx, refreshKeys(kind, name), "", batch)
	if err != nil {
		return fmt.Errorf("list refresh tokens: %w", err)
	}
	for _, rec := range recs {
		var r refreshRecord
		if json.Unmarshal(rec.Value, &r) != nil || void(r) {
			if err := drop(rec); err != nil {
				return err
			}
			continue
		}
		good = append(good, token{rec, r.Created})
	}
	for len(good) > keep {
		oldest := 0
		for i, t := range good {
			if t.created.Before(good[oldest].created) {
				oldest = i
			}
		}
		if err := drop(good[oldest].Record); err != nil {
			return err
		}
		good = append(good[:oldest], good[oldest+1:]...)
	}
	return nil
}
