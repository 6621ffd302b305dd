package host

import (
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// checkPropagation refuses a bind that shall show the node what the container mounts, or
// the container what the node does, of a directory whose mount tells nobody: the kernel
// would make one that does neither, without a word.
func checkPropagation(m Mount) error {
	kind := strings.TrimPrefix(m.Propagation, "r")
	if m.Type != MountBind || kind != "shared" && kind != "slave" {
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.Source, 0, unix.STATX_MNT_ID, &st); err != nil {
		return nil // the runtime says it
	}
	list, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		found := uint64(i.ID) == st.Mnt_id
		return !found, found
	})
	if err != nil {
		return fmt.Errorf("look how the mount of %s is spread: %w", m.Source, err)
	}
	if len(list) == 0 {
		return nil
	}
	of := list[0]
	switch shared := strings.Contains(of.Optional, "shared:"); {
	case kind == "shared" && !shared:
		return invalid("path %s is mounted on %s but it is not a shared mount", m.Source, of.Mountpoint)
	case kind == "slave" && !shared && !strings.Contains(of.Optional, "master:"):
		return invalid("path %s is mounted on %s but it is not a shared or slave mount", m.Source, of.Mountpoint)
	}
	return nil
}
