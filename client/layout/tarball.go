package layout

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"berth.internal/internal/durable"
)

// blockSize is what everything in a tar archive is padded to.
const blockSize = 512

// tarball is a tar archive that is written in several places at the same time.
// It has its name only when it is complete.
type tarball struct {
	name string
	file *os.File

	mu  sync.Mutex
	end int64
}

// createTarball begins an archive beside its later place.
func createTarball(name string) (*tarball, error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file to replace", name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".tmp-*")
	if err != nil {
		return nil, err
	}
	return &tarball{name: name, file: f}, nil
}

// header is the header of a regular file. Times are zero, so that the same
// content makes the same archive.
func header(name string, size int64) ([]byte, error) {
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatGNU,
	})
	return b.Bytes(), err
}

func padded(size int64) int64 { return (size + blockSize - 1) / blockSize * blockSize }

// reserve makes room for a file of known size, to be written later.
func (t *tarball) reserve(name string, size int64) (io.Writer, error) {
	h, err := header(name, size)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.file.WriteAt(h, t.end); err != nil {
		return nil, err
	}
	at := t.end + int64(len(h))
	t.end = at + padded(size)
	return io.NewOffsetWriter(t.file, at), nil
}

// add adds a small file.
func (t *tarball) add(name string, content []byte) error {
	w, err := t.reserve(name, int64(len(content)))
	if err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}

// append adds a file whose name and size are known only after fill has written
// it. One such file is written at a time.
func (t *tarball) append(fill func(io.Writer) (name string, err error)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := io.NewOffsetWriter(t.file, t.end+blockSize)
	name, err := fill(w)
	if err != nil {
		return err
	}
	size, err := w.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	h, err := header(name, size)
	if err != nil {
		return err
	}
	if len(h) != blockSize {
		return fmt.Errorf("%s is too long a name for an archive", name)
	}
	if _, err := t.file.WriteAt(h, t.end); err != nil {
		return err
	}
	t.end += blockSize + padded(size)
	return nil
}

// commit ends the archive and gives it its name.
func (t *tarball) commit() error {
	// The end of an archive is two blocks of zeros.
	if err := t.file.Truncate(t.end + 2*blockSize); err != nil {
		return err
	}
	if err := errors.Join(t.file.Chmod(0o644), t.file.Sync()); err != nil {
		return err
	}
	if err := durable.Rename(t.file.Name(), t.name); err != nil {
		return err
	}
	return nil
}

// close drops the archive if it was not committed.
func (t *tarball) close() error {
	err := t.file.Close()
	if rerr := os.Remove(t.file.Name()); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
