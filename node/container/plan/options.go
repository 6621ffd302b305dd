package plan

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// options are those of a mount, sorted by who acts on them.
type options struct {
	set, clr    uint64      // MOUNT_ATTR_*
	rset, rclr  uint64      // MOUNT_ATTR_* for the mounts below, too
	propagation uint64      // MS_*; 0: MS_PRIVATE
	deep        bool        // propagation is for the mounts below, too
	recursive   bool        // rbind
	idmap       bool        // with ids of its own, or the container's …
	ridmap      bool        // … and the mounts below, too
	copyUp      bool        // tmpcopyup
	mode        bool        // the file system is told the mode of its root
	data        [][2]string // for the file system
	source      string      // the name of the file system
}

var attrs = map[string]struct{ set, clr uint64 }{
	"ro": {unix.MOUNT_ATTR_RDONLY, 0}, "rw": {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, 0}, "suid": {0, unix.MOUNT_ATTR_NOSUID},
	"nodev": {unix.MOUNT_ATTR_NODEV, 0}, "dev": {0, unix.MOUNT_ATTR_NODEV},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, 0}, "exec": {0, unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, 0}, "diratime": {0, unix.MOUNT_ATTR_NODIRATIME},
	"relatime":    {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"noatime":     {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, 0}, "symfollow": {0, unix.MOUNT_ATTR_NOSYMFOLLOW},
	// What these take back is what a mount has without any.
	"atime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME}, "nostrictatime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE,
}

// moot are options that ask for what is so without them.
var moot = []string{"defaults", "async", "nodirsync", "nolazytime", "nomand", "noiversion", "norelatime", "rnorelatime", "loud", "silent"}

// parseOptions reads the options of a mount. Whether the file system knows the
// rest is its own affair; a bind has none.
func parseOptions(opts []string, bind bool) (options, error) {
	var o options
	for _, opt := range opts {
		name, deep := strings.CutPrefix(opt, "r")
		a, plain := attrs[opt]
		ra, recursive := attrs[name]
		switch {
		case plain:
			o.set, o.clr = o.set&^a.clr|a.set, o.clr&^a.set|a.clr
		case deep && recursive && bind:
			o.rset, o.rclr = o.rset&^ra.clr|ra.set, o.rclr&^ra.set|ra.clr
		case deep && recursive: // there is nothing below
			o.set, o.clr = o.set&^ra.clr|ra.set, o.clr&^ra.set|ra.clr
		case slices.Contains(moot, opt):
		case opt == "bind" && bind:
		case opt == "rbind" && bind:
			o.recursive = true
		case opt == "idmap" && bind:
			o.idmap = true
		case opt == "ridmap" && bind:
			o.idmap, o.ridmap = true, true
		case propagations[opt] != 0:
			o.propagation, o.deep = propagations[opt], deep
		case opt == "tmpcopyup" && !bind:
			o.copyUp = true
		case bind || slices.Contains([]string{"iversion", "remount", "idmap", "ridmap"}, opt):
			return o, unsupported("mount option %q", opt)
		default:
			key, value, _ := strings.Cut(opt, "=")
			o.data = append(o.data, [2]string{key, value})
			o.mode = o.mode || key == "mode"
		}
	}
	// Times of access are one value of several bits, which the kernel takes as a whole.
	if o.rclr&unix.MOUNT_ATTR__ATIME != 0 {
		o.set, o.clr = o.set&^unix.MOUNT_ATTR__ATIME, o.clr&^unix.MOUNT_ATTR__ATIME
	}
	return o, nil
}

// isBind reports whether a mount of the spec is a bind.
func isBind(fstype string, opts []string) bool {
	return fstype == "bind" || slices.Contains(opts, "bind") || slices.Contains(opts, "rbind")
}
