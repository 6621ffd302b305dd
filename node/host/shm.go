package host

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A container whose IPC namespace others may join has its /dev/shm from the node, since
// it must be the same in all of them: a file system in memory, mounted among the
// container's files as long as it runs, where nobody but root can look. It is the only
// mount that a container has on the node.

// shmPath is where it is; of the container itself, or of the one whose IPC namespace it
// shares.
func (c *ctr) shmPath() string {
	if ref, ok := c.rec.Spec.Namespaces.IPC.container(); ok {
		return filepath.Join(c.dir, ref, "shm")
	}
	return c.path("shm")
}

// makeShm mounts it anew.
func (c *ctr) makeShm() error {
	if c.rec.Spec.Namespaces.IPC != NamespaceShareable {
		return nil
	}
	if err := c.dropShm(); err != nil {
		return err
	}
	dir := c.path("shm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	options := fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", cmp.Or(c.rec.Spec.ShmSize, DefaultShmSize), c.rec.Users, c.rec.Users)
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return errors.Join(fmt.Errorf("mount memory on %s: %w", dir, err), os.Remove(dir))
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return errors.Join(fmt.Errorf("keep the mount on %s: %w", dir, err), c.dropShm())
	}
	return nil
}

// dropShm unmounts it, if it is there. Who shares it keeps it.
func (c *ctr) dropShm() error {
	if c.rec.Spec.Namespaces.IPC != NamespaceShareable {
		return nil
	}
	dir := c.path("shm")
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not mounted
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// endShm is dropShm where there is nobody to hear of a failure: the next start, or the
// removal, tries again.
func (h *Host) endShm(c *ctr) {
	if err := c.dropShm(); err != nil {
		h.opts.Log.Warn("shared memory of a container is still mounted", "container", c.rec.ID, "error", err)
	}
}
