package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/storage"
	"berth.internal/storage/care"
)

// small is a store on a disk that has little room left.
type small struct {
	storage.Store
	room int64 // bytes of one upload
}

func (s small) Create(ctx context.Context, alg digest.Algorithm) (storage.Upload, error) {
	up, err := s.Store.Create(ctx, alg)
	return smallUpload{up, s.room}, err
}

type smallUpload struct {
	storage.Upload
	room int64
}

func (u smallUpload) Write(p []byte) (int, error) {
	fits := min(int64(len(p)), u.room-u.Size())
	n, err := u.Upload.Write(p[:fits])
	if err == nil && n < len(p) {
		err = storage.Medium(syscall.ENOSPC)
	}
	return n, err
}

// TestDiskFillsUp lets the disk get full in the middle of each way to push.
// Nothing is named, and a session goes on when there is room again.
func TestDiskFillsUp(t *testing.T) {
	content := strings.Repeat("x", storage.InlineMax+2)
	d := digest.FromString(content).String()
	for _, tc := range []struct {
		name, method, query string
		resumes             bool
	}{
		{"POST", "POST", "?digest=" + d, false},
		{"PATCH", "PATCH", "", true},
		{"PUT", "PUT", "?digest=" + d, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHandler(t)
			store := h.Store
			h.Store = small{store, storage.InlineMax + 1}
			to := "/v2/a/blobs/uploads/"
			if tc.resumes {
				to = must(t, h, "POST", to, "", 202).Header().Get("Location")
			}
			w := must(t, h, tc.method, to+tc.query, content, 507)
			if code(t, w) != "UNKNOWN" || !strings.Contains(w.Body.String(), "disk is full") {
				t.Errorf("%s on a full disk = %s, want the reason", tc.method, w.Body)
			}
			must(t, h, "HEAD", "/v2/a/blobs/"+d, "", 404)
			for key, err := range store.Keys(t.Context()) {
				t.Errorf("the store holds %s (%v)", key, err)
			}
			if !tc.resumes {
				for id, err := range store.Uploads(t.Context()) {
					t.Errorf("upload %s stays behind (%v)", id, err)
				}
				return
			}
			h.Store = store
			held := 0
			if tc.name == "PATCH" { // what fitted is kept
				held = storage.InlineMax + 1
			}
			must(t, h, "PUT", to+"?digest="+d, content[held:], 201)
			must(t, h, "HEAD", "/v2/a/blobs/"+d, "", 200)
		})
	}
}

// TestManifestOnFullDisk pushes a manifest that is too large for the index.
func TestManifestOnFullDisk(t *testing.T) {
	h := newHandler(t)
	m := image(t, h, "a", `,"annotations":{"filler":"`+strings.Repeat("x", storage.InlineMax)+`"}`)
	store := h.Store
	h.Store = small{store, 1000}
	must(t, h, "PUT", "/v2/a/manifests/1", m, 507)
	must(t, h, "GET", "/v2/a/manifests/1", "", 404)
	must(t, h, "GET", "/v2/a/manifests/"+digest.FromString(m).String(), "", 404)
	h.Store = store
	must(t, h, "PUT", "/v2/a/manifests/1", m, 201)
}

// sick is a store that opens bytes in some other way.
type sick struct {
	storage.Store
	open func(storage.Blob) (storage.Blob, error)
}

func (s *sick) Open(ctx context.Context, key storage.Key) (storage.Blob, error) {
	b, err := s.Store.Open(ctx, key)
	if err == nil && s.open != nil {
		return s.open(b)
	}
	return b, err
}

// sized is a blob of another size.
type sized struct {
	storage.Blob
	size int64
}

func (s sized) Size() int64 { return s.size }

// TestDamagedBytes asks for what the index names and the store does not have, or
// not as it was: that is quarantined by the first who asks, and healed by the
// first who pushes it again. What failed once, or for another reason, is not.
func TestDamagedBytes(t *testing.T) {
	large := strings.Repeat("x", storage.InlineMax+1)
	type open func(storage.Blob) (storage.Blob, error)
	once := func(err, then error) func() open { // fails with err, then with then
		return func() open {
			next := err
			return func(b storage.Blob) (storage.Blob, error) {
				err := next
				if next = then; err == nil {
					return b, nil
				}
				return nil, errors.Join(b.Close(), err)
			}
		}
	}
	fail := func(err error) func() open { return once(err, err) }
	cut := func() open { return func(b storage.Blob) (storage.Blob, error) { return sized{b, 7}, nil } }
	for _, tc := range []struct {
		name   string
		open   func() open
		status int
		why    string
	}{
		{"missing", fail(storage.ErrNotFound), 404, "its bytes are missing in the store"},
		{"missing once", once(storage.ErrNotFound, nil), 200, ""},
		{"cut", cut, 404, "the store has 7 bytes of 65"},
		{"unreadable", fail(storage.Medium(syscall.EIO)), 500, "failed to read this"},
		{"too many files", fail(syscall.EMFILE), 500, ""},
		{"unreadable just then", once(storage.ErrNotFound, syscall.EIO), 500, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, method := range []string{"GET", "HEAD"} {
				h := newHandler(t)
				store := &sick{Store: h.Store}
				scrub := care.NewScrub(storage.Drivers{Store: store, Index: h.Index}, care.ScrubConfig{}, slog.New(slog.DiscardHandler))
				h.Store, h.Suspect = store, scrub.Suspect
				m := image(t, h, "a", `,"annotations":{"filler":"`+large+`"}`)
				must(t, h, "PUT", "/v2/a/manifests/1", m, 201)
				blob := "/v2/a/blobs/" + pushBlob(t, h, "a", large).String()
				for _, path := range []string{blob, "/v2/a/manifests/1"} {
					store.open = tc.open()
					w := must(t, h, method, path, "", tc.status)
					quarantined, err := h.Index.(storage.Care).Quarantined(t.Context(), "", 10)
					if err != nil || (len(quarantined) > 0) != (tc.status == 404) {
						t.Errorf("quarantined after %s %s: %+v, %v", method, path, quarantined, err)
					}
					if tc.status != 200 && (!strings.Contains(w.Body.String(), tc.why) || strings.Contains(w.Body.String(), "push it again") != (tc.status == 404)) {
						t.Errorf("%s %s = %s, want %q", method, path, w.Body, tc.why)
					}
					if tag := w.Header().Get("Etag"); tc.status != 200 && tag != "" {
						t.Errorf("an error has the entity tag %s", tag)
					}
					store.open = nil
					if tc.status == 404 { // also when the disk is well again: only the scrub, or a push, can tell
						must(t, h, "HEAD", path, "", 404)
						must(t, h, "GET", path, "", 404)
					}
					pushBlob(t, h, "a", large)
					must(t, h, "PUT", "/v2/a/manifests/1", m, 201)
					must(t, h, "GET", path, "", 200)
				}
			}
		})
	}
}

// TestDamagedBytesUnnoted loses bytes while the index takes no changes.
func TestDamagedBytesUnnoted(t *testing.T) {
	h := newHandler(t)
	d := pushBlob(t, h, "a", strings.Repeat("x", storage.InlineMax+1)).String()
	for key := range h.Store.Keys(t.Context()) {
		if err := h.Store.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	h.Index = readOnly{h.Index}
	h.Suspect = care.NewScrub(storage.Drivers{Store: h.Store, Index: h.Index}, care.ScrubConfig{}, slog.New(slog.DiscardHandler)).Suspect
	for _, method := range []string{"GET", "HEAD"} {
		if w := must(t, h, method, "/v2/a/blobs/"+d, "", 404); !strings.Contains(w.Body.String(), "its bytes are missing") {
			t.Errorf("%s = %s, want the reason", method, w.Body)
		}
	}
}

// collecting is a store in which the collector comes between a look at the index
// and the opening of the bytes.
type collecting struct {
	storage.Store
	before func(key storage.Key) // runs once
}

func (s *collecting) Open(ctx context.Context, key storage.Key) (storage.Blob, error) {
	if before := s.before; before != nil {
		s.before = nil
		before(key)
	}
	return s.Store.Open(ctx, key)
}

// TestCollectedMeanwhile reads what is deleted and collected after the index
// was asked where it is, and perhaps pushed again.
func TestCollectedMeanwhile(t *testing.T) {
	large := strings.Repeat("x", storage.InlineMax+1)
	blob := "/v2/a/blobs/" + digest.FromString(large).String()
	push := "/v2/a/blobs/uploads/?digest=" + digest.FromString(large).String()
	for name, status := range map[string]int{"deleted": 404, "pushed again": 200} {
		t.Run("blob "+name, func(t *testing.T) {
			h := newHandler(t)
			must(t, h, "POST", push, large, 201)
			h.Store = &collecting{h.Store, func(key storage.Key) {
				must(t, h, "DELETE", blob, "", 202)
				if err := h.Store.Delete(t.Context(), key); err != nil {
					t.Error(err)
				}
				if status == 200 {
					must(t, h, "POST", push, large, 201)
				}
			}}
			if w := must(t, h, "GET", blob, "", status); status == 200 && w.Body.String() != large {
				t.Errorf("GET answers %d other bytes", w.Body.Len())
			}
		})
		t.Run("manifest "+name, func(t *testing.T) {
			h := newHandler(t)
			m := image(t, h, "a", `,"annotations":{"filler":"`+large+`"}`)
			byDigest := "/v2/a/manifests/" + digest.FromString(m).String()
			must(t, h, "PUT", "/v2/a/manifests/1", m, 201)
			h.Store = &collecting{h.Store, func(key storage.Key) {
				must(t, h, "DELETE", byDigest, "", 202)
				if err := h.Store.Delete(t.Context(), key); err != nil {
					t.Error(err)
				}
				if status == 200 {
					must(t, h, "PUT", "/v2/a/manifests/1", m, 201)
				}
			}}
			if w := must(t, h, "GET", "/v2/a/manifests/1", "", status); status == 200 && w.Body.String() != m {
				t.Errorf("GET answers %d other bytes", w.Body.Len())
			}
		})
	}
}

// slowBody is a body whose second half comes after something else.
func slowBody(content string, meanwhile func()) io.Reader {
	half := len(content) / 2
	return io.MultiReader(strings.NewReader(content[:half]), readerFunc(func([]byte) (int, error) {
		meanwhile()
		return 0, io.EOF
	}), strings.NewReader(content[half:]))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestExpiredMeanwhile lets the collector drop an upload that a request is
// working on.
func TestExpiredMeanwhile(t *testing.T) {
	content := strings.Repeat("x", storage.InlineMax+3)
	d := digest.FromString(content).String()
	for method, query := range map[string]string{"PATCH": "", "PUT": "?digest=" + d} {
		h := newHandler(t)
		to := must(t, h, "POST", "/v2/a/blobs/uploads/", "", 202).Header().Get("Location")
		must(t, h, "PATCH", to, content[:1], 202)
		w := do(t, h, method, to+query, slowBody(content[1:], func() {
			list, err := h.Index.Expire(t.Context(), time.Now().Add(time.Hour), 10)
			if err != nil || len(list) != 1 {
				t.Fatalf("Expire = %v, %v", list, err)
			}
			if err := h.Store.Discard(t.Context(), list[0].State.ID); err != nil {
				t.Fatal(err)
			}
		}))
		if w.Code != http.StatusNotFound || code(t, w) != "BLOB_UPLOAD_UNKNOWN" {
			t.Errorf("%s of an upload that expires meanwhile = %d %s, want 404", method, w.Code, w.Body)
		}
		must(t, h, "GET", to, "", 404)
		must(t, h, "HEAD", "/v2/a/blobs/"+d, "", 404)
	}
}

// TestSlowUpload sends an upload that takes longer than one may stand still.
func TestSlowUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t) // its uploads expire after an hour
		content := strings.Repeat("x", 1000)
		collect := func() {
			time.Sleep(45 * time.Minute)
			if list, err := h.Index.Expire(t.Context(), time.Now().Add(-h.UploadExpiry), 10); err != nil || len(list) > 0 {
				t.Errorf("Expire = %v, %v, want none", list, err)
			}
		}
		slowly := func(s string) io.Reader {
			return io.MultiReader(slowBody(s[:len(s)/2], collect), slowBody(s[len(s)/2:], collect))
		}
		to := must(t, h, "POST", "/v2/a/blobs/uploads/", "", 202).Header().Get("Location")
		for _, part := range []string{content[:300], content[300:600]} {
			if w := do(t, h, "PATCH", to, slowly(part)); w.Code != http.StatusAccepted {
				t.Fatalf("PATCH = %d %s", w.Code, w.Body)
			}
			collect()
		}
		if w := do(t, h, "PUT", to+"?digest="+digest.FromString(content).String(), slowly(content[600:])); w.Code != http.StatusCreated {
			t.Errorf("PUT = %d %s", w.Code, w.Body)
		}
	})
}

// TestSessionsAreTheirOwners tries everything with the session of somebody else.
func TestSessionsAreTheirOwners(t *testing.T) {
	h := newHandler(t)
	d := digest.FromString("content").String()
	to := must(t, h, "POST", "/v2/a/blobs/uploads/", "", 202, "X-User", "ann").Header().Get("Location")
	for _, begun := range []string{"in memory", "stored"} {
		for method, path := range map[string]string{"GET": to, "PATCH": to, "PUT": to + "?digest=" + d, "DELETE": to} {
			if w := must(t, h, method, path, "content", 404, "X-User", "bob"); code(t, w) != "BLOB_UPLOAD_UNKNOWN" {
				t.Errorf("%s, %s: %s", begun, method, w.Body)
			}
		}
		if begun == "in memory" {
			must(t, h, "PATCH", to, "content", 202, "X-User", "ann")
		}
	}
	must(t, h, "PUT", to+"?digest="+d, "", 201, "X-User", "ann")
}

// TestBrokenPut ends the client in the middle of a last chunk: the session is as
// it was before it.
func TestBrokenPut(t *testing.T) {
	h := newHandler(t)
	d := digest.FromString("content").String()
	to := must(t, h, "POST", "/v2/a/blobs/uploads/", "", 202).Header().Get("Location")
	must(t, h, "PATCH", to, "con", 202)
	for range 2 {
		r := httptest.NewRequestWithContext(t.Context(), "PUT", to+"?digest="+d, io.MultiReader(strings.NewReader("te"), goneClient{}))
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusBadRequest {
			t.Errorf("the broken PUT = %d %s, want 400", w.Code, w.Body)
		}
		if held := must(t, h, "GET", to, "", 204).Header().Get("Range"); held != "0-2" {
			t.Errorf("after the broken PUT the session is at %s, want 0-2", held)
		}
	}
	must(t, h, "PUT", to+"?digest="+d, "tent", 201, "Content-Range", "3-6")
}

// TestTooManyUploads begins more uploads than are kept in memory.
func TestTooManyUploads(t *testing.T) {
	h := newHandler(t)
	h.uploads.fresh = make([]*slot, maxFresh)
	for i := range h.uploads.fresh {
		h.uploads.fresh[i] = &slot{fresh: true, begun: time.Now()}
	}
	w := must(t, h, "POST", "/v2/a/blobs/uploads/", "", 429)
	if code(t, w) != "TOOMANYREQUESTS" || w.Header().Get("Retry-After") == "" {
		t.Errorf("the answer is %s, Retry-After %q, want TOOMANYREQUESTS and when to come again", w.Body, w.Header().Get("Retry-After"))
	}
	for _, s := range h.uploads.fresh {
		s.begun = s.begun.Add(-2 * time.Hour) // newHandler's expiry is one
	}
	must(t, h, "POST", "/v2/a/blobs/uploads/", "", 202)
}

// readOnly is an index on a disk that takes no changes.
type readOnly struct{ storage.Index }

func (readOnly) Promise(context.Context, string, digest.Digest, time.Duration) (storage.Content, error) {
	return storage.Content{}, storage.Medium(syscall.EIO)
}

func (readOnly) PromiseManifest(context.Context, string, digest.Digest, time.Duration) (storage.Manifest, error) {
	return storage.Manifest{}, storage.Medium(syscall.ENOSPC)
}

func (readOnly) Quarantine(context.Context, storage.Content, string) (bool, error) {
	return false, storage.Medium(syscall.EIO)
}

// TestPullsNeedNoPromise reads where no promise can be written.
func TestPullsNeedNoPromise(t *testing.T) {
	h := newHandler(t)
	d := pushBlob(t, h, "a", "a blob").String()
	m := image(t, h, "a", "")
	must(t, h, "PUT", "/v2/a/manifests/1", m, 201)
	h.Index = readOnly{h.Index}
	must(t, h, "HEAD", "/v2/a/blobs/"+d, "", 200)
	must(t, h, "HEAD", "/v2/a/blobs/"+digest.FromString("another").String(), "", 404)
	for _, method := range []string{"HEAD", "GET"} {
		must(t, h, method, "/v2/a/manifests/"+digest.FromString(m).String(), "", 200)
		must(t, h, method, "/v2/a/manifests/"+digest.FromString("another").String(), "", 404)
	}
}
