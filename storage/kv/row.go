package kv

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// rowVersion is the first byte of every value that is not a bare number or the
// bytes of content. A row with another one was written by a newer berth.
const rowVersion = 1

// row is a value under construction.
type row []byte

func makeRow() row { return append(make(row, 0, 256), rowVersion) }

func (r row) uint(n uint64) row { return binary.AppendUvarint(r, n) }

func (r row) text(s string) row { return append(r.uint(uint64(len(s))), s...) }

// fields takes a value apart. The first field that is not there makes bad true
// and all others zero.
type fields struct {
	rest string
	bad  bool
}

func readRow(v []byte) fields {
	if len(v) == 0 || v[0] != rowVersion {
		return fields{bad: true}
	}
	return fields{rest: string(v[1:])} // one copy for all strings cut from it
}

func (f *fields) uint() uint64 {
	var n uint64
	for i := range len(f.rest) {
		b := f.rest[i]
		if i == binary.MaxVarintLen64 {
			break
		}
		n |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			f.rest = f.rest[i+1:]
			return n
		}
	}
	f.rest, f.bad = "", true
	return 0
}

func (f *fields) text() string {
	n := f.uint()
	if n > uint64(len(f.rest)) {
		f.rest, f.bad = "", true
		return ""
	}
	s := f.rest[:n]
	f.rest = f.rest[n:]
	return s
}

// int returns a number that int64 holds, as all sizes and times are.
func (f *fields) int() int64 {
	n := f.uint()
	if n > math.MaxInt64 {
		f.rest, f.bad = "", true
		return 0
	}
	return int64(n)
}

// list returns the number of elements that follow, each at least one byte long.
func (f *fields) list() int {
	n := f.uint()
	if n > uint64(len(f.rest)) {
		f.rest, f.bad = "", true
		return 0
	}
	return int(n)
}

// end tells whether the row was what it should be.
func (f *fields) end(what string) error {
	if f.bad || f.rest != "" {
		return fmt.Errorf("%w: row of %s", errDamaged, what)
	}
	return nil
}

// place is where the bytes of a digest are: in the Store under key, or in the
// row number inline.
type place struct {
	size   int64
	key    storage.Key
	inline uint64
}

func (p place) row() row {
	return makeRow().uint(uint64(p.size)).text(string(p.key)).uint(p.inline)
}

func readPlace(v []byte) (place, error) {
	f := readRow(v)
	p := place{size: f.int(), key: storage.Key(f.text()), inline: f.uint()}
	return p, f.end("a content")
}

// trashedRow is what the Index keeps of a deleted manifest.
func trashedRow(m storage.Trashed) row {
	r := makeRow().uint(uint64(toNanos(m.Deleted))).uint(uint64(toNanos(m.Until))).uint(uint64(len(m.Tags)))
	for _, tag := range m.Tags {
		r = r.text(tag)
	}
	return r.text(string(manifestRow(m.Manifest)))
}

func readTrashed(v []byte) (storage.Trashed, error) {
	f := readRow(v)
	m := storage.Trashed{Deleted: fromNanos(f.int()), Until: fromNanos(f.int())}
	for range f.list() {
		m.Tags = append(m.Tags, f.text())
	}
	inner := f.text()
	if err := f.end("a deleted manifest"); err != nil {
		return m, err
	}
	var err error
	m.Manifest, err = readManifest([]byte(inner))
	return m, err
}

// Flags of a reference.
const (
	refManifest = 1 << iota
	refOptional
)

// manifestRow is what the Index keeps of m beside its content.
func manifestRow(m storage.Manifest) row {
	r := makeRow().uint(uint64(m.Size)).text(m.MediaType).text(m.ArtifactType).
		text(m.Subject.String()).uint(uint64(toNanos(m.Pushed)))
	names := make([]string, 0, len(m.Annotations))
	for name := range m.Annotations {
		names = append(names, name)
	}
	slices.Sort(names) // equal manifests have equal rows
	r = r.uint(uint64(len(names)))
	for _, name := range names {
		r = r.text(name).text(m.Annotations[name])
	}
	r = r.uint(uint64(len(m.References)))
	for _, ref := range m.References {
		var flags uint64
		if ref.Manifest {
			flags |= refManifest
		}
		if ref.Optional {
			flags |= refOptional
		}
		r = r.uint(flags).text(ref.Digest.String())
	}
	return r
}

// readManifest is the reverse of manifestRow. Digest and content are not in the
// row, but for the size.
func readManifest(v []byte) (storage.Manifest, error) {
	f := readRow(v)
	var m storage.Manifest
	m.Size = f.int()
	m.MediaType, m.ArtifactType = f.text(), f.text()
	m.Subject = digest.Digest(f.text())
	m.Pushed = fromNanos(f.int())
	if n := f.list(); n > 0 {
		m.Annotations = make(map[string]string, n)
		for range n {
			name := f.text()
			m.Annotations[name] = f.text()
		}
	}
	if n := f.list(); n > 0 {
		m.References = make([]storage.Reference, n)
		for i := range m.References {
			flags := f.uint()
			m.References[i] = storage.Reference{
				Digest:   digest.Digest(f.text()),
				Manifest: flags&refManifest != 0,
				Optional: flags&refOptional != 0,
			}
		}
	}
	return m, f.end("a manifest")
}
