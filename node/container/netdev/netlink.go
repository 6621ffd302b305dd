package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace, and a socket in it to talk about its devices.
type namespace struct {
	file *os.File
	sock *nl.SocketHandle
}

// openNamespace opens the namespace that is at a path.
func openNamespace(path string) (_ *namespace, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	n := &namespace{file: file}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	sock, err := nl.GetNetlinkSocketAt(n.handle(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	n.sock = &nl.SocketHandle{Socket: sock}
	// The kernel's own words for what it refuses.
	return n, errors.Join(sock.SetExtAck(true), sock.SetSendTimeout(&nl.SocketTimeoutTv), sock.SetReceiveTimeout(&nl.SocketTimeoutTv))
}

func (n *namespace) handle() netns.NsHandle { return netns.NsHandle(n.file.Fd()) }

func (n *namespace) close() {
	if n == nil {
		return
	}
	if n.sock != nil {
		n.sock.Close()
	}
	_ = n.file.Close()
}

// is reports whether both are the same namespace.
func (n *namespace) is(other *namespace) (bool, error) {
	a, err := n.file.Stat()
	if err != nil {
		return false, err
	}
	b, err := other.file.Stat()
	return err == nil && os.SameFile(a, b), err
}

// ask sends a request, and returns the messages of a type that come as its answer.
func (n *namespace) ask(req *nl.NetlinkRequest, answer uint16) ([][]byte, error) {
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: n.sock}
	return req.Execute(unix.NETLINK_ROUTE, answer)
}

// link is what is kept of a device while it is away.
type link struct {
	index, master int
	name          string
	up            bool
}

func (n *namespace) linkByName(name string) (link, error) {
	return n.link(nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
}

func (n *namespace) linkByIndex(index int) (link, error) { return n.link(indexed(index)) }

func (n *namespace) link(which ...nl.NetlinkRequestData) (l link, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	req.Data = which
	msgs, err := n.ask(req, unix.RTM_NEWLINK)
	if err == nil && len(msgs) != 1 {
		err = fmt.Errorf("%d answers", len(msgs))
	}
	if err != nil {
		return l, fmt.Errorf("look at the device: %w", err)
	}
	info := nl.DeserializeIfInfomsg(msgs[0])
	attrs, err := nl.ParseRouteAttrAsMap(msgs[0][info.Len():])
	if err != nil {
		return l, fmt.Errorf("look at the device: %w", err)
	}
	l = link{index: int(info.Index), name: unix.ByteSliceToString(attrs[unix.IFLA_IFNAME].Value), up: info.Flags&unix.IFF_UP != 0}
	if master, ok := attrs[unix.IFLA_MASTER]; ok {
		l.master = int(binary.NativeEndian.Uint32(master.Value))
	}
	return l, nil
}

func indexed(index int) *nl.IfInfomsg {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	return msg
}

// set changes a device.
func (n *namespace) set(to ...nl.NetlinkRequestData) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.Data = to
	_, err := n.ask(req, 0)
	return err
}

func (n *namespace) up(index int) error {
	msg := indexed(index)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	return n.set(msg)
}

func (n *namespace) enslave(index, master int) error {
	return n.set(indexed(index), nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
}

// give moves a device to another namespace under a name, and returns its number
// there; 0: it has not moved. It may have moved with an error, too: what the kernel
// does of one request it does not undo.
func (n *namespace) give(index int, to *namespace, name string) (int, error) {
	// Its number may be taken there. The kernel tells it to who listens here.
	events, err := nl.SubscribeAt(n.handle(), netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return 0, err
	}
	defer events.Close()
	failed := n.set(indexed(index), nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(to.file.Fd()))), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	moved, err := movedTo(events, index)
	if failed != nil {
		return moved, failed
	}
	if err != nil {
		return 0, fmt.Errorf("it is there, but its number could not be learned: %w", err)
	}
	return moved, nil
}

// movedTo returns the new number of a device that has moved. It does not wait: the
// event was sent before the answer to the request. Errors: EAGAIN if there is none.
func movedTo(events *nl.NetlinkSocket, index int) (int, error) {
	b := make([]byte, nl.RECEIVE_BUFFER_SIZE)
	for {
		n, _, err := unix.Recvfrom(events.GetFd(), b, unix.MSG_DONTWAIT)
		if err != nil {
			return 0, err
		}
		msgs, err := syscall.ParseNetlinkMessage(b[:n])
		if err != nil {
			return 0, err
		}
		for _, m := range msgs {
			if m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
				continue
			}
			info := nl.DeserializeIfInfomsg(m.Data)
			attrs, err := nl.ParseRouteAttrAsMap(m.Data[info.Len():])
			if err != nil {
				return 0, err
			}
			if moved, ok := attrs[unix.IFLA_NEW_IFINDEX]; ok && int(info.Index) == index {
				return int(binary.NativeEndian.Uint32(moved.Value)), nil
			}
		}
	}
}

// address is one of a device as the kernel tells it, and takes it again.
type address struct {
	unix.IfAddrmsg
	attrs []syscall.NetlinkRouteAttr
}

// maxDumps is how often a list is asked for that changes while it is read.
const maxDumps = 20

// addresses returns those of a device in the order in which it was given them.
func (n *namespace) addresses(index int) ([]address, error) {
	var list []address
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		of, err := n.dump(family, index)
		if err != nil {
			return nil, fmt.Errorf("list its addresses: %w", err)
		}
		if family == unix.AF_INET6 {
			slices.Reverse(of) // the kernel puts the latest first
		}
		list = append(list, of...)
	}
	return list, nil
}

func (n *namespace) dump(family, index int) (list []address, err error) {
	var msgs [][]byte
	for range maxDumps {
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfAddrmsg(family))
		if msgs, err = n.ask(req, unix.RTM_NEWADDR); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		info := nl.DeserializeIfAddrmsg(m)
		if int(info.Index) != index {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[info.Len():])
		if err != nil {
			return nil, err
		}
		list = append(list, address{info.IfAddrmsg, attrs})
	}
	return list, nil
}

// attr returns the value of an attribute; nil: there is none.
func (a address) attr(kind uint16) []byte {
	for _, at := range a.attrs {
		if at.Attr.Type == kind {
			return at.Value
		}
	}
	return nil
}

// moves reports whether the address goes where the device goes: what expires, or has
// its meaning on this node only, does not.
func (a address) moves() bool {
	flags := uint32(a.Flags)
	if v := a.attr(unix.IFA_FLAGS); len(v) == 4 {
		flags = binary.NativeEndian.Uint32(v)
	}
	return flags&unix.IFA_F_PERMANENT != 0 && a.Scope == unix.RT_SCOPE_UNIVERSE
}

// labelled returns the address with a label that follows the name of the device, if
// it did.
func (a address) labelled(was, now string) address {
	a.attrs = slices.Clone(a.attrs)
	for i, at := range a.attrs {
		if at.Attr.Type != unix.IFA_LABEL {
			continue
		}
		rest, ok := strings.CutPrefix(unix.ByteSliceToString(at.Value), was)
		if label := now + rest; ok && (rest == "" || rest[0] == ':') && len(label) < unix.IFNAMSIZ {
			a.attrs[i].Value = nl.ZeroTerminated(label)
		}
	}
	return a
}

// add gives a device an address.
func (n *namespace) add(a address, index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	a.Index = uint32(index)
	req.AddData(&nl.IfAddrmsg{IfAddrmsg: a.IfAddrmsg})
	for _, at := range a.attrs {
		req.AddData(nl.NewRtAttr(int(at.Attr.Type), at.Value))
	}
	_, err := n.ask(req, 0)
	return err
}

func (a address) String() string {
	value := a.attr(unix.IFA_LOCAL)
	if value == nil {
		value = a.attr(unix.IFA_ADDRESS)
	}
	ip, _ := netip.AddrFromSlice(value)
	return netip.PrefixFrom(ip, int(a.Prefixlen)).String()
}
