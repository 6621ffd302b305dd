package host

import "golang.org/x/sys/unix"

func mknodWhiteout(path string) error { return unix.Mknod(path, unix.S_IFCHR, 0) }
func mkfifo(path string) error        { return unix.Mkfifo(path, 0o600) }
