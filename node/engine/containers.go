package engine

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"berth.internal/node/host"
)

// listContainers answers GET /containers/json: 200.
func (e *Engine) listContainers(w http.ResponseWriter, r *http.Request) error {
	f, err := readFilters(r, "ancestor", "before", "exited", "health", "id", "is-task", "label", "name", "network", "since", "status", "volume")
	if err != nil {
		return err
	}
	limit := 0
	if text := r.FormValue("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil {
			return invalid("invalid limit %q", text)
		}
	}
	if boolean(r, "size") {
		return unsupported("sizes of containers are not supported yet; leave --size out")
	}
	pick, err := e.picker(f)
	if err != nil {
		return err
	}
	all := boolean(r, "all") || limit > 0 || len(f["status"]) > 0 || len(f["exited"]) > 0
	list := []summary{}
	now := time.Now()
	for _, c := range e.host.List() { // newest first
		if !all && !c.State.Alive() {
			continue
		}
		if limit > 0 && len(list) == limit {
			break
		}
		if pick(c) {
			list = append(list, newSummary(c, now))
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

// picker returns what the filters let through.
func (e *Engine) picker(f filters) (func(host.Container) bool, error) {
	var before, since time.Time
	for name, at := range map[string]*time.Time{"before": &before, "since": &since} {
		for _, ref := range f[name] {
			c, err := e.host.Inspect(ref)
			if err != nil {
				return nil, err
			}
			*at = c.Created
		}
	}
	var ancestors []string
	for _, ref := range f["ancestor"] {
		if img, err := e.host.Image(ref); err == nil {
			ancestors = append(ancestors, img.ID.String())
		}
	}
	for _, s := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(s)); err != nil {
			return nil, invalid("invalid filter 'status=%s'", s)
		}
	}
	for _, s := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(s)); err != nil {
			return nil, invalid("invalid filter 'health=%s'", s)
		}
	}
	for _, s := range f["exited"] {
		if _, err := strconv.Atoi(s); err != nil {
			return nil, invalid("invalid filter 'exited=%s'", s)
		}
	}
	return func(c host.Container) bool {
		return f.match("id", func(v string) bool { return strings.HasPrefix(c.ID, v) }) &&
			f.match("name", func(v string) bool { return matchName(c.Name, v) }) &&
			f.match("status", func(v string) bool { return string(stateOf(c.State)) == v }) &&
			f.match("health", func(v string) bool { return healthOf(c.State) == v }) &&
			f.match("is-task", func(v string) bool { return v == "false" || v == "0" }) &&
			f.match("volume", func(v string) bool {
				return slices.ContainsFunc(c.Spec.Mounts, func(m host.Mount) bool { return m.Source == v || m.Target == v })
			}) &&
			f.match("network", func(v string) bool { return string(c.Spec.Network) == v }) &&
			f.match("exited", func(v string) bool {
				return c.State.Status == host.Exited && strconv.Itoa(c.State.ExitCode) == v
			}) &&
			(len(f["ancestor"]) == 0 || slices.Contains(ancestors, c.ImageID)) &&
			f.labels(c.Spec.Labels) &&
			(before.IsZero() || c.Created.Before(before)) &&
			(since.IsZero() || c.Created.After(since))
	}, nil
}

// healthOf is how a container is, in Docker's word.
func healthOf(s host.State) string {
	if s.Health == nil {
		return string(container.NoHealthcheck)
	}
	return string(s.Health.Status)
}

// matchName finds the pattern in the name as Docker shows it, with a slash in
// front. ^ and $ stand for its ends, the only parts of a regular expression
// that clients use.
func matchName(name, pattern string) bool {
	pattern, begins := strings.CutPrefix(pattern, "^")
	pattern, ends := strings.CutSuffix(pattern, "$")
	pattern = strings.TrimPrefix(pattern, "/")
	switch {
	case begins && ends:
		return name == pattern
	case begins:
		return strings.HasPrefix(name, pattern)
	case ends:
		return strings.HasSuffix(name, pattern)
	}
	return strings.Contains(name, pattern)
}

// inspectContainer answers GET /containers/{id}/json: 200.
func (e *Engine) inspectContainer(w http.ResponseWriter, r *http.Request) error {
	if boolean(r, "size") {
		return unsupported("sizes of containers are not supported yet; leave --size out")
	}
	c, err := e.host.Inspect(idOf(r))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, e.newInspect(c))
}

// startContainer answers POST /containers/{id}/start: 204, or 304 if it runs.
func (e *Engine) startContainer(w http.ResponseWriter, r *http.Request) error {
	if r.FormValue("checkpoint") != "" {
		return unsupported("checkpoints are not supported yet")
	}
	return done(w, e.host.Start(r.Context(), idOf(r)))
}

// done answers a request that has no content to return.
func done(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

// stopOptions reads the query parameters t, in seconds, and signal.
func stopOptions(r *http.Request) (host.StopOptions, error) {
	opts := host.StopOptions{Signal: r.FormValue("signal")}
	if t := r.FormValue("t"); t != "" {
		seconds, err := strconv.Atoi(t)
		if err != nil {
			return opts, invalid("invalid timeout %q", t)
		}
		opts.Timeout = &seconds
	}
	return opts, nil
}

// stopContainer answers POST /containers/{id}/stop: 204, or 304 if it does not
// run.
func (e *Engine) stopContainer(w http.ResponseWriter, r *http.Request) error {
	opts, err := stopOptions(r)
	if err != nil {
		return err
	}
	return done(w, e.host.Stop(r.Context(), idOf(r), opts))
}

// restartContainer answers POST /containers/{id}/restart: 204.
func (e *Engine) restartContainer(w http.ResponseWriter, r *http.Request) error {
	opts, err := stopOptions(r)
	if err != nil {
		return err
	}
	return done(w, e.host.Restart(r.Context(), idOf(r), opts))
}

// killContainer answers POST /containers/{id}/kill: 204, or 409 if it does not
// run.
func (e *Engine) killContainer(w http.ResponseWriter, r *http.Request) error {
	return done(w, e.host.Kill(r.Context(), idOf(r), cmp.Or(r.FormValue("signal"), "KILL")))
}

// renameContainer answers POST /containers/{id}/rename: 204.
func (e *Engine) renameContainer(w http.ResponseWriter, r *http.Request) error {
	return done(w, e.host.Rename(r.Context(), idOf(r), r.FormValue("name")))
}

// removeContainer answers DELETE /containers/{id}: 204. There are no volumes
// that v could remove, and no links.
func (e *Engine) removeContainer(w http.ResponseWriter, r *http.Request) error {
	if boolean(r, "link") {
		return unsupported("links are not supported")
	}
	return done(w, e.host.Remove(r.Context(), idOf(r), boolean(r, "force")))
}

// pruneContainers answers POST /containers/prune: 200.
func (e *Engine) pruneContainers(w http.ResponseWriter, r *http.Request) error {
	f, err := readFilters(r, "label")
	if err != nil {
		return err
	}
	report := container.PruneReport{ContainersDeleted: []string{}}
	for _, c := range e.host.List() {
		if c.State.Alive() || !f.labels(c.Spec.Labels) {
			continue
		}
		if err := e.host.Remove(r.Context(), c.ID, false); err != nil {
			e.log.Warn("prune left a container", "container", c.ID, "error", err)
			continue
		}
		report.ContainersDeleted = append(report.ContainersDeleted, c.ID)
	}
	return writeJSON(w, http.StatusOK, report)
}

// waitContainer answers POST /containers/{id}/wait: 200. The head of the answer
// goes out as soon as the node waits, so that a client can start the container
// after it and miss nothing.
func (e *Engine) waitContainer(w http.ResponseWriter, r *http.Request) error {
	until := host.Until(cmp.Or(r.FormValue("condition"), string(host.NotRunning)))
	wait, err := e.host.Wait(idOf(r), until)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return nil // the client is gone
	}
	exit, err := wait(r.Context())
	answer := container.WaitResponse{StatusCode: int64(exit.Code)}
	switch {
	case r.Context().Err() != nil:
		return nil
	case err != nil:
		answer.Error = &container.WaitExitError{Message: err.Error()}
	case exit.Error != "":
		answer.Error = &container.WaitExitError{Message: exit.Error}
	}
	return encode(w, answer)
}

// statusText describes the state as docker ps shows it.
func statusText(s host.State, now time.Time) string {
	switch s.Status {
	case host.Running:
		up := "Up " + units.HumanDuration(now.Sub(s.Started))
		switch {
		case s.Paused:
			return up + " (Paused)"
		case s.Health != nil && s.Health.Status == host.Starting:
			return up + " (health: starting)"
		case s.Health != nil:
			return up + " (" + string(s.Health.Status) + ")"
		}
		return up
	case host.Restarting:
		return "Restarting (" + strconv.Itoa(s.ExitCode) + ") " + units.HumanDuration(now.Sub(s.Finished)) + " ago"
	case host.Exited:
		return "Exited (" + strconv.Itoa(s.ExitCode) + ") " + units.HumanDuration(now.Sub(s.Finished)) + " ago"
	case host.Removing:
		return "Removal In Progress"
	case host.Dead:
		return "Dead"
	}
	return "Created"
}
