package host

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// notExecuted puts into Docker's words why a program could not be executed. It says
// for which machine it is if that is not this one, and if the program is there after
// all, what is missing to execute it.
func (h *Host) notExecuted(c *ctr, p *specs.Process, err error) error {
	err = startFailure(p.Args[0], err)
	foreign := errors.Is(err, errNotExecutable) && strings.Contains(err.Error(), "exec format error")
	if !foreign && !errors.Is(err, errNoCommand) {
		return err
	}
	f, name := h.programOf(c, p)
	if f == nil {
		return err
	}
	defer f.Close()
	if foreign {
		if machine := elfMachine(f); machine != "" {
			return fmt.Errorf("%w: the program is for %s, and this node is %s", err, machine, runtime.GOARCH)
		}
		return err
	}
	if with := interpreterOf(f); with != "" {
		return fmt.Errorf("%w: %s is there, but not what executes it, %q", err, name, with)
	}
	return err
}

// programOf returns the program that p executes and its path, as far as it is in the
// container's own files.
func (h *Host) programOf(c *ctr, p *specs.Process) (*os.File, string) {
	lowers, err := h.opts.Images.Layers(digest.Digest(c.rec.ImageID))
	if err != nil {
		return nil, ""
	}
	root := tree{c.path("upper")}
	for _, dir := range slices.Backward(lowers) {
		root = append(root, dir)
	}
	names := []string{p.Args[0]}
	switch {
	case path.IsAbs(p.Args[0]):
	case strings.Contains(p.Args[0], "/"):
		names[0] = path.Join(p.Cwd, p.Args[0])
	default:
		names = nil
		for _, kv := range p.Env {
			if dirs, ok := strings.CutPrefix(kv, "PATH="); ok {
				for dir := range strings.SplitSeq(dirs, ":") {
					names = append(names, path.Join("/", dir, p.Args[0]))
				}
			}
		}
	}
	for _, name := range names {
		if f, err := root.open(strings.TrimPrefix(name, "/")); err == nil {
			return f, name
		}
	}
	return nil, ""
}

// maxInterpreter is how long the name of an interpreter is at most, in bytes: what the
// kernel reads of a script's first line.
const maxInterpreter = 256

// interpreterOf returns the program that the kernel executes a file with: the one in
// the first line of a script (execve(2)), or that of an ELF file's PT_INTERP. "" if
// there is none.
func interpreterOf(r io.ReaderAt) string {
	head := make([]byte, maxInterpreter)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	head = head[:n]
	if line, script := bytes.CutPrefix(head, []byte("#!")); script {
		line, _, _ = bytes.Cut(line, []byte("\n"))
		if words := bytes.Fields(line); len(words) > 0 {
			return string(words[0])
		}
		return ""
	}
	return elfInterpreter(r, head)
}

// elfInterpreter reads PT_INTERP of an ELF file of 64 bits, which begins with head
// (elf(5)).
func elfInterpreter(r io.ReaderAt, head []byte) string {
	const (
		headSize, entrySize = 64, 56
		maxEntries          = 64
	)
	if len(head) < headSize || string(head[:4]) != elf.ELFMAG || elf.Class(head[elf.EI_CLASS]) != elf.ELFCLASS64 {
		return ""
	}
	order := elfOrder(head)
	at, size, count := order.Uint64(head[32:]), order.Uint16(head[54:]), order.Uint16(head[56:])
	if size != entrySize {
		return ""
	}
	for i := range uint64(min(count, maxEntries)) {
		var entry [entrySize]byte
		if _, err := r.ReadAt(entry[:], int64(at+i*entrySize)); err != nil {
			return ""
		}
		if elf.ProgType(order.Uint32(entry[:])) != elf.PT_INTERP {
			continue
		}
		name := make([]byte, min(order.Uint64(entry[32:]), maxInterpreter))
		if _, err := r.ReadAt(name, int64(order.Uint64(entry[8:]))); err != nil {
			return ""
		}
		name, _, _ = bytes.Cut(name, []byte{0})
		return string(name)
	}
	return ""
}

// elfOrder is the order of bytes in an ELF file that begins with head.
func elfOrder(head []byte) binary.ByteOrder {
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// elfMachine returns for which machine an ELF file is, "" for another one's and for
// what is no ELF file.
func elfMachine(r io.Reader) string {
	const size = 20 // up to e_machine
	var head [size]byte
	if _, err := io.ReadFull(r, head[:]); err != nil || string(head[:4]) != elf.ELFMAG {
		return ""
	}
	machine := elf.Machine(elfOrder(head[:]).Uint16(head[18:]))
	for arch, is := range map[string]elf.Machine{
		"amd64": elf.EM_X86_64, "386": elf.EM_386, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM, "ppc64le": elf.EM_PPC64,
		"s390x": elf.EM_S390, "riscv64": elf.EM_RISCV, "mips64le": elf.EM_MIPS, "loong64": elf.EM_LOONGARCH,
	} {
		switch {
		case machine != is:
		case arch == runtime.GOARCH:
			return "" // the reason is another one
		default:
			return arch
		}
	}
	return strings.ToLower(strings.TrimPrefix(machine.String(), "EM_"))
}
