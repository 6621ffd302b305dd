package main

import (
	"errors"

	"berth.internal/internal/datadir"
	"berth.internal/storage"
	"berth.internal/storage/bolt"
	"berth.internal/storage/disk"
	"berth.internal/storage/kv"
)

// data is the registry's part of a data directory, held by this process.
type data struct {
	storage.Drivers
	bolt *bolt.Index
	dir  *datadir.Dir
}

// openData opens the registry's part of the data directory path: bytes on the
// file system, names and records in bbolt.
func openData(path string) (_ *data, err error) {
	d := &data{}
	if d.dir, err = datadir.Open(path, "registry"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.bolt, err = bolt.Open(d.dir.Path("index.db"), kv.Options{}); err != nil {
		return nil, err
	}
	d.Index, d.Records = d.bolt, d.bolt
	store, err := disk.Open(d.dir.Path())
	if err != nil {
		return nil, err
	}
	d.Store = store
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
