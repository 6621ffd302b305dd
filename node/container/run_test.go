package container_test

import "testing"

func TestHello(t *testing.T) {
	n := newNode(t)
	if got := n.sh(t, "echo hello"); got != "hello\n" {
		t.Errorf("got %q", got)
	}
	t.Log(n.sh(t, "cat /proc/self/status /proc/self/uid_map /proc/self/mountinfo /proc/self/cgroup; id; ls -la / /dev; ps; ip addr; ls /proc/self/fd -l"))
}
