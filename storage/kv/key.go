package kv

import (
	"bytes"
	"encoding/binary"
	"iter"
	"strings"
)

// The kinds of rows: the first byte of every key. Fields are separated by a NUL
// byte, which no name, tag or digest holds, and which sorts before all that
// they do, so that rows come in the ASCII order of their fields. Numbers are
// eight bytes, big-endian.
const (
	kindBlob     = 'b' // repository, digest
	kindContent  = 'c' // digest → where the bytes are
	kindDamage   = 'd' // digest → why its content is quarantined, since when
	kindTagOf    = 'g' // repository, digest, tag
	kindHolder   = 'h' // digest, holding, repository
	kindInline   = 'i' // number → bytes
	kindLease    = 'l' // name → holder, expiry, token
	kindManifest = 'm' // repository, digest → what a manifest is and refers to
	kindCounter  = 'n' // name → number
	kindOrphan   = 'o' // due, key
	kindOrphanAt = 'O' // key → due
	kindReview   = 'q' // due, holding, repository, digest
	kindReviewAt = 'Q' // holding, repository, digest → due
	kindParent   = 'r' // repository, child, parent
	kindRecord   = 'R' // key → revision, value
	kindChange   = 'L' // revision → key of a record
	kindReferrer = 's' // repository, subject, digest
	kindReferTyp = 'S' // repository, subject, hash of the artifact type, digest
	kindTag      = 't' // repository, tag → digest
	kindSession  = 'u' // id → session
	kindIdle     = 'U' // time of the last write, id
	kindTrashed  = 'x' // repository, digest → a deleted manifest
	kindHidden   = 'X' // repository, digest of a deleted blob that a deleted manifest needs
	kindHistory  = 'y' // repository, tag, inverted number of the change → change
	kindNeeded   = 'z' // repository, child, deleted parent
)

// holding tells the ways apart in which a repository holds a digest. The same
// bytes can be held in several. In the collector's queue it also says what an
// entry is about.
type holding byte

const (
	asBlob     holding = 'b'
	asManifest holding = 'm'
	asTrash    holding = 'x' // a deleted manifest
	asHidden   holding = 'X' // a deleted blob that a deleted manifest needs
	asHistory  holding = 'y' // in the queue only: the changes of a tag, in place of the digest
)

// key is a key under construction.
type key []byte

func makeKey(kind byte) key { return append(make(key, 0, 128), kind) }

// field appends a field that others follow.
func (k key) field(s string) key { return append(append(k, s...), 0) }

// last appends the last field.
func (k key) last(s string) key { return append(k, s...) }

func (k key) number(n uint64) key { return binary.BigEndian.AppendUint64(k, n) }

// time appends Unix nanoseconds. Nothing here is older than 1970.
func (k key) time(nanos int64) key { return k.number(uint64(max(nanos, 0))) }

func (k key) holding(h holding) key { return append(k, byte(h)) }

// cutNumber takes a number from the front of what follows a prefix.
func cutNumber(s string) (n uint64, rest string, ok bool) {
	if len(s) < 8 {
		return 0, "", false
	}
	return binary.BigEndian.Uint64([]byte(s[:8])), s[8:], true
}

// scan goes through the rows whose keys begin with prefix and go on with
// something that sorts after after; empty means from the first. It gives what
// follows the prefix.
func (t tx) scan(prefix key, after string) iter.Seq2[string, []byte] {
	from := append(bytes.Clone(prefix), after...)
	if after != "" {
		from = append(from, 0)
	}
	return func(yield func(string, []byte) bool) {
		for k, v := range t.Ascend(from) {
			if !bytes.HasPrefix(k, prefix) || !yield(string(k[len(prefix):]), v) {
				return
			}
		}
	}
}

// first returns what follows prefix in the first key that begins with it.
func (t tx) first(prefix key) (rest string, ok bool) {
	for rest := range t.scan(prefix, "") {
		return rest, true
	}
	return "", false
}

// page returns up to n of what follows prefix, after after. The result is not
// nil, so that JSON has a list.
func (t tx) page(prefix key, after string, n int) []string {
	out := make([]string, 0, min(max(n, 0), 1024))
	if n <= 0 {
		return out
	}
	for rest := range t.scan(prefix, after) {
		if out = append(out, rest); len(out) == n {
			break
		}
	}
	return out
}

// has tells whether there is a row at key.
func (t tx) has(k key) bool { return t.Get(k) != nil }

// mark writes a row that says all by its key.
func (t tx) mark(k key) { t.Put(k, mark) }

var mark = []byte{rowVersion}

// next counts the named counter up and returns the new value, 1 at first.
func (t tx) next(counter string) uint64 {
	n := t.count(counter) + 1
	t.Put(makeKey(kindCounter).last(counter), binary.BigEndian.AppendUint64(nil, n))
	return n
}

// count returns the named counter's value.
func (t tx) count(counter string) uint64 {
	if v := t.Get(makeKey(kindCounter).last(counter)); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// cut splits what follows a prefix into two fields.
func cut(rest string) (a, b string) {
	a, b, _ = strings.Cut(rest, "\x00")
	return a, b
}
