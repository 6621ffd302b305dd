package engine

import (
	"strconv"
	"strings"

	"berth.internal/node/host"
)

// addSecurity reads HostConfig.SecurityOpt: NAME=VALUE, in old clients NAME:VALUE.
// docker reads files by itself: a seccomp profile comes as JSON.
func addSecurity(spec *host.Spec, options []string) error {
	var label [4]string // user, role, type, level
	for _, opt := range options {
		name, value, _ := strings.Cut(opt, "=")
		if before, after, old := strings.Cut(opt, ":"); old && !strings.Contains(before, "=") {
			name, value = before, after
		}
		switch name {
		case "no-new-privileges":
			on, err := boolOption(value)
			if err != nil {
				return invalid("invalid --security-opt %q", opt)
			}
			spec.NoNewPrivs = &on
		case "writable-cgroups":
			on, err := boolOption(value)
			if err != nil {
				return invalid("invalid --security-opt %q", opt)
			}
			spec.Security.WritableCgroups = on
		case "seccomp":
			if value == "" {
				return invalid("invalid --security-opt %q: it names no profile", opt)
			}
			if spec.Security.Seccomp = value; value == "builtin" {
				spec.Security.Seccomp = ""
			}
		case "apparmor":
			if value == "" {
				return invalid("invalid --security-opt %q: it names no profile", opt)
			}
			spec.Security.AppArmor = value
		case "label":
			if err := addLabel(&label, value); err != nil {
				return err
			}
		case "systempaths":
			if value != "unconfined" {
				return invalid("invalid --security-opt %q: say systempaths=unconfined", opt)
			}
			spec.Security.MaskedPaths, spec.Security.ReadonlyPaths = []string{}, []string{}
		default:
			return unsupported("HostConfig.SecurityOpt %q is not supported; there are no-new-privileges, seccomp, apparmor, label, systempaths and writable-cgroups", opt)
		}
	}
	if label != [4]string{} {
		// What is not said is as Docker's policy for containers has it.
		for i, usual := range []string{"system_u", "system_r", "container_t", "s0"} {
			if label[i] == "" {
				label[i] = usual
			}
		}
		spec.Security.Label = strings.Join(label[:], ":")
	}
	return nil
}

// addLabel reads a part of an SELinux label, KIND:VALUE. disable leaves all off,
// which is how the node runs without.
func addLabel(label *[4]string, value string) error {
	kind, part, _ := strings.Cut(value, ":")
	for i, name := range []string{"user", "role", "type", "level"} {
		if kind == name && part != "" {
			label[i] = part
			return nil
		}
	}
	if value == "disable" {
		*label = [4]string{}
		return nil
	}
	return unsupported("HostConfig.SecurityOpt label=%q is not supported; there are disable, user, role, type and level", value)
}

// boolOption reads what is true if nothing is said.
func boolOption(s string) (bool, error) {
	if s == "" {
		return true, nil
	}
	return strconv.ParseBool(s)
}
