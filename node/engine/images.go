package engine

import (
	"encoding/json"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	store "berth.internal/node/image"
)

// imageSummary is an image in a list, with what clients below API 1.44 read.
type imageSummary struct {
	image.Summary
	VirtualSize int64 `json:",omitempty"`
}

// listImages answers GET /images/json: 200.
func (e *Engine) listImages(w http.ResponseWriter, r *http.Request) error {
	f, err := readFilters(r, "before", "dangling", "label", "reference", "since", "until")
	if err != nil {
		return err
	}
	for _, name := range []string{"before", "since", "until"} {
		if len(f[name]) > 0 {
			return unsupported("filter %q of images is not supported yet", name)
		}
	}
	list := []imageSummary{}
	for _, img := range e.host.Images() {
		if !f.match("dangling", func(v string) bool { return (v == "true" || v == "1") == (len(img.RepoTags) == 0) }) ||
			!f.match("reference", func(v string) bool { return e.matchReference(img.RepoTags, v) }) ||
			!f.labels(img.Config.Config.Labels) {
			continue
		}
		s := imageSummary{Summary: image.Summary{
			Containers: -1, SharedSize: -1, Size: img.Size, Created: img.Created.Unix(), ID: img.ID.String(),
			Labels: img.Config.Config.Labels, RepoTags: list0(img.RepoTags), RepoDigests: list0(img.RepoDigests),
		}}
		if versionOf(r) < version(1_44) {
			s.VirtualSize = img.Size
		}
		list = append(list, s)
	}
	return writeJSON(w, http.StatusOK, list)
}

// matchReference reports whether a tag fits the pattern, a shell glob over the
// name with or without registry and tag.
func (e *Engine) matchReference(tags []string, pattern string) bool {
	return slices.ContainsFunc(tags, func(tag string) bool {
		short := strings.TrimPrefix(tag, e.cfg.Registry+"/")
		for _, name := range []string{tag, short, tag[:strings.LastIndex(tag, ":")], short[:strings.LastIndex(short, ":")]} {
			if ok, err := path.Match(pattern, name); err == nil && ok {
				return true
			}
		}
		return false
	})
}

// list0 makes an empty list of what would be null.
func list0[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// imageInspect is an image in full: Moby's present type and what older clients
// read beside it.
type imageInspect struct {
	image.InspectResponse
	Config          *container.Config
	Parent          string
	Container       string
	ContainerConfig *container.Config
	DockerVersion   string
	VirtualSize     int64 `json:",omitempty"`
}

// inspectImage answers GET /images/{name}/json: 200.
func (e *Engine) inspectImage(w http.ResponseWriter, r *http.Request) error {
	img, err := e.host.Image(idOf(r))
	if err != nil {
		return err
	}
	answer := imageInspect{
		InspectResponse: image.InspectResponse{
			ID: img.ID.String(), RepoTags: list0(img.RepoTags), RepoDigests: list0(img.RepoDigests),
			Created: img.Created.UTC().Format(time.RFC3339Nano), Author: img.Config.Author,
			Architecture: img.Config.Architecture, Variant: img.Config.Variant, Os: img.Config.OS, OsVersion: img.Config.OSVersion,
			Size:        img.Size,
			GraphDriver: &storage.DriverData{Name: storageDriver, Data: map[string]string{}},
			RootFS:      image.RootFS{Type: "layers"},
			Metadata:    image.Metadata{LastTagTime: img.Pulled},
			Descriptor:  &img.Manifest,
		},
		Config:          newImageConfig(img),
		ContainerConfig: new(container.Config),
	}
	for _, d := range img.Config.RootFS.DiffIDs {
		answer.RootFS.Layers = append(answer.RootFS.Layers, d.String())
	}
	if n := len(img.Config.History); n > 0 {
		answer.Comment = img.Config.History[n-1].Comment
	}
	if versionOf(r) < version(1_44) {
		answer.VirtualSize = img.Size
	}
	return writeJSON(w, http.StatusOK, answer)
}

// newImageConfig shows an image's settings in the form of a container's, as
// clients below API 1.50 read them.
func newImageConfig(img store.Image) *container.Config {
	var docker dockerspec.DockerOCIImage
	_ = json.Unmarshal(img.RawConfig, &docker) // what is not of Docker's form has none of Docker's settings
	c := img.Config.Config
	cfg := &container.Config{
		User: c.User, Env: list0(c.Env), Cmd: c.Cmd, Entrypoint: c.Entrypoint, WorkingDir: c.WorkingDir,
		Labels: c.Labels, StopSignal: c.StopSignal, Volumes: c.Volumes,
		Healthcheck: docker.Config.Healthcheck, OnBuild: docker.Config.OnBuild, Shell: docker.Config.Shell,
	}
	for p := range c.ExposedPorts {
		port, err := network.ParsePort(p)
		if err != nil {
			continue // whoever made the image did not check it
		}
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = network.PortSet{}
		}
		cfg.ExposedPorts[port] = struct{}{}
	}
	return cfg
}

// imageHistory answers GET /images/{name}/history: 200, newest first.
func (e *Engine) imageHistory(w http.ResponseWriter, r *http.Request) error {
	img, err := e.host.Image(idOf(r))
	if err != nil {
		return err
	}
	list := []image.HistoryResponseItem{}
	for i, h := range slices.Backward(img.Config.History) {
		item := image.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment, Tags: []string{}}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if i == len(img.Config.History)-1 {
			item.ID, item.Tags = img.ID.String(), list0(img.RepoTags)
		}
		list = append(list, item)
	}
	return writeJSON(w, http.StatusOK, list)
}

// tagImage answers POST /images/{name}/tag: 201.
func (e *Engine) tagImage(w http.ResponseWriter, r *http.Request) error {
	name := r.FormValue("repo")
	if tag := r.FormValue("tag"); tag != "" {
		name += ":" + tag
	}
	if err := e.host.Tag(idOf(r), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// removeImage answers DELETE /images/{name}: 200.
func (e *Engine) removeImage(w http.ResponseWriter, r *http.Request) error {
	if boolean(r, "noprune") {
		return unsupported("noprune: there are no untagged parents to keep; leave it out")
	}
	steps, err := e.host.RemoveImage(idOf(r), boolean(r, "force"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, deleteSteps(steps))
}

func deleteSteps(steps []store.Removed) []image.DeleteResponse {
	list := []image.DeleteResponse{}
	for _, s := range steps {
		list = append(list, image.DeleteResponse{Untagged: s.Untagged, Deleted: s.Deleted.String()})
	}
	return list
}

// pruneImages answers POST /images/prune: 200.
func (e *Engine) pruneImages(w http.ResponseWriter, r *http.Request) error {
	f, err := readFilters(r, "dangling")
	if err != nil {
		return err
	}
	all := len(f["dangling"]) > 0 && slices.Contains([]string{"false", "0"}, f["dangling"][0])
	steps, freed, err := e.host.PruneImages(r.Context(), all)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		ImagesDeleted  []image.DeleteResponse
		SpaceReclaimed uint64
	}{deleteSteps(steps), uint64(freed)})
}

// platform reads "os/architecture[/variant]", which is all that docker pull
// --platform takes.
func platform(text string) (*v1.Platform, error) {
	if text == "" {
		return nil, nil
	}
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return nil, invalid("invalid platform %q: it is of the form os/architecture[/variant]", text)
	}
	p := &v1.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}
