// Package follow tells when files have changed, by looking at them: that works
// on every file system, and for files that are replaced, linked or mounted.
package follow

import (
	"context"
	"os"
	"slices"
	"time"
)

// every is the time between two looks.
const every = 2 * time.Second

// Files are files that are followed. Make it with New.
type Files struct {
	paths []string
	asked chan struct{}
	seen  []os.FileInfo // when they were read; nil: not there
}

// New looks at the files. Read them for the first time after it.
func New(paths ...string) *Files {
	f := &Files{paths: paths, asked: make(chan struct{}, 1)}
	f.seen = f.look()
	return f
}

// Ask makes Run call changed soon, whether anything has changed or not.
func (f *Files) Ask() {
	select {
	case f.asked <- struct{}{}:
	default: // it is about to
	}
}

// Run calls changed when the files are others than when they were read, until
// ctx ends. Files that are being written are left alone until they have stood
// still for one look, 2 s: the beginning of a file may mean something, too, but
// something else, and of two files that belong together one is first.
func (f *Files) Run(ctx context.Context, changed func()) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	before := f.seen
	for {
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-f.asked:
			asked = true
		case <-ticker.C:
		}
		now := f.look()
		if asked || !slices.EqualFunc(now, f.seen, same) && slices.EqualFunc(now, before, same) {
			f.seen = now // before they are read: what comes after it is another change
			changed()
		}
		before = now
	}
}

func (f *Files) look() []os.FileInfo {
	var list []os.FileInfo
	for _, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			info = nil // whatever the reason, it cannot be read
		}
		list = append(list, info)
	}
	return list
}

// same tells that a file has most likely not changed.
func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
