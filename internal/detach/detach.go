// Package detach recognises the keys by which the user of a terminal leaves a
// container without ending it, in Docker's notation.
package detach

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrDetached is what a Reader ends with at the keys.
var ErrDetached = errors.New("detached")

// Default is ctrl-p ctrl-q.
const Default = "ctrl-p,ctrl-q"

// maxKeys is how long a sequence may be.
const maxKeys = 64

// Parse reads a list of keys separated by commas: a character each, or "ctrl-" and
// one of a-z @ [ \ ] ^ _. Nothing means Default.
func Parse(keys string) ([]byte, error) {
	if keys == "" {
		keys = Default
	}
	var seq []byte
	for key := range strings.SplitSeq(keys, ",") {
		name, ctrl := strings.CutPrefix(key, "ctrl-")
		switch {
		case ctrl && len(name) == 1 && name[0] >= 'a' && name[0] <= 'z':
			seq = append(seq, name[0]-'a'+1)
		case ctrl && len(name) == 1 && (name[0] == '@' || name[0] >= '[' && name[0] <= '_'):
			seq = append(seq, name[0]-'@')
		case !ctrl && len(key) == 1:
			seq = append(seq, key[0])
		default:
			return nil, fmt.Errorf("unknown character: '%s'", key)
		}
	}
	if len(seq) > maxKeys {
		return nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	return seq, nil
}

// Reader passes on what a terminal sends, until its user presses the keys.
type Reader struct {
	from io.Reader
	keys []byte
	seen int    // keys of the sequence that were pressed and not passed on
	out  []byte // to be passed on
	err  error  // after it
	buf  [1024]byte
}

// NewReader returns a Reader. Without keys nothing is recognised.
func NewReader(from io.Reader, keys []byte) *Reader { return &Reader{from: from, keys: keys} }

// Read reads what is not part of the sequence, and ends with ErrDetached.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.out) == 0 && r.err == nil {
		n, err := r.from.Read(r.buf[:])
		r.take(r.buf[:n])
		if err != nil && r.err == nil {
			r.out = append(r.out, r.keys[:r.seen]...)
			r.seen, r.err = 0, err
		}
	}
	if len(r.out) == 0 {
		return 0, r.err
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// take looks for the sequence in what was read.
func (r *Reader) take(data []byte) {
	for _, c := range data {
		if len(r.keys) == 0 {
			r.out = append(r.out, c)
			continue
		}
		r.step(c)
		if r.seen == len(r.keys) {
			r.seen, r.err = 0, ErrDetached
			return // what follows is nobody's
		}
	}
}

// step takes one key. What was pressed and turns out not to begin the sequence is
// passed on.
func (r *Reader) step(c byte) {
	pressed := append(append([]byte(nil), r.keys[:r.seen]...), c)
	for n := len(pressed); n >= 0; n-- {
		if tail := pressed[len(pressed)-n:]; n <= len(r.keys) && bytes.HasPrefix(r.keys, tail) {
			r.out = append(r.out, pressed[:len(pressed)-n]...)
			r.seen = n
			return
		}
	}
}
