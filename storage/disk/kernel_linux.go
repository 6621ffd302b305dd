package disk

import (
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// writebackSize is how many new bytes of a file are sent to the disk together.
const writebackSize = 8 << 20

// startWriteback lets the disk begin with the bytes of f up to size that are
// not on their way yet, so that the sync at the end finds little left to do. It
// returns where the next call goes on. It is a hint: sync tells of failures.
func startWriteback(f *os.File, started, size int64) int64 {
	if size-started < writebackSize {
		return started
	}
	_ = unix.SyncFileRange(int(f.Fd()), started, size-started, unix.SYNC_FILE_RANGE_WRITE)
	return size
}

// usage returns the size in bytes of the file system of path, and how many of
// them we can still write.
func usage(path string) (size, free int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	bytes := func(blocks uint64) int64 { return int64(min(blocks, math.MaxInt64/uint64(fs.Bsize))) * fs.Bsize }
	return bytes(fs.Blocks), bytes(fs.Bavail), nil
}
