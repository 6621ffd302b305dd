package main

import (
	"errors"
	"fmt"
	"strings"
)

// tests are those that must pass in the machine, none of them skipped.
var tests = []string{
	"TestMachine",
	// Limits, devices, statistics, and changing them.
	"TestEachLimit", "TestLimits", "TestUpdateIsAllOrNone", "TestUpdateBelowUsage", "TestUpdateOfNone", "TestStats",
	"TestOutOfMemory", "TestWatchEnds", "TestHugePages", "TestBlockDevice", "TestChosenCgroup", "TestCgroupsAreReadOnly",
	"TestLockedMemory",
	// Freezing, and killing by cgroup.kill.
	"TestPause", "TestPauseOutlivesTheAgent", "TestPausedLosesItsShim", "TestPausedBySomebodyElse", "TestPauseOfForks", "TestPausedDies", "TestCgroupsBelow",
	"TestShimKilled", "TestRestartWithoutPidNamespace", "TestRestartOutOfMemory",
	// Profiles, and what hangs on the kernel's version.
	"TestAppArmor", "TestDefaultAppArmorIsAWarning", "TestDefaultAppArmor",
	"TestNamespaces", "TestMounts", "TestCopyUp", "TestPropagation", "TestBindOfATree", "TestBindsThatMustBeMapped", "TestTreeOfSlaves", "TestTreeThatChanges", "TestDevicesOfTheNode", "TestSysctlsByKernel",
	// What a hostile container might try.
	"TestDeviceNodes", "TestNoWayOut", "TestMasks",
	// Containers of runc and crun: what version 2 has a part in, since runc is slow here.
	"TestEngines", "TestEngineCgroup",
	// A container as such.
	"TestDefaultContainer", "TestOlderKernel", "TestBinds", "TestExec", "TestExecBeyondLimit", "TestExitCodes", "TestTerminal", "TestAgentKilled",
}

// modules are what the tests need of the kernel; what these need comes with them.
var modules = []string{"overlay", "virtio_blk", "bfq"}

// pattern returns what chooses the tests.
func pattern(only string) string {
	if only != "" {
		return only
	}
	return "^(" + strings.Join(tests, "|") + ")$"
}

// errUnfinished says that the machine stopped in the middle of the tests.
var errUnfinished = errors.New("the tests did not come to their end")

// judge looks for each test in what the machine said.
func judge(said []byte, only string) error {
	passed := map[string]bool{}
	var errs []error
	for line := range strings.Lines(string(said)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "---" {
			continue
		}
		if f[1] != "PASS:" {
			errs = append(errs, errors.New(strings.TrimSpace(line)))
		}
		passed[f[2]] = true
	}
	finished := strings.HasSuffix(string(said), "exit status 0\n")
	if !finished && len(errs) == 0 && !strings.Contains(string(said), "exit status") {
		return errUnfinished
	}
	if only == "" {
		for _, t := range tests {
			if !passed[t] {
				errs = append(errs, fmt.Errorf("%s did not run", t))
			}
		}
	}
	if !finished {
		errs = append(errs, errUnfinished)
	}
	return errors.Join(errs...)
}
