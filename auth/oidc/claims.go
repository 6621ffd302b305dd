package oidc

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of a token. Those of GitLab, GitHub and Kubernetes have 1 to 2 KiB and up
// to thirty claims.
const (
	MaxToken  = 16 << 10 // bytes of it all
	maxClaims = 200      // members of it and of the objects in it
	maxKey    = 128      // bytes of a claim's name
	maxValue  = 1024     // bytes of its value
	maxDepth  = 5        // of objects in objects
	maxSub    = 255      // bytes of the subject (OpenID Connect Core, section 2)
)

// header is that of a JWT, as far as it counts (RFC 7515, section 4.1).
type header struct {
	Algorithm string
	Type      string
}

// token is what a JWT says, unverified.
type token struct {
	header
	issuer    string
	subject   string
	audience  []string
	party     string    // whom it was issued to: azp
	expires   time.Time // zero: it does not say
	notBefore time.Time // as expires
	issued    time.Time // as expires

	claims map[string]string   // texts, numbers and truth values; those in objects by path
	lists  map[string][]string // lists of texts
}

var errForm = errors.New("it is not a signed JWT in the compact form")

// decode reads a JWT in the compact form. It checks no signature. The errors are
// half sentences about "it", for who sent it.
func decode(raw string) (*token, error) {
	if len(raw) > MaxToken {
		return nil, fmt.Errorf("it has more than %d bytes", MaxToken)
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || slices.Contains(parts[:2], "") {
		return nil, errForm
	}
	var decoded [2][]byte
	for i := range decoded {
		var err error
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(parts[i]); err != nil {
			return nil, errForm
		}
	}
	head, err := parseObject(decoded[0])
	if err != nil {
		return nil, fmt.Errorf("its header cannot be read: %w", err)
	}
	t, err := parseObject(decoded[1])
	if err != nil {
		return nil, fmt.Errorf("its claims cannot be read: %w", err)
	}
	t.header = header{Algorithm: head.claims["alg"], Type: head.claims["typ"]}
	return t, t.registered()
}

// registered reads the claims that RFC 7519, section 4.1, gives a meaning.
func (t *token) registered() error {
	t.issuer, t.subject, t.party = t.claims["iss"], t.claims["sub"], t.claims["azp"]
	if aud, ok := t.claims["aud"]; ok {
		t.audience = []string{aud}
	} else {
		t.audience = t.lists["aud"]
	}
	for key, into := range map[string]*time.Time{"exp": &t.expires, "nbf": &t.notBefore, "iat": &t.issued} {
		text, ok := t.claims[key]
		if !ok {
			continue
		}
		const year9999 = 253402300799
		n, err := json.Number(text).Float64()
		if err != nil || math.IsNaN(n) || n < 0 || n > year9999 {
			return fmt.Errorf("its claim %s is no time", key)
		}
		*into = time.Unix(int64(n), 0)
	}
	switch {
	case t.subject == "":
		return errors.New("it has no subject")
	case len(t.subject) > maxSub || strings.ContainsFunc(t.subject, func(r rune) bool { return unicode.IsControl(r) || !unicode.IsPrint(r) }):
		return fmt.Errorf("its subject is not a text of at most %d bytes", maxSub)
	}
	return nil
}

// parseObject reads a JSON object into claims and lists. A name that is there
// twice is refused, since readers differ about which of the two counts.
func parseObject(text []byte) (*token, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("it is not UTF-8")
	}
	p := parser{dec: json.NewDecoder(bytes.NewReader(text)), seen: map[string]bool{}, into: &token{claims: map[string]string{}, lists: map[string][]string{}}}
	p.dec.UseNumber()
	first, err := p.dec.Token()
	if err != nil || first != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	if err := p.object("", 1); err != nil {
		return nil, err
	}
	if _, err := p.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return p.into, nil
}

type parser struct {
	dec  *json.Decoder
	seen map[string]bool // paths
	into *token
}

// object reads the members of an object, whose brace has been read.
func (p *parser) object(prefix string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it has objects in objects more than %d deep", maxDepth)
	}
	for p.dec.More() {
		name, err := p.dec.Token()
		if err != nil {
			return errJSON
		}
		path := prefix + name.(string) // the decoder knows that this is a name
		switch {
		case len(path) > maxKey:
			return fmt.Errorf("the name of a claim has more than %d bytes", maxKey)
		case p.seen[path]:
			return fmt.Errorf("it has the claim %q twice", path)
		case len(p.seen) == maxClaims:
			return fmt.Errorf("it has more than %d claims", maxClaims)
		}
		p.seen[path] = true
		if err := p.value(path, depth); err != nil {
			return err
		}
	}
	return p.end()
}

var errJSON = errors.New("it is not JSON")

func (p *parser) end() error {
	if _, err := p.dec.Token(); err != nil {
		return errJSON
	}
	return nil
}

func (p *parser) value(path string, depth int) error {
	v, err := p.dec.Token()
	if err != nil {
		return errJSON
	}
	switch v {
	case json.Delim('{'):
		return p.object(path+"/", depth+1)
	case json.Delim('['):
		return p.list(path)
	}
	text, ok := scalar(v)
	if !ok {
		return nil // null
	}
	if len(text) > maxValue {
		return fmt.Errorf("its claim %q has more than %d bytes", path, maxValue)
	}
	p.into.claims[path] = text
	return nil
}

// list reads the rest of a list. It counts if it consists of texts.
func (p *parser) list(path string) error {
	list, texts := []string{}, true
	for p.dec.More() {
		var v any
		if err := p.dec.Decode(&v); err != nil {
			return errJSON
		}
		text, ok := v.(string)
		if texts = texts && ok; texts {
			list = append(list, text)
		}
	}
	if texts {
		p.into.lists[path] = list
	}
	return p.end()
}

// scalar is how policy sees a value.
func scalar(v json.Token) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		if v {
			return "true", true
		}
		return "false", true
	}
	return "", false
}

// checkKey returns what is wrong with the name of a claim in the configuration.
func checkKey(key string) error {
	if key == "" || len(key) > maxKey || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r == 0x7f || r == utf8.RuneError || r == '=' }) {
		return fmt.Errorf("%.80q is not the name of a claim", key)
	}
	return nil
}
