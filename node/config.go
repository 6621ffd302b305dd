package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"

	"berth.internal/internal/control"
	"berth.internal/node/host"
)

// Config is the configuration of berth node.
type Config struct {
	// Registry is the URL of the cluster's registry, or its host:port. Default
	// 127.0.0.1:5000.
	Registry string `yaml:"registry"`

	// Name is the canonical name of that registry, which names of images carry.
	// Default: its host:port.
	Name string `yaml:"name"`

	// RegistryCA is a file of PEM certificates of CAs to trust beside the system's,
	// for the registry's certificate. Default none.
	RegistryCA string `yaml:"registry_ca"`

	// RegistryUser is the name that the node logs in to the registry with, such as
	// robot+node. Default none: it pulls what everybody may.
	RegistryUser string `yaml:"registry_user"`

	// RegistryPasswordFile holds the password of RegistryUser. It is read each time
	// it is used.
	RegistryPasswordFile string `yaml:"registry_password_file"`

	// Data is the directory that keeps images and containers. Default
	// /var/lib/berth.
	Data string `yaml:"data"`

	// Socket is the path of the unix socket that serves the Docker Engine API.
	// Default /run/berth/node.sock.
	Socket string `yaml:"socket"`

	// Runtime is what makes containers that do not say: berth, runc or crun. Default
	// berth.
	Runtime string `yaml:"runtime"`

	// NoNewPrivileges keeps programs of containers that do not say from gaining
	// privileges when they are executed: set-user-ID programs such as sudo and ping
	// get none. Default false, as Docker's.
	NoNewPrivileges bool `yaml:"no_new_privileges"`

	// Runc is the path of runc, Crun that of crun. Default: they are looked for in
	// PATH, and offered if they are there.
	Runc string `yaml:"runc"`
	Crun string `yaml:"crun"`

	// Dial, if not nil, connects to the registry, one in this process, which lets the
	// node in by the header control.NodeHeader.
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `yaml:"-"`

	// Init is the program cmd/berth-init; nil means this program itself.
	Init []byte `yaml:"-"`

	// Version is berth's own, for docker version.
	Version string `yaml:"-"`
}

// header is what the registry in this process knows the node by.
func (c Config) header() http.Header {
	if c.Dial == nil {
		return nil
	}
	return http.Header{control.NodeHeader: {"local"}}
}

// ErrNotRoot says that a node needs rights that only root has.
var ErrNotRoot = errors.New("a node needs root, to mount and to make namespaces: start it with sudo")

// DefaultConfig returns the configuration of a node that was told nothing.
func DefaultConfig() Config {
	return Config{Registry: "127.0.0.1:5000", Data: "/var/lib/berth", Socket: "/run/berth/node.sock", Runtime: host.RuntimeBerth}
}

// maxSocketPath is the longest path of a unix socket, in bytes (unix(7)).
const maxSocketPath = 107

// Validate returns all that is wrong with the configuration, each line
// beginning with the key.
func (c Config) Validate() error {
	var errs []error
	if c.Registry == "" {
		errs = append(errs, errors.New("registry: must name the cluster's registry, such as http://10.0.0.1:5000"))
	}
	if (c.RegistryUser == "") != (c.RegistryPasswordFile == "") {
		errs = append(errs, errors.New("registry_user: needs registry_password_file beside it, and the other way round; berth robot add makes an account for a node"))
	}
	if c.Data == "" {
		errs = append(errs, errors.New("data: must name a directory"))
	}
	if c.Socket == "" || len(c.Socket) > maxSocketPath {
		errs = append(errs, fmt.Errorf("socket: must be a path of 1 to %d bytes", maxSocketPath))
	}
	if !slices.Contains([]string{host.RuntimeBerth, host.RuntimeRunc, host.RuntimeCrun}, c.Runtime) {
		errs = append(errs, fmt.Errorf("runtime: must be berth, runc or crun, not %q", c.Runtime))
	}
	return errors.Join(errs...)
}

// CheckFiles returns all that is wrong with the files that the configuration names,
// each line beginning with the key.
func (c Config) CheckFiles() error {
	var errs []error
	for _, f := range []struct{ key, path string }{{"registry_ca", c.RegistryCA}, {"registry_password_file", c.RegistryPasswordFile}} {
		if f.path == "" {
			continue
		}
		if _, err := os.ReadFile(f.path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.key, err))
		}
	}
	return errors.Join(errs...)
}
