package container

import "golang.org/x/sys/unix"

// OverlayByName makes r do what it does on a kernel before Linux 6.13.
func (r *Runtime) OverlayByName() { r.host.OverlayByName = true }

// FallsBack reports whether r does anything other than what this package
// prefers.
func (r *Runtime) FallsBack() bool { return r.host.OverlayByName }

// WithoutUnified makes r do what it does where there is cgroup version 1 alone.
func (r *Runtime) WithoutUnified() {
	r.groups.unified = ""
	delete(r.groups.v1, "")
}

// Reaped returns when all shims that r began are gone.
func (r *Runtime) Reaped() { r.shims.Wait() }

// Kernel returns the version of the kernel.
func (r *Runtime) Kernel() [2]int { return r.host.Kernel }

// NoDevices makes r do what it does where it may not make devices.
func (r *Runtime) NoDevices() { r.host.NoCaps |= 1 << unix.CAP_MKNOD }

// SpareShim returns the number of the shim that waits for the next container, 0 if
// there is none.
func (r *Runtime) SpareShim() int {
	s := r.takeSpare()
	if s == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spare = make(chan *newShim, 1)
	r.spare <- s
	return s.proc.Pid
}

// SpareEnded returns when the shim of SpareShim has ended.
func (r *Runtime) SpareEnded() {
	s := r.takeSpare()
	<-s.ended
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spare = make(chan *newShim, 1)
	r.spare <- s
}
