// Package protocol_test holds the built binary to the distribution protocol as
// clients know it, over HTTP. It is written from the OCI distribution-spec 1.1.1
// and its main branch, and from what clients in use depend on. Each file is one
// part of the protocol, each test one rule:
//
//	names_test.go      A  names, references, digests
//	blobs_test.go      B  reading and deleting blobs
//	uploads_test.go    B  pushing blobs
//	sessions_test.go   B  upload sessions: at once, cancelled, after a crash
//	manifests_test.go  C  reading and deleting manifests, tags
//	push_test.go       C  pushing manifests
//	discovery_test.go  D  lists and referrers
//	errors_test.go     D  errors and headers
//	matrix_test.go     E  who may do what, over TLS
//	proxy_test.go      B, D  proxies before the registry, and the registry as a mirror
//
// What every answer must have, check in client_test.go asks of each.
//
// What F lists as new is with the endpoint it is about. Every test has its own
// repository, so that they share one registry.
package protocol_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	binary string    // the berth under test: $BERTH, or built here
	shared *registry // used by all tests that do not need their own
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "protocol")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if binary = os.Getenv("BERTH"); binary == "" {
		binary = filepath.Join(dir, "berth")
		build := exec.Command("go", "build", "-o", binary, "./cmd/berth")
		build.Dir = "../.."
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build berth: %w\n%s", err, out)
		}
	}
	if shared, err = serve(filepath.Join(dir, "data")); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, shared.stop()) }()
	return m.Run(), nil
}

// registry is a berth serve that runs.
type registry struct {
	url   string
	data  string // its directory
	cmd   *exec.Cmd
	ended chan struct{} // closed when stderr has ended
	log   strings.Builder
	repos atomic.Int64 // given to tests so far
}

var ready = regexp.MustCompile(`msg="registry is ready" address=(\S+)`)

// serve starts a registry on the directory data and waits until it is ready.
func serve(data string, flags ...string) (*registry, error) {
	r := &registry{data: data, ended: make(chan struct{})}
	r.cmd = exec.Command(binary, append([]string{"serve", "--listen", "127.0.0.1:0", "--data", data}, flags...)...)
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	address := make(chan string, 1)
	go r.read(stderr, address)
	select {
	case a := <-address:
		r.url = "http://" + a
		return r, nil
	case <-r.ended:
		return nil, fmt.Errorf("berth serve is not ready: %w\n%s", r.cmd.Wait(), r.log.String())
	}
}

func (r *registry) read(stderr io.Reader, address chan<- string) {
	defer close(r.ended)
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		fmt.Fprintln(&r.log, lines.Text())
		if m := ready.FindStringSubmatch(lines.Text()); m != nil {
			address <- m[1]
		}
	}
}

// stop asks the registry to stop. It must end well.
func (r *registry) stop() error {
	if err := r.end(syscall.SIGTERM); err != nil {
		return fmt.Errorf("berth serve did not end well after SIGTERM: %w\n%s", err, r.log.String())
	}
	return nil
}

func (r *registry) end(sig syscall.Signal) error {
	if err := r.cmd.Process.Signal(sig); err != nil {
		return err
	}
	<-r.ended
	return r.cmd.Wait()
}

// own starts a registry for one test, with these flags.
func own(t *testing.T, flags ...string) *registry {
	t.Helper()
	r, err := serve(filepath.Join(t.TempDir(), "data"), flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// eventually waits until what is true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !is() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("after 20 s it is not so that %s", what)
		}
	}
}

// holding returns the files of the registry that hold the beginning of content.
func (r *registry) holding(t *testing.T, content string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(r.data, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
			return nil // it goes on working
		}
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(content[:min(len(content), 4096)])) {
			files = append(files, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// ofProcess returns a number that the kernel keeps of the registry's process, as
// in /proc/<pid>/<file>.
func (r *registry) ofProcess(t *testing.T, file, key string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", r.cmd.Process.Pid, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s has no %s:\n%s", file, key, b)
	return 0
}

// bytesRead is what the registry has read so far, from files and clients.
func (r *registry) bytesRead(t *testing.T) int { return r.ofProcess(t, "io", "rchar") }

// peakMemory is the most memory that the registry has used so far, in bytes.
func (r *registry) peakMemory(t *testing.T) int { return r.ofProcess(t, "status", "VmHWM") << 10 }
