package container

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"berth.internal/internal/lazyregexp"
	"berth.internal/node/container/plan"
	"berth.internal/node/container/shim"
)

// Runtime makes containers and finds those that were made before. Its methods
// can be called from several goroutines.
type Runtime struct {
	cfg     Config
	init    *os.File // the shims' program, sealed
	program string   // hash of it
	groups  hierarchies
	host    plan.Host
	filters filters

	shims sync.WaitGroup // those that this process has begun and will reap

	plans sync.Mutex // held while a plan is written for a container that has none

	mu   sync.Mutex
	busy map[string]bool // containers that are being created or deleted
	// containers whose limits or freezer somebody changes; closed when they have
	changing map[string]chan struct{}
	notes    *notifier // for WatchOOM, once somebody has called it
	closed   bool
	known    map[string]knownRecord // by id, of those that were asked for last
	spare    chan *newShim          // has the shim that is started before there is a container for it, or will; nil: there is none
}

// Open prepares the directories of cfg and the program of the shims.
func Open(cfg Config) (*Runtime, error) {
	if !filepath.IsAbs(cfg.Root) || !filepath.IsAbs(cfg.Run) || !idGrammar().MatchString(cfg.CgroupParent) {
		return nil, fmt.Errorf("open container runtime: Root %q and Run %q must be absolute paths, CgroupParent %q a name", cfg.Root, cfg.Run, cfg.CgroupParent)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// Nobody but root may look into a container's bundle or speak to its shim.
	for _, dir := range []string{cfg.Root, cfg.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open container runtime: %w", err)
		}
	}
	r := &Runtime{cfg: cfg, busy: map[string]bool{}, changing: map[string]chan struct{}{}, known: map[string]knownRecord{}}
	var err error
	if r.groups, err = findHierarchies(); err != nil {
		return nil, fmt.Errorf("open container runtime: %w", err)
	}
	if r.host, err = look(); err != nil {
		return nil, fmt.Errorf("open container runtime: %w", err)
	}
	r.host.Cgroups = r.groups.mounts
	r.filters.kernel.X32 = hasX32()
	if r.host.OverlayByName {
		cfg.Log.Warn("this kernel (before Linux 6.13) takes the layers of an overlay by name only: every start uses a mount namespace to give them names")
	}
	if r.init, err = sealInit(cfg.Init); err != nil {
		return nil, fmt.Errorf("open container runtime: %w", err)
	}
	if r.program, err = hash(r.init); err != nil {
		return nil, errors.Join(fmt.Errorf("open container runtime: %w", err), r.init.Close())
	}
	return r, nil
}

// Close releases what Open took. Containers run on.
func (r *Runtime) Close() error {
	r.groups.removeEmpty(r.cfg.CgroupParent)
	r.mu.Lock()
	notes := r.notes
	r.notes, r.closed = nil, true
	r.mu.Unlock()
	errs := []error{r.dismiss()}
	if notes != nil {
		errs = append(errs, notes.close())
	}
	return errors.Join(append(errs, r.init.Close())...)
}

// initPath is the program of a shim, by the last of its descriptors. The number that
// this process has it by can be taken before it is executed, by what puts the shim's
// descriptors in their places.
const initPath = "/proc/self/fd/4"

// shimFiles are the descriptors that a shim begins with. It closes the last one.
func shimFiles(null, says, listener, init *os.File) []*os.File {
	return []*os.File{null, null, says, listener, init}
}

// sealInit puts a program into memory where nobody can change it any more: a
// container that gets hold of a descriptor of its shim's program could write to
// a file (CVE-2019-5736). Nil means this program.
func sealInit(prog []byte) (f *os.File, err error) {
	fd, err := unix.MemfdCreate(shim.Name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(shim.Name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("keep %s in memory: %w", shim.Name, err)
	}
	f = os.NewFile(uintptr(fd), shim.Name)
	if prog != nil {
		_, err = f.Write(prog)
	} else {
		err = copyFile(f, "/proc/self/exe")
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("keep %s in memory: %w", shim.Name, err), f.Close())
	}
	return f, nil
}

// hash returns the hash of what is in f.
func hash(f *os.File) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, math.MaxInt64)); err != nil {
		return "", fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func copyFile(to *os.File, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(to, f)
	return err
}

var idGrammar = lazyregexp.New(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// Names of files in a bundle, beside shim.ExitFile. bundleFile makes a
// directory a container: it is written first and removed last.
const (
	bundleFile  = "bundle.json"
	shimLogFile = "shim.log" // what a shim says of itself, in good times nothing
)

func (r *Runtime) path(id string, elem ...string) string {
	return filepath.Join(append([]string{r.cfg.Root, id}, elem...)...)
}

const socketSuffix = ".sock"

func (r *Runtime) socket(id string) string { return filepath.Join(r.cfg.Run, id+socketSuffix) }

// occupy keeps others from creating, deleting or looking for a container.
func (r *Runtime) occupy(id string) (release func(), ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[id] {
		return nil, false
	}
	r.busy[id] = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.busy, id)
	}, true
}

// change waits until nobody else changes the limits or the freezer of a container,
// and keeps others from it.
func (r *Runtime) change(ctx context.Context, id string) (release func(), err error) {
	for {
		r.mu.Lock()
		others := r.changing[id]
		if others == nil {
			break
		}
		r.mu.Unlock()
		select {
		case <-others:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer r.mu.Unlock()
	done := make(chan struct{})
	r.changing[id] = done
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.changing, id)
		close(done)
	}, nil
}

// changeOf is change, and returns the state that the container then has.
func (r *Runtime) changeOf(ctx context.Context, id string) (s State, release func(), err error) {
	if release, err = r.change(ctx, id); err != nil {
		return State{}, nil, err
	}
	if s, err = r.State(ctx, id); err != nil {
		release()
		return State{}, nil, err
	}
	return s, release, nil
}

func (r *Runtime) isBusy(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.busy[id]
}

// exists reports whether there is a bundle.
func (r *Runtime) exists(id string) (bool, error) {
	if !idGrammar().MatchString(id) {
		return false, nil
	}
	_, err := os.Lstat(r.path(id, bundleFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// listAtOnce is how many shims are asked at the same time. One whose shim is lost is
// killed and written down meanwhile, which takes a while for all after a reboot.
const listAtOnce = 16

// List returns the state of all containers, also of those that an earlier
// Runtime made, in the order of their ids.
func (r *Runtime) List(ctx context.Context) ([]State, error) {
	entries, err := os.ReadDir(r.cfg.Root) // sorted
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	states := make([]State, len(entries))
	errs := make([]error, len(entries))
	next := make(chan int)
	var asking sync.WaitGroup
	for range min(listAtOnce, len(entries)) {
		asking.Go(func() {
			for i := range next {
				states[i], errs[i] = r.State(ctx, entries[i].Name())
			}
		})
	}
	for i := range entries {
		next <- i
	}
	close(next)
	asking.Wait()
	var found []State
	for i, err := range errs {
		if errors.Is(err, ErrNotFound) {
			continue // somebody else's directory, or one that comes or goes
		}
		if err != nil {
			return nil, fmt.Errorf("list containers: %w", err)
		}
		found = append(found, states[i])
	}
	return found, nil
}
