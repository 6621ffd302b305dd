package client

import "strings"

// challenge is what a registry asks for: one challenge of a WWW-Authenticate
// header (RFC 9110, section 11.6.1).
type challenge struct {
	scheme string            // lower case
	params map[string]string // keys in lower case
}

// parseChallenges reads all WWW-Authenticate headers of an answer. Each can
// hold several challenges. What it does not understand it leaves out.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, h := range headers {
		all = append(all, parseChallenge(h)...)
	}
	return all
}

func parseChallenge(h string) []challenge {
	var all []challenge
	l := lexer(h)
	for {
		l.skip(" \t,")
		word := l.token()
		if word == "" {
			return all
		}
		l.skip(" \t")
		if len(all) == 0 || !l.next('=') {
			// A word without "=" begins a challenge; so does the first one.
			all = append(all, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
			continue
		}
		l.skip(" \t")
		value, ok := l.value()
		if !ok {
			return all
		}
		all[len(all)-1].params[strings.ToLower(word)] = value
	}
}

// lexer is the rest of a header to read.
type lexer string

func (l *lexer) skip(set string) { *l = lexer(strings.TrimLeft(string(*l), set)) }

// next eats c if it comes next.
func (l *lexer) next(c byte) bool {
	if len(*l) == 0 || (*l)[0] != c {
		return false
	}
	*l = (*l)[1:]
	return true
}

// token eats a token (RFC 9110, section 5.6.2), empty if none comes next.
func (l *lexer) token() string {
	n := 0
	for n < len(*l) && isTokenByte((*l)[n]) {
		n++
	}
	t := string((*l)[:n])
	*l = (*l)[n:]
	return t
}

// value eats a token or a quoted string; false if neither comes next or the
// quotes do not end.
func (l *lexer) value() (string, bool) {
	if !l.next('"') {
		t := l.token()
		return t, t != ""
	}
	var b strings.Builder
	for i := 0; i < len(*l); i++ {
		switch c := (*l)[i]; {
		case c == '"':
			*l = (*l)[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(*l):
			i++
			b.WriteByte((*l)[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

func isTokenByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
