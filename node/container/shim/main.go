package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

// Name is the shim's argv[0]. A program that carries no cmd/berth-init of its
// own calls Main first thing if it finds itself called by it.
const Name = call.InitName

// listener is the descriptor that the agent leaves a shim: its socket.
const listener = 3

// Env is what the agent gives a shim as environment: it shall stay small. The
// collector runs for tidy only: its runs need more memory, forever, than the
// first start of a container leaves, and without it there are none every two
// minutes for nothing. Go's runtime shall not keep descriptors for adapting itself to limits, since
// Main closes all that it does not know.
func Env() []string {
	return []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=32MiB", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"}
}

// Main is the whole program. It returns the exit status.
func Main() int {
	if in, ok := call.ParseInit(os.Args, environ()); ok {
		return first(in)
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "%s %s: %v\n", time.Now().UTC().Format(time.RFC3339), Name, err)
		return 1
	}
	return 0
}

func run() error {
	if on, err := unix.GetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on != 1 {
		return errors.New("this program is for berth to start, not for people")
	}
	// What the agent itself inherited and did not mean to pass on. This process has
	// opened nothing yet.
	if err := unix.CloseRange(listener+1, math.MaxInt32, 0); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	// Who asks the agent's service to stop does not mean the containers, and a client
	// that goes away must not end the shim.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	// The child is a copy of this process until it executes the container's program:
	// nobody in there may look into it, or open its program.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make memory private: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper: %w", err)
	}
	_ = os.WriteFile("/proc/self/comm", []byte(Name), 0) // for ps only
	unix.CloseOnExec(listener)
	unix.Umask(0)
	s := &shim{
		done: make(chan struct{}), turn: make(chan struct{}), forked: make(chan struct{}, 1),
		execs: map[int]chan unix.WaitStatus{},
	}
	// Opened once: there are ten hierarchies, and each process of exec enters all.
	s.tasks = sync.OnceValues(func() ([]int, error) { return s.Cgroup.Tasks() })
	rehearse()
	return s.serve(os.NewFile(listener, "listener"))
}

// rehearse reads and writes a message of each kind that a start needs: the first one
// costs package json 0.3 ms, which a spare shim has.
func rehearse() {
	var r Request
	_ = json.Unmarshal([]byte(`{"create":{"cgroup":{"dirs":[]},"send":[],"restart":{}},"version":1}`), &r)
	_, _ = json.Marshal(Response{State: &State{}})
}

// shim is one container.
type shim struct {
	Create
	out, err output
	stdin    *os.File // the writing end; nil: there is none, or it was given away
	term     terminal // also of further processes
	pidns    *os.File // of this process
	null     *os.File // /dev/null of the container; nil: none
	sync     *os.File // tells the container's first process to go on
	status   *os.File // its reports

	requests sync.WaitGroup // those that still get an answer
	copies   sync.WaitGroup // of stdout and stderr

	garbage atomic.Int32 // what tidy has not removed yet

	tasks func() ([]int, error) // see call.Fork.Tasks; open as long as the shim lives

	forked chan struct{} // holds a token if something was forked since reap has seen no child

	mu       sync.Mutex // for all below, and held while a first process is forked
	state    State
	first    int // number of the container's first process; 0: it was waited for
	pidfd    int // of it
	plan     programs
	engine   engine      // if Create.Engine says so
	outs     [2]*os.File // what the copies read
	execs    map[int]chan unix.WaitStatus
	forkings []*forking
	joined   joined        // namespaces of other containers
	given    *detached     // what a container without a shim was given by its caller
	refuse   bool          // there will be no container
	fate     *Exit         // what shall be said of a command that could not be executed
	before   *Exit         // the run before the last one, while restarting
	delays   backoff       // before this run
	ooms     int           // processes that the kernel killed for memory in former runs
	timer    *time.Timer   // of the next run
	killed   bool          // the cgroup was: from Linux 6.14 on, what is born in it by clone3 is killed, too, forever
	turn     chan struct{} // closed when a run is over, and made anew
	done     chan struct{} // closed when the exit record is on disk
	end      sync.Once     // closes done
}

// serve answers requests until the container is gone and everybody knows.
func (s *shim) serve(l *os.File) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var accepting sync.WaitGroup
	accepting.Go(func() { s.accept(raw) })
	<-s.done
	_ = l.Close() // nobody new; from here on the exit record speaks
	accepting.Wait()
	s.requests.Wait()
	s.copies.Wait() // who is attached may still be reading
	return nil
}

// accept accepts connections until the listener is closed.
func (s *shim) accept(l syscall.RawConn) {
	for {
		var fd int
		var err error
		if closed := l.Read(func(lfd uintptr) bool {
			fd, _, err = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return !errors.Is(err, unix.EAGAIN)
		}); closed != nil {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // short of descriptors or memory; or the client has left
			continue
		}
		if c, err := NewConn(fd); err == nil {
			s.requests.Add(1)
			go s.answer(c)
		}
	}
}

// tidyAfter is how much garbage there may be, in units of what a request for the
// state leaves.
const tidyAfter = 250

// tidy gives memory back every now and then. What was made for a container or a
// process is not the collector's: see programs.
func (s *shim) tidy(left int32) {
	if n := s.garbage.Add(left); n >= tidyAfter && s.garbage.CompareAndSwap(n, 0) {
		debug.FreeOSMemory()
	}
}

// answer answers the one request of a connection.
func (s *shim) answer(c *Conn) {
	defer s.requests.Done()
	defer s.endIfEmpty()
	defer s.tidy(1)
	defer func() { _ = c.Close() }()
	if s.has() {
		// Whoever connects says what they want at once. Only the agent's first connection
		// may wait for a container to be made.
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	var req Request
	blob, files, err := c.Receive(&req)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			_ = c.Send(Response{Version: Version, Error: failf(CodeFailed, "%v", err)}, nil)
		}
		return
	}
	_ = c.SetDeadline(time.Time{})
	resp, give, after := s.handle(c, &req, blob, files)
	resp.Version = Version
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	err = c.Send(resp, nil, give...) // if nobody listens any more, nobody misses it
	if after != nil {
		after(err)
	}
}

// has reports whether there is a container.
func (s *shim) has() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Status != ""
}

// endIfEmpty ends a shim without a container: the one connection that is there
// from the beginning, the agent's, has brought none.
func (s *shim) endIfEmpty() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Status == "" {
		s.refuse = true
		s.end.Do(func() { close(s.done) })
	}
}

// handle does what a request asks for. after is called once the answer is sent.
func (s *shim) handle(c *Conn, req *Request, blob []byte, files []*os.File) (resp Response, give []*os.File, after func(error)) {
	if req.Create == nil && req.Exec == nil { // nobody wants it
		freeBlob(blob)
	}
	var err error
	switch {
	case req.Method == MethodCreate && req.Create != nil && req.Create.Detached != nil:
		give, after, err = s.createDetached(c, *req.Create, blob, files)
		files = nil
	case req.Method == MethodExec && req.Exec != nil && req.Exec.Once != nil:
		resp.ExitCode, err = s.execOnce(c, *req.Exec, blob, files)
		files, after = nil, s.leave
	case req.Method == MethodCreate && req.Create != nil:
		err = s.create(*req.Create, blob, req.Begin)
	case req.Method == MethodStart:
		err = s.start()
	case req.Method == MethodState:
	case req.Method == MethodWait:
		s.wait(c, req.Run)
	case req.Method == MethodKill && req.Kill != nil:
		err = s.kill(unix.Signal(req.Kill.Signal))
	case req.Method == MethodRestart && req.Restart != nil:
		err = s.setRestart(*req.Restart)
	case req.Method == MethodResize && req.Resize != nil:
		err = s.resize(*req.Resize)
	case req.Method == MethodAttach && req.Attach != nil:
		give, after, err = s.attach(*req.Attach, files)
		files = nil
	case (req.Method == MethodExec || req.Method == MethodExecTerminal) && req.Exec != nil:
		resp.ExitCode, err = s.exec(c, *req.Exec, blob, files)
		files = nil
		s.tidy(5)
	default:
		err = failf(CodeUnknown, "the shim of this container (version %d) does not know method %q: restart the container", Version, req.Method)
	}
	closeAll(files)
	if err != nil {
		coded, ok := errors.AsType[*Error](err)
		if !ok {
			code, _ := classify(err)
			coded = failf(code, "%v", err)
		}
		return Response{Error: coded}, nil, after
	}
	s.mu.Lock()
	s.noteLog()
	state := s.state
	state.Warnings = slices.Clone(state.Warnings)
	// Who is told that there is no container must be able to rely on it.
	s.refuse = s.refuse || state.Status == ""
	s.mu.Unlock()
	resp.State = &state
	return resp, give, after
}

// wait returns when that run of the container is over, 0: when it is stopped, or
// who asked is gone.
func (s *shim) wait(c *Conn, run int) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = c.f.Read(make([]byte, 1)) // nothing more is sent: it is the end
	}()
	for {
		over, turn := s.isOver(run)
		if over {
			break
		}
		select {
		case <-turn:
		case <-s.done:
		case <-gone:
			return
		}
	}
	_ = c.SetDeadline(time.Now())
	<-gone
}

// isOver reports whether that run is, 0: the last one. If it is not, turn is
// closed when one is.
func (s *shim) isOver(run int) (over bool, turn <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		return true, nil
	default:
	}
	st := &s.state
	return run > 0 && (st.Run > run || st.Run == run && st.Status == StatusRestarting), s.turn
}

// kill sends a signal to the container's first process.
func (s *shim) kill(sig unix.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Status != StatusCreated && s.state.Status != StatusRunning {
		return failf(CodeStatus, "container is %s", s.state.Status)
	}
	if s.Init && (sig == unix.SIGPROF || sig >= 32 && sig <= 34) { // Go's runtime keeps them to itself
		return failf(CodeFailed, "signal %d does not reach a command behind an init", sig)
	}
	if err := unix.PidfdSendSignal(s.pidfd, sig, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return failf(CodeStatus, "container has just stopped")
		}
		return fmt.Errorf("send signal %d: %w", sig, err)
	}
	return nil
}

// attach connects streams. Sinks become the shim's.
func (s *shim) attach(a Attach, files []*os.File) (give []*os.File, after func(error), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state.Status != StatusCreated && s.state.Status != StatusRunning:
		err = failf(CodeStatus, "container is %s", s.state.Status)
	case a.Stdin && s.stdin == nil:
		err = failf(CodeStatus, "container has no standard input, or it was taken")
	case len(files) != count(a.Stdout, a.Stderr):
		err = failf(CodeFailed, "%d descriptors for %d streams", len(files), count(a.Stdout, a.Stderr))
	}
	if err != nil {
		closeAll(files)
		return nil, nil, err
	}
	for _, sink := range []struct {
		chosen bool
		to     *output
	}{{a.Stdout, &s.out}, {a.Stderr, &s.err}} {
		if sink.chosen {
			sink.to.attach(Pollable(files[0]))
			files = files[1:]
		}
	}
	if !a.Stdin {
		return nil, nil, nil
	}
	stdin := s.stdin
	if s.StdinOnce && s.term.master == nil { // the input of a terminal has no end
		s.stdin = nil // from here on the agent's copy is the only one
	} else {
		fd, err := unix.FcntlInt(stdin.Fd(), unix.F_DUPFD_CLOEXEC, 0) // the run may end while it is sent
		if err != nil {
			return nil, nil, fmt.Errorf("copy standard input: %w", err)
		}
		stdin = os.NewFile(uintptr(fd), "stdin")
	}
	return []*os.File{stdin}, func(error) { _ = stdin.Close() }, nil
}

func count(flags ...bool) int {
	n := 0
	for _, f := range flags {
		if f {
			n++
		}
	}
	return n
}

// Pollable returns f in a form whose Read and Write can be given up.
func Pollable(f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return f
	}
	_ = f.Close()
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "stream")
}
