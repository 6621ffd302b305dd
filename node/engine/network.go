package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"

	"berth.internal/node/host"
)

// drivers are the networks there are, with their drivers.
var drivers = map[host.Network]string{host.NetworkHost: "host", host.NetworkNone: "null"}

// networkID returns the id of a network that is the same on every node.
func networkID(name string) string {
	sum := sha256.Sum256([]byte("berth network " + name))
	return hex.EncodeToString(sum[:])
}

func newNetwork(name host.Network) network.Inspect {
	return network.Inspect{Network: network.Network{
		Name: string(name), ID: networkID(string(name)), Scope: "local", Driver: drivers[name], EnableIPv4: true,
		IPAM:    network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
		Options: map[string]string{}, Labels: map[string]string{},
	}}
}

// listNetworks answers GET /networks: 200.
func (e *Engine) listNetworks(w http.ResponseWriter, r *http.Request) error {
	f, err := readFilters(r, "driver", "id", "label", "name", "scope", "type", "dangling")
	if err != nil {
		return err
	}
	list := []network.Inspect{}
	for _, name := range []host.Network{host.NetworkHost, host.NetworkNone} {
		n := newNetwork(name)
		if f.match("name", func(v string) bool { return strings.Contains(n.Name, v) }) &&
			f.match("id", func(v string) bool { return strings.HasPrefix(n.ID, v) }) &&
			f.match("driver", func(v string) bool { return n.Driver == v }) &&
			f.match("scope", func(v string) bool { return n.Scope == v }) &&
			f.match("type", func(v string) bool { return v == "builtin" }) &&
			f.match("dangling", func(v string) bool { return v != "true" && v != "1" }) &&
			f.labels(n.Labels) {
			list = append(list, n)
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

// inspectNetwork answers GET /networks/{id}: 200.
func (e *Engine) inspectNetwork(w http.ResponseWriter, r *http.Request) error {
	for name := range drivers {
		n := newNetwork(name)
		if ref := idOf(r); ref == n.Name || len(ref) >= 12 && strings.HasPrefix(n.ID, ref) {
			return writeJSON(w, http.StatusOK, n)
		}
	}
	return &failure{http.StatusNotFound, "network " + idOf(r) + " not found"}
}

// listVolumes answers GET /volumes: 200, none.
func (e *Engine) listVolumes(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, volume.ListResponse{Volumes: []volume.Volume{}, Warnings: []string{}})
}
