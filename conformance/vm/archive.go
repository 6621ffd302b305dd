package main

import (
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// archive writes what the kernel takes as its first file system: cpio, "newc". The
// first error ends it.
type archive struct {
	w   io.Writer
	has map[string]bool
	err error
}

func newArchive(w io.Writer) *archive { return &archive{w: w, has: map[string]bool{}} }

func (a *archive) add(name string, mode uint32, data []byte) {
	if a.err != nil {
		return
	}
	a.has[name] = true
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", len(a.has), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	b := new(bytes.Buffer)
	for _, part := range [][]byte{append([]byte(header+name), 0), data} {
		b.Write(part)
		b.Write(make([]byte, -b.Len()&3))
	}
	_, a.err = a.w.Write(b.Bytes())
}

func (a *archive) dir(name string)                { a.add(name, 0o040755, nil) }
func (a *archive) bytes(name string, data []byte) { a.add(name, 0o100644, data) }

func (a *archive) file(name, from string) {
	data, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.add(name, 0o100755, data)
}

// libraries is where Debian has a program's shared libraries. The one that finds the
// others is where each program says that it is.
const (
	libraries = "/lib/x86_64-linux-gnu"
	loader    = "ld-linux-x86-64.so.2"
)

// program adds one with the shared libraries that it needs, each once.
func (a *archive) program(name, from string) {
	data, err := os.ReadFile(from)
	if err != nil {
		a.err = cmp.Or(a.err, err)
		return
	}
	a.add(name, 0o100755, data)
	needed, err := shared(data)
	if err != nil {
		a.err = cmp.Or(a.err, fmt.Errorf("read %s: %w", from, err))
	}
	for _, l := range needed {
		to := "lib/" + l
		if l == loader {
			to = "lib64/" + l
		}
		if !a.has[to] {
			a.program(to, filepath.Join(libraries, l))
		}
	}
}

// shared returns which libraries a program or a library says it needs.
func shared(program []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return nil, err
	}
	return f.ImportedLibraries()
}

func (a *archive) close() error {
	a.add("TRAILER!!!", 0, nil)
	return a.err
}

// addModules adds kernel modules with all they need, and returns the order to load
// them in.
func addModules(ctx context.Context, a *archive, dir string, names []string) (order []string, err error) {
	files := map[string]string{}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(d.Name(), ".ko"); err == nil && ok {
			files[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var load func(name string) error
	load = func(name string) error {
		file, ok := files[name]
		switch {
		case slices.Contains(order, name):
			return nil
		case !ok:
			return fmt.Errorf("%s has no module %s", dir, name)
		}
		data, err := os.ReadFile(file)
		if strings.HasSuffix(file, ".xz") {
			data, err = exec.CommandContext(ctx, "xz", "--decompress", "--stdout", file).Output()
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		needs, err := needs(data)
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		for _, n := range needs {
			if err := load(n); err != nil {
				return err
			}
		}
		a.bytes("modules/"+name, data)
		order = append(order, name)
		return nil
	}
	for _, name := range names {
		if err := load(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// needs returns which modules another one says it depends on.
func needs(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	info, err := f.Section(".modinfo").Data()
	if err != nil {
		return nil, err
	}
	for s := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(s, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
