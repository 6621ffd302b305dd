package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// engine is a berth node, as its Docker Engine API shows it.
type engine struct {
	binary, data, socket, registry string

	cmd  *exec.Cmd
	log  bytes.Buffer
	http *http.Client
}

func newEngine(binary, data, registry string) *engine {
	e := &engine{binary: binary, data: data, socket: filepath.Join(data, "sock"), registry: registry}
	e.http = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 16,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.socket)
		},
	}}
	return e
}

// up starts the node and returns how long it takes until it answers that it has so
// many running containers.
func (e *engine) up(ctx context.Context, running int) (time.Duration, error) {
	if err := os.MkdirAll(e.data, 0o700); err != nil {
		return 0, err
	}
	var took time.Duration
	var list []string
	began := time.Now()
	err := e.serve(exec.Command(e.binary, "node", "--registry", e.registry, "--data", e.data, "--socket", e.socket, "--log-level", "error"), func() (there bool) {
		var err error
		list, err = e.list(ctx, "")
		took = time.Since(began)
		return err == nil || ctx.Err() != nil
	})
	if err = errors.Join(err, ctx.Err()); err == nil && len(list) != running {
		err = fmt.Errorf("the node has %d running containers, want %d: %s", len(list), running, &e.log)
	}
	return took, err
}

// serve starts the process that serves the socket, and returns when it answers.
func (e *engine) serve(cmd *exec.Cmd, answers func() bool) error {
	e.cmd = cmd
	cmd.Stdout, cmd.Stderr = &e.log, &e.log
	// On another thread than that of hidden: the node shall see what there is, or it
	// leaves behind what it does not see.
	started := make(chan error)
	go func() { started <- cmd.Start() }()
	if err := <-started; err != nil {
		e.cmd = nil
		return err
	}
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(time.Millisecond) {
		if answers() {
			return nil
		}
	}
	return fmt.Errorf("%s does not answer: %s", cmd, &e.log)
}

// end ends the node. Its containers run on.
func (e *engine) end(sig syscall.Signal) error {
	if e.cmd == nil {
		return nil
	}
	e.http.CloseIdleConnections()
	err := e.cmd.Process.Signal(sig)
	_ = e.cmd.Wait() // killed, or as it was told
	e.cmd = nil
	return err
}

// clean removes all containers and ends the node.
func (e *engine) clean(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	if e.cmd == nil {
		return nil
	}
	list, err := e.list(ctx, "?all=1")
	for _, name := range list {
		err = errors.Join(err, e.do(ctx, "DELETE", "/containers/"+name+"?force=1", nil, nil))
	}
	return errors.Join(err, e.end(syscall.SIGTERM))
}

// do makes a call; answer, if it is not nil, takes the JSON that comes.
func (e *engine) do(ctx context.Context, method, path string, body, answer any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s = %s: %s", method, path, resp.Status, all)
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(all, answer)
	}
	return err
}

// list returns the ids of containers.
func (e *engine) list(ctx context.Context, query string) ([]string, error) {
	var containers []struct{ ID string }
	if err := e.do(ctx, "GET", "/containers/json"+query, nil, &containers); err != nil {
		return nil, err
	}
	var ids []string
	for _, c := range containers {
		ids = append(ids, c.ID)
	}
	return ids, nil
}

// start creates and starts a container: what docker run -d asks for.
func (e *engine) start(ctx context.Context, name string, command ...string) error {
	body := map[string]any{"Image": nodeImage, "Cmd": command, "HostConfig": map[string]any{"NetworkMode": "none"}}
	if err := e.do(ctx, "POST", "/containers/create?name="+name, body, nil); err != nil {
		return err
	}
	return e.do(ctx, "POST", "/containers/"+name+"/start", nil, nil)
}

// remove waits for a container's end and removes it.
func (e *engine) remove(ctx context.Context, name string) error {
	if err := e.do(ctx, "POST", "/containers/"+name+"/wait", nil, nil); err != nil {
		return err
	}
	return e.do(ctx, "DELETE", "/containers/"+name, nil, nil)
}

// exec runs a command in a container to its end.
func (e *engine) exec(ctx context.Context, name string, command ...string) error {
	var made struct{ ID string }
	body := map[string]any{"AttachStdout": true, "AttachStderr": true, "Cmd": command}
	if err := e.do(ctx, "POST", "/containers/"+name+"/exec", body, &made); err != nil {
		return err
	}
	return e.do(ctx, "POST", "/exec/"+made.ID+"/start", map[string]any{}, nil)
}

// shims returns the share of memory that is due to the processes that stand beside
// containers below dir, in MB.
func shims(name, dir string) (count int, all float64, err error) {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, err
	}
	total := int64(0)
	for _, p := range procs {
		comm, err := os.ReadFile(p + "/comm")
		if err != nil || strings.TrimSpace(string(comm)) != name || !belongs(p, dir) {
			continue
		}
		kb, err := pss(p)
		if err != nil {
			continue // it has just ended
		}
		count, total = count+1, total+kb
	}
	if count == 0 {
		return 0, 0, fmt.Errorf("no process %s belongs to %s", name, dir)
	}
	return count, float64(total) * 1024 / 1e6, nil
}

// belongs reports whether a process has something below dir open, or was told of
// it.
func belongs(p, dir string) bool {
	if args, err := os.ReadFile(p + "/cmdline"); err == nil && bytes.Contains(args, []byte(dir)) {
		return true
	}
	says, err := os.Readlink(p + "/fd/2")
	return err == nil && strings.HasPrefix(says, dir)
}

func pss(p string) (kb int64, err error) {
	b, err := os.ReadFile(p + "/smaps_rollup")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			_, err = fmt.Sscan(v, &kb)
		}
	}
	return kb, err
}
