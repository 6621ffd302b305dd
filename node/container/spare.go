package container

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/shim"
)

// newShim is a shim that has no container yet. It ends when c is closed.
type newShim struct {
	c     *shim.Conn
	proc  *os.Process
	ended chan struct{} // closed once it has been waited for
	log   string        // its files, which move to their places when it gets a container
	sock  string
}

// sparePrefix begins the names of the files of shims that have no container: no id
// begins so.
const sparePrefix = ".spare-"

// begin starts a shim.
func (r *Runtime) begin() (_ *newShim, err error) {
	name := sparePrefix + strconv.FormatUint(rand.Uint64(), 36)
	s := &newShim{ended: make(chan struct{}), log: filepath.Join(r.cfg.Root, name), sock: filepath.Join(r.cfg.Run, name+socketSuffix)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start shim: %w", err), s.forget())
		}
	}()
	listener, err := shim.Listen(s.sock)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	// Connected before the shim is there: if this process dies, the shim finds that
	// it has nothing to do.
	if s.c, err = shim.Dial(s.sock); err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	says, err := os.OpenFile(s.log, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer says.Close()
	// The shim inherits the lock: as long as it is held, there is a shim.
	if err := unix.Flock(int(says.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", says.Name(), err)
	}
	s.proc, err = os.StartProcess(initPath, []string{shim.Name}, &os.ProcAttr{
		Dir: "/", Env: shim.Env(), Files: shimFiles(null, says, listener, r.init),
		Sys: &syscall.SysProcAttr{Setsid: true}, // it shall not share this process's fate
	})
	if err != nil {
		return nil, err
	}
	r.groups.keepLimits(s.proc.Pid)
	// Reaped whenever it ends. That may be long after Close, which does not wait.
	r.shims.Go(func() {
		_, _ = s.proc.Wait()
		close(s.ended)
	})
	return s, nil
}

// give puts the shim's files to where those of the container are.
func (r *Runtime) give(s *newShim, id string) error {
	log, sock := r.path(id, shimLogFile), r.socket(id)
	if err := os.Rename(s.log, log); err != nil {
		return err
	}
	s.log = log
	if err := os.Rename(s.sock, sock); err != nil {
		return err
	}
	s.sock = sock
	return nil
}

// forget closes the connection to a shim without a container, and removes its
// files.
func (s *newShim) forget() error {
	var errs []error
	if s.c != nil {
		errs = append(errs, s.c.Close())
	}
	for _, name := range []string{s.log, s.sock} {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// takeShim returns a shim for a container: the spare one, if there is one and it
// lives.
func (r *Runtime) takeShim() (*newShim, error) {
	s := r.takeSpare()
	if s == nil {
		return r.begin()
	}
	select {
	case <-s.ended:
		if err := s.forget(); err != nil {
			return nil, err
		}
		return r.begin()
	default:
		return s, nil
	}
}

// takeSpare returns the spare shim, nil if there is none.
func (r *Runtime) takeSpare() *newShim {
	r.mu.Lock()
	spare := r.spare
	r.spare = nil
	r.mu.Unlock()
	if spare == nil {
		return nil
	}
	return <-spare
}

// provide starts a spare shim in the background, if there is none.
func (r *Runtime) provide() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.cfg.Spare || r.closed || r.spare != nil {
		return
	}
	spare := make(chan *newShim, 1)
	r.spare = spare
	go func() {
		s, err := r.begin()
		if err != nil { // whoever needs one gets an error of its own
			r.cfg.Log.Warn("no shim could be started in advance", "error", err)
		}
		spare <- s
	}()
}

// dismiss ends the spare shim.
func (r *Runtime) dismiss() error {
	s := r.takeSpare()
	if s == nil {
		return nil
	}
	err := s.forget()
	_ = s.proc.Kill() // it ends anyway, but may be stopped
	<-s.ended
	return err
}

// sweepSpares removes the files of shims whose agent died before it had a container for
// them: they have ended with it.
func (r *Runtime) sweepSpares() error {
	errs := []error{r.dismiss()}
	for _, dir := range []string{r.cfg.Root, r.cfg.Run} {
		files, err := filepath.Glob(filepath.Join(dir, sparePrefix+"*"))
		errs = append(errs, err)
		for _, f := range files {
			errs = append(errs, os.Remove(f))
		}
	}
	return errors.Join(errs...)
}
