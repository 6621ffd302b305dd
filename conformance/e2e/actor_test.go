package e2e_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// patience is how long a story waits for what should happen soon. It is spent
// only by stories that fail.
const patience = 30 * time.Second

// actor is a program that runs beside a story.
type actor struct {
	name  string
	args  []string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the program has ended and all it wrote is in lines
	err   error         // of Wait, once ended is closed
	tty   *os.File      // the other end of its terminal, if it has one

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed and made anew with each line
}

type (
	actors    struct{ m map[string]*actor }
	actorsKey struct{}
)

// act starts a program.
func act(name, dir string, env, args []string) (*actor, error) {
	a := &actor{name: name, args: args, ended: make(chan struct{}), more: make(chan struct{})}
	path, err := lookPath(args[0], env)
	if err != nil {
		return nil, err
	}
	a.cmd = exec.Command(path, args[1:]...)
	a.cmd.Dir, a.cmd.Env = dir, env
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	a.cmd.Stdout, a.cmd.Stderr = w, w
	if err := a.cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	go a.read(r, w)
	return a, nil
}

// lookPath finds a program on the PATH of env.
func lookPath(name string, env []string) (string, error) {
	for _, kv := range env {
		dirs, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(dirs) {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	return exec.LookPath(name)
}

// endMark is written after all that a program has.
const endMark = "\x00ended"

// read collects what the program writes, until it ends. What it started may hold the
// output longer, and is not waited for: w is the pipe's other end, where the end is
// marked; nil for a terminal, which the kernel takes away from them.
func (a *actor) read(r io.ReadCloser, w io.WriteCloser) {
	all := make(chan struct{})
	go func() {
		end := sync.OnceFunc(func() { close(all) })
		defer end()
		defer r.Close()
		for scan := bufio.NewScanner(r); scan.Scan(); {
			line, marked := strings.CutSuffix(scan.Text(), endMark)
			if !marked || line != "" {
				a.mu.Lock()
				a.lines = append(a.lines, strings.TrimSuffix(line, "\r"))
				close(a.more)
				a.more = make(chan struct{})
				a.mu.Unlock()
			}
			if marked {
				end()
			}
		}
	}()
	a.err = a.cmd.Wait()
	if w != nil {
		_, _ = io.WriteString(w, endMark+"\n") // unless the reader has failed
		_ = w.Close()
	}
	<-all
	close(a.ended)
}

// find waits until a line matches and returns the match.
func (a *actor) find(re *regexp.Regexp) ([]string, error) {
	timeout := time.After(patience)
	for seen, last := 0, false; ; {
		a.mu.Lock()
		lines, more := a.lines[seen:], a.more
		seen = len(a.lines)
		a.mu.Unlock()
		for _, line := range lines {
			if m := re.FindStringSubmatch(line); m != nil {
				return m, nil
			}
		}
		if last {
			return nil, fmt.Errorf("%s ended without a line that matches %s: %w", a.name, re, cmp.Or(a.err, io.EOF))
		}
		select {
		case <-more:
		case <-a.ended:
			last = true
		case <-timeout:
			return nil, fmt.Errorf("%s wrote no line that matches %s within %s", a.name, re, patience)
		}
	}
}

// stop sends a signal and waits for the end.
func (a *actor) stop(sig syscall.Signal) error {
	if err := a.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-a.ended:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s did not end within %s after %s", a.name, patience, sig)
	}
}

func (a *actor) output() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.lines, "\n")
}

// environ is the environment of a story.
func environ(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "WORK", "TMPDIR", "XDG_CONFIG_HOME", "CONTAINERS_STORAGE_CONF", "DOCKER_CONFIG", "BUILDAH_ISOLATION", "BERTH_SOCKET", "BERTH_REGISTRY", "DOCKER_HOST", "DEBIAN", "GOROOT"} {
		if value := ts.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func playing(ts *testscript.TestScript) *actors { return ts.Value(actorsKey{}).(*actors) }

func find(ts *testscript.TestScript, name string) *actor {
	a := playing(ts).m[name]
	if a == nil {
		ts.Fatalf("nobody is called %s, only %v", name, slices.Collect(maps.Keys(playing(ts).m)))
	}
	return a
}

// enter starts a program, waits until it is ready and gives it a name. What the
// first group of ready matches becomes $NAME.
func enter(ts *testscript.TestScript, name, ready string, args ...string) *actor {
	return play(ts, name, ready, act, args...)
}

// introduce waits until a program is ready, and gives it its name.
func introduce(ts *testscript.TestScript, a *actor, ready *regexp.Regexp) *actor {
	all := playing(ts)
	if all.m == nil {
		all.m = map[string]*actor{}
	}
	all.m[a.name] = a
	ts.Defer(func() {
		_ = a.stop(syscall.SIGKILL)
		ts.Logf("[%s]\n%s", strings.Join(a.args, " "), a.output())
	})
	m, err := a.find(ready)
	ts.Check(err)
	if len(m) > 1 {
		ts.Setenv(a.name, m[1])
	}
	return a
}

func positive(ts *testscript.TestScript, neg bool, args []string, least int, usage string) {
	if neg {
		ts.Fatalf("%s cannot be negated", usage)
	}
	if len(args) < least {
		ts.Fatalf("usage: %s", usage)
	}
}

func cmdSpawn(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 3, "spawn NAME REGEXP PROGRAM [ARG...]")
	enter(ts, args[0], args[1], args[2:]...)
}

func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 1, "serve NAME [FLAG...]")
	address := ts.Getenv(args[0]) // of an earlier one, whose place it takes
	if address == "" {
		address = "127.0.0.1:0"
	}
	enter(ts, args[0], `registry is ready.* address=(\S+)`,
		append([]string{"berth", "serve", "--listen", address, "--data", ts.MkAbs(args[0])}, args[1:]...)...)
}

func cmdNode(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 2, "node NAME REGISTRY [FLAG...]")
	data := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(data, 0o700))
	socket := filepath.Join(data, "sock")
	command := append([]string{"berth", "node", "--registry", args[1], "--data", data, "--socket", socket}, args[2:]...)
	again := ts.Getenv(args[0]) != ""
	enter(ts, args[0], `node is ready.* socket=(\S+)`, command...)
	if !again {
		ts.Setenv("BERTH_SOCKET", socket)
		ts.Defer(func() { leave(ts, args[0], command, socket) })
	}
}

// leave removes what a node runs, with a node that lives, and looks for what
// stays behind.
func leave(ts *testscript.TestScript, name string, command []string, socket string) {
	env := append(environ(ts), "BERTH_SOCKET="+socket)
	a := playing(ts).m[name]
	select {
	case <-a.ended: // killed by the story
		var err error
		if a, err = act(name, ts.MkAbs("."), env, command); err != nil {
			ts.Logf("clean up: %v", err)
			return
		}
		defer func() { ts.Logf("[%s, to clean up]\n%s", name, a.output()) }()
		if _, err := a.find(regexp.MustCompile("node is ready")); err != nil {
			ts.Logf("clean up: %v", err)
			return
		}
	default:
	}
	cmd := exec.Command("sh", "-c", "ids=$(berth ps -aq) && [ -z \"$ids\" ] || berth rm -f $ids")
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		ts.Logf("clean up containers of %s: %v\n%s", name, err, out)
	}
	if err := a.stop(syscall.SIGTERM); err != nil {
		ts.Logf("clean up: %v", err)
	}
}

func cmdHalt(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 1, "halt NAME [SIGNAL]")
	sig := syscall.SIGTERM
	if len(args) > 1 {
		sig = unix.SignalNum("SIG" + args[1])
	}
	a := find(ts, args[0])
	ts.Check(a.stop(sig))
	if sig == syscall.SIGTERM && a.err != nil {
		ts.Fatalf("%s did not end well: %v", args[0], a.err)
	}
}

func cmdExpect(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 2, "expect NAME REGEXP")
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	_, err = find(ts, args[0]).find(re)
	ts.Check(err)
}

// cmdPort is for programs that cannot find a free port themselves and say which.
func cmdPort(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 1, "port NAME")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	ts.Check(l.Close())
}

// cmdEventually is for what a program cannot be asked to wait for.
func cmdEventually(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 1, "eventually PROGRAM [ARG...]")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			ts.Fatalf("%s still fails: %v", strings.Join(args, " "), err)
		}
	}
}
