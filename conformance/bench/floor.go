package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// floorCommand makes this program a server of the floor: bench floor ADDRESS
// DIRECTORY, or for a node bench floor exec SOCKET.
const floorCommand = "floor"

// floor is the least that a server in Go can do that answers the requests of
// the loads and takes berth's care of the data: net/http, one goroutine for
// each connection, which reads, hashes and writes in turns; a blob is a file,
// synced, renamed, its directory synced; what is small goes to the end of one
// file, and those that come together share a sync. It checks hashes and nothing
// else: no names, no tags, no lists, no log, no metrics. What is small it keeps
// in memory for reading.
type floor struct {
	dir     string
	buffers sync.Pool // *[]byte
	small   sync.Map  // path → []byte
	files   sync.Map  // path → path of the file

	mu      sync.Mutex
	pending []byte
	batch   *batch
	wake    chan struct{}
}

// batch is what shares a sync.
type batch struct {
	done chan struct{}
	err  error
}

func serveFloor(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: bench floor ADDRESS DIRECTORY, or floor exec SOCKET")
	}
	if args[0] == "exec" {
		return serveExecFloor(ctx, args[1])
	}
	f := &floor{dir: args[1], batch: &batch{done: make(chan struct{})}, wake: make(chan struct{}, 1)}
	f.buffers.New = func() any {
		b := make([]byte, 256<<10)
		return &b
	}
	journal, err := os.Create(filepath.Join(f.dir, "journal"))
	if err != nil {
		return err
	}
	defer journal.Close()
	go f.write(journal)
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	s := &http.Server{Handler: f}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (f *floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
		w.Header()["Location"] = []string{r.URL.Path + "1"}
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		if err := f.put(r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	default:
		f.get(w, r)
	}
}

func (f *floor) get(w http.ResponseWriter, r *http.Request) {
	w.Header()["Content-Type"] = []string{"application/octet-stream"}
	if b, ok := f.small.Load(r.URL.Path); ok {
		w.Header()["Content-Length"] = []string{strconv.Itoa(len(b.([]byte)))}
		if r.Method != http.MethodHead {
			w.Write(b.([]byte))
		}
		return
	}
	if path, ok := f.files.Load(r.URL.Path); ok {
		http.ServeFile(w, r, path.(string))
	}
}

// put stores a blob or a manifest.
func (f *floor) put(r *http.Request) error {
	path := r.URL.Path
	digest := r.URL.Query().Get("digest")
	if digest != "" {
		path = path[:strings.Index(path, "uploads/")] + digest
	}
	if r.ContentLength > 64<<10 {
		return f.putFile(r, path, digest)
	}
	body := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, body); err != nil {
		return err
	}
	if err := check(digest, sha256.Sum256(body)); err != nil {
		return err
	}
	f.small.Store(path, body)
	f.mu.Lock()
	f.pending = append(f.pending, body...)
	mine := f.batch
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
	<-mine.done
	return mine.err
}

// write appends to the journal what is pending, again and again.
func (f *floor) write(journal *os.File) {
	for range f.wake {
		f.mu.Lock()
		pending, mine := f.pending, f.batch
		f.pending, f.batch = nil, &batch{done: make(chan struct{})}
		f.mu.Unlock()
		_, mine.err = journal.Write(pending)
		mine.err = errors.Join(mine.err, journal.Sync())
		close(mine.done)
	}
}

func (f *floor) putFile(r *http.Request, path, digest string) error {
	file, err := os.CreateTemp(f.dir, "upload-")
	if err != nil {
		return err
	}
	defer file.Close()
	p := f.buffers.Get().(*[]byte)
	defer f.buffers.Put(p)
	h := sha256.New()
	for {
		n, err := io.ReadFull(r.Body, *p)
		h.Write((*p)[:n])
		if _, err := file.Write((*p)[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		} else if err != nil {
			return err
		}
	}
	if err := check(digest, [32]byte(h.Sum(nil))); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	to := filepath.Join(f.dir, digest)
	if err := os.Rename(file.Name(), to); err != nil {
		return err
	}
	f.files.Store(path, to)
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func check(want string, got [32]byte) error {
	if want != "" && want != "sha256:"+hex.EncodeToString(got[:]) {
		return fmt.Errorf("content is not %s", want)
	}
	return nil
}
