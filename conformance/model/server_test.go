package model_test

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// settings are those of the registry under test: what takes days in life takes
// moments here.
type settings struct {
	grace     time.Duration // how long content without a use is kept
	untagged  time.Duration // and manifests without a tag; zero: for ever
	dangling  time.Duration // and referrers without a subject; zero: for ever
	trash     time.Duration // how long what was deleted can be restored
	immutable bool          // tag 3 of repository d is set once
	interval  time.Duration // between two rounds of the collector
	rate      int           // reviews and deletions in a second: few, so that a round lasts
	expiry    time.Duration // of uploads
}

func defaultSettings() settings {
	const grace = 400 * time.Millisecond
	return settings{grace: grace, untagged: grace, dangling: grace, interval: 5 * time.Millisecond, rate: 150, expiry: time.Second}
}

// randomSettings are others that make sense.
func randomSettings(rnd *rand.Rand) settings {
	grace := func() time.Duration { return time.Duration(200+rnd.IntN(400)) * time.Millisecond }
	s := defaultSettings()
	s.grace, s.untagged, s.dangling = grace(), grace(), grace()
	if rnd.IntN(4) == 0 {
		s.untagged, s.dangling = 0, 0
	}
	if rnd.IntN(3) > 0 {
		s.trash = grace() * time.Duration(1+rnd.IntN(3))
	}
	s.immutable = rnd.IntN(2) == 0
	s.rate <<= rnd.IntN(5)
	return s
}

// forever is longer than a run.
const forever = time.Hour

// review is how long a manifest without a tag is kept.
func (s settings) review(m *thing) time.Duration {
	grace := s.untagged
	if m.subject != nil {
		grace = s.dangling
	}
	return cmp.Or(grace, forever)
}

// set tells whether a tag is set once.
func (s settings) set(name tagName) bool { return s.immutable && name == tagName{"d", "3"} }

func (s settings) yaml() string {
	text := fmt.Sprintf("grace: %s\nupload_expiry: %s\ntrash: %s\ncollect: {interval: %s, rate: %d, untagged: %t, untagged_grace: %s, dangling: %t, dangling_grace: %s}\n",
		s.grace, s.expiry, s.trash, s.interval, s.rate,
		s.untagged > 0, cmp.Or(s.untagged, forever), s.dangling > 0, cmp.Or(s.dangling, forever))
	if s.immutable {
		text += "immutable_tags: [{repositories: d, tags: 3}]\n"
	}
	return text
}

// registry is a berth serve that runs.
type registry struct {
	url   string
	cmd   *exec.Cmd
	ended chan struct{} // closed when stderr has ended

	mu  sync.Mutex
	log []string
}

var ready = regexp.MustCompile(`msg="registry is ready".* url=(\S+)`)

// serve starts a registry on the directory data and waits until it is ready.
func serve(binary, data string, s settings, env ...string) (*registry, error) {
	config := data + ".yaml"
	if err := os.WriteFile(config, []byte(s.yaml()), 0o600); err != nil {
		return nil, err
	}
	r := &registry{ended: make(chan struct{})}
	r.cmd = exec.Command(binary, "serve", "--config", config, "--listen", "127.0.0.1:0", "--data", data)
	r.cmd.Env = append(os.Environ(), env...)
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	url := make(chan string, 1)
	go r.read(stderr, url)
	select {
	case r.url = <-url:
		return r, nil
	case <-r.ended:
		return nil, fmt.Errorf("berth serve does not start: %w\n%s", r.cmd.Wait(), strings.Join(r.log, "\n"))
	}
}

func (r *registry) read(stderr io.Reader, url chan<- string) {
	defer close(r.ended)
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		line := lines.Text()
		if strings.Contains(line, "level=DEBUG") {
			continue
		}
		r.mu.Lock()
		r.log = append(r.log, line)
		r.mu.Unlock()
		if m := ready.FindStringSubmatch(line); m != nil {
			url <- m[1]
		}
	}
}

// kill ends the registry at once.
func (r *registry) kill() error {
	err := r.cmd.Process.Kill()
	<-r.ended
	_ = r.cmd.Wait() // "signal: killed"
	return err
}

// stop asks the registry to end, which it must do well.
func (r *registry) stop() error {
	err := r.cmd.Process.Signal(syscall.SIGTERM)
	<-r.ended
	if err := errors.Join(err, r.cmd.Wait()); err != nil {
		return fmt.Errorf("berth serve did not end well after SIGTERM: %w\n%s", err, strings.Join(r.log, "\n"))
	}
	return nil
}

// complaints returns what the registry logged as errors. That it begins no job
// while it stops is none.
func (r *registry) complaints() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, line := range r.log {
		if strings.Contains(line, "level=ERROR") && !strings.Contains(line, `error="the server is stopping"`) || strings.HasPrefix(line, "panic:") {
			errs = append(errs, errors.New(line))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("berth serve logs errors:\n%w", errors.Join(errs...))
}

// files returns the files of blobs and uploads in the data directory.
func files(data string) ([]string, error) {
	var list []string
	for _, dir := range []string{"blobs", "uploads"} {
		err := filepath.WalkDir(filepath.Join(data, "registry", dir), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the collector was here
			}
			if err == nil && d.Type().IsRegular() {
				list = append(list, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// binary is the berth under test: $BERTH, or where make build puts it.
func binary() (string, error) {
	path, err := filepath.Abs(cmp.Or(os.Getenv("BERTH"), "../../bin/berth"))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return "", fmt.Errorf("no berth to test; run make build first: %w", err)
	}
	return path, nil
}
