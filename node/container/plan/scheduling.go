package plan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	mathbits "math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/call"
)

var policies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: unix.SCHED_NORMAL, specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedRR: unix.SCHED_RR,
	specs.SchedBatch: unix.SCHED_BATCH, specs.SchedIdle: unix.SCHED_IDLE, specs.SchedDeadline: unix.SCHED_DEADLINE,
}

var schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: unix.SCHED_FLAG_RESET_ON_FORK, specs.SchedFlagReclaim: unix.SCHED_FLAG_RECLAIM,
	specs.SchedFlagDLOverrun: unix.SCHED_FLAG_DL_OVERRUN, specs.SchedFlagKeepPolicy: unix.SCHED_FLAG_KEEP_POLICY,
	specs.SchedFlagKeepParams: unix.SCHED_FLAG_KEEP_PARAMS,
}

// scheduler returns struct sched_attr of sched_setattr(2). Errors: ErrUnsupported.
func scheduler(s *specs.Scheduler) ([]byte, error) {
	policy, ok := policies[s.Policy]
	switch {
	case !ok:
		return nil, unsupported("process.scheduler.policy %q", s.Policy)
	case s.Nice < -20 || s.Nice > 19:
		return nil, fmt.Errorf("process.scheduler.nice %d is not from -20 to 19", s.Nice)
	case s.Priority != 0 && policy != unix.SCHED_FIFO && policy != unix.SCHED_RR:
		return nil, fmt.Errorf("process.scheduler.priority %d goes with SCHED_FIFO and SCHED_RR, not with %s", s.Priority, s.Policy)
	case (s.Runtime|s.Deadline|s.Period) != 0 && policy != unix.SCHED_DEADLINE:
		return nil, fmt.Errorf("process.scheduler runtime, deadline and period go with SCHED_DEADLINE, not with %s", s.Policy)
	}
	var flags uint64
	for _, f := range s.Flags {
		flag, ok := schedulerFlags[f]
		if !ok {
			return nil, unsupported("process.scheduler flag %q", f)
		}
		flags |= flag
	}
	b := binary.NativeEndian.AppendUint32(nil, sizeofSchedAttr)
	b = binary.NativeEndian.AppendUint32(b, policy)
	b = binary.NativeEndian.AppendUint64(b, flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Nice))
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Priority))
	for _, v := range []uint64{s.Runtime, s.Deadline, s.Period} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return b, nil
}

const sizeofSchedAttr = 48 // SCHED_ATTR_SIZE_VER0

// ioPriority returns the value of ioprio_set(2).
func ioPriority(p *specs.LinuxIOPriority) (int, error) {
	class := slices.Index([]specs.IOPriorityClass{specs.IOPRIO_CLASS_RT, specs.IOPRIO_CLASS_BE, specs.IOPRIO_CLASS_IDLE}, p.Class) + 1
	if class == 0 || p.Priority < 0 || p.Priority > 7 {
		return 0, fmt.Errorf("process.ioPriority %s %d: the class is IOPRIO_CLASS_RT, IOPRIO_CLASS_BE or IOPRIO_CLASS_IDLE, the priority 0 to 7", p.Class, p.Priority)
	}
	return class<<13 | p.Priority, nil
}

// maxBit is the largest number of a processor or memory node.
const maxBit = 8191

// bits reads a list like "0-3,7" as a mask. name is for errors.
func bits(list, name string) ([]byte, error) {
	mask := make([]byte, (maxBit+1)/8)
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.ParseUint(first, 10, 16)
		to := from
		if err == nil && isRange {
			to, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || to < from || to > maxBit {
			return nil, fmt.Errorf("%s: %.100q is not a list like 0-3,7", name, list)
		}
		for n := from; n <= to; n++ {
			mask[n/8] |= 1 << (n % 8)
		}
	}
	return mask, nil
}

// schedule adds what the shim does for the process: some of it needs the node's
// privileges.
func schedule(p *call.Program, who call.Arg, proc *specs.Process) error {
	if proc.Scheduler != nil {
		attr, err := scheduler(proc.Scheduler)
		if err != nil {
			return err
		}
		p.Call(unix.SYS_SCHED_SETATTR, who, call.Data(attr), call.Int(0)).As("set process.scheduler to " + string(proc.Scheduler.Policy))
	}
	if proc.IOPriority != nil {
		value, err := ioPriority(proc.IOPriority)
		if err != nil {
			return err
		}
		const whoProcess = 1
		p.Call(unix.SYS_IOPRIO_SET, call.Int(whoProcess), who, call.Int(value)).As("set process.ioPriority to " + string(proc.IOPriority.Class))
	}
	return nil
}

// affinity is what the process of exec may run on, as masks: before it is in the
// container's cgroup, and then. Nil: as it comes.
type affinity struct{ before, after []byte }

// affinityOf reads the affinity of a process of exec, which is the one of the
// container's own if it has none.
func affinityOf(proc, container *specs.Process) (a affinity, err error) {
	p := proc.ExecCPUAffinity
	if p == nil && container != nil {
		p = container.ExecCPUAffinity
	}
	if p == nil {
		return a, nil
	}
	if p.Initial != "" {
		if a.before, err = bits(p.Initial, "process.execCPUAffinity.initial"); err != nil {
			return a, err
		}
	}
	if p.Final != "" {
		a.after, err = bits(p.Final, "process.execCPUAffinity.final")
	}
	return a, err
}

func (a affinity) initial(c *call.Program) { setAffinity(c, a.before, "initial") }

// final is called in the container's cgroup. Without an affinity of its own a process
// has that of the cgroup, not that of who started the node.
func (a affinity) final(c *call.Program) {
	setAffinity(c, a.after, "final")
	if a.before == nil && a.after == nil {
		resetAffinity(c)
	}
}

// resetAffinity lets the process run on all that its cgroup has.
func resetAffinity(c *call.Program) {
	all := bytes.Repeat([]byte{0xff}, 128) // more is only for machines with more than 1024 processors
	c.Call(unix.SYS_SCHED_SETAFFINITY, call.Int(0), call.Int(len(all)), call.Data(all)).On(call.Next, unix.EINVAL, unix.EPERM)
}

func setAffinity(c *call.Program, mask []byte, which string) {
	if mask != nil {
		c.Call(unix.SYS_SCHED_SETAFFINITY, call.Int(0), call.Int(len(mask)), call.Data(mask)).As("set process.execCPUAffinity." + which)
	}
}

var memoryModes = []specs.MemoryPolicyModeType{ // by number
	specs.MpolDefault, specs.MpolPreferred, specs.MpolBind, specs.MpolInterleave, specs.MpolLocal, specs.MpolPreferredMany, specs.MpolWeightedInterleave,
}

var memoryFlags = map[specs.MemoryPolicyFlagType]int{
	specs.MpolFStaticNodes: 1 << 15, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFNumaBalancing: 1 << 13,
}

// memoryPolicy adds set_mempolicy(2).
func memoryPolicy(c *call.Program, m *specs.LinuxMemoryPolicy) error {
	if m == nil {
		return nil
	}
	mode := slices.Index(memoryModes, m.Mode)
	if mode < 0 {
		return unsupported("linux.memoryPolicy: invalid memory policy mode %.100q", m.Mode)
	}
	for _, f := range m.Flags {
		flag, ok := memoryFlags[f]
		if !ok {
			return unsupported("linux.memoryPolicy: invalid memory policy flag %.100q", f)
		}
		mode |= flag
	}
	what := "set linux.memoryPolicy to " + string(m.Mode)
	if m.Nodes == "" {
		c.Call(unix.SYS_SET_MEMPOLICY, call.Int(mode), call.Int(0), call.Int(0)).As(what)
		return nil
	}
	mask, err := bits(m.Nodes, "linux.memoryPolicy: invalid memory policy node")
	if err != nil {
		return err
	}
	if m.Mode == specs.MpolDefault || m.Mode == specs.MpolLocal {
		return fmt.Errorf("linux.memoryPolicy: %s mode requires 0 nodes but got %d", m.Mode, countBits(mask))
	}
	for len(mask) > 8 && slices.Max(mask[len(mask)-8:]) == 0 {
		mask = mask[:len(mask)-8] // whole words; the kernel looks at no more than it has nodes
	}
	c.Call(unix.SYS_SET_MEMPOLICY, call.Int(mode), call.Data(mask), call.Int(8*len(mask)+1)).As(what + " on nodes " + m.Nodes)
	return nil
}

func countBits(mask []byte) (n int) {
	for _, b := range mask {
		n += mathbits.OnesCount8(b)
	}
	return n
}

// personality adds personality(2).
func personality(c *call.Program, p *specs.LinuxPersonality) error {
	if p == nil {
		return nil
	}
	domains := map[specs.LinuxPersonalityDomain]int{specs.PerLinux: 0, specs.PerLinux32: 8}
	domain, ok := domains[p.Domain]
	if !ok || len(p.Flags) > 0 {
		return unsupported("linux.personality %q with flags %q", p.Domain, p.Flags)
	}
	c.Call(unix.SYS_PERSONALITY, call.Int(domain)).As("set linux.personality to " + string(p.Domain))
	return nil
}

// MemoryPolicies returns the modes of linux.memoryPolicy, and its flags.
func MemoryPolicies() (modes, flags []string) {
	for _, m := range memoryModes {
		modes = append(modes, string(m))
	}
	for f := range memoryFlags {
		flags = append(flags, string(f))
	}
	slices.Sort(flags)
	return modes, flags
}
