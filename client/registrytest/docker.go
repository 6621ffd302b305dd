// Package registrytest starts registries that tests talk to.
package registrytest

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"berth.internal/internal/lazyregexp"
)

// listening is what Debian's docker-registry logs once its port is open.
var listening = lazyregexp.New(`listening on (127\.0\.0\.1:\d+)`)

// Docker starts Debian's docker-registry (package docker-registry) on a free
// loopback port, in memory, and returns its host:port. It ends with the test.
func Docker(t testing.TB) string {
	t.Helper()
	config := filepath.Join(t.TempDir(), "registry.yml")
	err := os.WriteFile(config, []byte(`version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage: {inmemory: {}, delete: {enabled: true}}
http: {addr: "127.0.0.1:0"}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "docker-registry", "serve", config)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start docker-registry (apt-get install docker-registry): %v", err)
	}
	address := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			if m := listening().FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone already
		<-read
		_ = cmd.Wait() // killed: always an error
	})
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	var at string
	select {
	case at = <-address:
	case <-read:
		t.Fatal("docker-registry ended at its start")
	case <-deadline.C:
		t.Fatal("docker-registry does not listen after 30 s")
	}
	return at
}
