package platform

import (
	"context"
	"log/slog"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// mount is a volume that the driver has attached for a pod.
type mount struct{ volume, pod, podUID string }

func (p *Platform) manage(s Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mounts = append(p.mounts, mount{s.Volume, s.Pod, s.PodUID})
}

// Abandon makes the driver forget a server's volume: it will stay attached when the pod is gone.
func (p *Platform) Abandon(s Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, m := range p.mounts {
		if m.volume == s.Volume {
			p.mounts = append(p.mounts[:i], p.mounts[i+1:]...)
			return
		}
	}
}

// RunVolumeDriver detaches volumes whose pod is gone, as the EBS CSI driver does, until ctx ends.
func (p *Platform) RunVolumeDriver(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		p.mu.Lock()
		mounts := append([]mount{}, p.mounts...)
		p.mu.Unlock()
		for _, m := range mounts {
			pod, err := p.Cluster.CoreV1().Pods(Namespace).Get(ctx, m.pod, metav1.GetOptions{})
			if err == nil && string(pod.UID) == m.podUID || err != nil && !apierrors.IsNotFound(err) {
				continue
			}
			if _, err := p.EC2.DetachVolume(ctx, &ec2.DetachVolumeInput{VolumeId: &m.volume}); err != nil && ctx.Err() == nil {
				slog.WarnContext(ctx, "the volume driver cannot detach", "volume", m.volume, "error", err)
			}
			p.Abandon(Server{Volume: m.volume})
		}
	}
}
