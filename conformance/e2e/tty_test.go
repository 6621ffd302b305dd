package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// actOnTTY starts a program in a session of its own, whose terminal it has.
func actOnTTY(name, dir string, env, args []string) (*actor, error) {
	a := &actor{name: name, args: args, ended: make(chan struct{}), more: make(chan struct{})}
	path, err := lookPath(args[0], env)
	if err != nil {
		return nil, err
	}
	master, slave, err := openTTY()
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	a.cmd = exec.Command(path, args[1:]...)
	a.cmd.Dir, a.cmd.Env = dir, env
	a.cmd.Stdin, a.cmd.Stdout, a.cmd.Stderr = slave, slave, slave
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := a.cmd.Start(); err != nil {
		return nil, errors.Join(err, master.Close())
	}
	a.tty = master
	go a.read(master, nil)
	return a, nil
}

// openTTY opens a terminal of 24 rows and 80 columns.
func openTTY() (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

// cmdTTY is spawn on a terminal.
func cmdTTY(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 3, "tty NAME REGEXP PROGRAM [ARG...]")
	play(ts, args[0], args[1], actOnTTY, args[2:]...)
}

// onTTY returns an actor that has a terminal.
func onTTY(ts *testscript.TestScript, name string) *actor {
	a := find(ts, name)
	if a.tty == nil {
		ts.Fatalf("%s has no terminal", name)
	}
	return a
}

// cmdType presses keys. They are written as in a string of Go: \r is the return key.
func cmdType(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 2, `type NAME KEYS`)
	keys, err := strconv.Unquote(`"` + args[1] + `"`)
	ts.Check(err)
	_, err = onTTY(ts, args[0]).tty.WriteString(keys)
	ts.Check(err)
}

// cmdResize changes the size of a terminal.
func cmdResize(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 3, "resize NAME ROWS COLUMNS")
	rows, err := strconv.ParseUint(args[1], 10, 16)
	ts.Check(err)
	columns, err := strconv.ParseUint(args[2], 10, 16)
	ts.Check(err)
	ts.Check(unix.IoctlSetWinsize(int(onTTY(ts, args[0]).tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(columns)}))
}

// play is enter with a way to start the program.
func play(ts *testscript.TestScript, name, ready string, start func(name, dir string, env, args []string) (*actor, error), args ...string) *actor {
	re, err := regexp.Compile(ready)
	ts.Check(err)
	a, err := start(name, ts.MkAbs("."), environ(ts), args)
	ts.Check(err)
	return introduce(ts, a, re)
}
