package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/oci"
	"berth.internal/storage"
)

// maxFresh is how many uploads may be begun and have no byte yet. They are in
// memory only, so that a POST costs no synced write, and must not fill it.
const maxFresh = 100_000

// uploads knows the sessions that have no row in the Index yet, and lets one
// request at a time work on a session.
type uploads struct {
	mu     sync.Mutex
	slots  map[string]*slot
	fresh  []*slot // oldest first
	expiry time.Duration
}

// slot is a session that is fresh or in use.
type slot struct {
	busy  chan struct{} // holds one element while a request works on it
	users int           // requests that work on it or wait
	fresh bool          // has no row
	begun time.Time
	size  int64 // as the last request left it; -1 until one has
	sess  storage.Session
}

func newUploads(expiry time.Duration) *uploads {
	return &uploads{slots: map[string]*slot{}, expiry: expiry}
}

// begin makes a session that exists in memory only.
func (u *uploads) begin(repo, owner string, alg digest.Algorithm) (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.expire(time.Now())
	if len(u.fresh) >= maxFresh {
		return "", oci.TooManyRequests.With("too many uploads were begun and not gone on with", nil)
	}
	id := rand.Text()
	s := &slot{busy: make(chan struct{}, 1), fresh: true, begun: time.Now(), sess: storage.Session{ID: id, Repo: repo, Owner: owner}}
	s.sess.State.Algorithm = alg
	u.slots[id] = s
	u.fresh = append(u.fresh, s)
	return id, nil
}

// expire drops fresh sessions that nobody went on with, and takes those that
// are no longer fresh off the list.
func (u *uploads) expire(now time.Time) {
	for len(u.fresh) > 0 {
		s := u.fresh[0]
		if s.fresh && (s.users > 0 || now.Sub(s.begun) < u.expiry) {
			return
		}
		if s.fresh {
			delete(u.slots, s.sess.ID)
		}
		u.fresh = u.fresh[1:]
	}
}

// stored says that the session has a row now.
func (u *uploads) stored(sess storage.Session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.slots[sess.ID]; s != nil {
		s.fresh, s.size = false, sess.State.Size
	}
}

// enter waits until the session is free. moved is true if another request
// changed it meanwhile.
func (u *uploads) enter(ctx context.Context, id string) (s *slot, moved bool, err error) {
	u.mu.Lock()
	s = u.slots[id]
	if s == nil {
		s = &slot{busy: make(chan struct{}, 1), size: -1, sess: storage.Session{ID: id}}
		u.slots[id] = s
	}
	s.users++
	waits, before := s.users > 1, s.size
	u.mu.Unlock()
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		u.leave(s, false)
		return nil, false, ctx.Err()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return s, waits && s.size != before, nil
}

// leave forgets a session that has a row, or has ended, once nobody uses it.
func (u *uploads) leave(s *slot, ended bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s.users--
	if ended {
		s.fresh = false
	}
	if !s.fresh && s.users == 0 {
		delete(u.slots, s.sess.ID)
	}
}

// session returns the session that the path names, if it is the caller's.
func (h *Handler) session(r *http.Request, t target) (storage.Session, error) {
	h.uploads.mu.Lock()
	slot := h.uploads.slots[t.ref]
	var s storage.Session
	// In use it does not expire, as one with a row does not.
	fresh := slot != nil && slot.fresh && (slot.users > 0 || time.Since(slot.begun) < h.uploads.expiry)
	if fresh {
		s = slot.sess
	}
	h.uploads.mu.Unlock()
	if !fresh {
		var err error
		if s, err = h.Index.Session(r.Context(), t.ref); errors.Is(err, storage.ErrNotFound) {
			return s, oci.BlobUploadUnknown.Because(err)
		} else if err != nil {
			return s, err
		}
	}
	if s.Repo != t.name || s.Owner != h.Owner(r) {
		return s, oci.BlobUploadUnknown
	}
	return s, nil
}

// take gives the caller the session to itself. A request that waited for
// another one to change the session is refused with 416 and told how far the
// upload is. release must be called; its argument says that the session ended.
func (h *Handler) take(w http.ResponseWriter, r *http.Request, t target) (storage.Session, func(ended bool), error) {
	if _, err := h.session(r, t); err != nil {
		return storage.Session{}, nil, err
	}
	slot, moved, err := h.uploads.enter(r.Context(), t.ref)
	if err != nil {
		return storage.Session{}, nil, err
	}
	release := func(ended bool) {
		h.uploads.leave(slot, ended) // first, so that the next one does not find a session that has ended
		<-slot.busy
	}
	s, err := h.session(r, t) // again: another request may have ended it
	if err == nil && moved {
		locate(w, t.name, t.ref, s.State.Size)
		err = oci.BlobUploadInvalid.With("another request has gone on with this upload", nil).At(http.StatusRequestedRangeNotSatisfiable)
	}
	if err == nil {
		err = h.refresh(r, s)
	}
	if err != nil {
		release(false)
		return s, nil, err
	}
	return s, release, nil
}

// refresh keeps a session from expiring while the caller works on it: it is
// written again if more than half of its time is over. Errors:
// BLOB_UPLOAD_UNKNOWN.
func (h *Handler) refresh(r *http.Request, s storage.Session) error {
	if s.State.ID == "" {
		return nil
	}
	now, err := h.Index.Now(r.Context())
	if err != nil || now.Sub(s.Updated) < h.UploadExpiry/2 {
		return err
	}
	return h.touch(r, s)
}

func (h *Handler) touch(r *http.Request, s storage.Session) error {
	err := h.Index.PutSession(durable(r), s)
	if errors.Is(err, storage.ErrNotFound) {
		return oci.BlobUploadUnknown.Because(err)
	}
	return err
}

// arrival is the body of a request that goes on with a session. While bytes
// come, the session does not expire.
type arrival struct {
	io.Reader
	touch func() error
	every time.Duration
	last  time.Time // touched
}

// arriving returns the body of r, which goes on with s if that has a row.
func (h *Handler) arriving(r *http.Request, s storage.Session) io.Reader {
	if s.State.ID == "" {
		return body{r.Body} // in use it does not expire
	}
	return &arrival{Reader: body{r.Body}, touch: func() error { return h.touch(r, s) }, every: h.UploadExpiry / 4, last: time.Now()}
}

func (a *arrival) Read(p []byte) (int, error) {
	n, err := a.Reader.Read(p)
	if now := time.Now(); err == nil && now.Sub(a.last) > a.every {
		a.last = now
		err = a.touch()
	}
	return n, err
}

// openUpload returns the session's upload, which is created with its first
// byte.
func (h *Handler) openUpload(ctx context.Context, s storage.Session) (storage.Upload, error) {
	if s.State.ID == "" {
		return h.Store.Create(ctx, s.State.Algorithm)
	}
	up, err := h.Store.Resume(ctx, s.State)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, errors.Join(oci.BlobUploadUnknown.Because(err), h.Index.EndSession(ctx, s.ID))
	}
	return up, err
}
