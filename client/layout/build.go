package layout

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Recipe says how to make an image of one layer from a directory or a file.
// The same files and the same recipe make the same image, whoever owns the
// files, wherever they lie and whenever they were written.
type Recipe struct {
	Path      string // a directory, whose content becomes the image's root, or one file in it
	Platform  v1.Platform
	Config    v1.ImageConfig
	KeepOwner bool      // keep the numeric owners of the files; else all belong to root
	Time      time.Time // of the image and all files in it
}

// Built is an image made of a directory. Its layer is written anew each time it
// is read, so it takes no room.
type Built struct{ *made }

// Build reads the files once, to know the layer's digest. Errors: a file that
// has no place in a layer, such as a socket.
func Build(ctx context.Context, r Recipe) (*Built, error) {
	sum, size := digest.Canonical.Digester(), counter(0)
	// A fixed cost for each write, so that small files do not each pay it.
	buffered := bufio.NewWriterSize(io.MultiWriter(sum.Hash(), &size), 128<<10)
	if err := errors.Join(r.writeLayer(ctx, buffered), buffered.Flush()); err != nil {
		return nil, fmt.Errorf("make an image of %s: %w", r.Path, err)
	}
	layer := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: sum.Digest(), Size: int64(size)}
	created := r.Time.UTC()
	config, err := json.Marshal(v1.Image{
		Created:  &created,
		Platform: r.Platform,
		Config:   r.Config,
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
		History:  []v1.History{{Created: &created, CreatedBy: "berth repo push dir:"}},
	})
	if err != nil {
		return nil, err
	}
	m, err := makeImage(config, []v1.Descriptor{layer})
	if err != nil {
		return nil, err
	}
	m.layers[layer.Digest] = func(offset int64) (io.ReadCloser, error) { return r.openLayer(ctx, offset) }
	return &Built{m}, nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// openLayer writes the layer once more and lets it be read from offset on.
func (r Recipe) openLayer(ctx context.Context, offset int64) (io.ReadCloser, error) {
	out, in := io.Pipe()
	l := &layer{out, make(chan struct{})}
	go func() {
		defer close(l.done)
		buffered := bufio.NewWriterSize(in, 128<<10)
		in.CloseWithError(errors.Join(r.writeLayer(ctx, buffered), buffered.Flush()))
	}()
	if _, err := io.CopyN(io.Discard, l, offset); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// layer is the layer on its way out of the goroutine that writes it.
type layer struct {
	*io.PipeReader
	done chan struct{}
}

func (l *layer) Close() error {
	err := l.PipeReader.Close()
	<-l.done
	return err
}

// inode names a file that may have several names.
type inode struct{ dev, ino uint64 }

// writeLayer writes the tar archive.
func (r Recipe) writeLayer(ctx context.Context, w io.Writer) error {
	info, err := os.Stat(r.Path)
	if err != nil {
		return err
	}
	dir, only := r.Path, ""
	if !info.IsDir() {
		dir, only = filepath.Split(r.Path)
		if dir == "" {
			dir = "."
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // it was only read
	tw := tar.NewWriter(w)
	seen := map[inode]string{}
	if only != "" {
		err = r.writeEntry(tw, root, only, info, seen)
	} else {
		err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || name == "." {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			return r.writeEntry(tw, root, name, info, seen)
		})
	}
	if err != nil {
		return err
	}
	return tw.Close()
}

// writeEntry writes one file.
func (r Recipe) writeEntry(tw *tar.Writer, root *os.Root, name string, info fs.FileInfo, seen map[inode]string) error {
	if strings.HasPrefix(path.Base(name), ".wh.") {
		return fmt.Errorf("%s: in a layer, names that begin with .wh. mean that a file is gone; rename it", name)
	}
	hdr, err := r.header(root, name, info, seen)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := tw.WriteHeader(hdr); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if hdr.Typeflag != tar.TypeReg || hdr.Size == 0 {
		return nil
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(tw, f, hdr.Size); err != nil {
		return fmt.Errorf("read %s, which must not change meanwhile: %w", name, err)
	}
	return nil
}

// header says of a file what does not depend on where and when it was made.
func (r Recipe) header(root *os.Root, name string, info fs.FileInfo, seen map[inode]string) (*tar.Header, error) {
	var link string
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if link, err = root.Readlink(name); err != nil {
			return nil, err
		}
	}
	full, err := tar.FileInfoHeader(info, link)
	if err != nil { // a socket
		return nil, errors.New("this kind of file has no place in an image")
	}
	hdr := &tar.Header{
		Typeflag: full.Typeflag, Name: name, Linkname: full.Linkname, Size: full.Size, Mode: full.Mode,
		Devmajor: full.Devmajor, Devminor: full.Devminor, ModTime: r.Time, Format: tar.FormatPAX,
	}
	if info.IsDir() {
		hdr.Name += "/"
	}
	if r.KeepOwner {
		hdr.Uid, hdr.Gid = full.Uid, full.Gid
	}
	if hdr.Typeflag != tar.TypeReg {
		return hdr, nil
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := seen[id]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			return hdr, nil
		}
		seen[id] = name
	}
	// Without its capability a program such as ping does not work.
	capability, err := fileCapability(root, name)
	if err != nil {
		return nil, err
	}
	if capability != "" {
		hdr.PAXRecords = map[string]string{"SCHILY.xattr." + capabilityName: capability}
	}
	return hdr, nil
}

const capabilityName = "security.capability"

// fileCapability reads the file's capability, empty if it has none.
func fileCapability(root *os.Root, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, 64) // the kernel's largest has 24 bytes
	n, err := unix.Fgetxattr(int(f.Fd()), capabilityName, buf)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("read its capability: %w", err)
	}
	return string(slices.Clip(buf[:n])), nil
}
