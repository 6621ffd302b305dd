package host

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// notExecuted puts into Docker's words why a program could not be executed, and says
// for which machine it is if that is not this one.
func (h *Host) notExecuted(c *ctr, p *specs.Process, err error) error {
	err = startFailure(p.Args[0], err)
	if !errors.Is(err, errNotExecutable) || !strings.Contains(err.Error(), "exec format error") {
		return err
	}
	if machine := h.machineOf(c, p); machine != "" {
		return fmt.Errorf("%w: the program is for %s, and this node is %s", err, machine, runtime.GOARCH)
	}
	return err
}

// machineOf returns for which machine the program is that p executes, as far as it is
// in the container's own files; "" if that cannot be told.
func (h *Host) machineOf(c *ctr, p *specs.Process) string {
	lowers, err := h.opts.Images.Layers(digest.Digest(c.rec.ImageID))
	if err != nil {
		return ""
	}
	root := tree{c.path("upper")}
	for _, dir := range slices.Backward(lowers) {
		root = append(root, dir)
	}
	names := []string{path.Join(p.Cwd, p.Args[0])}
	if !strings.Contains(p.Args[0], "/") {
		names = nil
		for _, kv := range p.Env {
			if dirs, ok := strings.CutPrefix(kv, "PATH="); ok {
				for dir := range strings.SplitSeq(dirs, ":") {
					names = append(names, path.Join("/", dir, p.Args[0]))
				}
			}
		}
	} else if path.IsAbs(p.Args[0]) {
		names = []string{p.Args[0]}
	}
	for _, name := range names {
		f, err := root.open(strings.TrimPrefix(name, "/"))
		if err != nil {
			continue
		}
		machine := elfMachine(f)
		_ = f.Close() // nothing was written
		return machine
	}
	return ""
}

// elfMachine returns for which machine an ELF file is, "" for another one's and for
// what is no ELF file.
func elfMachine(r io.Reader) string {
	const size = 20 // up to e_machine
	var head [size]byte
	if _, err := io.ReadFull(r, head[:]); err != nil || string(head[:4]) != elf.ELFMAG {
		return ""
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	machine := elf.Machine(order.Uint16(head[18:]))
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
