package container

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/plan"
	"berth.internal/node/container/shim"
)

// engineBases are directories of which one is on every node. The files that runc
// and crun need cover it, in a mount namespace of their own: in a user namespace
// they look for them with the rights of its root, which may not enter the bundle.
var engineBases = []string{"/mnt", "/media", "/srv", "/home", "/tmp"}

// engineBase returns one that holds nothing the tool must see.
func engineBase(needed ...string) (string, error) {
	for _, dir := range engineBases {
		is, err := isDir(dir)
		if err != nil || !is {
			continue
		}
		if real, err := filepath.EvalSymlinks(dir); err != nil || real != dir {
			continue
		}
		free := true
		for _, path := range needed {
			free = free && path != dir && !strings.HasPrefix(path, dir+"/")
		}
		if free {
			return dir, nil
		}
	}
	return "", fmt.Errorf("none of %s is a directory that the files of a container can cover", strings.Join(engineBases, ", "))
}

// engineRequest is request for a container that runc or crun make.
func (r *Runtime) engineRequest(b Bundle, cgroupAt string) (shim.Create, []byte, error) {
	var none shim.Create
	if b.Init {
		return none, nil, fmt.Errorf("an init with runc or crun: %w", ErrUnsupported)
	}
	engine, err := filepath.EvalSymlinks(b.Engine)
	if err != nil {
		return none, nil, fmt.Errorf("find %s: %w", b.Engine, err)
	}
	needed := []string{b.Engine, engine}
	for _, n := range b.Spec.Linux.Namespaces {
		needed = append(needed, n.Path)
	}
	base, err := engineBase(needed...)
	if err != nil {
		return none, nil, err
	}
	if err := checkEngineDevices(b.Spec); err != nil {
		return none, nil, err
	}
	p, err := plan.ForEngine(plan.Input{Spec: b.Spec, Rootfs: b.Rootfs, Stdin: b.Stdin, Host: r.host, Terminal: planned(b.Terminal)}, base)
	if err != nil {
		return none, nil, invalid{err}
	}
	p.Config.Linux.CgroupsPath = "/" + strings.TrimPrefix(cgroupAt, "/")
	config, err := json.Marshal(p.Config)
	if err != nil {
		return none, nil, err
	}
	prepare, child := p.Prepare.Encode(), p.Child.Encode()
	return shim.Create{
		ID: b.ID, Bundle: r.path(b.ID), Stdin: b.Stdin, StdinOnce: b.StdinOnce,
		Log: b.Log.Path, LogSize: b.Log.MaxSize, LogFiles: b.Log.MaxFiles,
		Flags: p.Flags, UIDMap: p.UIDMap, GIDMap: p.GIDMap, Send: p.Send, Prepare: len(prepare),
		Restart: shim.Restart{Policy: string(b.Restart.Policy), Max: b.Restart.Max},
		Engine:  &shim.Engine{Path: engine, Base: base, Child: len(child), Terminal: b.Terminal},
	}, append(append(prepare, child...), config...), nil
}

// checkEngineDevices refuses devices that runc does not find: in a user namespace it
// mounts those of the node with the same name.
func checkEngineDevices(s *specs.Spec) error {
	if len(s.Linux.UIDMappings) == 0 {
		return nil
	}
	for _, d := range s.Linux.Devices {
		var st unix.Stat_t
		if err := unix.Stat(d.Path, &st); err != nil || int64(unix.Major(st.Rdev)) != d.Major || int64(unix.Minor(st.Rdev)) != d.Minor {
			return fmt.Errorf("device %s, which has another name on the node, with runc or crun in a user namespace: %w", d.Path, ErrUnsupported)
		}
	}
	return nil
}

// engineExec returns what a shim is asked to let its tool execute.
func engineExec(spec ExecSpec) (shim.Request, []byte, error) {
	if err := plan.CheckEngineProcess(&spec.Process); err != nil {
		return shim.Request{}, nil, err
	}
	if t := spec.Terminal; t != nil { // the tool sets it before the process begins; we only after
		spec.Process.ConsoleSize = &specs.Box{Height: uint(t.Rows), Width: uint(t.Columns)}
	}
	process, err := json.Marshal(spec.Process)
	if spec.Terminal != nil {
		return shim.Request{Method: shim.MethodExecTerminal, Exec: &shim.Exec{Terminal: spec.Terminal}}, process, err
	}
	asked := shim.Attach{Stdin: spec.Stdin, Stdout: spec.Stdout, Stderr: spec.Stderr}
	return shim.Request{Method: shim.MethodExec, Exec: &shim.Exec{Attach: asked}}, process, err
}
