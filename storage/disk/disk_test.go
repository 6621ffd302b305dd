package disk_test

import (
	"testing"

	"berth.internal/storage"
	"berth.internal/storage/disk"
	"berth.internal/storage/storagetest"
)

func TestStore(t *testing.T) {
	storagetest.TestStore(t, func(t *testing.T) func() storage.Store {
		dir := t.TempDir()
		return func() storage.Store {
			s, err := disk.Open(dir, disk.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	})
}
