// Package layout keeps images in files: OCI image layouts, in a directory or an
// archive, and the archives of docker save. It also makes an image of a plain
// directory. All of them are sources or targets of package transfer.
//
// What it reads may be hostile: sizes are bounded, and names stay inside.
package layout

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// files is what a source reads from: a directory or a tar archive.
type files interface {
	// open returns the content of a regular file and its size in bytes.
	open(name string) (content, int64, error)
	io.Closer
}

type content interface {
	io.ReadSeeker
	io.Closer
}

// small reads a file of at most limit bytes.
func small(f files, name string, limit int64) ([]byte, error) {
	c, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if size > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return io.ReadAll(io.LimitReader(c, limit))
}

// directory is a directory, which no name or symbolic link leads out of.
type directory struct{ root *os.Root }

func (d directory) open(name string) (content, int64, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

func (d directory) Close() error { return d.root.Close() }

const (
	maxEntries = 200_000 // of an archive
	maxLinks   = 8       // followed from one name to a file
)

// archive is a tar archive with a table of where its files are.
type archive struct {
	file    *os.File
	entries map[string]entry
}

type entry struct {
	offset, size int64
	link         string // the name it stands for, if it is a link
}

// openArchive reads the table of the tar archive at name; the content stays
// where it is. Errors name the file.
func openArchive(name string) (*archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a := &archive{file: f, entries: map[string]entry{}}
	if err := a.index(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return a, nil
}

func (a *archive) index() error {
	info, err := a.file.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.New("this is a directory, not an archive")
	}
	var magic [4]byte
	if _, err := a.file.ReadAt(magic[:], 0); err == nil && compression(magic[:]) != plain {
		return errors.New("the archive is compressed; unpack it first, with gunzip or zstd -d")
	}
	entries, err := index(a.file, info.Size())
	a.entries = entries
	return err
}

// index reads the headers of a tar archive of the given size. Of entries with
// one name the last counts.
func index(r io.ReadSeeker, size int64) (map[string]entry, error) {
	entries := map[string]entry{}
	for tr := tar.NewReader(r); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			if len(entries) == 0 {
				return nil, errors.New("this is not a tar archive, or an empty one")
			}
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("this is not a tar archive, or a damaged one: %w", err)
		}
		if len(entries) == maxEntries {
			return nil, fmt.Errorf("the archive has more than %d entries", maxEntries)
		}
		name := path.Clean("/" + hdr.Name)[1:]
		switch hdr.Typeflag {
		case tar.TypeReg:
			at, err := r.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			if hdr.PAXRecords["GNU.sparse.major"] != "" || hdr.PAXRecords["GNU.sparse.map"] != "" {
				return nil, fmt.Errorf("%s in the archive is sparse, which no image tool writes", hdr.Name)
			}
			if hdr.Size > size-at {
				return nil, fmt.Errorf("the archive ends in the middle of %s", hdr.Name)
			}
			entries[name] = entry{offset: at, size: hdr.Size}
		case tar.TypeSymlink:
			entries[name] = entry{link: path.Join("/", path.Dir(name), hdr.Linkname)[1:]}
		case tar.TypeLink:
			entries[name] = entry{link: path.Clean("/" + hdr.Linkname)[1:]}
		case tar.TypeGNUSparse:
			return nil, fmt.Errorf("%s in the archive is sparse, which no image tool writes", hdr.Name)
		}
	}
}

func (a *archive) open(name string) (content, int64, error) {
	e, ok := a.entries[path.Clean("/" + name)[1:]]
	for range maxLinks {
		if !ok || e.link == "" {
			break
		}
		e, ok = a.entries[e.link]
	}
	if !ok || e.link != "" {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return section{io.NewSectionReader(a.file, e.offset, e.size)}, e.size, nil
}

func (a *archive) Close() error { return a.file.Close() }

// section is a file of an archive.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// The compressions that layers come in.
const (
	plain = iota
	gzipped
	zstandard
)

// compression looks at the first bytes.
func compression(magic []byte) int {
	switch {
	case strings.HasPrefix(string(magic), "\x1f\x8b"):
		return gzipped
	case strings.HasPrefix(string(magic), "\x28\xb5\x2f\xfd"):
		return zstandard
	}
	return plain
}
