package node

import (
	"errors"
	"fmt"
)

// Config is the configuration of berth node.
type Config struct {
	// Registry is the URL of the cluster's registry, or its host:port. Default
	// 127.0.0.1:5000.
	Registry string `yaml:"registry"`

	// Name is the canonical name of that registry, which names of images carry.
	// Default: its host:port.
	Name string `yaml:"name"`

	// Data is the directory that keeps images and containers. Default
	// /var/lib/berth.
	Data string `yaml:"data"`

	// Socket is the path of the unix socket that serves the Docker Engine API.
	// Default /run/berth/node.sock.
	Socket string `yaml:"socket"`

	// Init is the program cmd/berth-init; nil means this program itself.
	Init []byte `yaml:"-"`

	// Version is berth's own, for docker version.
	Version string `yaml:"-"`
}

// ErrNotRoot says that a node needs rights that only root has.
var ErrNotRoot = errors.New("a node needs root, to mount and to make namespaces: start it with sudo")

// DefaultConfig returns the configuration of a node that was told nothing.
func DefaultConfig() Config {
	return Config{Registry: "127.0.0.1:5000", Data: "/var/lib/berth", Socket: "/run/berth/node.sock"}
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
	if c.Data == "" {
		errs = append(errs, errors.New("data: must name a directory"))
	}
	if c.Socket == "" || len(c.Socket) > maxSocketPath {
		errs = append(errs, fmt.Errorf("socket: must be a path of 1 to %d bytes", maxSocketPath))
	}
	return errors.Join(errs...)
}
