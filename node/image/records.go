package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.internal/internal/durable"
)

// The store's directory:
//
//	names.json                       which image each name stands for
//	records/<hex of image id>.json   what was pulled
//	layers/<alg>/<hex of DiffID>/    layer.json and fs, the unpacked tree
//	partial/<DiffID>/<digest>/<n>    parts of a blob that is on its way
//	work/                            everything half-made; emptied by Open
const (
	namesFile  = "names.json"
	recordDir  = "records"
	layerDir   = "layers"
	layerFile  = "layer.json"
	rootDir    = "fs"
	partialDir = "partial"
	workDir    = "work"
)

// recordVersion is the version of all the store's JSON files.
const recordVersion = 1

// record is records/<hex>.json.
type record struct {
	Version    int           `json:"version"`
	Descriptor v1.Descriptor `json:"descriptor"` // of Manifest
	Manifest   []byte        `json:"manifest"`
	Config     []byte        `json:"config"`
	Pulled     time.Time     `json:"pulled"`
}

// layerInfo is layer.json.
type layerInfo struct {
	Version int   `json:"version"`
	Size    int64 `json:"size"`    // bytes of content of its files
	Entries int   `json:"entries"` // of its tar
}

// nameTable is names.json.
type nameTable struct {
	Version int                      `json:"version"`
	Names   map[string]digest.Digest `json:"names"`
}

func readRecord(path string) (record, error) {
	var rec record
	err := readJSON(path, &rec, &rec.Version)
	return rec, err
}

func (s *Store) writeRecord(id digest.Digest, rec record) error {
	rec.Version = recordVersion
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("write record of image %s: %w", id, err)
	}
	return durable.WriteFile(s.recordPath(id), data, 0o600)
}

func readLayerInfo(dir string) (layerInfo, error) {
	var info layerInfo
	err := readJSON(filepath.Join(dir, layerFile), &info, &info.Version)
	return info, err
}

// writeLayerInfo does not sync: whoever commits the layer does, once for all.
func writeLayerInfo(dir string, info layerInfo) error {
	info.Version = recordVersion
	data, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, layerFile), data, 0o600)
}

func (s *Store) readNames() (map[string]digest.Digest, error) {
	var t nameTable
	err := readJSON(filepath.Join(s.dir, namesFile), &t, &t.Version)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return t.Names, err
}

func (s *Store) writeNames(names map[string]digest.Digest) error {
	data, err := json.MarshalIndent(nameTable{Version: recordVersion, Names: names}, "", "\t")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(s.dir, namesFile), data, 0o600)
}

// readJSON reads the file at path into v, whose field version is then checked.
func readJSON(path string, v any, version *int) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if *version > recordVersion {
		return fmt.Errorf("read %s: version %d: %w", path, *version, ErrVersion)
	}
	return nil
}

func (s *Store) recordPath(id digest.Digest) string {
	return filepath.Join(s.dir, recordDir, id.Encoded()+".json")
}

func (s *Store) layerPath(diff digest.Digest) string {
	return filepath.Join(s.dir, layerDir, diff.Algorithm().String(), diff.Encoded())
}

func (s *Store) partialPath(diff digest.Digest) string {
	return filepath.Join(s.dir, partialDir, diff.Algorithm().String()+"-"+diff.Encoded())
}

// clearWork removes what an earlier process had half-made.
func (s *Store) clearWork() error {
	work := filepath.Join(s.dir, workDir)
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	return os.Mkdir(work, 0o700)
}
