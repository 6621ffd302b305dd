package disk

import (
	"fmt"
	"sync/atomic"

	"berth.internal/storage"
	"github.com/prometheus/client_golang/prometheus"
)

// space is the room on the disk.
type space struct {
	root     string
	reserve  int64        // bytes, as configured
	promised atomic.Int64 // bytes that uploads of known length have still to write
	refusals prometheus.Counter
}

func newSpace(root string, reserve int64) space {
	return space{root: root, reserve: reserve, refusals: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "berth_storage_refusals_total",
		Help: "Pushes refused, or broken off, because no more than the reserve is free on the disk.",
	})}
}

// left returns how many bytes blobs, or manifests, may still take, which is less
// than none if the reserve has been used, and what is free on the disk.
func (s *space) left(k storage.Kind) (left, free int64, err error) {
	size, free, err := usage(s.root)
	if err != nil {
		return 0, 0, storage.Medium(err)
	}
	reserve := min(s.reserve, size/10)
	if k == storage.KindManifest {
		reserve /= 2 // a manifest is what puts a tag somewhere else
	}
	return free - reserve, free, nil
}

// fits refuses n more bytes if there is no room for them beside what others were
// promised.
func (s *space) fits(k storage.Kind, n, others int64) error {
	left, free, err := s.left(k)
	if err != nil {
		return err
	}
	if left-others < n {
		return fmt.Errorf("%w: of the %d bytes that are free, %d may be used, and %d of those are promised already",
			storage.ErrNoSpace, free, max(left, 0), others)
	}
	return nil
}

// refused counts a push that ends with err.
func (s *space) refused(err error) error {
	s.refusals.Inc()
	return err
}

// Room implements storage.Limited.
func (s *Store) Room(k storage.Kind, n int64) error {
	others := s.space.promised.Load()
	if k == storage.KindManifest {
		others = 0 // it is nothing beside a layer
	}
	if err := s.space.fits(k, n, others); err != nil {
		return s.space.refused(err)
	}
	return nil
}

// Metrics returns what is measured about the disk.
func (s *Store) Metrics() []prometheus.Collector {
	gauge := func(name, help string, value func(size, free int64) int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			size, free, err := usage(s.space.root)
			if err != nil {
				return -1
			}
			return float64(value(size, free))
		})
	}
	return []prometheus.Collector{
		s.space.refusals,
		gauge("berth_storage_size_bytes", "Size of the file system of the data; -1 if it does not tell.", func(size, _ int64) int64 { return size }),
		gauge("berth_storage_free_bytes", "What is free on it, the reserve included.", func(_, free int64) int64 { return free }),
		gauge("berth_storage_reserve_bytes", "What blobs leave free on it.", func(size, _ int64) int64 { return min(s.space.reserve, size/10) }),
	}
}
