package node

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"berth.internal/internal/durable"
)

// nodeID is a node's identity: 32 hex digits, made at its first start. All that
// is global on a machine is named after it, so that several nodes can live on
// one (docs/design/0004-names.md).
type nodeID string

func (id nodeID) short() string { return string(id[:8]) }

// identity reads the id at path, or makes one there.
func identity(path string) (nodeID, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		id := hex.EncodeToString(b[:])
		if err := durable.WriteFile(path, []byte(id+"\n"), 0o644); err != nil {
			return "", fmt.Errorf("write the node's id: %w", err)
		}
		return nodeID(id), nil
	}
	if err != nil {
		return "", fmt.Errorf("read the node's id: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if b, err := hex.DecodeString(id); err != nil || len(b) != 16 {
		return "", fmt.Errorf("%s holds %.40q, which is no node's id of 32 hex digits: restore it from a backup; containers belong to it", path, id)
	}
	return nodeID(id), nil
}
