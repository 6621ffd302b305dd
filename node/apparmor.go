package node

import (
	"log/slog"
	"os"
	"strings"

	"github.com/moby/profiles/apparmor"

	"berth.internal/node/container"
)

// loadAppArmor gives the kernel the profile of containers that do not ask for one,
// which is Docker's under a name of its own, and returns its name. Where the kernel
// has no AppArmor there is none. It stays loaded when the node ends: its containers
// go on.
func loadAppArmor(log *slog.Logger) string {
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || !strings.HasPrefix(string(on), "Y") {
		return ""
	}
	loaded, err := apparmor.IsLoaded(container.DefaultAppArmor)
	if err == nil && !loaded {
		err = apparmor.InstallDefault(container.DefaultAppArmor)
	}
	if err != nil {
		log.Warn("containers run without AppArmor, unless they ask for a profile: its default cannot be loaded; install apparmor_parser (package apparmor) and start the node again", "error", err)
		return ""
	}
	return container.DefaultAppArmor
}
