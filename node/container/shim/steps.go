//go:build steps

package shim

import (
	"os"

	"golang.org/x/sys/unix"
)

// step ends the shim as kill -9 would if the file that stderr goes to has a
// neighbour "kill-at" with that name of a step.
func step(name string) {
	says, err := os.Readlink("/proc/self/fd/2")
	if err != nil {
		return
	}
	if at, err := os.ReadFile(says + ".kill-at"); err == nil && string(at) == name {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}
