package host

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"hash/fnv"
)

// Numbers of user namespaces, as docs/design/0004-names.md describes them. The
// upper half of the numbers belongs to nobody: /etc/subuid, systemd and
// directory services give out those below.
const (
	idsPerContainer = 1 << 16
	idsPerNode      = 1 << 26
	containersMax   = idsPerNode / idsPerContainer
	firstNodeID     = 1 << 31
	nodeRanges      = 31 // the last range of 32 holds the kernel's own numbers
)

// idRange gives every container 65 536 user and group numbers of its own out of
// the node's range. It is rebuilt from the records when the node starts.
type idRange struct {
	base  uint32
	owned [containersMax]bool
	used  [containersMax]int // by how many containers: some share another's
}

// newIDRange returns the range that belongs to the node.
func newIDRange(node string) *idRange {
	h := fnv.New32a()
	h.Write([]byte(node))
	return &idRange{base: firstNodeID + h.Sum32()%nodeRanges*idsPerNode}
}

// take reserves the lowest free numbers and returns the first of them.
func (r *idRange) take() (uint32, error) {
	for i, used := range r.used {
		if used == 0 {
			r.owned[i], r.used[i] = true, 1
			return r.base + uint32(i)*idsPerContainer, nil
		}
	}
	return 0, conflict("all %d user number ranges of this node are in use: remove containers that are no longer needed", containersMax)
}

// share reserves numbers that another container owns for one more. Errors:
// ErrConflict if that container is gone.
func (r *idRange) share(first uint32) error {
	i, err := r.index(first)
	if err != nil {
		return err
	}
	if r.used[i] == 0 {
		return conflict("the container whose namespaces shall be shared is gone")
	}
	r.used[i]++
	return nil
}

// restore marks numbers that a container has already, of its own or shared.
func (r *idRange) restore(first uint32, shared bool) error {
	i, err := r.index(first)
	if err != nil {
		return err
	}
	if !shared {
		if r.owned[i] {
			return fmt.Errorf("user numbers from %d belong to two containers", first)
		}
		r.owned[i] = true
	}
	r.used[i]++
	return nil
}

// index returns the place of numbers in the range.
func (r *idRange) index(first uint32) (uint32, error) {
	i := (first - r.base) / idsPerContainer
	if first < r.base || i >= containersMax || (first-r.base)%idsPerContainer != 0 {
		return 0, fmt.Errorf("user numbers from %d are not of this node, whose begin at %d", first, r.base)
	}
	return i, nil
}

// free gives the numbers back.
func (r *idRange) free(first uint32, shared bool) {
	i := (first - r.base) / idsPerContainer
	r.used[i]--
	if !shared {
		r.owned[i] = false
	}
}

// shortID is how a container's id is shown.
func shortID(id string) string { return id[:min(len(id), 12)] }

// newID returns a container's id: 32 random bytes in hex. Its short form is
// never all digits, since programs would take that for a number.
func newID() string {
	var b [32]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if id := hex.EncodeToString(b[:]); !allDigits(shortID(id)) {
			return id
		}
	}
}
