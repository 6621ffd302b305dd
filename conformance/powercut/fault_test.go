package powercut

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// writes are the operations that a failing disk refuses.
func writes(k Kind, _ string) bool { return k != Read }

// flavour is how a disk fails.
type flavour struct {
	errno   syscall.Errno
	happens bool // reported to have failed, but done
	forever bool // from then on; else once
	restart bool // the registry is started again before the client tries again
}

func (f flavour) String() string {
	return fmt.Sprintf("%s happens=%v forever=%v restart=%v", unix.ErrnoName(f.errno), f.happens, f.forever, f.restart)
}

func flavours() (list []flavour) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for n := range 8 {
			list = append(list, flavour{errno, n&1 != 0, n&2 != 0, n&4 != 0})
		}
	}
	return list
}

// base is a disk with an image on it, and the ledger of that.
func base(t *testing.T) (*Tree, *ledger) {
	t.Helper()
	rec := record(t, built(), func(c client) {
		if err := c.tagged("base"); err != nil {
			t.Fatal(err)
		}
	})
	return rec.disk.Disk(rec.disk.Now(), 1, nil), rec.ledger
}

// since returns a ledger that goes on from l on another file system.
func (l *ledger) since(now func() Moment) *ledger {
	next := newLedger(now)
	for path, states := range l.paths {
		next.paths[path] = []*state{{body: states[len(states)-1].body}}
	}
	return next
}

// pulls reads all that the ledger says was acknowledged before the disk failed.
func (l *ledger) pulls(url string) error {
	c := client{newLedger(l.now), url}
	for path, states := range l.paths {
		if a, err := c.do("GET", path, nil, 200); err != nil {
			return err
		} else if string(a.body) != states[len(states)-1].body {
			return fmt.Errorf("GET %s: other bytes", path)
		}
	}
	return nil
}

// honest checks that the client was told of a failure in the way it should be.
func honest(err error, errno syscall.Errno) error {
	var f failure
	if err == nil {
		return nil
	}
	if !errors.As(err, &f) {
		return err // no answer
	}
	type reason struct{ Code, Message string }
	var body struct { // of the registry's API, and of the control API
		Errors []reason
		Error  reason
	}
	if err := json.Unmarshal(f.body, &body); err != nil {
		return fmt.Errorf("%w: not an error of the protocol", f)
	}
	why := append(body.Errors, body.Error)[0]
	if f.status/100 != 5 || (f.status == 507) != (errno == syscall.ENOSPC) || why.Code == "" || !strings.Contains(why.Message, "disk") {
		return fmt.Errorf("%w: not the right reason", f)
	}
	return nil
}

// operations returns what a way does to the disk.
func operations(t *testing.T, from *Tree, w way) (list []string) {
	t.Helper()
	f, dir := mount(t, from)
	r := running(t, built(), filepath.Join(dir, "data"), collects)
	c := client{newLedger(f.Now), r.url}
	ok(t, w.prepare(c, "id"))
	var mu sync.Mutex
	f.Break(&Fault{Hits: func(k Kind, path string) bool {
		mu.Lock()
		defer mu.Unlock()
		if k != Read {
			list = append(list, k.String()+" "+filepath.Base(filepath.Dir(path))+"/"+filepath.Base(path))
		}
		return false
	}})
	ok(t, w.run(c, "id"))
	f.Break(nil)
	ok(t, r.kill())
	return list
}

// faulty lets the n-th operation of a way fail and returns what is wrong then.
func faulty(t *testing.T, from *Tree, old *ledger, w way, n int, fl flavour) error {
	dir := t.TempDir()
	f, err := Mount(dir, from)
	if err != nil {
		return err
	}
	defer f.Unmount()
	r, err := start(built(), filepath.Join(dir, "data"), collects)
	if err != nil {
		return err
	}
	defer func() { _ = r.kill() }()
	l := old.since(f.Now)
	c := client{l, r.url}
	if err := w.prepare(c, "id"); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	fault := &Fault{Hits: writes, After: n, Times: 1, Errno: fl.errno, Happens: fl.happens}
	if fl.forever {
		fault.Times = 0
	}
	f.Break(fault)
	failed := w.run(c, "id")
	if err := honest(failed, fl.errno); err != nil {
		return err
	}
	if err := old.pulls(r.url); err != nil {
		return fmt.Errorf("while the disk fails: %w", err)
	}
	if seen := f.Break(nil); seen <= n {
		return fmt.Errorf("only %d operations, want to fail the one after %d", seen, n)
	}
	if fl.restart { // on what the kernel has in memory, which may be more than the disk has
		if err := r.kill(); err != nil {
			return err
		}
		if r, err = start(built(), filepath.Join(dir, "data"), collects); err != nil {
			return fmt.Errorf("again: %w", err)
		}
		c.url = r.url
	}
	if failed != nil { // the client tries again
		err := w.run(c, "id")
		if f, ok := errors.AsType[failure](err); ok && f.status == 404 && strings.HasPrefix(f.request, "DELETE") {
			err = nil // the first time it was done
		}
		if err != nil {
			return fmt.Errorf("again, after %w: %w", failed, err)
		}
	}
	if err := r.kill(); err != nil {
		return err
	}
	if err := (recording{f, l}).cut(t.TempDir(), built(), f.Now(), 0, nil); err != nil {
		return fmt.Errorf("after a power cut: %w", err)
	}
	return nil
}

// TestFaultyDisk lets each operation of each way to change a registry fail.
func TestFaultyDisk(t *testing.T) {
	from, old := base(t)
	turn := 0
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			ops := operations(t, from, w)
			type failing struct {
				n  int
				as flavour
			}
			var list []failing
			for n, op := range ops {
				between := n > 0 && n+1 < len(ops) && op == ops[n-1] && op == ops[n+1]
				for i, fl := range flavours() {
					if effort(t) == 1 && (between || turn%2 != 0 || i != turn/2%16) {
						continue // every other operation, in a way of its own
					}
					list = append(list, failing{n, fl})
				}
				turn += 5
			}
			each(t, len(list), func(i int) error {
				if err := faulty(t, from, old, w, list[i].n, list[i].as); err != nil {
					return fmt.Errorf("%d %s, %s: %w", list[i].n, ops[list[i].n], list[i].as, err)
				}
				return nil
			})
		})
	}
}

// TestIndexWaitsForItsDisk fails what comes last in a commit of the index. Then
// nobody knows what the disk holds: changes are refused, pulls go on, and when
// the disk works again, so does the registry.
func TestIndexWaitsForItsDisk(t *testing.T) {
	from, old := base(t)
	f, dir := mount(t, from)
	r := running(t, built(), filepath.Join(dir, "data"))
	c := client{old.since(f.Now), r.url}
	f.Break(&Fault{Hits: func(k Kind, path string) bool { return k == Sync && path == "data/registry/index.db" }, After: 1, Errno: syscall.EIO})
	for _, id := range []string{"unknown", "refused"} {
		err := c.post("team/"+id, config(id))
		if err == nil {
			t.Errorf("push %s succeeds on a disk that fails", id)
		}
		ok(t, honest(err, syscall.EIO))
	}
	a, err := c.do("GET", "/readyz", nil, 503)
	ok(t, err)
	if !strings.Contains(string(a.body), "takes no changes") {
		t.Errorf("GET /readyz = %s, want the reason", a.body)
	}
	ok(t, old.pulls(r.url))
	f.Break(nil)
	ok(t, c.post("team/again", layer("again")))
	_, err = c.do("GET", "/readyz", nil, 200)
	ok(t, err)
	ok(t, r.kill())
	ok(t, recording{f, c.ledger}.cut(memory(t), built(), f.Now(), 0, nil))
}

// TestUnreadableBlob fails to read a blob in the middle. The client must not
// take what it got for all, and the log names the blob.
func TestUnreadableBlob(t *testing.T) {
	b := content("unreadable", 4<<20)
	rec := record(t, built(), func(c client) { ok(t, c.post("team/a", b)) })
	f, dir := mount(t, rec.disk.Disk(rec.disk.Now(), 1, nil)) // whose files no kernel has in memory
	r := running(t, built(), filepath.Join(dir, "data"))
	f.Break(&Fault{Hits: func(k Kind, path string) bool { return k == Read && strings.HasPrefix(path, "data/registry/blobs/") }, After: 8, Errno: syscall.EIO})
	a, err := client{newLedger(f.Now), r.url}.ask("GET", blobPath("team/a", b), nil)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(a.body) == 0 {
		t.Errorf("GET of a blob that cannot be read to its end = %d with %d bytes, %v; want a part and a broken connection", a.status, len(a.body), err)
	}
	f.Break(nil)
	a, err = client{newLedger(f.Now), r.url}.ask("GET", blobPath("team/a", b), nil)
	if err != nil || string(a.body) != string(b) {
		t.Errorf("GET when it can be read again: %d with %d bytes, %v", a.status, len(a.body), err)
	}
	ok(t, r.kill())
	var lines []string
	for line := range strings.Lines(r.said()) {
		if strings.Contains(line, "level=ERROR") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 || !strings.Contains(lines[0], digest(b)+": ") || !strings.Contains(lines[0], "input/output error") {
		t.Errorf("the log says %q, want one line that names the blob and the reason", lines)
	}
}

// TestFaultyStart lets each operation of a start fail, on an empty disk and on
// one with an image. The registry starts all the same, or says why not; after
// that it starts, and has what it had.
func TestFaultyStart(t *testing.T) {
	full, old := base(t)
	list := slices.DeleteFunc(flavours(), func(fl flavour) bool { return fl.restart })
	for name, from := range map[string]*Tree{"first": nil, "again": full} {
		t.Run(name, func(t *testing.T) {
			l := old
			if from == nil {
				l = newLedger(func() Moment { return 0 })
			}
			for n := 0; ; n++ {
				seen := 0
				for i, fl := range list {
					if effort(t) == 1 && i != n%len(list) {
						continue
					}
					var err error
					if seen, err = faultyStart(t, from, l, n, fl); err != nil {
						t.Errorf("%d, %s: %v", n, fl, err)
					}
				}
				if seen <= n {
					break
				}
			}
		})
	}
}

// faultyStart lets the n-th operation of a start fail, and returns how many there
// were.
func faultyStart(t *testing.T, from *Tree, old *ledger, n int, fl flavour) (seen int, err error) {
	dir := t.TempDir()
	f, err := Mount(dir, from)
	if err != nil {
		return 0, err
	}
	defer f.Unmount()
	data := filepath.Join(dir, "data")
	fault := &Fault{Hits: writes, After: n, Times: 1, Errno: fl.errno, Happens: fl.happens}
	if fl.forever {
		fault.Times = 0
	}
	f.Break(fault)
	r, failed := start(built(), data)
	if failed == nil {
		err = old.pulls(r.url)
		_ = r.kill()
	} else if said := failed.Error(); strings.Contains(said, "goroutine") || !strings.Contains(said, "berth: ") || !strings.Contains(said, fl.errno.Error()) {
		err = fmt.Errorf("not a reason to end: %w", failed)
	}
	seen = f.Break(nil)
	if err != nil {
		return seen, err
	}
	if r, err = start(built(), data); err != nil {
		return seen, fmt.Errorf("again: %w", err)
	}
	defer func() { _ = r.kill() }()
	return seen, old.since(f.Now).check(r, data, f.Now())
}
