package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"berth.internal/node/host"
)

// versionLimit is how long a runtime may take to say which one it is.
const versionLimit = 10 * time.Second

// systemPath is where runtimes are looked for beside PATH, which may be a user's.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// runtimes returns the paths of the runtimes that the node has beside its own. One
// that the configuration names must be there, and be what it is called.
func (c Config) runtimes(ctx context.Context) (map[string]string, error) {
	found := map[string]string{}
	var errs []error
	for _, r := range []struct{ name, path string }{{host.RuntimeRunc, c.Runc}, {host.RuntimeCrun, c.Crun}} {
		path, err := findRuntime(ctx, r.name, r.path, c.Runtime == r.name)
		switch {
		case err == nil:
			found[r.name] = path
		case r.path != "" || c.Runtime == r.name:
			errs = append(errs, err)
		}
	}
	return found, errors.Join(errs...)
}

// findRuntime returns the absolute path of a runtime. If it was named or is needed,
// it is asked whether it is the one.
func findRuntime(ctx context.Context, name, path string, needed bool) (string, error) {
	key := name
	if path == "" {
		key = "runtime"
		for _, dir := range filepath.SplitList(os.Getenv("PATH") + string(filepath.ListSeparator) + systemPath) {
			if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil && filepath.IsAbs(p) {
				path = p
				break
			}
		}
		if path == "" {
			return "", fmt.Errorf("%s: %s is not installed: it is not in PATH; install it, or say where it is with --%s", key, name, name)
		}
		if !needed {
			return path, nil
		}
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	ctx, cancel := context.WithTimeout(ctx, versionLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s: ask %s for its version: %w", key, path, err)
	}
	if !strings.HasPrefix(string(out), name+" version ") {
		first, _, _ := strings.Cut(string(out), "\n")
		return "", fmt.Errorf("%s: %s is not %s, it says it is %.100q", key, path, name, first)
	}
	return path, nil
}
