package engine

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	"berth.internal/client"
	"berth.internal/node/host"
	"berth.internal/node/image"
)

// progress is one line of a pull's answer. Docker's clients below 28 read the
// bar from progress and the failure from error.
type progress struct {
	jsonstream.Message
	Error string `json:"error,omitempty"`
}

// pullImage answers POST /images/create: 200, a JSON object for each step. A
// failure before the first step is a status, a later one is the last object.
func (e *Engine) pullImage(w http.ResponseWriter, r *http.Request) error {
	name := r.FormValue("fromImage")
	switch {
	case r.FormValue("fromSrc") != "" || name == "":
		return unsupported("importing images is not supported yet; push them to the registry and pull them")
	case r.FormValue("message") != "" || r.FormValue("changes") != "":
		return unsupported("changes while pulling are not supported")
	}
	if tag := r.FormValue("tag"); strings.Contains(tag, ":") {
		name += "@" + tag
	} else if tag != "" {
		name += ":" + tag
	}
	want, err := platform(r.FormValue("platform"))
	if err != nil {
		return err
	}
	ref, err := e.host.Reference(name)
	if err != nil {
		return err
	}
	login, err := e.loginOf(r)
	if err != nil {
		return err
	}
	before, _ := e.host.Image(name) // none yet, or about to be replaced: both are fine

	p := &puller{w: w, id: ref.Identifier(), from: ref.Name()}
	img, err := e.host.Pull(r.Context(), name, host.PullOptions{Platform: want, Progress: p.event, Login: login})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if !p.begun {
			return pullFailure(err)
		}
		p.send(progress{Message: jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}}, Error: err.Error()})
		return nil
	}
	p.begin()
	dgst := p.resolved
	if dgst == "" {
		dgst = img.Manifest.Digest
	}
	p.status("", "Digest: "+dgst.String())
	if before.ID == img.ID {
		p.status("", "Status: Image is up to date for "+ref.String())
	} else {
		p.status("", "Status: Downloaded newer image for "+ref.String())
	}
	return nil
}

// pullFailure gives the failure the status that Docker has for it.
func pullFailure(err error) error {
	switch {
	case errors.Is(err, host.ErrInvalid), errors.Is(err, host.ErrNotFound):
		return err
	case errors.Is(err, client.ErrUnauthorized):
		return &failure{http.StatusUnauthorized, err.Error()}
	case errors.Is(err, client.ErrDenied):
		return &failure{http.StatusForbidden, err.Error()}
	case errors.Is(err, client.ErrNotFound), errors.Is(err, image.ErrNotFound), errors.Is(err, image.ErrPlatform):
		return &failure{http.StatusNotFound, err.Error()}
	}
	return err
}

// puller writes the steps of one pull.
type puller struct {
	w    http.ResponseWriter
	id   string // tag or digest
	from string // repository

	mu       sync.Mutex
	begun    bool
	resolved digest.Digest
	phase    map[digest.Digest]image.Phase // last told of each layer
}

func (p *puller) begin() {
	if p.begun {
		return
	}
	p.begun = true
	p.phase = map[digest.Digest]image.Phase{}
	p.w.Header().Set("Content-Type", "application/json")
	p.w.WriteHeader(http.StatusOK)
	p.status(p.id, "Pulling from "+p.from)
}

// event tells the client of one step.
func (p *puller) event(ev image.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ev.Phase == image.Resolved {
		p.resolved = ev.Layer
		p.begin()
		return
	}
	p.begin()
	layer := ev.Layer.Encoded()[:12]
	switch ev.Phase {
	case image.Waiting:
		p.status(layer, "Pulling fs layer")
	case image.Downloading:
		p.bar(layer, "Downloading", ev)
	case image.Extracting:
		if p.phase[ev.Layer] == image.Downloading {
			p.status(layer, "Download complete")
		}
		p.bar(layer, "Extracting", ev)
	case image.Verifying:
		p.status(layer, "Verifying Checksum")
	case image.Done:
		p.status(layer, "Pull complete")
	case image.Exists:
		p.status(layer, "Already exists")
	}
	p.phase[ev.Layer] = ev.Phase
}

func (p *puller) status(id, text string) {
	p.send(progress{Message: jsonstream.Message{ID: id, Status: text}})
}

func (p *puller) bar(id, text string, ev image.Event) {
	p.send(progress{Message: jsonstream.Message{
		ID: id, Status: text, Progress: &jsonstream.Progress{Current: ev.Current, Total: ev.Total},
	}})
}

// send writes one object and sees that it goes out. A client that is gone ends
// the pull by its context.
func (p *puller) send(m progress) {
	line, err := json.Marshal(m)
	if err != nil {
		return // strings and numbers
	}
	_, _ = p.w.Write(append(line, '\r', '\n'))
	_ = http.NewResponseController(p.w).Flush()
}
