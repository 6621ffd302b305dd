package main

import (
	"errors"
	"fmt"

	"berth.internal/internal/datadir"
	"berth.internal/internal/units"
	"berth.internal/storage"
	"berth.internal/storage/backup"
	"berth.internal/storage/bolt"
	"berth.internal/storage/disk"
	"berth.internal/storage/kv"
)

// data is the registry's part of a data directory, held by this process.
type data struct {
	storage.Drivers
	bolt *bolt.Index
	disk *disk.Store
	dir  *datadir.Dir
}

// opener opens drivers of the same kinds for backups.
func opener() storage.Opener {
	return storage.Opener{
		Index: func(path string) (storage.Index, error) { return bolt.Open(path, kv.Options{}) },
		Store: func(dir string) (storage.Store, error) { return disk.Open(dir, disk.Options{}) },
	}
}

// openData opens the registry's part of the data directory path: bytes on the
// file system, of which reserve stay free, names and records in bbolt.
func openData(path string, reserve units.Bytes) (_ *data, err error) {
	if backup.Is(path) {
		return nil, fmt.Errorf("%s is a backup, which to serve would change: berth admin restore %s --data DIR makes a data directory of it", path, path)
	}
	d := &data{}
	if d.dir, err = datadir.Open(path, "registry"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.bolt, err = bolt.Open(d.dir.Path(datadir.IndexFile), kv.Options{}); err != nil {
		return nil, err
	}
	d.Index, d.Records = d.bolt, d.bolt
	if d.disk, err = disk.Open(d.dir.Path(), disk.Options{Reserve: int64(reserve)}); err != nil {
		return nil, err
	}
	d.Store, d.Opener = d.disk, opener()
	return d, nil
}

// Close gives the data directory back.
func (d *data) Close() error {
	var errs []error
	if d.Store != nil {
		errs = append(errs, d.Store.Close())
	}
	if d.bolt != nil {
		errs = append(errs, d.bolt.Close())
	}
	return errors.Join(append(errs, d.dir.Close())...)
}
