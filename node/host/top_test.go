package host

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestReadProcess(t *testing.T) {
	boot, err := bootTime()
	if err != nil {
		t.Fatal(err)
	}
	p, err := readProcess(os.Getpid(), boot)
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != os.Getpid() || p.PPID != os.Getppid() || int(p.UID) != os.Geteuid() || p.Threads < 1 || p.Resident == 0 || !strings.Contains(p.Args, os.Args[0]) {
		t.Errorf("this process is %+v", p)
	}
	if age := time.Since(p.Started); age < 0 || age > time.Hour {
		t.Errorf("this process began %s ago", age)
	}
}

func TestParseStat(t *testing.T) {
	boot := time.Unix(1000, 0)
	rest := " S 1 2 3 34816 5 0 0 0 0 0 150 50 0 0 20 -5 7 0 300 4096 2 "
	for _, name := range []string{"sh", "a) R 1 2", "((", "x\n\x1b[31m"} {
		var p ProcessInfo
		if err := p.parseStat([]byte("42 ("+name+")"+rest), boot); err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if p.PID != 42 || p.PPID != 1 || p.SID != 3 || p.TTY != "pts/0" || p.State != "S" || p.CPU != 2*time.Second ||
			p.Nice != -5 || p.Threads != 7 || !p.Started.Equal(boot.Add(3*time.Second)) || strings.ContainsAny(p.Command, "\n\x1b") {
			t.Errorf("%q: %+v", name, p)
		}
	}
	for _, bad := range []string{"", "42 sh S 1", "42 (sh", "42 (sh) S 1 2"} {
		if err := new(ProcessInfo).parseStat([]byte(bad), boot); err == nil {
			t.Errorf("%q is taken for the state of a process", bad)
		}
	}
}
