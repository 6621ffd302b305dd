package control

import "time"

// BackupRequest asks for a backup.
type BackupRequest struct {
	// Dir is the directory to make it in, absolute, on the server's machine: an
	// empty or a new one, or that of an earlier backup, of which what is still
	// needed stays.
	Dir string `json:"dir"`
}

// BackupReport is what a backup came to, or a restore. Of an interrupted one it
// says what was done until then, and has no Time.
type BackupReport struct {
	Dir         string    `json:"dir"`
	Time        time.Time `json:"time,omitzero"` // of the data that it holds
	Blobs       int64     `json:"blobs"`         // files of the store, and their size
	SizeBytes   int64     `json:"size_bytes"`
	IndexBytes  int64     `json:"index_bytes"` // names, records and small blobs
	New         int64     `json:"new"`         // blobs that were not there before
	NewBytes    int64     `json:"new_bytes"`
	Removed     int64     `json:"removed"`   // blobs of an earlier backup
	Linked      int64     `json:"linked"`    // blobs that are hard links: they are lost with the disk
	SameDisk    bool      `json:"same_disk"` // it is on the file system of the registry
	Damaged     int64     `json:"damaged"`   // blobs that are missing, since their bytes were not as they should be
	Damage      []Damage  `json:"damage"`    // the first 100 of these
	TookSeconds float64   `json:"took_seconds"`
}

// Damage is content whose bytes are lost.
type Damage struct {
	Digest string `json:"digest"`
	Why    string `json:"why"`
}
