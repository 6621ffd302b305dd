// Package netdev moves network devices of the node into the network namespace of a
// container: config-linux.md of the runtime-spec, "Network Devices". Who imports it
// brings netlink along, so the shim and what it shares with others do not.
package netdev

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Moved are devices that were moved. It keeps the network namespace that they are in,
// even if the container ends, until it is closed.
type Moved struct {
	home, away *namespace
	devices    []*device
}

// device is one that was moved.
type device struct {
	was       link      // at home
	addresses []address // at home
	index     int       // where it is now
}

// Move moves devices, by their names, from the network namespace of this thread into
// that of a process, renames them, gives them back their permanent global addresses,
// which the kernel drops, and sets them up. After an error all are where they were, or
// it says which are not.
func Move(pid int, devices map[string]specs.LinuxNetDevice) (*Moved, error) {
	m, err := open(pid)
	if err != nil {
		return nil, err
	}
	for _, name := range order(devices) {
		if err := m.move(name, devices[name].Name); err != nil {
			return nil, errors.Join(fmt.Errorf("network device %s: %w", name, err), m.Undo())
		}
	}
	return m, nil
}

// order returns the names of the devices in the order of their moves: those whose new
// names the kernel completes come last, so that it takes nobody else's.
func order(devices map[string]specs.LinuxNetDevice) []string {
	template := func(name string) int { return strings.Count(devices[name].Name, "%") }
	return slices.SortedFunc(maps.Keys(devices), func(a, b string) int {
		return cmp.Or(cmp.Compare(template(a), template(b)), cmp.Compare(a, b))
	})
}

func open(pid int) (_ *Moved, err error) {
	m := new(Moved)
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if m.home, err = openNamespace("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("open the runtime's network namespace: %w", err)
	}
	if m.away, err = openNamespace("/proc/" + strconv.Itoa(pid) + "/ns/net"); err != nil {
		return nil, fmt.Errorf("open the container's network namespace: %w", err)
	}
	same, err := m.home.is(m.away)
	if err == nil && same {
		err = errors.New("linux.netDevices need a network namespace of the container's own: its is the runtime's")
	}
	return m, err
}

// move moves one device.
func (m *Moved) move(name, as string) error {
	was, err := m.home.linkByName(name)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("it does not exist in the runtime's network namespace: %w", err)
	}
	if err != nil {
		return err
	}
	d := &device{was: was}
	// Those of IPv6 are gone when it is set down.
	if d.addresses, err = m.home.addresses(was.index); err != nil {
		return err
	}
	as = cmp.Or(as, was.name)
	d.index, err = m.home.give(was.index, m.away, as)
	if d.index != 0 {
		m.devices = append(m.devices, d)
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the name %s, or one that it has beside, is taken in the container's network namespace: %w", as, err)
	}
	if err != nil {
		return fmt.Errorf("move it into the container's network namespace as %s: %w", as, err)
	}
	now, err := m.away.linkByIndex(d.index) // the kernel may have completed the name
	if err != nil {
		return err
	}
	// First: some routes of addresses of IPv6 come only if the device is up.
	if err := m.away.up(d.index); err != nil {
		return fmt.Errorf("set it up in the container's network namespace: %w", err)
	}
	for _, a := range d.addresses {
		if !a.moves() {
			continue
		}
		if err := m.away.add(a.labelled(was.name, now.name), d.index); err != nil {
			return fmt.Errorf("add its address %s in the container's network namespace: %w", a, err)
		}
	}
	return nil
}

// Undo moves the devices back, with their names, addresses, masters and states, and
// closes m. Routes and what else the kernel dropped do not come back. The error says
// which device is not as it was.
func (m *Moved) Undo() error {
	if m == nil {
		return nil
	}
	defer m.Close()
	var errs []error
	for _, d := range slices.Backward(m.devices) {
		index, err := m.away.give(d.index, m.home, d.was.name)
		if index == 0 {
			errs = append(errs, fmt.Errorf("network device %s did not come back from the container's network namespace: %w", d.was.name, err))
			continue
		}
		if err := errors.Join(err, m.restore(d, index)); err != nil {
			errs = append(errs, fmt.Errorf("network device %s is back, but not as it was: %w", d.was.name, err))
		}
	}
	return errors.Join(errs...)
}

// restore makes a device that has come home what it was.
func (m *Moved) restore(d *device, index int) (err error) {
	if d.was.master != 0 {
		if lost := m.home.enslave(index, d.was.master); lost != nil {
			err = fmt.Errorf("make it a port of the device that it belonged to: %w", lost)
		}
	}
	if d.was.up { // first, as in move
		err = errors.Join(err, m.home.up(index))
	}
	for _, a := range d.addresses {
		if lost := m.home.add(a, index); lost != nil {
			err = errors.Join(err, fmt.Errorf("add its address %s: %w", a, lost))
		}
	}
	return err
}

// Close lets go of the container's network namespace, and leaves the devices in it.
func (m *Moved) Close() {
	if m != nil {
		m.home.close()
		m.away.close()
	}
}
