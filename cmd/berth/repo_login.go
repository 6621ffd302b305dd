package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// login returns the user and password that docker login or podman login keep
// for the host, empty if there are none. Programs that keep passwords for them
// (credential helpers) are not run.
func login(host string) (user, password string, err error) {
	for _, file := range loginFiles() {
		raw, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", fmt.Errorf("read logins: %w", err)
		}
		user, password, ok, err := loginIn(raw, host)
		if err != nil {
			return "", "", fmt.Errorf("read logins from %s: %w", file, err)
		}
		if ok {
			return user, password, nil
		}
	}
	return "", "", nil
}

// loginFiles are the places where podman and docker keep logins.
func loginFiles() []string {
	if file := os.Getenv("REGISTRY_AUTH_FILE"); file != "" {
		return []string{file}
	}
	var files []string
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return append(files, filepath.Join(dir, "config.json"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".docker", "config.json"))
	}
	return files
}

// loginIn finds the login for the host in the content of such a file. Its
// errors never hold what it read.
func loginIn(raw []byte, host string) (user, password string, ok bool, err error) {
	var file struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			IdentityToken string `json:"identitytoken"`
		} `json:"auths"`
	}
	if json.Unmarshal(raw, &file) != nil {
		return "", "", false, errors.New("it is not valid JSON")
	}
	for name, entry := range file.Auths {
		_, after, found := strings.Cut(name, "://")
		if !found {
			after = name
		}
		if at, _, _ := strings.Cut(after, "/"); at != host {
			continue
		}
		if entry.IdentityToken != "" {
			return "<token>", entry.IdentityToken, true, nil
		}
		if entry.Auth == "" { // kept by a helper
			continue
		}
		pair, err := base64.StdEncoding.DecodeString(entry.Auth)
		user, password, found := strings.Cut(string(pair), ":")
		if err != nil || !found {
			return "", "", false, fmt.Errorf("its entry for %s is damaged; log in once more", host)
		}
		return user, password, true, nil
	}
	return "", "", false, nil
}
