// Package units has the sizes that configuration and flags are written in.
package units

import (
	"fmt"
	"strings"

	"github.com/docker/go-units"
	"go.yaml.in/yaml/v3"
)

// Bytes is a size in bytes. It is written as a number with an optional unit
// that counts in powers of 1024: "512", "64k", "4MiB", "1.5g".
type Bytes int64

// ParseBytes reads a size. Errors: not a number with a known unit; below zero;
// more than an int64 holds.
func ParseBytes(s string) (Bytes, error) {
	n, err := units.RAMInBytes(strings.TrimSpace(s))
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a size such as 512k, 4MiB or 1.5g", s)
	}
	return Bytes(n), nil
}

// String writes the size with the largest unit that holds it exactly, so that
// ParseBytes reads the same size back.
func (b Bytes) String() string {
	for _, unit := range []struct {
		suffix string
		size   Bytes
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if b != 0 && b%unit.size == 0 {
			return fmt.Sprintf("%d%s", b/unit.size, unit.suffix)
		}
	}
	return fmt.Sprintf("%dB", int64(b))
}

// UnmarshalYAML reads a size from configuration. It fails as yaml's own types
// do, so that the file's other mistakes are reported too.
func (b *Bytes) UnmarshalYAML(value *yaml.Node) error {
	if err := b.Set(value.Value); err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %v", value.Line, err)}}
	}
	return nil
}

// MarshalText writes a size to configuration.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// Set reads a size from a flag.
func (b *Bytes) Set(s string) error {
	n, err := ParseBytes(s)
	if err != nil {
		return err
	}
	*b = n
	return nil
}

// Type names the value in a flag's help.
func (*Bytes) Type() string { return "size" }
