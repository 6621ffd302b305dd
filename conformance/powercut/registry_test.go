package powercut

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// registry is a berth serve.
type registry struct {
	url  string
	cmd  *exec.Cmd
	ends chan struct{} // closed when it has ended and all it wrote is in log
	mu   sync.Mutex
	log  strings.Builder
}

var ready = regexp.MustCompile(`msg="registry is ready".* url=(\S+)`)

// built is the berth that make build made.
func built() string { return cmp.Or(os.Getenv("BERTH"), "../../bin/berth") }

// start starts a berth on data, with settings such as BERTH_GRACE=1s.
func start(binary, data string, settings ...string) (*registry, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	r := &registry{cmd: exec.Command(binary, "serve", "--listen", "127.0.0.1:0", "--data", data), ends: make(chan struct{})}
	r.cmd.Env = append(os.Environ(), settings...)
	out, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start berth; run make build first: %w", err)
	}
	url := make(chan string, 1)
	go func() {
		defer close(r.ends)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			r.mu.Lock()
			r.log.WriteString(lines.Text() + "\n")
			r.mu.Unlock()
			if m := ready.FindStringSubmatch(lines.Text()); m != nil {
				url <- m[1]
			}
		}
	}()
	select {
	case r.url = <-url:
		return r, nil
	case <-r.ends:
		return nil, fmt.Errorf("berth does not start (%w): %s", r.cmd.Wait(), r.said())
	}
}

// said is what the registry has logged.
func (r *registry) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// kill ends the registry as a power cut would: without asking it.
func (r *registry) kill() error {
	if err := r.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-r.ends
	_ = r.cmd.Wait() // "signal: killed"
	return nil
}

// running is start for a test that needs it.
func running(t *testing.T, binary, data string, settings ...string) *registry {
	t.Helper()
	r, err := start(binary, data, settings...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// memory is a directory in memory, where it can be had: what a test writes there
// outlives no machine, but it is the disk of nobody else.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-powercut-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// files lists the files below dir, which need not exist.
func files(dir string) (list []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path == dir:
			return nil
		case err == nil && d.Type().IsRegular():
			list = append(list, path)
		}
		return err
	})
	return list, err
}

// drain reads and closes a body.
func drain(body io.ReadCloser) ([]byte, error) {
	defer body.Close()
	return io.ReadAll(body)
}
