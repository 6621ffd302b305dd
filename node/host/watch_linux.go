package host

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watcher tells when a file in a directory grows, or gets its name.
type watcher struct {
	events  *os.File
	changed chan struct{} // holds a token if that happened since the last receive
	ended   chan struct{}
}

// watchDir begins to watch: whatever happens after it returns is told.
func watchDir(name string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", name, err)
	}
	w := &watcher{events: os.NewFile(uintptr(fd), "inotify"), changed: make(chan struct{}, 1), ended: make(chan struct{})}
	if _, err := unix.InotifyAddWatch(fd, name, unix.IN_MODIFY|unix.IN_MOVED_TO|unix.IN_CREATE); err != nil {
		w.events.Close()
		return nil, fmt.Errorf("watch %s: %w", name, err)
	}
	go w.run()
	return w, nil
}

func (w *watcher) run() {
	defer close(w.ended)
	var buf [4096]byte
	for {
		if _, err := w.events.Read(buf[:]); err != nil {
			return // closed
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) close() {
	w.events.Close()
	<-w.ended
}
