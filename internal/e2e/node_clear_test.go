//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const ipForward = "/proc/sys/net/ipv4/ip_forward"

// controlGroups are where a kubelet keeps pods.
func controlGroups() []string {
	if exists("/sys/fs/cgroup/cgroup.controllers") {
		return []string{"/sys/fs/cgroup/kubepods"}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for i, path := range groups {
		groups[i] = filepath.Join(filepath.Dir(path), "kubepods")
	}
	return groups
}

// clear undoes all that a node has done to this machine, or an earlier one has left: it may have been killed.
func (n *node) clear() {
	n.endContainers()
	mounts, _ := os.ReadFile("/proc/mounts")
	var mounted []string
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[1]; strings.HasPrefix(point, n.dir+"/") {
			mounted = append(mounted, point)
		}
	}
	for _, point := range slices.Backward(mounted) {
		_ = syscall.Unmount(point, syscall.MNT_DETACH)
	}
	_ = n.command("ip", "link", "del", bridge)
	for _, family := range []string{"ip", "ip6"} {
		_ = n.command("nft", "delete", "table", family, "kube-proxy")
	}
	if before, err := os.ReadFile(filepath.Join(n.dir, "ip_forward")); err == nil {
		_ = os.WriteFile(ipForward, before, 0o644)
	}
	for _, group := range controlGroups() {
		_ = n.command("find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";")
	}
	if err := os.RemoveAll(n.dir); err != nil {
		fmt.Fprintln(os.Stderr, "the node leaves something behind:", err)
	}
}

// endContainers kills them with their shims, which outlive containerd.
func (n *node) endContainers() {
	shims := map[int]bool{}
	parents := map[int]int{}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		command, _ := os.ReadFile(dir + "/cmdline")
		shims[pid] = bytes.Contains(command, []byte("containerd-shim")) && bytes.Contains(command, []byte("\x00"+n.socket()+"\x00"))
		stat, _ := os.ReadFile(dir + "/stat")
		if fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(fields) > 1 {
			parents[pid], _ = strconv.Atoi(fields[1])
		}
	}
	var ended []int
	for pid, parent := range parents {
		if shims[parent] || shims[pid] {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			ended = append(ended, pid)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		if !slices.ContainsFunc(ended, func(pid int) bool { return syscall.Kill(pid, 0) == nil }) {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
}
