package container

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/cgroup"
	"berth.internal/node/container/shim"
)

// OOMWatch waits for the kernel to kill processes of a container because a memory
// limit was reached.
type OOMWatch struct {
	id     string
	bundle *os.Root // also when another container has its name
	group  cgroup.Group
	count  int // of kills that were told, or came before
	n      *notifier
	w      *watch
	stop   func()
}

// WatchOOM begins to watch a container: before Start, to miss nothing. Who has the
// watch must call Wait. Errors: ErrNotFound; os.ErrClosed after Close.
func (r *Runtime) WatchOOM(id string) (*OOMWatch, error) {
	o, err := r.watchOOM(id)
	if err != nil {
		return nil, fmt.Errorf("watch memory of container %s: %w", id, err)
	}
	return o, nil
}

func (r *Runtime) watchOOM(id string) (*OOMWatch, error) {
	there, err := r.exists(id)
	if err != nil {
		return nil, err
	}
	if !there {
		return nil, ErrNotFound
	}
	n, err := r.notifications()
	if err != nil {
		return nil, err
	}
	bundle, err := os.OpenRoot(r.path(id))
	if err != nil {
		return nil, err
	}
	o := &OOMWatch{id: id, bundle: bundle, group: r.group(id), n: n, w: n.add()}
	o.count = o.group.OOMKills()
	if o.stop, err = n.memory(o.w, r.path(id), o.group); err != nil {
		n.remove(o.w)
		return nil, errors.Join(err, bundle.Close())
	}
	return o, nil
}

// Wait calls killed whenever the kernel has killed since WatchOOM, and returns when
// the container has stopped. Several kills at once may be one call. Call Wait once: at
// its end the watch is over. Errors: that of ctx; os.ErrClosed after Close.
func (o *OOMWatch) Wait(ctx context.Context, killed func()) error {
	defer o.bundle.Close()
	defer o.n.remove(o.w)
	defer o.stop()
	for {
		// Whoever looks after the end misses nothing.
		_, exit := o.bundle.Lstat(shim.ExitFile)
		kills := o.group.OOMKills()
		if _, err := o.bundle.Lstat(bundleFile); errors.Is(err, fs.ErrNotExist) {
			return nil // it was deleted; the cgroup may be that of another one by now
		}
		if kills > o.count {
			o.count = kills
			killed()
		}
		if exit == nil {
			return nil
		}
		var err error
		select {
		case <-o.w.look:
			continue
		case <-o.n.closed:
			err = os.ErrClosed
		case <-ctx.Done():
			err = ctx.Err()
		}
		return fmt.Errorf("watch memory of container %s: %w", o.id, err)
	}
}

// memory wakes w when something may have happened to the memory of the container
// with that bundle, or when it may have ended.
func (n *notifier) memory(w *watch, bundle string, group cgroup.Group) (stop func(), err error) {
	stop = func() {}
	switch group.Memory {
	case "": // without a controller there is no limit
	case group.Unified:
		if err := n.watch(w, filepath.Join(group.Memory, "memory.events"), unix.IN_MODIFY); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return stop, err
		}
	default:
		f, err := oomEvents(group.Memory)
		if err != nil {
			return stop, err
		}
		var reading sync.WaitGroup
		reading.Go(func() { forward(f, w) })
		stop = func() {
			_ = f.Close() // nothing is written to it
			reading.Wait()
		}
	}
	if err := n.watch(w, bundle, unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_DELETE_SELF); err != nil {
		stop()
		return func() {}, err
	}
	return stop, nil
}

// oomEvents returns a descriptor that can be read from whenever the cgroup, of
// version 1, has no memory left.
func oomEvents(dir string) (f *os.File, err error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	f = os.NewFile(uintptr(fd), "memory.oom_control")
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err == nil {
		err = errors.Join(cgroup.Write(filepath.Join(dir, "cgroup.event_control"), fmt.Sprintf("%d %d", fd, control.Fd())), control.Close())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// forward passes on what a file of oomEvents says. The kernel says it before it
// kills, so it is passed on several times, within a second.
func forward(f *os.File, w *watch) {
	b := make([]byte, 8)
	wait := time.Duration(0)
	for {
		var deadline time.Time // without one, until there is an event
		if wait > 0 {
			deadline = time.Now().Add(wait)
		}
		if err := f.SetReadDeadline(deadline); err != nil {
			return
		}
		_, err := f.Read(b)
		switch {
		case err == nil:
			wait = time.Millisecond
		case errors.Is(err, os.ErrDeadlineExceeded):
			if wait *= 2; wait > time.Second {
				wait = 0
			}
		default:
			return
		}
		w.wake()
	}
}

// notifier is one inotify instance for all containers: a user may have few.
type notifier struct {
	f       *os.File
	reading sync.WaitGroup
	closed  chan struct{}

	mu      sync.Mutex
	watches map[int32][]*watch // by what inotify calls them
}

// watch is one who waits.
type watch struct {
	look chan struct{} // holds one
	ids  []int32
}

func (w *watch) wake() {
	select {
	case w.look <- struct{}{}:
	default: // it will look anyway
	}
}

// notifications returns the runtime's notifier.
func (r *Runtime) notifications() (*notifier, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, os.ErrClosed
	}
	if r.notes != nil {
		return r.notes, nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make inotify instance: %w", err)
	}
	n := &notifier{f: os.NewFile(uintptr(fd), "inotify"), closed: make(chan struct{}), watches: map[int32][]*watch{}}
	n.reading.Go(n.read)
	r.notes = n
	return n, nil
}

// close ends the notifier, and those who wait.
func (n *notifier) close() error {
	close(n.closed)
	err := n.f.Close()
	n.reading.Wait()
	return err
}

func (n *notifier) add() *watch { return &watch{look: make(chan struct{}, 1)} }

// watch wakes w when what mask says happens to the file. Events of one file go to
// all its watches.
func (n *notifier) watch(w *watch, name string, mask uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	raw, err := n.f.SyscallConn()
	if err != nil {
		return err
	}
	var id int
	cerr := raw.Control(func(fd uintptr) {
		id, err = unix.InotifyAddWatch(int(fd), name, mask|unix.IN_MASK_ADD)
	})
	if cerr != nil {
		err = os.ErrClosed // the only reason there is, in other words
	}
	if err != nil {
		return &fs.PathError{Op: "watch", Path: name, Err: err}
	}
	n.watches[int32(id)] = append(n.watches[int32(id)], w)
	w.ids = append(w.ids, int32(id))
	return nil
}

// remove forgets w.
func (n *notifier) remove(w *watch) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range w.ids {
		var others []*watch
		for _, o := range n.watches[id] {
			if o != w {
				others = append(others, o)
			}
		}
		if len(others) > 0 {
			n.watches[id] = others
			continue
		}
		delete(n.watches, id)
		if raw, err := n.f.SyscallConn(); err == nil {
			// It may be gone with its file, or with the instance.
			_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(id)) })
		}
	}
}

// read wakes those whose files have events, until the notifier is closed.
func (n *notifier) read() {
	b := make([]byte, 16<<10)
	for {
		size, err := n.f.Read(b)
		if err != nil {
			return // closed
		}
		for events := b[:size]; len(events) >= unix.SizeofInotifyEvent; {
			id := int32(binary.NativeEndian.Uint32(events))
			lost := binary.NativeEndian.Uint32(events[4:])&unix.IN_Q_OVERFLOW != 0
			events = events[min(len(events), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(events[12:]))):]
			n.wake(id, lost)
		}
	}
}

// wake wakes those who watch id, or all.
func (n *notifier) wake(id int32, all bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.watches[id] {
		w.wake()
	}
	if !all {
		return
	}
	for _, list := range n.watches {
		for _, w := range list {
			w.wake()
		}
	}
}
