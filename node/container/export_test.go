package container

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
