package auth

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

const (
	maxHtpasswd   = 8 << 20 // bytes
	htpasswdCheck = time.Second
)

// htpasswd is a file of users as Apache's htpasswd -B makes it, read again when
// it has changed. The zero value has no file and no users.
type htpasswd struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	checked time.Time
	seen    os.FileInfo
	users   map[string]string // their hashes
	dummy   string            // the hash of somebody, one of the slowest, for nobody
}

// openHtpasswd reads the file.
func openHtpasswd(path string, log *slog.Logger) (*htpasswd, error) {
	h := &htpasswd{path: path, log: log}
	if path == "" {
		return h, nil
	}
	return h, h.read(time.Now())
}

// user returns the hash of the user's password.
func (h *htpasswd) user(name string) (hash string, ok bool) {
	if h.path == "" {
		return "", false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.Sub(h.checked) >= htpasswdCheck {
		if err := h.read(now); err != nil {
			h.log.Error("the htpasswd file cannot be read; its users stay as they were", "path", h.path, "error", err)
		}
	}
	hash, ok = h.users[name]
	return hash, ok
}

// decoy returns a hash that costs as much as those of the file, or "".
func (h *htpasswd) decoy() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dummy
}

// read reads the file if it is another than the one that was read last.
func (h *htpasswd) read(now time.Time) error {
	h.checked = now
	info, err := os.Stat(h.path)
	if err != nil {
		return fmt.Errorf("htpasswd: %w", err)
	}
	if h.seen != nil && os.SameFile(h.seen, info) && h.seen.ModTime().Equal(info.ModTime()) && h.seen.Size() == info.Size() {
		return nil
	}
	f, err := os.Open(h.path)
	if err != nil {
		return fmt.Errorf("htpasswd: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHtpasswd+1))
	if err != nil {
		return fmt.Errorf("htpasswd: read %s: %w", h.path, err)
	}
	if len(text) > maxHtpasswd {
		return fmt.Errorf("htpasswd: %s is larger than %d bytes", h.path, maxHtpasswd)
	}
	h.seen = info // also if it is wrong: it is complained of once
	users, err := parseHtpasswd(text)
	if err != nil {
		return fmt.Errorf("htpasswd: %s: %w", h.path, err)
	}
	h.users, h.dummy = users, ""
	most := 0
	for _, hash := range users {
		if cost, err := bcrypt.Cost([]byte(hash)); err == nil && cost > most {
			h.dummy, most = hash, cost
		}
	}
	return nil
}

// parseHtpasswd reads lines of name:hash. The error is all that is wrong, with
// the lines; it holds no hash.
func parseHtpasswd(text []byte) (map[string]string, error) {
	users := map[string]string{}
	var errs []error
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if !ok {
			errs = append(errs, fmt.Errorf("line %d is not NAME:HASH", n))
			continue
		}
		if err := checkName(name); err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		if cost, err := bcrypt.Cost([]byte(hash)); err != nil || cost > 16 {
			errs = append(errs, fmt.Errorf("line %d: the hash of %s is not bcrypt of cost 16 or less: make it with htpasswd -B", n, name))
			continue
		}
		if _, twice := users[name]; twice {
			errs = append(errs, fmt.Errorf("line %d: %s is there twice", n, name))
			continue
		}
		users[name] = hash
	}
	if err := lines.Err(); err != nil {
		errs = append(errs, err)
	}
	return users, errors.Join(errs...)
}
