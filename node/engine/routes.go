package engine

import (
	"fmt"
	"net/http"

	"github.com/gorilla/mux"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
)

// table is the whole API: what is served, and what is known and refused.
func (e *Engine) table() []route {
	get, head, post, del := []string{"GET"}, []string{"HEAD"}, []string{"POST"}, []string{"DELETE"}
	table := []route{
		{[]string{"GET", "HEAD"}, "/_ping", e.ping},
		{get, "/version", e.version},
		{get, "/info", e.info},
		{get, "/events", e.events},
		{get, "/system/df", e.diskUsage},
		{post, "/auth", e.checkLogin},

		{get, "/images/json", e.listImages},
		{post, "/images/create", e.pullImage},
		{post, "/images/prune", e.pruneImages},
		{get, "/images/{name:.*}/json", e.inspectImage},
		{get, "/images/{name:.*}/history", e.imageHistory},
		{post, "/images/{name:.*}/tag", e.tagImage},
		{del, "/images/{name:.*}", e.removeImage},

		{get, "/containers/json", e.listContainers},
		{post, "/containers/create", e.createContainer},
		{post, "/containers/prune", e.pruneContainers},
		{get, "/containers/{id}/json", e.inspectContainer},
		{get, "/containers/{id}/logs", e.containerLogs},
		{post, "/containers/{id}/start", e.startContainer},
		{post, "/containers/{id}/stop", e.stopContainer},
		{post, "/containers/{id}/restart", e.restartContainer},
		{post, "/containers/{id}/kill", e.killContainer},
		{post, "/containers/{id}/wait", e.waitContainer},
		{post, "/containers/{id}/attach", e.attachContainer},
		{post, "/containers/{id}/resize", e.resizeContainer},
		{post, "/containers/{id}/rename", e.renameContainer},
		{post, "/containers/{id}/update", e.updateContainer},
		{post, "/containers/{id}/pause", e.pauseContainer},
		{post, "/containers/{id}/unpause", e.unpauseContainer},
		{get, "/containers/{id}/top", e.containerTop},
		{get, "/containers/{id}/stats", e.containerStats},
		{get, "/containers/{id}/changes", e.containerChanges},
		{del, "/containers/{id}", e.removeContainer},

		{post, "/containers/{id}/exec", e.createExec},
		{post, "/exec/{id}/start", e.startExec},
		{post, "/exec/{id}/resize", e.resizeExec},
		{get, "/exec/{id}/json", e.inspectExec},

		// What there is none of, so that clients that ask can go on.
		{get, "/networks", e.listNetworks},
		{get, "/networks/{id}", e.inspectNetwork},
		{get, "/volumes", e.listVolumes},
		{post, "/networks/prune", nothing(network.PruneReport{NetworksDeleted: []string{}})},
		{post, "/volumes/prune", nothing(volume.PruneReport{VolumesDeleted: []string{}})},
		{post, "/build/prune", nothing(build.CachePruneReport{CachesDeleted: []string{}})},
		{get, "/plugins", nothing([]any{})},
	}
	for _, known := range []struct {
		methods []string
		what    string
		paths   []string
	}{
		{get, "attaching through a web socket", []string{"/containers/{id}/attach/ws"}},
		{get, "export", []string{"/containers/{id}/export"}},
		{append(append([]string{"PUT"}, get...), head...), "copying files", []string{"/containers/{id}/archive"}},
		{append(append([]string{}, get...), append(post, del...)...), "checkpoints", []string{"/containers/{id}/checkpoints{rest:.*}"}},
		{post, "commit", []string{"/commit"}},
		{post, "building images", []string{"/build", "/session", "/grpc"}},
		{post, "pushing from a node", []string{"/images/{name:.*}/push"}},
		{post, "loading images", []string{"/images/load"}},
		{get, "saving images", []string{"/images/get", "/images/{name:.*}/get"}},
		{get, "search", []string{"/images/search"}},
		{get, "distribution", []string{"/distribution/{name:.*}/json"}},
		{[]string{"GET", "POST", "PUT", "DELETE"}, "volumes", []string{"/volumes/{rest:.*}"}},
		{[]string{"POST", "DELETE"}, "networks", []string{"/networks/{rest:.*}"}},
		{[]string{"GET", "POST", "DELETE"}, "plugins", []string{"/plugins/{rest:.*}"}},
	} {
		for _, path := range known.paths {
			table = append(table, route{known.methods, path, refused(known.what)})
		}
	}
	for _, path := range []string{"swarm", "services", "nodes", "tasks", "secrets", "configs"} {
		table = append(table, route{[]string{"GET", "POST", "PUT", "DELETE"}, "/" + path + "{rest:(?:/.*)?}", noSwarm})
	}
	return table
}

// nothing answers a request for what there is none of.
func nothing(answer any) handler {
	return func(w http.ResponseWriter, _ *http.Request) error { return writeJSON(w, http.StatusOK, answer) }
}

// refused answers a request that the API knows and the node does not.
func refused(what string) handler {
	return func(_ http.ResponseWriter, r *http.Request) error {
		return &failure{http.StatusNotImplemented, fmt.Sprintf("%s %s: %s is not supported by berth yet", r.Method, r.URL.Path, what)}
	}
}

// noSwarm answers as a daemon does that is in no swarm, so that clients know
// what to make of it.
func noSwarm(http.ResponseWriter, *http.Request) error {
	return &failure{http.StatusServiceUnavailable, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`}
}

// idOf returns what the client calls the container, exec or image.
func idOf(r *http.Request) string {
	vars := mux.Vars(r)
	if name, ok := vars["name"]; ok {
		return name
	}
	return vars["id"]
}
