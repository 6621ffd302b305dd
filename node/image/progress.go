package image

import (
	"sync"
	"time"
)

// reportEvery is how often a layer's progress is told, at most.
const reportEvery = 100 * time.Millisecond

// flight is a layer that one pull brings in, and all that need it wait for.
type flight struct {
	done chan struct{} // closed when it is there, or when that has failed

	mu    sync.Mutex
	sinks []func(Phase, int64, int64)
	phase Phase
	at    time.Time // of the last report
}

// listen tells sink what happens to the layer from now on.
func (f *flight) listen(sink func(Phase, int64, int64)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sinks = append(f.sinks, sink)
}

// report tells all that listen, unless it told them the same phase just now.
func (f *flight) report(phase Phase, current, total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if phase == f.phase && current < total && now.Sub(f.at) < reportEvery {
		return
	}
	f.phase, f.at = phase, now
	for _, sink := range f.sinks {
		sink(phase, current, total)
	}
}
