package node

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// home is where a dev server keeps its user's files; every pod has one of its own even without a volume.
const home = "/home/dev"

//go:embed sandbox.sh
var sandboxScript string

// Sandboxes give each pod its own view of this machine: mounts, processes and host name apart, the file system a
// throw-away layer over the host's, and its volumes where its containers mount them. They keep pods from treading on
// each other and on the host, and are no security boundary.
type Sandboxes struct {
	Dir     string // of the pods, each directory goes with its pod
	Volumes string // of the claims, which stay

	mu  sync.Mutex
	all map[types.UID]*sandbox
}

type sandbox struct {
	start sync.Once
	init  *os.Process // pid 1 of the pod: when it dies everything in the pod does
	dir   string
	err   error
}

// Check says, by starting a sandbox, whether this machine allows them.
func (s *Sandboxes) Check() error {
	probe := &corev1.Pod{}
	probe.Name, probe.UID = "check", "check"
	defer s.Stop(probe.UID)
	if _, err := s.of(probe); err != nil {
		return fmt.Errorf("pods cannot be isolated on this machine; run as root, or allow user namespaces: %w", err)
	}
	return nil
}

// Command is a command to be run in the pod.
func (s *Sandboxes) Command(pod *corev1.Pod, container *corev1.Container, command []string) (*exec.Cmd, error) {
	box, err := s.of(pod)
	if err != nil {
		return nil, err
	}
	pid := strconv.Itoa(box.init.Pid)
	dir := container.WorkingDir
	if dir == "" {
		dir = "/"
	}
	args := []string{"--target", pid, "--mount", "--uts", "--ipc", "--pid", "--root", "--wd=/proc/" + pid + "/root" + dir}
	if os.Geteuid() != 0 {
		args = append(args, "--user", "--preserve-credentials")
	}
	cmd := exec.Command("nsenter", append(append(args, "--"), command...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "HOSTNAME=" + pod.Name}
	for _, variable := range container.Env {
		if variable.ValueFrom == nil {
			cmd.Env = append(cmd.Env, variable.Name+"="+variable.Value)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

// of returns the pod's sandbox, which its first use starts.
func (s *Sandboxes) of(pod *corev1.Pod) (*sandbox, error) {
	s.mu.Lock()
	if s.all == nil {
		s.all = map[types.UID]*sandbox{}
	}
	box, ok := s.all[pod.UID]
	if !ok {
		box = &sandbox{dir: filepath.Join(s.Dir, string(pod.UID))}
		s.all[pod.UID] = box
	}
	s.mu.Unlock()
	box.start.Do(func() { box.err = s.startSandbox(box, pod) })
	return box, box.err
}

func (s *Sandboxes) startSandbox(box *sandbox, pod *corev1.Pod) error {
	args := []string{box.dir, pod.Name}
	for path, source := range s.mounts(box, pod) {
		if err := os.MkdirAll(source, 0o755); err != nil {
			return fmt.Errorf("make volume: %w", err)
		}
		args = append(args, source, path)
	}
	if err := os.MkdirAll(filepath.Join(box.dir, "layer"), 0o755); err != nil {
		return fmt.Errorf("make pod directory: %w", err)
	}
	cmd := exec.Command("sh", append([]string{"-euc", sandboxScript, "pod"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	said, err := bufio.NewReader(output).ReadString('\n')
	if strings.TrimSpace(said) != "ready" {
		return fmt.Errorf("start sandbox: %w", errors.Join(errors.New(strings.TrimSpace(said)), err, cmd.Process.Kill(), cmd.Wait()))
	}
	box.init = cmd.Process
	go func() { _ = cmd.Wait() }()
	return nil
}

// mounts are the pod's volumes by where its containers mount them.
func (s *Sandboxes) mounts(box *sandbox, pod *corev1.Pod) map[string]string {
	sources := map[string]string{}
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			sources[v.Name] = filepath.Join(s.Volumes, "claims", pod.Namespace, v.PersistentVolumeClaim.ClaimName)
		case v.AWSElasticBlockStore != nil:
			sources[v.Name] = filepath.Join(s.Volumes, "ebs", v.AWSElasticBlockStore.VolumeID)
		case v.EmptyDir != nil:
			sources[v.Name] = filepath.Join(box.dir, "empty", v.Name)
		}
	}
	mounts := map[string]string{home: filepath.Join(box.dir, "home")}
	for _, c := range pod.Spec.Containers {
		for _, m := range c.VolumeMounts {
			if source, ok := sources[m.Name]; ok {
				mounts[filepath.Clean(m.MountPath)] = filepath.Join(source, m.SubPath)
			}
		}
	}
	return mounts
}

// Stop ends everything in the pod and drops what was its own; its claims stay.
func (s *Sandboxes) Stop(uid types.UID) {
	s.mu.Lock()
	box := s.all[uid]
	delete(s.all, uid)
	s.mu.Unlock()
	if box == nil {
		return
	}
	box.start.Do(func() { box.err = errors.New("the pod has stopped") })
	if box.init != nil {
		_ = box.init.Kill()
	}
	_ = os.RemoveAll(box.dir)
}

// RemoveAll stops all sandboxes.
func (s *Sandboxes) RemoveAll() {
	s.mu.Lock()
	var uids []types.UID
	for uid := range s.all {
		uids = append(uids, uid)
	}
	s.mu.Unlock()
	for _, uid := range uids {
		s.Stop(uid)
	}
}
