package control

import "encoding/json"

// Settings are the configuration of a server that is in force.
type Settings struct {
	Config      json.RawMessage `json:"config"`            // as in the file, every key
	NeedRestart []string        `json:"need_restart"`      // keys that have changed since the start, and count after the next one
	Problem     string          `json:"problem,omitempty"` // why what was read last is not in force
}

// Reloaded is what came of reading the configuration again.
type Reloaded struct {
	Changed     []string `json:"changed"`      // keys that are in force now
	NeedRestart []string `json:"need_restart"` // keys that count after the next start
}
