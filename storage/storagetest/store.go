// Package storagetest is the contract of package storage as tests. A driver is
// done when they pass.
package storagetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth.internal/storage"
	"github.com/opencontainers/go-digest"
)

// NewStore makes an empty place for a Store and returns the function that opens
// it: once at first, and again each time the one before was closed. What the
// Store keeps, the next one has.
type NewStore func(t *testing.T) (open func() storage.Store)

// TestStore holds a driver's Store to the contract.
func TestStore(t *testing.T, fresh NewStore) {
	for _, tc := range []struct {
		name string
		run  func(*testing.T, *storeFixture)
	}{
		{"commit makes bytes readable", testStoreCommit},
		{"nothing is there before commit", testStoreInvisible},
		{"content stored again gets another key", testStoreGenerations},
		{"wrong digest ends the upload", testStoreMismatch},
		{"small content comes back", testStoreInline},
		{"saved upload goes on", testStoreResume},
		{"resume cuts back to what was saved", testStoreResumeCutsBack},
		{"resume of what is gone", testStoreResumeAbsent},
		{"close and abort", testStoreClose},
		{"delete", testStoreDelete},
		{"discard", testStoreDiscard},
		{"unknown names stay inside", testStoreHostileNames},
		{"reader that fails", testStoreReadFrom},
		{"many at once", testStoreConcurrent},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &storeFixture{t: t, open: fresh(t)}
			f.Store = f.open()
			defer func() { f.ok(f.Close()) }()
			tc.run(t, f)
		})
	}
}

type storeFixture struct {
	storage.Store
	t    *testing.T
	open func() storage.Store
}

func (f *storeFixture) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *storeFixture) reopen() {
	f.t.Helper()
	f.ok(f.Close())
	f.Store = f.open()
}

func (f *storeFixture) create(alg digest.Algorithm, data string) storage.Upload {
	f.t.Helper()
	up, err := f.Create(f.t.Context(), alg)
	f.ok(err)
	f.write(up, data)
	return up
}

func (f *storeFixture) write(up storage.Upload, data string) {
	f.t.Helper()
	before := up.Size()
	if n, err := io.WriteString(up, data); n != len(data) || err != nil {
		f.t.Fatalf("Write of %d bytes = %d, %v", len(data), n, err)
	}
	if got := up.Size() - before; got != int64(len(data)) {
		f.t.Fatalf("Write of %d bytes added %d to Size", len(data), got)
	}
}

func (f *storeFixture) commit(up storage.Upload, want digest.Digest) storage.Key {
	f.t.Helper()
	key, err := up.Seal(f.t.Context(), want)
	f.ok(err)
	f.ok(up.Commit(f.t.Context()))
	return key
}

func (f *storeFixture) put(data string) storage.Key {
	f.t.Helper()
	return f.commit(f.create(digest.SHA256, data), digest.FromString(data))
}

// holds checks that the bytes at key are data.
func (f *storeFixture) holds(key storage.Key, data string) {
	f.t.Helper()
	b, err := f.Open(f.t.Context(), key)
	f.ok(err)
	got, err := io.ReadAll(b)
	f.ok(err)
	if string(got) != data || b.Size() != int64(len(data)) {
		f.t.Errorf("%s holds %d bytes, Size %d, want the %d written", key, len(got), b.Size(), len(data))
	}
	f.ok(b.Close())
}

func (f *storeFixture) absent(key storage.Key) {
	f.t.Helper()
	if _, err := f.Open(f.t.Context(), key); !errors.Is(err, storage.ErrNotFound) {
		f.t.Errorf("Open(%.80q) = %v, want ErrNotFound", key, err)
	}
}

// lists checks what Keys and Uploads give.
func (f *storeFixture) lists(keys []storage.Key, uploads []string) {
	f.t.Helper()
	var gotKeys []storage.Key
	for k, err := range f.Keys(f.t.Context()) {
		f.ok(err)
		gotKeys = append(gotKeys, k)
	}
	slices.Sort(gotKeys)
	slices.Sort(keys)
	if !slices.Equal(gotKeys, keys) {
		f.t.Errorf("Keys = %q, want %q", gotKeys, keys)
	}
	var gotUploads []string
	for id, err := range f.Uploads(f.t.Context()) {
		f.ok(err)
		gotUploads = append(gotUploads, id)
	}
	slices.Sort(gotUploads)
	slices.Sort(uploads)
	if !slices.Equal(gotUploads, uploads) {
		f.t.Errorf("Uploads = %q, want %q", gotUploads, uploads)
	}
}

// text is n bytes that do not repeat soon.
func text(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()[:n]
}

func testStoreCommit(t *testing.T, f *storeFixture) {
	var keys []storage.Key
	var data []string
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		for _, n := range []int{0, 1, storage.InlineMax, storage.InlineMax + 1, 3 << 20} {
			s := text(n)
			up := f.create(digest.SHA256, "")
			for rest := s; rest != ""; { // in uneven pieces
				piece := rest[:min(len(rest), 100_003)]
				f.write(up, piece)
				rest = rest[len(piece):]
			}
			keys = append(keys, f.commit(up, alg.FromString(s)))
			data = append(data, s)
		}
	}
	f.lists(slices.Clone(keys), nil)
	f.reopen()
	for i, key := range keys {
		f.holds(key, data[i])
	}
	b, err := f.Open(t.Context(), keys[3])
	f.ok(err)
	_, err = b.Seek(-5, io.SeekEnd)
	f.ok(err)
	tail, err := io.ReadAll(b)
	f.ok(err)
	if want := data[3][len(data[3])-5:]; string(tail) != want {
		t.Errorf("after Seek the blob gives %q, want %q", tail, want)
	}
	f.ok(b.Close())
}

func testStoreInvisible(t *testing.T, f *storeFixture) {
	data := text(storage.InlineMax + 1)
	up := f.create(digest.SHA256, data)
	_, err := up.Save(t.Context())
	f.ok(err)
	key, err := up.Seal(t.Context(), digest.FromString(data))
	f.ok(err)
	f.absent(key)
	f.lists(nil, []string{up.ID()})
	f.ok(up.Commit(t.Context()))
	f.holds(key, data)
	f.lists([]storage.Key{key}, nil)
	if up.Size() != int64(len(data)) {
		t.Errorf("Size after Commit = %d, want %d", up.Size(), len(data))
	}
	if err := up.Commit(t.Context()); err == nil {
		t.Error("second Commit succeeded")
	}

	never := f.create(digest.SHA256, data)
	if err := never.Commit(t.Context()); err == nil {
		t.Error("Commit before Seal succeeded")
	}
	f.ok(never.Abort())
}

func testStoreGenerations(t *testing.T, f *storeFixture) {
	one, two := f.put("same"), f.put("same")
	if one == two {
		t.Fatalf("content stored twice has one key %s", one)
	}
	f.ok(f.Delete(t.Context(), one))
	f.absent(one)
	f.holds(two, "same")
}

func testStoreMismatch(t *testing.T, f *storeFixture) {
	for _, n := range []int{3, storage.InlineMax + 1} {
		for _, want := range []digest.Digest{digest.FromString("other"), digest.SHA512.FromString("other")} {
			up := f.create(digest.SHA256, text(n))
			if _, err := up.Seal(t.Context(), want); !errors.Is(err, storage.ErrMismatch) {
				t.Errorf("Seal of %d bytes as %s = %v, want ErrMismatch", n, want, err)
			}
			if err := up.Commit(t.Context()); err == nil {
				t.Error("Commit after a failed Seal succeeded")
			}
		}
	}
	f.lists(nil, nil)

	up := f.create(digest.SHA256, "x")
	for _, bad := range []digest.Digest{"", "sha256:short", "md5:900150983cd24fb0d6963f7d28e17f72"} {
		if _, err := up.Seal(t.Context(), bad); err == nil || errors.Is(err, storage.ErrMismatch) {
			t.Errorf("Seal as %q = %v, want an error about the digest", bad, err)
		}
	}
	f.holds(f.commit(up, digest.FromString("x")), "x") // a bad digest ends nothing
	if up, err := f.Create(t.Context(), "md5"); err == nil {
		t.Errorf("Create with md5 = %v, want an error", up)
	}
}

func testStoreInline(t *testing.T, f *storeFixture) {
	for _, n := range []int{0, 1, storage.InlineMax} {
		data := text(n)
		up := f.create(digest.SHA256, data)
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			got, err := up.Inline(t.Context(), alg.FromString(data))
			if err != nil || string(got) != data {
				t.Errorf("Inline of %d bytes as %s = %d bytes, %v", n, alg, len(got), err)
			}
		}
		if n == 1 { // bytes that were saved come back as well
			_, err := up.Save(t.Context())
			f.ok(err)
			if got, err := up.Inline(t.Context(), digest.FromString(data)); err != nil || string(got) != data {
				t.Errorf("Inline after Save = %q, %v", got, err)
			}
		}
		f.ok(up.Abort())
	}
	up := f.create(digest.SHA256, text(storage.InlineMax+1))
	if _, err := up.Inline(t.Context(), digest.FromString(text(storage.InlineMax+1))); err == nil {
		t.Error("Inline of too much succeeded")
	}
	f.ok(up.Abort())
	up = f.create(digest.SHA256, "x")
	if _, err := up.Inline(t.Context(), digest.FromString("y")); !errors.Is(err, storage.ErrMismatch) {
		t.Errorf("Inline as another digest = %v, want ErrMismatch", err)
	}
	f.lists(nil, nil)
}

func testStoreResume(t *testing.T, f *storeFixture) {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		var data []byte
		var state storage.UploadState
		up := f.create(alg, "")
		for _, n := range []int{0, 10, storage.InlineMax, 1 << 20} {
			piece := text(n)
			f.write(up, piece)
			data = append(data, piece...)
			var err error
			state, err = up.Save(t.Context())
			f.ok(err)
			if state.Size != int64(len(data)) || state.ID != up.ID() || state.Algorithm != alg {
				t.Fatalf("Save after %d bytes = %+v", len(data), state)
			}
			f.ok(up.Close())
			f.reopen()
			f.lists(nil, []string{state.ID})
			up, err = f.Resume(t.Context(), state)
			f.ok(err)
			if up.Size() != int64(len(data)) {
				t.Fatalf("resumed upload has %d bytes, want %d", up.Size(), len(data))
			}
		}
		key := f.commit(up, alg.FromBytes(data))
		f.holds(key, string(data))
		f.lists([]storage.Key{key}, nil)
		if _, err := f.Resume(t.Context(), state); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("Resume after Commit = %v, want ErrNotFound", err)
		}
		f.ok(f.Delete(t.Context(), key))
	}
}

func testStoreResumeCutsBack(t *testing.T, f *storeFixture) {
	up := f.create(digest.SHA256, "kept")
	state, err := up.Save(t.Context())
	f.ok(err)
	f.write(up, " and lost")
	f.ok(up.Close())
	up, err = f.Resume(t.Context(), state)
	f.ok(err)
	f.write(up, "!")
	f.holds(f.commit(up, digest.FromString("kept!")), "kept!")
}

func testStoreResumeAbsent(t *testing.T, f *storeFixture) {
	up := f.create(digest.SHA256, "0123456789")
	state, err := up.Save(t.Context())
	f.ok(err)
	f.ok(up.Close())
	more := state
	more.Size++
	if _, err := f.Resume(t.Context(), more); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("Resume of more bytes than there are = %v, want ErrNotFound", err)
	}
	f.ok(f.Discard(t.Context(), state.ID))
	if _, err := f.Resume(t.Context(), state); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("Resume after Discard = %v, want ErrNotFound", err)
	}
}

func testStoreClose(t *testing.T, f *storeFixture) {
	for _, n := range []int{1, storage.InlineMax + 1} {
		up := f.create(digest.SHA256, text(n))
		f.ok(up.Close()) // never saved: nobody can resume it
		f.lists(nil, nil)

		up = f.create(digest.SHA256, text(n))
		_, err := up.Save(t.Context())
		f.ok(err)
		f.ok(up.Abort())
		f.ok(up.Abort())
		f.ok(up.Close())
		f.lists(nil, nil)
		if _, err := up.Save(t.Context()); err == nil {
			t.Error("Save after Abort succeeded")
		}
	}
	up := f.create(digest.SHA256, "x")
	key := f.commit(up, digest.FromString("x"))
	f.ok(up.Abort())
	f.ok(up.Close())
	f.holds(key, "x")
}

func testStoreDelete(t *testing.T, f *storeFixture) {
	key := f.put("x")
	b, err := f.Open(t.Context(), key)
	f.ok(err)
	f.ok(f.Delete(t.Context(), key))
	f.ok(f.Delete(t.Context(), key))
	f.absent(key)
	// Who reads, reads on.
	if got, err := io.ReadAll(b); string(got) != "x" || err != nil {
		t.Errorf("blob deleted while open = %q, %v", got, err)
	}
	f.ok(b.Close())
	f.reopen()
	f.absent(key)
}

func testStoreDiscard(t *testing.T, f *storeFixture) {
	up := f.create(digest.SHA256, "x")
	state, err := up.Save(t.Context())
	f.ok(err)
	f.ok(up.Close())
	f.lists(nil, []string{state.ID})
	f.ok(f.Discard(t.Context(), state.ID))
	f.ok(f.Discard(t.Context(), state.ID))
	f.lists(nil, nil)

	// While it is open, too: then nothing comes of it.
	data := text(storage.InlineMax + 1)
	up = f.create(digest.SHA256, data)
	state, err = up.Save(t.Context())
	f.ok(err)
	_, err = up.Seal(t.Context(), digest.FromString(data))
	f.ok(err)
	f.ok(f.Discard(t.Context(), state.ID))
	if err := up.Commit(t.Context()); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("Commit of a discarded upload = %v, want ErrNotFound", err)
	}
	f.ok(up.Close())
	f.lists(nil, nil)
}

func testStoreHostileNames(t *testing.T, f *storeFixture) {
	up := f.create(digest.SHA256, "x")
	state, err := up.Save(t.Context())
	f.ok(err)
	f.ok(up.Close())
	key := f.put("y")
	hex := digest.FromString("y").Encoded()
	for _, name := range []string{
		"", ".", "..", "/", "../uploads/" + state.ID, "/etc/passwd", "a\x00b", strings.Repeat("a", 5000),
		"sha256:" + hex + "./../../../uploads/" + state.ID, "sha256:../../.." + hex, "sha256:" + hex, "sha256:" + hex + ".",
	} {
		f.absent(storage.Key(name))
		_ = f.Delete(t.Context(), storage.Key(name)) // may call it wrong, may find nothing
		bad := state
		bad.ID = name
		if _, err := f.Resume(t.Context(), bad); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("Resume of upload %.80q = %v, want ErrNotFound", name, err)
		}
		_ = f.Discard(t.Context(), name)
	}
	f.lists([]storage.Key{key}, []string{state.ID})
}

func testStoreReadFrom(t *testing.T, f *storeFixture) {
	data := text(1 << 20)
	cut := errors.New("connection reset")
	for _, fail := range []error{nil, cut, io.ErrUnexpectedEOF} {
		up := f.create(digest.SHA256, "")
		r := io.Reader(strings.NewReader(data))
		if fail != nil {
			r = io.MultiReader(r, failing{fail})
		}
		n, err := io.Copy(up, r)
		if n != int64(len(data)) || up.Size() != n || !errors.Is(err, fail) {
			t.Errorf("Copy from a reader that ends with %v = %d, %v; Size %d", fail, n, err, up.Size())
		}
		f.holds(f.commit(up, digest.FromString(data)), data)
	}
}

type failing struct{ err error }

func (r failing) Read([]byte) (int, error) { return 0, r.err }

func testStoreConcurrent(t *testing.T, f *storeFixture) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				data := bytes.Repeat([]byte{byte(i), byte(j)}, 50_000)
				up, err := f.Create(t.Context(), digest.SHA256)
				if err != nil {
					t.Error(err)
					return
				}
				_, werr := up.Write(data)
				key, err := up.Seal(t.Context(), digest.FromBytes(data))
				if err := errors.Join(werr, err, up.Commit(t.Context())); err != nil {
					t.Error(err)
					return
				}
				b, err := f.Open(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(b)
				if !bytes.Equal(got, data) || err != nil {
					t.Errorf("%s holds %d other bytes, %v", key, len(got), err)
				}
				if err := errors.Join(b.Close(), f.Delete(t.Context(), key)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	f.lists(nil, nil)
}
