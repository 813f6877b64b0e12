package cleanup_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// outside is a small model of everything but the database. Every call is noted in order; before and after may fail it.
type outside struct {
	now func() time.Time // the tests' clock

	mu     sync.Mutex
	calls  []string
	before func(call string) error
	after  func(call string) error

	uid      string
	account  disk.Account
	pods     map[string]pod.Pod // by namespace/name, as all of Kubernetes' objects
	services map[string]pod.Service
	unlisted string // the service that does not show in listings
	claims   map[string]pod.Claim
	volumes  map[string]pod.PersistentVolume
	nodes    map[string]pod.Node
	stubborn bool // pods do not stop by themselves

	instances map[string]disk.Instance
	tags      map[string]string // of every volume
	tagged    []disk.Volume     // that are found by their tags
	files     map[string]string
	objects   map[string]string
	records   map[string]bool // DNS names
	rules     map[string]bool
	groups    map[string]int // how often a target group counts as in use

	keep func(postgres.CleanupRecord) (followup.Result, error)
}

func newOutside(now func() time.Time) *outside {
	return &outside{
		now: now,
		uid: "cluster-1", account: disk.Account{ID: "111122223333", Region: "us-east-1"}, pods: map[string]pod.Pod{}, services: map[string]pod.Service{}, claims: map[string]pod.Claim{},
		volumes: map[string]pod.PersistentVolume{}, nodes: map[string]pod.Node{}, instances: map[string]disk.Instance{},
		files: map[string]string{}, objects: map[string]string{}, records: map[string]bool{}, rules: map[string]bool{}, groups: map[string]int{},
	}
}

// do notes a call and has it take effect, unless it fails before.
func (o *outside) do(call string, effect func() error) error {
	o.mu.Lock()
	o.calls = append(o.calls, call)
	before, after := o.before, o.after
	o.mu.Unlock()
	if before != nil {
		if err := before(call); err != nil {
			return err
		}
	}
	o.mu.Lock()
	err := effect()
	o.mu.Unlock()
	if after != nil && err == nil {
		err = after(call)
	}
	return err
}

func (o *outside) made(call string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Contains(o.calls, call)
}

func get[V any](o *outside, what string, from map[string]V, key string) (v V, err error) {
	err = o.do("get "+what+" "+key, func() error {
		var ok bool
		if v, ok = from[key]; !ok {
			return fault.Errorf(fault.Gone, "%s %s not found", what, key)
		}
		return nil
	})
	return v, err
}

func (o *outside) ClusterUID(context.Context) (uid string, err error) {
	err = o.do("cluster", func() error { uid = o.uid; return nil })
	return uid, err
}

func (o *outside) GetNode(_ context.Context, name string) (pod.Node, error) {
	return get(o, "node", o.nodes, name)
}

func (o *outside) GetPod(_ context.Context, namespace, name string) (pod.Pod, error) {
	return get(o, "pod", o.pods, namespace+"/"+name)
}

func (o *outside) GetClaim(_ context.Context, namespace, name string) (pod.Claim, error) {
	return get(o, "claim", o.claims, namespace+"/"+name)
}

func (o *outside) GetVolume(_ context.Context, name string) (pod.PersistentVolume, error) {
	return get(o, "pv", o.volumes, name)
}

func (o *outside) ListPods(_ context.Context, namespace string) (pods []pod.Pod, err error) {
	err = o.do("list pods "+namespace, func() error {
		for _, p := range o.pods {
			if p.Namespace == namespace {
				pods = append(pods, p)
			}
		}
		return nil
	})
	return pods, err
}

func (o *outside) GetService(_ context.Context, namespace, name string) (pod.Service, error) {
	return get(o, "service", o.services, namespace+"/"+name)
}

func (o *outside) Account(context.Context) (disk.Account, error) { return o.account, nil }

func (o *outside) ListServices(_ context.Context, namespace string) (services []pod.Service, err error) {
	err = o.do("list services "+namespace, func() error {
		for _, key := range keys(o.services) {
			if s := o.services[key]; s.Namespace == namespace && s.Name != o.unlisted {
				services = append(services, s)
			}
		}
		return nil
	})
	return services, err
}

func (o *outside) DeletePod(_ context.Context, namespace, name, uid string, grace time.Duration) error {
	key := namespace + "/" + name
	return o.do("delete pod "+key, func() error {
		p, ok := o.pods[key]
		switch {
		case !ok:
			return fault.Errorf(fault.Gone, "no pod %s", key)
		case p.UID != uid:
			return fault.Errorf(fault.Conflict, "pod %s has UID %s", key, p.UID)
		case o.stubborn:
			p.Deleting = o.now().Add(grace)
			o.pods[key] = p
		default:
			delete(o.pods, key)
		}
		return nil
	})
}

func (o *outside) ForceDeletePod(_ context.Context, namespace, name, uid string) error {
	key := namespace + "/" + name
	return o.do("force pod "+key, func() error {
		if o.pods[key].UID == uid {
			delete(o.pods, key)
		}
		return nil
	})
}

func (o *outside) DeleteService(_ context.Context, namespace, name, uid string) error {
	key := namespace + "/" + name
	return o.do("delete service "+key, func() error {
		if o.services[key].UID != uid {
			return fault.Errorf(fault.Gone, "no service %s", key)
		}
		delete(o.services, key)
		return nil
	})
}

func (o *outside) RetainVolume(_ context.Context, name, _ string) (v pod.PersistentVolume, err error) {
	err = o.do("retain pv "+name, func() error {
		v = o.volumes[name]
		v.ReclaimPolicy = pod.RetainPolicy
		o.volumes[name] = v
		return nil
	})
	return v, err
}

func (o *outside) WriteFile(ctx context.Context, _, podName, _ string, f pod.File) error {
	return o.do("write "+f.Name, func() error {
		if ctx.Err() == nil {
			o.files[podName+"/"+f.Name] = f.Content
		}
		return ctx.Err()
	})
}

func (o *outside) RunListing(context.Context, string, string, string, string) (l pod.Listing, err error) {
	err = o.do("list disk", func() error { l = pod.Listing{Size: "1.2G", Tree: "work\n  notes.txt\n"}; return nil })
	return l, err
}

func (o *outside) DescribeInstance(_ context.Context, id string) (disk.Instance, error) {
	return get(o, "instance", o.instances, id)
}

func (o *outside) DescribeVolume(_ context.Context, id string) (v disk.Volume, err error) {
	err = o.do("describe volume "+id, func() error {
		v = disk.Volume{ID: id, Tags: maps.Clone(o.tags)}
		for _, tagged := range o.tagged {
			if tagged.ID == id {
				v = tagged
			}
		}
		return nil
	})
	return v, err
}

func (o *outside) FindVolumes(_ context.Context, tags map[string]string) (found []disk.Volume, err error) {
	err = o.do("find volumes", func() error {
		for _, v := range o.tagged {
			if maps.Equal(v.Tags, tags) {
				found = append(found, v)
			}
		}
		return nil
	})
	return found, err
}

func (o *outside) DeleteRecords(_ context.Context, fqdn string) (deleted []string, err error) {
	err = o.do("delete records "+fqdn, func() error {
		if o.records[fqdn] {
			deleted = []string{"A " + fqdn}
		}
		delete(o.records, fqdn)
		return nil
	})
	return deleted, err
}

func (o *outside) DeleteRule(_ context.Context, arn string) error {
	return o.do("delete rule "+arn, func() error {
		if !o.rules[arn] {
			return fault.Errorf(fault.Gone, "no rule %s", arn)
		}
		delete(o.rules, arn)
		return nil
	})
}

func (o *outside) DeleteTargetGroup(_ context.Context, arn string) error {
	return o.do("delete group "+arn, func() error {
		if n, ok := o.groups[arn]; ok && n > 0 {
			o.groups[arn]--
			return fault.Errorf(fault.Conflict, "target group %s is in use", arn)
		}
		delete(o.groups, arn)
		return nil
	})
}

func (o *outside) PutListing(ctx context.Context, key string, text []byte) (url string, err error) {
	err = o.do("put "+key, func() error {
		if ctx.Err() == nil {
			url, o.objects[key] = "s3://bucket/"+key, string(text)
		}
		return ctx.Err()
	})
	return url, err
}

// Keep finishes the disk's part at once unless a test wants otherwise.
func (o *outside) Keep(ctx context.Context, c postgres.CleanupRecord) (r followup.Result, err error) {
	err = o.do("keep "+c.VolumeID, func() error {
		if o.keep == nil {
			return fmt.Errorf("no disk was expected, least of all %s", c.VolumeID)
		}
		return nil
	})
	if err != nil {
		return followup.Result{}, err
	}
	return o.keep(c)
}

// state is what is left of the model's world, to be compared.
func (o *outside) state() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return fmt.Sprint(keys(o.pods), keys(o.services), keys(o.records), keys(o.rules), keys(o.groups), keys(o.objects))
}

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
