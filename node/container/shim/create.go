package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// programs are the two of a plan.
type programs struct {
	prepare, child *call.Code
	blob           []byte // that they are in, if it is given back with them
}

// free gives back the memory of the programs, which are not used again.
func (p *programs) free() {
	p.prepare.Free()
	p.child.Free()
	freeBlob(p.blob)
	*p = programs{}
}

// decode reads the programs of a blob, of which the first has that size.
func decode(blob []byte, size int) (p programs, err error) {
	if size < 0 || size > len(blob) {
		return p, errors.New("damaged program")
	}
	if p.prepare, err = call.Map(blob[:size]); err != nil {
		return p, err
	}
	p.child, err = call.Map(blob[size:])
	return p, err
}

// decode reads the programs of create.
func (s *shim) decode(blob []byte) (programs, error) {
	if s.Engine != nil {
		return s.decodeEngine(blob)
	}
	p, err := decode(blob, s.Prepare)
	p.blob = blob
	return p, err
}

// stdio are the container's ends of its streams.
type stdio [3]*os.File

func (s stdio) regs() []uintptr {
	return []uintptr{s[0].Fd(), s[1].Fd(), s[2].Fd()}
}

// pipe returns a pipe whose end for the shim can be waited for and whose other
// end blocks, as programs expect of their stdio.
func pipe(shimReads bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	if !shimReads {
		fds[0], fds[1] = fds[1], fds[0]
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// syncPair returns a socket pair for the word to go on.
func syncPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "sync"), os.NewFile(uintptr(fds[1]), "sync"), nil
}

// create builds the container, and with begin executes its command, too. After an
// error the shim ends, and all that is open with it.
func (s *shim) create(c Create, blob []byte, begin bool) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Status != "" {
		return failf(CodeStatus, "container exists already")
	}
	if s.refuse {
		return failf(CodeStatus, "this shim was asked for something before it had a container, and ends")
	}
	s.Create = c
	if s.plan, err = s.decode(blob); err != nil {
		return err
	}
	log, err := openLog(c.Log, c.LogSize, c.LogFiles)
	if err != nil {
		return err
	}
	s.out.name, s.err.name, s.out.log, s.err.log = "stdout", "stderr", log, log
	if s.pidns, err = os.Open("/proc/self/ns/pid"); err != nil {
		return err
	}
	s.state = State{Version: Version, ID: s.ID, Created: time.Now().UTC()}
	if err = s.build(begin); err != nil {
		s.state = State{}
		return err
	}
	s.state.Status = StatusCreated
	go s.reap()
	if begin {
		return s.startFirst()
	}
	return nil
}

// build makes the container's stdio and its first process, up to where only the
// command is missing, or with begin a little further.
func (s *shim) build(begin bool) error {
	streams, err := s.openStreams()
	switch {
	case err != nil:
	case s.Engine != nil:
		err = s.forkEngine(streams)
	default:
		err = s.fork(streams, begin)
	}
	closeAll(streams[:])
	if err == nil && s.term.master != nil {
		err = s.useTerminal()
	}
	if err != nil {
		s.closeStreams()
		return err
	}
	for i, o := range []*output{&s.out, &s.err} {
		if from := s.outs[i]; from != nil {
			o.begin()
			s.copies.Go(func() { o.copy(from) })
		}
	}
	return nil
}

// openStreams makes the container's stdio and returns its ends.
func (s *shim) openStreams() (streams stdio, err error) {
	if s.Master != 0 || s.Engine != nil && s.Engine.Terminal != nil { // until the container has its terminal
		for i := range streams {
			if streams[i], err = s.nowhere(); err != nil {
				return streams, err
			}
		}
		return streams, nil
	}
	if s.Stdin {
		if s.stdin, streams[0], err = pipe(false); err != nil {
			return streams, err
		}
		if s.StdinOnce && s.state.Run > 0 {
			s.closeStdin() // it was, and is at its end
		}
	} else if streams[0], err = s.nowhere(); err != nil {
		return streams, err
	}
	for i := range s.outs {
		if s.outs[i], streams[i+1], err = pipe(true); err != nil {
			return streams, err
		}
	}
	return streams, nil
}

func (s *shim) closeStdin() {
	if s.stdin != nil {
		_ = s.stdin.Close()
		s.stdin = nil
	}
}

// closeStreams closes the shim's ends of stdio that nobody copies.
func (s *shim) closeStreams() {
	s.closeStdin()
	closeAll([]*os.File{s.outs[0], s.outs[1], s.term.master})
	s.term.master = nil
	s.outs = [2]*os.File{}
}

// fork forks the container's first process and takes it to where only its
// command is missing. With begin it does not wait there.
func (s *shim) fork(streams stdio, begin bool) (err error) {
	var theirSync, theirStatus *os.File
	defer func() {
		closeAll([]*os.File{theirSync, theirStatus})
		if err != nil {
			s.letGo()
		}
	}()
	if s.sync, theirSync, err = syncPair(); err != nil {
		return err
	}
	if s.status, theirStatus, err = s.statusPipe(); err != nil {
		return err
	}
	f := call.Fork{
		Flags:  s.Flags,
		Status: int(theirStatus.Fd()),
		Regs:   append(append(streams.regs(), theirSync.Fd(), theirStatus.Fd()), s.given.regs()...),
	}
	if err := s.openJoined(); err != nil {
		return err
	}
	own, err := s.joined.enter(&f)
	if err != nil {
		return err
	}
	defer closeAll(own)
	done, err := s.intoCgroup(&f, s.killed)
	if err != nil {
		return err
	}
	defer done()
	pid, pidfd, err := f.Start(s.plan.child)
	if err != nil {
		return fmt.Errorf("fork into new namespaces: %w", err)
	}
	s.state.Pid, s.first, s.pidfd = pid, pid, pidfd
	if err := s.equip(pid, streams, int(theirStatus.Fd())); err != nil {
		s.abandon()
		closeAll([]*os.File{theirSync, theirStatus})
		if _, cerr := s.reports(s.plan); cerr != nil {
			err = cerr // the child said why before this side noticed
		}
		return err
	}
	closeAll([]*os.File{theirSync, theirStatus, streams[0], streams[1], streams[2]})
	if begin {
		_ = s.goOn() // who is dead already has said why
	}
	ready, err := s.reports(s.plan)
	if err == nil && !ready {
		err = errors.New("the container's first process ended while it was built")
	}
	if err != nil {
		s.abandon()
	}
	return err
}

// intoCgroup makes the child of f begin in the container's cgroup. killed is shim.killed.
// done is called after the fork.
func (s *shim) intoCgroup(f *call.Fork, killed bool) (done func(), err error) {
	if f.Tasks, err = s.tasks(); err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	if s.Cgroup.Unified == "" || killed {
		return func() {}, nil
	}
	f.Cgroup, err = unix.Open(s.Cgroup.Unified, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", s.Cgroup.Unified, err)
	}
	dir := f.Cgroup
	return func() { _ = unix.Close(dir) }, nil
}

// abandon ends a first process that was not completed.
func (s *shim) abandon() {
	if s.first == 0 {
		return
	}
	_ = unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
	_, _ = unix.Wait4(s.first, nil, 0, nil) // if reap was faster, it does not know the number any more
	s.state.Pid, s.first = 0, 0
}

// letGo closes what the shim has of a first process that is gone.
func (s *shim) letGo() {
	closeAll([]*os.File{s.sync, s.status, s.null, s.term.pts, s.term.peer})
	s.sync, s.status, s.null, s.term.pts, s.term.peer = nil, nil, nil, nil, nil
	if s.pidfd > 0 {
		_ = unix.Close(s.pidfd)
		s.pidfd = 0
	}
}

// equip gives the child what it cannot make itself: ids, and the parts
// that the first program makes.
func (s *shim) equip(pid int, streams stdio, status int) error {
	if s.killed {
		if err := s.Cgroup.JoinUnified(pid); err != nil {
			return err
		}
	}
	proc := "/proc/" + strconv.Itoa(pid)
	userns := s.joined.descriptor(unix.CLONE_NEWUSER)
	if s.UIDMap != "" {
		if err := writeFile(proc+"/uid_map", s.UIDMap); err != nil {
			return fmt.Errorf("map user ids: %w", err)
		}
		if err := writeFile(proc+"/gid_map", s.GIDMap); err != nil {
			return fmt.Errorf("map group ids: %w", err)
		}
		f, err := os.Open(proc + "/ns/user")
		if err != nil {
			return err
		}
		defer f.Close()
		userns = f.Fd()
	}
	s.adjustOOM(proc, s.OOM)
	procDir := ^uintptr(0)
	if s.ProcDir {
		dir, err := os.Open(proc)
		if err != nil {
			return err
		}
		defer dir.Close()
		procDir = dir.Fd()
	}
	j := s.joined
	given := append(streams.regs(), uintptr(pid), userns, j.descriptor(unix.CLONE_NEWNET), uintptr(s.pidfd),
		j.descriptor(unix.CLONE_NEWIPC), j.descriptor(unix.CLONE_NEWCGROUP), j.descriptor(unix.CLONE_NEWTIME), procDir)
	for _, u := range s.Users {
		users, err := u.open()
		if err != nil {
			return err
		}
		defer users.Close()
		given = append(given, users.Fd())
	}
	regs, err := s.plan.prepare.Run(status, given)
	defer closeMade(regs, given)
	if err != nil {
		return err
	}
	if s.Null != 0 {
		if s.null, err = copyOf(regs, s.Null); err != nil {
			return err
		}
	}
	if err := s.keepTerminal(regs); err != nil {
		return err
	}
	return send(s.sync, regs, s.Send)
}

// writeFile writes to a file of the kernel in one piece.
func writeFile(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// adjustOOM sets how readily the kernel kills a process. To lower it needs a
// capability that the node may not have.
func (s *shim) adjustOOM(proc string, score *int) {
	if score == nil {
		return
	}
	if err := writeFile(proc+"/oom_score_adj", strconv.Itoa(*score)); err != nil {
		s.warn(fmt.Sprintf("set oom_score_adj to %d: %v", *score, err))
	}
}

// maxWarnings is how many different ones are kept.
const maxWarnings = 32

// warn keeps a warning for the state. s.mu is held.
func (s *shim) warn(text string) {
	if len(s.state.Warnings) < maxWarnings && !slices.Contains(s.state.Warnings, text) {
		s.state.Warnings = append(s.state.Warnings, text)
	}
}

// reports reads what the container's first process and its plan report, until
// the process is ready for its command, has failed, or has executed it.
func (s *shim) reports(p programs) (ready bool, err error) {
	if s.given != nil {
		return readReports(untilDead{s.status, s.pidfd}, p, s.warn)
	}
	return readReports(s.status, p, s.warn)
}

func readReports(status io.Reader, p programs, warn func(string)) (ready bool, err error) {
	b := make([]byte, call.ReportSize)
	for {
		if _, err := io.ReadFull(status, b); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return false, errSlow
			}
			return false, nil //nolint:nilerr // the end is a report, too: the child has executed its command, or is dead
		}
		switch r := call.ParseReport(b, p.prepare, p.child); {
		case r.Ready:
			return true, nil
		case r.Warning:
			warn(r.Failure.Error())
		default:
			return false, r.Failure
		}
	}
}

// start begins the first run: it lets the container's first process execute its
// command.
func (s *shim) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Status != StatusCreated || s.sync == nil && s.Engine == nil {
		return failf(CodeStatus, "container is %s", s.state.Status)
	}
	return s.startFirst()
}

func (s *shim) startFirst() error {
	err := s.execute()
	if err == nil {
		s.state.Run = 1
		return nil
	}
	code, exit := classify(err)
	s.fate = &Exit{ExitCode: exit, Error: err.Error()}
	return failf(code, "%v", err)
}

// executeLimit is how long a command may take to be executed, which a file system
// that does not answer could make without end: meanwhile the shim does nothing else.
const executeLimit = time.Minute

var errSlow = errors.New("the command was not executed within " + executeLimit.String())

// goOn lets the container's first process go on, if it may not yet.
func (s *shim) goOn() error {
	if s.sync == nil {
		return nil
	}
	_, err := s.sync.Write([]byte{0})
	_ = s.sync.Close()
	s.sync = nil
	return err
}

// execute lets the container's first process execute its command.
func (s *shim) execute() error {
	if s.Engine != nil {
		return s.executeEngine()
	}
	err := s.goOn() // if it is dead already, that is how it stops
	if err == nil {
		_ = s.status.SetReadDeadline(time.Now().Add(executeLimit))
		if _, err = s.reports(s.plan); errors.Is(err, errSlow) {
			_ = unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
		}
	}
	_ = s.status.Close()
	s.status = nil
	s.plan.free()
	if err == nil {
		s.state.Status, s.state.Started = StatusRunning, time.Now().UTC()
	}
	return err
}

// badPaths are the errors of paths that do not lead where they must: to a directory, to a
// file, to what can be mounted with mapped ids, or anywhere at all.
func badPaths() []syscall.Errno {
	return []syscall.Errno{unix.ENOTDIR, unix.EISDIR, unix.EOPNOTSUPP, unix.ELOOP, unix.ENAMETOOLONG}
}

// classify says what an error of a program means for its caller, and which exit
// code a shell would give it.
func classify(err error) (code string, exit int) {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code, map[string]int{CodeNoCommand: ExitNoCommand, CodeNotExecutable: ExitNotExecutable, CodeInvalid: ExitFailed, CodeFailed: ExitFailed}[e.Code]
	}
	f, ok := errors.AsType[*call.Failure](err)
	switch {
	case ok && !f.Command && slices.Contains(badPaths(), f.Errno):
		return CodeInvalid, ExitFailed
	case !ok || !f.Command:
		return CodeFailed, ExitFailed
	case f.Errno == unix.ENOENT || f.Errno == unix.ENOTDIR:
		return CodeNoCommand, ExitNoCommand
	default:
		return CodeNotExecutable, ExitNotExecutable
	}
}
