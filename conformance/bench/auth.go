package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const benchPassword = "correct horse battery"

// auth sends the same requests with a token, with a password and without, in
// turns, to one server that has users and a policy of a few hundred rules. Marks: a
// token costs less than a tenth, and one user gets 10 000 answers a second with a
// password.
func (o options) auth(ctx context.Context, data string) (rows []result, err error) {
	files := filepath.Join(data, "auth")
	if err := os.MkdirAll(files, 0o700); err != nil {
		return nil, err
	}
	password, policy := filepath.Join(files, "password"), filepath.Join(files, "policy.yaml")
	if err := errors.Join(os.WriteFile(password, []byte(benchPassword), 0o600), os.WriteFile(policy, []byte(rules()), 0o600)); err != nil {
		return nil, err
	}
	t := berthTarget(o.berths[0], "BERTH_ADMIN_PASSWORD_FILE="+password, "BERTH_POLICY="+policy)
	t.users = true
	if _, err := t.up(ctx, filepath.Join(data, "data")); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.down()) }()
	basic := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("admin:"+benchPassword)) + "\r\n"
	fill := &bench{target: t, clients: 1, header: basic}
	if err := errors.Join(pushImage(fill, "team/app", []string{"latest"}), putBlob(fill, "team/app", blob(2, 4096))); err != nil {
		return nil, err
	}
	for _, load := range []struct {
		name, method, path string
		clients            int
	}{
		{"GET manifest by tag", "GET", "/v2/team/app/manifests/latest", 64},
		{"HEAD blob", "HEAD", "/v2/team/app/blobs/" + digestOf(blob(2, 4096)), 8},
	} {
		token, err := t.token(ctx, "repository:team/app:pull")
		if err != nil {
			return nil, err
		}
		ways := []struct {
			name   string
			header string
			n      float64
			took   time.Duration
			cpu    time.Duration
		}{{name: "anonymous"}, {name: "token", header: "Authorization: Bearer " + token + "\r\n"}, {name: "Basic", header: basic}}
		const turns = 8
		for range turns {
			for i := range ways {
				w := &ways[i]
				b := &bench{target: t, clients: load.clients, header: w.header}
				b.begin()
				n, err := b.repeat(o.sizes.duration/turns*2, load.method, load.path)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", load.name, w.name, err)
				}
				w.n, w.took, w.cpu = w.n+n, w.took+time.Since(b.began), w.cpu+t.cpu()-b.cpu
			}
		}
		for _, w := range ways {
			rows = append(rows, result{
				Load: load.name + ", " + w.name, Unit: "/s", Target: t.name, Values: []float64{w.n / w.took.Seconds()}, CPU: []float64{w.cpu.Seconds() * 1000 / w.n},
			})
		}
		for _, w := range ways[1:] {
			rate := (w.n / w.took.Seconds()) / (ways[0].n / ways[0].took.Seconds())
			rows = append(rows, result{Load: "of it anonymous, " + load.name + ", " + w.name, Unit: "x", Target: t.name, Values: []float64{rate}})
		}
	}
	return rows, nil
}

// rules is a policy such as a site of a hundred teams has.
func rules() string {
	var b strings.Builder
	b.WriteString("rules:\n- {subject: \"group:admins\", repositories: \"**\", allow: [pull, push, overwrite, delete, admin]}\n")
	b.WriteString("- {subject: anonymous, repositories: \"team/**\", allow: [pull]}\n- {subject: everyone, repositories: \"public/**\", allow: [pull]}\n")
	for i := range 100 {
		fmt.Fprintf(&b, "- {subject: \"group:team%d\", repositories: \"team%d/**\", allow: [pull, push]}\n- {subject: everyone, repositories: \"team%d/secret\", deny: [pull]}\n", i, i, i)
	}
	return b.String()
}

// token gets one from the server.
func (t *target) token(ctx context.Context, scope string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.addr+"/auth/token?scope="+scope, nil)
	if err != nil {
		return "", err
	}
	req.SetBasicAuth("admin", benchPassword)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct {
		Token string `json:"token"`
	}
	err = json.NewDecoder(resp.Body).Decode(&answer)
	if answer.Token == "" {
		return "", cmp.Or(err, fmt.Errorf("no token: %s", resp.Status))
	}
	return answer.Token, nil
}
