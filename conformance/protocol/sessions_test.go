package protocol_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// B, GET session: how far it is.
func TestGetSession(t *testing.T) {
	r := newRepo(t)
	session := r.begin()
	r.get(session).want(http.StatusNoContent, "Location: "+session, "Range: 0-0")
	r.do(http.MethodPatch, session, text("1")).want(http.StatusAccepted, "Range: 0-0")
	r.get(session).want(http.StatusNoContent, "Location: "+session, "Range: 0-0")
	r.do(http.MethodPatch, session, text("23")).want(http.StatusAccepted, "Range: 0-2")
	r.get(session).want(http.StatusNoContent, "Location: "+session, "Range: 0-2")
	r.get("blobs/uploads/unknown").wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
}

// B: a session is of its repository.
func TestSessionOfAnotherRepository(t *testing.T) {
	r := newRepo(t)
	a := r.do(http.MethodPost, "blobs/uploads/", nil).want(http.StatusAccepted)
	other := r.called(r.name + "/other")
	path := "blobs/uploads/" + a.header.Get("Docker-Upload-UUID")
	for _, fresh := range []bool{true, false} {
		other.get(path).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		other.do(http.MethodPatch, path, text("content")).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		other.do(http.MethodPut, with(path, "digest", sha("content")), text("content")).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		other.delete(path).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		if fresh {
			r.do(http.MethodPatch, path, text("content")).want(http.StatusAccepted)
		}
	}
	r.do(http.MethodPut, with(path, "digest", sha("content")), nil).want(http.StatusCreated)
}

// B, DELETE session (F: end-14): it is gone, with its bytes or without.
func TestDeleteSession(t *testing.T) {
	for name, content := range sizes() {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			session := r.begin()
			if content != "" {
				r.do(http.MethodPatch, session, text(content)).want(http.StatusAccepted)
			}
			r.delete(session).want(http.StatusNoContent)
			r.get(session).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
			r.do(http.MethodPatch, session, text("more")).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
			r.do(http.MethodPut, with(session, "digest", sha(content)), nil).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
			r.delete(session).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
			r.head("blobs/" + sha(content)).want(http.StatusNotFound)
		})
	}
}

// broken are bodies that begin with 345 and do not end well.
var broken = map[string]string{
	"bad chunk":       "Transfer-Encoding: chunked\r\n\r\n3\r\n345\r\nzz\r\n",
	"ends in a chunk": "Transfer-Encoding: chunked\r\n\r\n9\r\n345",
	"ends too early":  "Content-Length: 9\r\n\r\n345",
}

// sendBroken sends a request with such a body, sends no more, and returns the
// status of the answer.
func (r repo) sendBroken(method, path, body string) int {
	r.t.Helper()
	var d net.Dialer
	c, err := d.DialContext(r.t.Context(), "tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, method+" "+path+" HTTP/1.1\r\nHost: berth\r\n"+body); err != nil {
		r.t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// B: a body that is not well-formed, or whose client goes away, is the client's
// failure; what came before it stays, and the upload goes on.
func TestBrokenBody(t *testing.T) {
	for name, body := range broken {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			session := r.begin()
			r.do(http.MethodPatch, session, text("012")).want(http.StatusAccepted)
			if status := r.sendBroken(http.MethodPatch, session, body); status != http.StatusBadRequest {
				t.Errorf("PATCH with %s = %d, want 400", name, status)
			}
			r.get(session).want(http.StatusNoContent, "Range: 0-5")
			// A PUT takes all of its body or nothing.
			if status := r.sendBroken(http.MethodPut, with(session, "digest", sha("012345345")), body); status != http.StatusBadRequest {
				t.Errorf("PUT with %s = %d, want 400", name, status)
			}
			r.head("blobs/" + sha("012345345")).want(http.StatusNotFound)
			r.get(session).want(http.StatusNoContent, "Range: 0-5")
			r.do(http.MethodPut, with(session, "digest", sha("0123456789")), text("6789"), "Content-Range: 6-9").want(http.StatusCreated)
			// One request that was to do all leaves nothing.
			for method, path := range map[string]string{http.MethodPost: with("blobs/uploads/", "digest", sha("345")), http.MethodPut: "manifests/v1"} {
				if status := r.sendBroken(method, "/v2/"+r.name+"/"+path, body); status != http.StatusBadRequest {
					t.Errorf("%s %s with %s = %d, want 400", method, path, name, status)
				}
			}
			r.head("blobs/" + sha("345")).want(http.StatusNotFound)
			r.head("manifests/v1").want(http.StatusNotFound)
		})
	}
}

// B: a session that nobody goes on with ends, with and without bytes; and its
// bytes are gone.
func TestSessionExpires(t *testing.T) {
	config := filepath.Join(t.TempDir(), "berth.yaml")
	if err := os.WriteFile(config, []byte("upload_expiry: 500ms\ncollect:\n  interval: 50ms\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := repoIn(t, own(t, "--config", config))
	fresh, stored := r.begin(), r.begin()
	content := large("expires")
	r.do(http.MethodPatch, stored, text(content)).want(http.StatusAccepted)
	for _, session := range []string{fresh, stored} {
		eventually(t, "session "+session+" is unknown", func() bool { return r.get(session).status == http.StatusNotFound })
		r.get(session).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		r.do(http.MethodPatch, session, text(content)).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		r.do(http.MethodPut, with(session, "digest", sha(content)), nil).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		r.delete(session).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	}
	if got := r.registry.holding(t, content); len(got) > 0 {
		t.Errorf("of the session there is still %q", got)
	}
}

// atOnce does something many times at once and returns the statuses.
func atOnce(t *testing.T, n int, do func(i int) (answer, error)) map[int]int {
	t.Helper()
	var mu sync.Mutex
	statuses := map[int]int{}
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			a, err := do(i)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			statuses[a.status]++
		})
	}
	all.Wait()
	return statuses
}

// B: uploads of one digest at once all succeed.
func TestConcurrentUploads(t *testing.T) {
	for name, content := range map[string]string{"small": "at once", "large": large("at once")} {
		t.Run(name, func(t *testing.T) {
			r := repoIn(t, own(t))
			d := sha(content)
			sessions := make([]string, 16)
			for i := range sessions {
				sessions[i] = r.begin()
				if i%2 == 0 {
					r.do(http.MethodPatch, sessions[i], text(content)).want(http.StatusAccepted)
				}
			}
			if got := atOnce(t, len(sessions), func(i int) (answer, error) {
				body := content
				if i%2 == 0 {
					body = ""
				}
				return r.try(http.MethodPut, with(sessions[i], "digest", d), text(body))
			}); got[http.StatusCreated] != len(sessions) {
				t.Errorf("%d uploads at once have statuses %v, want only 201", len(sessions), got)
			}
			if got := r.get("blobs/" + d).want(http.StatusOK).body; string(got) != content {
				t.Errorf("the blob has %d bytes, want %d", len(got), len(content))
			}
			for _, session := range sessions {
				r.get(session).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
			}
			// The first one's bytes stay, and the others' are dropped.
			if got := r.registry.holding(t, content); name == "large" && len(got) != 1 {
				t.Errorf("after %d uploads at once the bytes are in %q, want one file", len(sessions), got)
			}
		})
	}
}

// B: of chunks that go to the same place at once, one gets there and the others
// get 416.
func TestConcurrentPatches(t *testing.T) {
	r := newRepo(t)
	content := large("one of them")
	session := r.begin()
	const n = 8
	if got := atOnce(t, n, func(int) (answer, error) {
		a, err := r.try(http.MethodPatch, session, streamed(content), "Content-Range: 0-"+lastOf(content))
		if got := a.header.Get("Range"); got != "0-"+lastOf(content) || a.header.Get("Location") != session {
			t.Errorf("%d, Range %q, Location %q: does not tell where the upload %s is", a.status, got, a.header.Get("Location"), session)
		}
		return a, err
	}); got[http.StatusAccepted] != 1 || got[http.StatusRequestedRangeNotSatisfiable] != n-1 {
		t.Errorf("%d chunks for one place have statuses %v, want one 202 and the others 416", n, got)
	}
	r.get(session).want(http.StatusNoContent, "Range: 0-"+lastOf(content))
	r.do(http.MethodPut, with(session, "digest", sha(content)), nil).want(http.StatusCreated)
}

// B: of requests that end a session at once, one does.
func TestConcurrentPuts(t *testing.T) {
	r := newRepo(t)
	session := r.begin()
	const n = 8
	got := atOnce(t, n, func(int) (answer, error) {
		return r.try(http.MethodPut, with(session, "digest", sha("content")), text("content"))
	})
	if got[http.StatusCreated] != 1 || got[http.StatusNotFound]+got[http.StatusRequestedRangeNotSatisfiable] != n-1 {
		t.Errorf("%d ends of one session have statuses %v, want one 201 and the others 404 or 416", n, got)
	}
	r.get(session).wantError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
}

// B: what was acknowledged of an upload outlives the registry's process, and the
// upload goes on without reading it again.
func TestSessionSurvivesKill(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	first, err := serve(data)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.end(syscall.SIGKILL) }() // if the test ends before it
	content := map[string]string{}
	r := repoIn(t, first)
	for _, c := range []string{"hello, berth", large("survives")} {
		session := r.begin()
		r.do(http.MethodPatch, session, streamed(c)).want(http.StatusAccepted)
		content[session] = c
	}
	if err := first.end(syscall.SIGKILL); err == nil {
		t.Fatal("the registry ended well, but was killed")
	}
	second, err := serve(data)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := second.stop(); err != nil {
			t.Error(err)
		}
	}()
	r.registry, r.url = second, second.url
	for session, c := range content {
		r.get(session).want(http.StatusNoContent, "Range: 0-"+lastOf(c))
		r.do(http.MethodPatch, session, text(" and more"), "Content-Range: "+span(len(c), 9)).want(http.StatusAccepted)
		before := second.bytesRead(t)
		r.do(http.MethodPut, with(session, "digest", sha(c+" and more")), nil).want(http.StatusCreated)
		if n := second.bytesRead(t) - before; n > 100_000 {
			t.Errorf("to commit %d bytes, most of them hashed before the crash, the registry read %d", len(c)+9, n)
		}
		if got := r.get("blobs/" + sha(c+" and more")).want(http.StatusOK).body; string(got) != c+" and more" {
			t.Errorf("the blob has %d bytes, want %d", len(got), len(c)+9)
		}
	}
}
