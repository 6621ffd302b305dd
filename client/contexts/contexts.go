// Package contexts keeps what berth login has brought home: the servers that
// somebody works with, by names of their own, and a login at each.
package contexts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"berth.internal/internal/config"
	"berth.internal/internal/durable"
	"berth.internal/internal/lazyregexp"
)

// maxFile is the largest file that is read, in bytes.
const maxFile = 4 << 20

// Context is a server and a login there.
type Context struct {
	Server string `yaml:"server"`       // its URL, without a path
	CA     string `yaml:"ca,omitempty"` // PEM certificates to trust beside the system's

	// User and Secret are shown as name and password; empty: logged out. Secret is
	// an API key or the secret of a robot, no password of a person.
	User    string    `yaml:"user,omitempty"`
	Secret  string    `yaml:"secret,omitempty"`
	Key     string    `yaml:"key,omitempty"`     // id of the API key that was made for this login
	Expires time.Time `yaml:"expires,omitempty"` // of that; zero: never
}

// Host is that of the server, with its port if the address has one.
func (c Context) Host() string {
	u, err := url.Parse(c.Server)
	if err != nil {
		return ""
	}
	return u.Host
}

// LogOut forgets the login.
func (c *Context) LogOut() { c.User, c.Secret, c.Key, c.Expires = "", "", "", time.Time{} }

// File is all that is kept.
type File struct {
	Current  string             `yaml:"current,omitempty"` // name of the context that counts if none is named
	Contexts map[string]Context `yaml:"contexts,omitempty"`
}

// ErrUnknown says that there is no context of a name.
var ErrUnknown = errors.New("there is no such context")

// Find returns the context of that name; empty: the current one. Errors:
// ErrUnknown.
func (f File) Find(name string) (string, Context, error) {
	if name == "" {
		name = f.Current
	}
	c, ok := f.Contexts[name]
	switch {
	case name == "":
		return "", c, fmt.Errorf("%w that is current", ErrUnknown)
	case !ok:
		return "", c, fmt.Errorf("%q: %w", name, ErrUnknown)
	}
	return name, c, nil
}

// At returns a context whose server has that host: the current one if it is one of
// them, else one with a login.
func (f File) At(host string) (Context, bool) {
	if c, ok := f.Contexts[f.Current]; ok && c.Host() == host {
		return c, true
	}
	var found Context
	for _, name := range f.Names() {
		if c := f.Contexts[name]; c.Host() == host && (found.Server == "" || found.Secret == "" && c.Secret != "") {
			found = c
		}
	}
	return found, found.Server != ""
}

// Names returns those of the contexts, in order.
func (f File) Names() []string { return slices.Sorted(maps.Keys(f.Contexts)) }

var nameGrammar = lazyregexp.New(`^[a-zA-Z0-9\[][a-zA-Z0-9._:@\[\]-]{0,99}$`)

// CheckName refuses what is no name of a context.
func CheckName(name string) error {
	if !nameGrammar().MatchString(name) {
		return fmt.Errorf("%.80q is not a name of a context: it has letters, digits and . _ : @ -, and begins with a letter or digit", name)
	}
	return nil
}

// Path is where the file is: berth/contexts.yaml in $XDG_CONFIG_HOME, else in
// ~/.config.
func Path() (string, error) {
	base := os.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(base) { // as its specification wants it
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the place of contexts: %w", err)
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "berth", "contexts.yaml"), nil
}

// Load reads the file at path. One that is not there holds nothing. Errors: what
// other users could read, or cannot be understood.
func Load(path string) (File, error) {
	f, err := load(path)
	if err != nil {
		return File{}, fmt.Errorf("read contexts: %w", err)
	}
	return f, nil
}

func load(path string) (File, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	} else if err != nil {
		return File{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return File{}, err
	}
	if !info.Mode().IsRegular() {
		return File{}, fmt.Errorf("%s is not a file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return File{}, fmt.Errorf("%s holds secrets, and others can read or write it: chmod 600 %s", path, path)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return File{}, err
	}
	return parse(path, text)
}

// parse reads the content of a file. Its errors hold no secret.
func parse(path string, text []byte) (File, error) {
	var f File
	if len(text) > maxFile {
		return f, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	if err := config.Text(path, text, &f); err != nil {
		return File{}, err
	}
	for name, c := range f.Contexts {
		u, err := url.Parse(c.Server)
		if CheckName(name) != nil || err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
			return File{}, fmt.Errorf("%s: the context %.80q has no good name, or no URL as its server", path, name)
		}
	}
	return f, nil
}

// Change reads the file at path, lets change change it, and puts it back in one
// step, readable by its owner only. Others who change it at the same time wait. If
// change fails, nothing is written.
func Change(path string, change func(*File) error) error {
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep contexts: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("keep contexts: %w", err)
	}
	defer lock.Close() // gives the lock back
	for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		return fmt.Errorf("keep contexts: lock %s.lock: %w", path, err)
	}
	f, err := Load(path)
	if err != nil {
		return err
	}
	if f.Contexts == nil {
		f.Contexts = map[string]Context{}
	}
	if err := change(&f); err != nil {
		return err
	}
	text, err := format(f)
	if err == nil {
		err = durable.WriteFile(path, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep contexts: %w", err)
	}
	return nil
}

func format(f File) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# Written by berth login. It holds secrets: keep it to yourself.\n")
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(f); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}
