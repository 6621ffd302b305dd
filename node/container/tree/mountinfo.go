package tree

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// mount is a line of /proc/<pid>/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id, parent int
	point      string // where it is, an absolute path
	kind       string // of its file system
	unbindable bool
}

// parse reads mountinfo. Lines that are none are left out.
func parse(text string) (list []mount) {
	for line := range strings.Lines(text) {
		head, tail, _ := strings.Cut(line, " - ")
		kind, _, _ := strings.Cut(tail, " ")
		f := strings.Split(head, " ") // other white space is part of a path
		if len(f) < 6 {
			continue
		}
		id, err := strconv.Atoi(f[0])
		if err != nil {
			continue
		}
		parent, err := strconv.Atoi(f[1])
		if err != nil {
			continue
		}
		list = append(list, mount{id: id, parent: parent, point: unescape(f[4]), kind: kind, unbindable: slices.Contains(f[6:], "unbindable")})
	}
	return list
}

// unescape gives characters back that are written as a backslash and three octal
// digits: those that separate fields, and the backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// below returns the mounts that are to be seen below dir, which is in the mount top:
// each after the one that it is on. Not among them are those that others cover, and
// what the kernel does not copy either: unbindable ones, and what is on them.
func below(list []mount, top int, dir string) []mount {
	on := map[int][]mount{}
	for _, m := range list {
		if !m.unbindable {
			on[m.parent] = append(on[m.parent], m)
		}
	}
	for _, mounts := range on { // what covers before what it may cover
		slices.SortFunc(mounts, func(a, b mount) int {
			return cmp.Or(cmp.Compare(len(a.point), len(b.point)), cmp.Compare(a.point, b.point))
		})
	}
	var seen []mount
	var add func(parent int, dir string)
	add = func(parent int, dir string) {
		mounts := on[parent]
		delete(on, parent)
		var here []mount
		for _, m := range mounts {
			if !within(m.point, dir) || slices.ContainsFunc(here, func(o mount) bool { return within(m.point, o.point) }) {
				continue
			}
			here = append(here, m)
			if !slices.ContainsFunc(on[m.id], func(o mount) bool { return o.point == m.point }) {
				seen = append(seen, m)
			}
			add(m.id, m.point)
		}
	}
	add(top, dir)
	return seen
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == '/' || strings.HasSuffix(dir, "/"))
}
