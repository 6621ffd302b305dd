// Command berth-init is the shim of a container: one small process for each. It
// is carried inside of berth and started by it, never by hand.
package main

import (
	"os"

	"berth.internal/node/container/shim"
)

func main() { os.Exit(shim.Main()) }
