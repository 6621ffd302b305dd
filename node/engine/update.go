package engine

import (
	"encoding/json"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"berth.internal/node/host"
)

// updateContainer answers POST /containers/{id}/update: 200. What is not said, or
// zero, stays as it is.
func (e *Engine) updateContainer(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	var req container.UpdateConfig
	if err := json.Unmarshal(body, &req); err != nil {
		return invalidBody(err)
	}
	if err := checkFields(body, "HostConfig", updatable); err != nil {
		return err
	}
	err = e.host.Update(r.Context(), idOf(r), func(spec *host.Spec) error { return applyUpdate(spec, req) })
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, container.UpdateResponse{Warnings: []string{}})
}

// updatable lists the fields that an update honours.
var updatable = set(`
	HostConfig.CpuShares HostConfig.Memory HostConfig.NanoCpus HostConfig.CpuPeriod HostConfig.CpuQuota
	HostConfig.CpusetCpus HostConfig.CpusetMems HostConfig.MemoryReservation HostConfig.MemorySwap
	HostConfig.PidsLimit HostConfig.BlkioWeight HostConfig.BlkioWeightDevice HostConfig.BlkioDeviceReadBps
	HostConfig.BlkioDeviceWriteBps HostConfig.BlkioDeviceReadIOps HostConfig.BlkioDeviceWriteIOps
	HostConfig.CpuRealtimePeriod HostConfig.CpuRealtimeRuntime HostConfig.RestartPolicy`)

// applyUpdate changes a spec as asked.
func applyUpdate(spec *host.Spec, req container.UpdateConfig) error {
	asked, err := resourcesOf(&req.Resources)
	if err != nil {
		return err
	}
	res := &spec.Resources
	if req.NanoCPUs != 0 || req.CPUQuota != 0 || req.CPUPeriod != 0 {
		if req.NanoCPUs == 0 && res.NanoCPUs != 0 {
			return invalid("Conflicting options: CPU Period or Quota cannot be updated as NanoCPUs has already been set")
		}
		res.NanoCPUs = asked.NanoCPUs
	}
	for _, n := range []struct{ to, from *int64 }{
		{&res.Memory, &asked.Memory},
		{&res.MemorySwap, &asked.MemorySwap},
		{&res.MemoryReservation, &asked.MemoryReservation},
		{&res.CPUShares, &asked.CPUShares},
		{&res.CPUQuota, &asked.CPUQuota},
		{&res.CPUPeriod, &asked.CPUPeriod},
		{&res.CPURealtimePeriod, &asked.CPURealtimePeriod},
		{&res.CPURealtimeRuntime, &asked.CPURealtimeRuntime},
	} {
		if *n.from != 0 {
			*n.to = *n.from
		}
	}
	if asked.CpusetCPUs != "" {
		res.CpusetCPUs = asked.CpusetCPUs
	}
	if asked.CpusetMems != "" {
		res.CpusetMems = asked.CpusetMems
	}
	if req.PidsLimit != nil {
		res.Pids = asked.Pids
	}
	if asked.Blkio.Weight != 0 {
		res.Blkio.Weight = asked.Blkio.Weight
	}
	for _, l := range []struct{ to, from *[]host.DeviceLimit }{
		{&res.Blkio.Weights, &asked.Blkio.Weights},
		{&res.Blkio.ReadBps, &asked.Blkio.ReadBps},
		{&res.Blkio.WriteBps, &asked.Blkio.WriteBps},
		{&res.Blkio.ReadIOPS, &asked.Blkio.ReadIOPS},
		{&res.Blkio.WriteIOPS, &asked.Blkio.WriteIOPS},
	} {
		if len(*l.from) > 0 {
			*l.to = *l.from
		}
	}
	if req.RestartPolicy.Name == "" {
		return nil
	}
	spec.Restart, err = restartOf(req.RestartPolicy)
	return err
}
