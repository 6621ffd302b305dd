package engine

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"berth.internal/node/host"
)

// maxBody is the largest JSON body of a request, in bytes.
const maxBody = 4 << 20

// createContainer answers POST /containers/create: 201.
func (e *Engine) createContainer(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	spec, warnings, err := readSpec(body)
	if err != nil {
		return err
	}
	if p := r.FormValue("platform"); p != "" {
		return unsupported("platform %s: containers run for the node's own platform; leave --platform out", p)
	}
	spec.Name = r.FormValue("name")
	id, more, err := e.host.Create(r.Context(), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.CreateResponse{
		ID: id, Warnings: append(append([]string{}, warnings...), more...),
	})
}

// readBody returns the JSON body of a request, which may be empty.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if ct := r.Header.Get("Content-Type"); r.ContentLength != 0 && ct != "" && !isJSON(ct) {
		return nil, invalid("Content-Type specified (%s) must be 'application/json'", ct)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, invalidBody(err)
	}
	return body, nil
}

// decode reads the JSON body of a request into v. An empty one leaves v alone.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := readBody(w, r)
	if err != nil || len(bytes.TrimSpace(body)) == 0 {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return invalidBody(err)
	}
	return nil
}

func isJSON(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	return strings.TrimSpace(kind) == "application/json"
}

func invalidBody(err error) error {
	return invalid("invalid request body: %v", err)
}

// readSpec translates the body of a create request. What it cannot translate
// it refuses by name.
func readSpec(body []byte) (spec host.Spec, warnings []string, err error) {
	var req struct {
		*container.Config
		HostConfig       *container.HostConfig
		NetworkingConfig struct{ EndpointsConfig map[string]any }
	}
	if err := json.Unmarshal(body, &req); err != nil {
		return spec, nil, invalidBody(err)
	}
	if req.Config == nil {
		return spec, nil, invalid("Config cannot be empty in order to create a container")
	}
	if err := checkHonoured(body); err != nil {
		return spec, nil, err
	}
	if req.HostConfig == nil {
		req.HostConfig = new(container.HostConfig)
	}
	if spec, err = configSpec(req.Config); err != nil {
		return spec, nil, err
	}
	if warnings, err = addHostConfig(&spec, req.HostConfig); err != nil {
		return spec, nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(req.NetworkingConfig.EndpointsConfig)) {
		if mode := cmp.Or(string(req.HostConfig.NetworkMode), network.NetworkDefault); name != mode {
			return spec, nil, unsupported("NetworkingConfig.EndpointsConfig: more than one network (%s and %s) is not supported yet", mode, name)
		}
	}
	for _, target := range slices.Sorted(maps.Keys(req.Volumes)) {
		// Some clients name the targets of all mounts here, too.
		if !slices.ContainsFunc(spec.Mounts, func(m host.Mount) bool { return path.Clean(m.Target) == path.Clean(target) }) {
			return spec, nil, unsupported("Volumes: anonymous volumes (%q) are not supported yet; name a directory of the node for it, or use --tmpfs", target)
		}
	}
	return spec, warnings, nil
}

// configSpec translates the part of a create request that is not about the
// host.
func configSpec(c *container.Config) (host.Spec, error) {
	spec := host.Spec{
		Image: c.Image,
		Process: host.Process{
			Entrypoint: c.Entrypoint, Command: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir, User: c.User,
		},
		Hostname: c.Hostname, Domainname: c.Domainname, Labels: c.Labels,
		OpenStdin: c.OpenStdin, StdinOnce: c.StdinOnce,
		Attached:   host.Attached{Stdin: c.AttachStdin, Stdout: c.AttachStdout, Stderr: c.AttachStderr},
		StopSignal: c.StopSignal, StopTimeout: c.StopTimeout, Tty: c.Tty,
	}
	if hc := c.Healthcheck; hc != nil {
		spec.Health = &host.Health{
			Test: hc.Test, Interval: hc.Interval, Timeout: hc.Timeout, StartPeriod: hc.StartPeriod, StartInterval: hc.StartInterval, Retries: hc.Retries,
		}
	}
	for p := range c.ExposedPorts {
		spec.Exposed = append(spec.Exposed, p.String())
	}
	sort.Strings(spec.Exposed)
	return spec, nil
}

// mountsOf translates the three ways to ask for a mount.
func mountsOf(hc *container.HostConfig) (mounts []host.Mount, err error) {
	for _, bind := range hc.Binds {
		m, err := parseBind(bind)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	for _, m := range hc.Mounts {
		hm := host.Mount{Type: host.MountType(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
		switch m.Type {
		case mount.TypeBind:
			if o := m.BindOptions; o != nil {
				hm.Propagation, hm.Flat, hm.MakeSource = string(o.Propagation), o.NonRecursive, o.CreateMountpoint
			}
		case mount.TypeTmpfs:
			if m.Source != "" {
				return nil, invalid("invalid mount config for type \"tmpfs\": field Source must not be specified")
			}
			if o := m.TmpfsOptions; o != nil {
				hm.Options = tmpfsOptions(o)
			}
		default:
			return nil, unsupported("HostConfig.Mounts: mounts of type %q are not supported yet; use bind or tmpfs", m.Type)
		}
		mounts = append(mounts, hm)
	}
	for _, target := range slices.Sorted(maps.Keys(hc.Tmpfs)) {
		m := host.Mount{Type: host.MountTmpfs, Target: target}
		for opt := range strings.SplitSeq(hc.Tmpfs[target], ",") {
			switch opt {
			case "", "rw":
			case "ro":
				m.ReadOnly = true
			default:
				m.Options = append(m.Options, opt)
			}
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

func tmpfsOptions(o *mount.TmpfsOptions) (opts []string) {
	for _, opt := range o.Options {
		opts = append(opts, strings.Join(opt, "="))
	}
	if o.SizeBytes != 0 {
		opts = append(opts, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.Mode != 0 {
		opts = append(opts, fmt.Sprintf("mode=%o", o.Mode))
	}
	return opts
}

// parseBind reads "source:target[:option,...]" as in -v. A source that is not
// there becomes a directory, as Docker's users expect of -v.
func parseBind(bind string) (host.Mount, error) {
	parts := strings.Split(bind, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return host.Mount{}, invalid("invalid volume specification: '%s'", bind)
	}
	if !path.IsAbs(parts[0]) {
		return host.Mount{}, unsupported("HostConfig.Binds: named volumes (%q) are not supported yet; name a directory of the node by its absolute path", parts[0])
	}
	m := host.Mount{Type: host.MountBind, Source: path.Clean(parts[0]), Target: parts[1], MakeSource: true}
	if len(parts) < 3 {
		return m, nil
	}
	given := map[bool]bool{} // by whether it is a propagation
	for opt := range strings.SplitSeq(parts[2], ",") {
		spread := slices.Contains(mount.Propagations, mount.Propagation(opt))
		switch {
		case !spread && opt != "ro" && opt != "rw":
			return host.Mount{}, unsupported("HostConfig.Binds: option %q of %q is not supported yet; there are ro, rw, and propagations such as rslave", opt, bind)
		case given[spread]:
			return host.Mount{}, invalid("invalid mode: %s", parts[2])
		case spread:
			m.Propagation = opt
		default:
			m.ReadOnly = opt == "ro"
		}
		given[spread] = true
	}
	return m, nil
}
