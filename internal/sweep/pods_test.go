package sweep

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// cluster is what the API server and EC2 show. A listing may be told to fail, or to be stale.
type cluster struct {
	uid       string
	pods      map[podKey]pod.Pod
	unlisted  map[podKey]bool // there, but missing from the listing
	listFails error
	forbidden string // namespace
	getFails  func(podName string) error
	nodes     map[string]pod.Node
	nodeFails error
	gets      int
	nodeGets  int
	reclaimed map[string]disk.Instance
	snapshots []disk.Snapshot
	tagged    map[string]map[string]string
	untagged  []string
	refused   []string // snapshots whose tags may not be changed
	account   disk.Account
	volumes   []disk.Volume
	emptyOnce bool // the next list of volumes
	hangs     bool // it does not list volumes
}

func newCluster() *cluster {
	return &cluster{uid: "cluster-1", getFails: func(string) error { return nil }, pods: map[podKey]pod.Pod{}, unlisted: map[podKey]bool{}, nodes: map[string]pod.Node{},
		reclaimed: map[string]disk.Instance{}, tagged: map[string]map[string]string{},
		account: disk.Account{ID: "111122223333", Region: "us-east-1"}}
}

func (c *cluster) add(p pod.Pod) {
	if p.Namespace == "" {
		p.Namespace = "gpu-dev"
	}
	if p.UID == "" {
		p.UID = "uid-" + p.Name
	}
	if p.Created.IsZero() {
		p.Created = time.Now().Add(-7 * time.Hour)
	}
	if p.Phase == "" {
		p.Phase = pod.Running
	}
	c.pods[podKey{p.Namespace, p.Name}] = p
}

func (c *cluster) ClusterUID(context.Context) (string, error) { return c.uid, nil }

func (c *cluster) ListPods(_ context.Context, namespace string) ([]pod.Pod, error) {
	if c.listFails != nil {
		return nil, c.listFails
	}
	if namespace == c.forbidden {
		return nil, errors.New("403")
	}
	var all []pod.Pod
	for key, p := range c.pods {
		if key.namespace == namespace && !c.unlisted[key] {
			all = append(all, p)
		}
	}
	return all, nil
}

func (c *cluster) GetPod(_ context.Context, namespace, name string) (pod.Pod, error) {
	c.gets++
	if err := c.getFails(name); err != nil {
		return pod.Pod{}, err
	}
	p, ok := c.pods[podKey{namespace, name}]
	if !ok {
		return pod.Pod{}, fault.Errorf(fault.Gone, "get pod %s/%s: 404", namespace, name)
	}
	return p, nil
}

func (c *cluster) GetNode(_ context.Context, name string) (pod.Node, error) {
	c.nodeGets++
	if c.nodeFails != nil {
		return pod.Node{}, c.nodeFails
	}
	n, ok := c.nodes[name]
	if !ok {
		return pod.Node{}, fault.Errorf(fault.Gone, "get node %s: 404", name)
	}
	return n, nil
}

func (c *cluster) DescribeInstance(_ context.Context, id string) (disk.Instance, error) {
	i, ok := c.reclaimed[id]
	if !ok {
		return disk.Instance{}, fault.Errorf(fault.Gone, "describe instance %s", id)
	}
	return i, nil
}

func (c *cluster) DescribeVolume(_ context.Context, id string) (disk.Volume, error) {
	for _, v := range c.volumes {
		if v.ID == id {
			return v, nil
		}
	}
	return disk.Volume{}, fault.Errorf(fault.Gone, "describe volume %s", id)
}

func (c *cluster) FindVolumes(ctx context.Context, tags map[string]string) (found []disk.Volume, err error) {
	if c.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if c.listFails != nil || c.emptyOnce {
		c.emptyOnce = false
		return nil, c.listFails
	}
	for _, v := range c.volumes {
		if maps.Equal(v.Tags, tags) {
			found = append(found, v)
		}
	}
	return found, nil
}

func (c *cluster) Account(context.Context) (disk.Account, error) { return c.account, nil }

func (c *cluster) DescribeSnapshots(context.Context) ([]disk.Snapshot, error) {
	return c.snapshots, nil
}

func (c *cluster) TagSnapshots(_ context.Context, ids []string, tags map[string]string) error {
	for _, id := range ids {
		if slices.Contains(c.refused, id) {
			return errors.New("tagging " + id + ": 403")
		}
		c.tagged[id] = tags
	}
	return nil
}

func (c *cluster) UntagSnapshots(_ context.Context, ids, _ []string) error {
	if slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(c.refused, id) }) {
		return errors.New("untagging: 403")
	}
	c.untagged = append(c.untagged, ids...)
	return nil
}

// within runs a sweep that looks at the cluster, too.
func (w *world) within(c *cluster, change ...func(*Options)) Result {
	w.t.Helper()
	opts := testOptions()
	opts.MissingConfirm = 4 * time.Minute
	opts.Spot = func(gpu string) bool { return gpu == "h100-spot" }
	for _, f := range change {
		f(&opts)
	}
	r, err := New(w.db, Outside{Cluster: c, EC2: c, Account: c}, opts).Sweep(w.t.Context(), event.Ping, event.SweepRequest{})
	require.NoError(w.t, err)
	return r
}

// active inserts an active reservation, with its pod in the cluster.
func (w *world) active(c *cluster, columns row) (id, podName string) {
	w.t.Helper()
	id = w.insert(columns)[0]
	podName = "gpu-dev-" + id[:8]
	c.add(pod.Pod{Name: podName})
	return id, podName
}

// ageAbsences lets time pass for every series of absences.
func (w *world) ageAbsences(by time.Duration) {
	w.t.Helper()
	w.exec("update expiry.missing_pods set first_seen_at = first_seen_at - $1::interval, last_seen_at = last_seen_at - $1::interval", by)
}

func TestAMissingPodEndsItsReservationOnlyWhenTwoTicksAgree(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	id, name := w.active(c, nil)
	w.within(c)
	delete(c.pods, podKey{"gpu-dev", name})

	w.within(c)
	require.Equal(t, "active", w.status(id), "one absence proves nothing")
	w.within(c)
	require.Equal(t, "active", w.status(id), "nor do two at once")
	w.ageAbsences(5 * time.Minute)
	r := w.within(c)
	require.Equal(t, Completed, r.Outcome)
	require.Equal(t, "expired", w.status(id))
	require.Equal(t, 1, r.Counts["missingExpired"])
	require.Zero(t, r.Counts["missingHeldBack"])
	require.Contains(t, w.text("select failure_reason from reservations where reservation_id = $1", id), "its server "+name+" has been missing since")
	require.Contains(t, w.followUps(), "cleanup "+id+" due")
}

func TestAPodThatIsThereAfterAllEndsTheSeries(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	id, name := w.active(c, nil)
	p := c.pods[podKey{"gpu-dev", name}]
	delete(c.pods, podKey{"gpu-dev", name})
	w.within(c)
	w.ageAbsences(5 * time.Minute)
	c.add(p)
	w.within(c)
	require.Empty(t, w.texts("select reservation_id from expiry.missing_pods"))
	delete(c.pods, podKey{"gpu-dev", name})
	w.within(c)
	require.Equal(t, "active", w.status(id), "a new series has begun")
}

func TestUnknownIsNotGone(t *testing.T) {
	t.Parallel()
	const many = 48
	for name, spoil := range map[string]func(c *cluster){
		"the API is unreachable":  func(c *cluster) { c.listFails = errors.New("connection refused") },
		"another cluster answers": func(c *cluster) { c.uid = "cluster-2" },
		"the listing is empty": func(c *cluster) {
			for key := range c.pods {
				c.unlisted[key] = true
			}
		},
		"the direct GET fails": func(c *cluster) {
			clear(c.pods)
			c.getFails = func(string) error { return errors.New("504") }
		},
		"every pod is gone at once": func(c *cluster) { clear(c.pods) }, // the brake
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, c := newWorld(t), newCluster()
			for range many {
				w.active(c, nil)
			}
			braked := func(o *Options) { o.BrakePercent, o.BrakeMin = 20, 5 }
			require.Equal(t, Completed, w.within(c, braked).Outcome)
			spoil(c)
			for range 3 {
				w.within(c, braked)
				w.ageAbsences(5 * time.Minute)
			}
			require.Equal(t, []string{"active"}, w.texts("select distinct status from reservations"))
		})
	}
}

func TestTheBrakeSaysWhatItHoldsBack(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	for range 10 {
		w.active(c, nil)
	}
	braked := func(o *Options) { o.BrakePercent, o.BrakeMin = 20, 5 }
	clear(c.pods)
	w.within(c, braked)
	w.ageAbsences(5 * time.Minute)
	r := w.within(c, braked)
	require.True(t, r.Brake.Engaged())
	require.Equal(t, 10, r.Counts["missingHeldBack"])
}

func TestWhatIsYoungOrElsewhereIsNotMissing(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.insert(row{"launched_at": ago(9 * time.Minute)}, row{"launched_at": "null"}, row{"namespace": quote("Not A Namespace")},
		row{"pod_name": quote("Not A Pod")})
	elsewhere := w.insert(row{"namespace": "'default'"})[0]
	c.add(pod.Pod{Name: "gpu-dev-" + elsewhere[:8], Namespace: "default"})
	for range 2 {
		w.within(c)
		w.ageAbsences(5 * time.Minute)
	}
	require.Equal(t, []string{"active"}, w.texts("select distinct status from reservations"))
	require.Zero(t, c.gets)
}

func TestADeadPodFailsItsReservationWithTheKubeletsReason(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	id, name := w.active(c, row{"is_multinode": "true"})
	other, _ := w.active(c, row{"is_multinode": "true", "master_reservation_id": quote(id)})
	p := c.pods[podKey{"gpu-dev", name}]
	p.Phase, p.Reason, p.Message = pod.Failed, "Evicted", "The node was low on resource: memory."
	c.add(p)
	r := w.within(c)
	require.Equal(t, 1, r.Counts["deadFailed"])
	require.Equal(t, "failed", w.status(id))
	require.Contains(t, w.text("select failure_reason from reservations where reservation_id = $1", id), "Evicted: The node was low on resource: memory.")
	require.Equal(t, "active", w.status(other), "the other nodes of its set go on")
	require.Contains(t, w.followUps(), "cleanup "+id+" due")
}

func TestAPodThatMayBeAnothersFailsNobodyAndHidesNobodys(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	older := w.insert(nil)[0]
	c.add(pod.Pod{Name: "gpu-dev-" + older[:8], Created: time.Now().Add(-9 * time.Hour), Phase: pod.Failed})
	w.insert(row{"pod_name": "'gpu-dev-shared'"}, row{"pod_name": "'gpu-dev-shared'"})
	c.add(pod.Pod{Name: "gpu-dev-shared", Phase: pod.Failed})
	w.insert(row{"pod_name": quote("Not A Pod")})
	last, name := w.active(c, row{"launched_at": ago(time.Hour)}) // and so looked at after them
	own := c.pods[podKey{"gpu-dev", name}]
	own.Phase = pod.Failed
	c.add(own)
	w.within(c)
	require.Equal(t, []string{last}, w.texts("select reservation_id from reservations where status <> 'active'"))
	require.Equal(t, []string{own.UID}, w.texts("select uid from expiry.pods"))
}

func oomKilled(containerID string, at time.Time) *pod.Termination {
	return &pod.Termination{ContainerID: containerID, Reason: "OOMKilled", ExitCode: 137, FinishedAt: at}
}

func TestEachOutOfMemoryKillIsCountedOnce(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	id, name := w.active(c, nil)
	p := c.pods[podKey{"gpu-dev", name}]
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	p.Containers = []pod.Container{{Name: "gpu-dev", Kind: pod.App, ID: "containerd://b", Running: true, Restarts: 1, Last: oomKilled("containerd://a", at)}}
	c.add(p)
	require.Equal(t, 1, w.within(c).Counts["oomKills"])
	require.Zero(t, w.within(c).Counts["oomKills"])

	p.Containers[0].Last = oomKilled("containerd://b", at.Add(time.Minute))
	c.add(p)
	require.Equal(t, 1, w.within(c).Counts["oomKills"])
	require.Equal(t, "2 gpu-dev", w.text("select oom_count || ' ' || oom_container from reservations where reservation_id = $1", id))
	require.Equal(t, "active", w.status(id), "a container that restarts is not dead")
	require.Equal(t, []string{"1", "2"}, w.texts("select sequence::text from expiry.facts where type = $1 order by 1", event.ReservationOOMKilled))
	require.Equal(t, []string{"2"}, w.texts("select count(*)::text from expiry.follow_ups where kind = 'notice' and state = 'due'"))
}

func TestSeveralKillsOfOneReservationAreSeveralFactsAndHoldUpNobodyElses(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	twice, name := w.active(c, nil)
	once, other := w.active(c, nil)
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	p, q := c.pods[podKey{"gpu-dev", name}], c.pods[podKey{"gpu-dev", other}]
	p.Containers = []pod.Container{
		{Name: "gpu-dev", Kind: pod.App, ID: "containerd://b", Restarts: 1, Last: oomKilled("containerd://a", at), Current: oomKilled("containerd://b", at.Add(time.Minute))},
		{Name: "side", Kind: pod.App, ID: "containerd://d", Running: true, Restarts: 1, Last: oomKilled("containerd://c", at)},
	}
	q.Containers = []pod.Container{{Name: "gpu-dev", Kind: pod.App, ID: "containerd://f", Running: true, Restarts: 1, Last: oomKilled("containerd://e", at)}}
	c.add(p)
	c.add(q)
	require.Equal(t, 4, w.within(c).Counts["oomKills"])
	for id, kills := range map[string][]string{twice: {"1", "2", "3"}, once: {"1"}} {
		require.Equal(t, fmt.Sprint(len(kills)), w.text("select oom_count::text from reservations where reservation_id = $1", id))
		require.Equal(t, kills, w.texts("select sequence::text from expiry.facts where type = $1 and subject = $2 order by 1", event.ReservationOOMKilled, id))
		require.Equal(t, fmt.Sprint(len(kills)), w.text("select count(*)::text from expiry.follow_ups where kind = 'notice' and reservation_id = $1", id))
	}
}

func TestAKillWithoutATimeIsCountedOnceToo(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	_, name := w.active(c, nil)
	p := c.pods[podKey{"gpu-dev", name}]
	p.Containers = []pod.Container{{Name: "side", Kind: pod.App, Current: &pod.Termination{Reason: "OOMKilled"}}}
	c.add(p)
	require.Equal(t, 1, w.within(c).Counts["oomKills"])
	require.Zero(t, w.within(c).Counts["oomKills"])
}

func TestAVanishedSpotServerTellsWhetherEC2TookIt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		instance *disk.Instance
		want     string
	}{
		"reclaimed": {&disk.Instance{ID: "i-0123456789abcdef0", State: disk.InstanceTerminated, Spot: true, StateReason: "Server.SpotInstanceTermination"}, "EC2 reclaimed its spot instance i-0123456789abcdef0"},
		"ended":     {&disk.Instance{ID: "i-0123456789abcdef0", State: disk.InstanceTerminated, Spot: true, StateReason: "Client.UserInitiatedShutdown"}, "is terminated, not reclaimed by EC2"},
		"forgotten": {nil, "is unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, c := newWorld(t), newCluster()
			id, podName := w.active(c, row{"gpu_type": "'h100-spot'"})
			p := c.pods[podKey{"gpu-dev", podName}]
			p.Node = "node-1"
			c.add(p)
			c.nodes["node-1"] = pod.Node{Name: "node-1", InstanceID: "i-0123456789abcdef0"}
			if test.instance != nil {
				c.reclaimed["i-0123456789abcdef0"] = *test.instance
			}
			w.within(c)
			clear(c.pods)
			clear(c.nodes)
			w.within(c)
			w.ageAbsences(5 * time.Minute)
			w.within(c)
			require.Contains(t, w.text("select failure_reason from reservations where reservation_id = $1", id), test.want)
			require.Equal(t, "expired", w.status(id))
		})
	}
}

func TestAPodIsKnownByItsUIDFromFirstSight(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	id := w.insert(row{"created_at": ago(8 * time.Hour)})[0]
	name := "gpu-dev-" + id[:8]
	c.add(pod.Pod{Name: name, Created: time.Now().Add(-8*time.Hour - pod.ClockTolerance/2)}) // by another clock
	w.within(c)
	require.Equal(t, []string{id + " uid-" + name}, w.texts("select reservation_id || ' ' || uid from expiry.pods"))
	require.Equal(t, "cluster-1", w.text("select uid from expiry.cluster"))
}

func TestOnlyASpotServersNodeIsAskedForItsInstanceAndOnlyUntilItIsKnown(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	for _, columns := range []row{nil, {"gpu_type": "'h100-spot'", "launched_at": ago(6 * time.Hour)}, {"gpu_type": "'h100-spot'", "launched_at": ago(5 * time.Hour)}} {
		_, name := w.active(c, columns)
		p := c.pods[podKey{"gpu-dev", name}]
		p.Node = "node-1"
		c.add(p)
	}
	unplaced, _ := w.active(c, row{"gpu_type": "'h100-spot'", "launched_at": ago(5 * time.Hour)})

	require.Equal(t, Completed, w.within(c).Outcome)
	require.Equal(t, 1, c.nodeGets, "it is gone, and was asked for once")
	c.nodeFails = errors.New("503")
	r := w.within(c)
	require.Equal(t, Partial, r.Outcome)
	require.Contains(t, r.Failures[0].Error, "503")
	c.nodeFails = nil
	c.nodes["node-1"] = pod.Node{Name: "node-1", InstanceID: "i-0123456789abcdef0"}
	for range 2 {
		w.within(c)
		require.Equal(t, 3, c.nodeGets)
	}
	require.Equal(t, []string{"i-0123456789abcdef0", "i-0123456789abcdef0"}, w.texts("select instance_id from expiry.pods where instance_id is not null"))
	require.Empty(t, w.text("select coalesce(instance_id, '') from expiry.pods where reservation_id = $1", unplaced))
}

func TestOnlySoManyNodesAreAskedForAtOnce(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	for i := range nodesMost + 5 {
		_, name := w.active(c, row{"gpu_type": "'h100-spot'"})
		p := c.pods[podKey{"gpu-dev", name}]
		p.Node = fmt.Sprintf("node-%d", i)
		c.add(p)
		c.nodes[p.Node] = pod.Node{Name: p.Node, InstanceID: fmt.Sprintf("i-%d", i)}
	}
	for _, want := range []int{nodesMost, nodesMost + 5, nodesMost + 5} {
		w.within(c)
		require.Equal(t, want, c.nodeGets)
	}
	require.Len(t, w.texts("select instance_id from expiry.pods where instance_id is not null"), nodesMost+5)
}

func TestAPodThatCannotBeAskedForOrIsThereAfterAllHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	unknown, name := w.active(c, row{"launched_at": ago(6 * time.Hour)})
	there, listed := w.active(c, row{"launched_at": ago(5 * time.Hour)})
	gone := w.insert(row{"launched_at": ago(4 * time.Hour)})[0]
	c.unlisted[podKey{"gpu-dev", name}], c.unlisted[podKey{"gpu-dev", listed}] = true, true
	c.getFails = func(podName string) error {
		if podName == name {
			return errors.New("504")
		}
		return nil
	}
	for range 2 {
		r := w.within(c)
		require.Equal(t, Partial, r.Outcome)
		require.Contains(t, r.Failures[0].Error, "504")
		w.ageAbsences(5 * time.Minute)
	}
	require.Equal(t, "expired", w.status(gone))
	require.Equal(t, "active active", w.status(unknown)+" "+w.status(there))
}

func TestTheLongestMissingAreAskedForFirst(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.lost(confirmationsMost+10, "lost")
	w.exec(`insert into expiry.missing_pods (reservation_id, first_seen_at, last_seen_at)
		select 'lost-' || i, now() - (10 + i) * interval '1 minute', now() - interval '5 minutes' from generate_series(6, $1) i`, confirmationsMost+10)
	require.Equal(t, confirmationsMost, w.within(c).Counts["missingExpired"])
	require.Equal(t, []string{"lost-10", "lost-6", "lost-7", "lost-8", "lost-9"},
		w.texts("select reservation_id from expiry.missing_pods where ended_at is null order by 1"), "and with nobody else a series has begun")
}

func TestDirectGETsAreBounded(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t), newCluster()
	w.insertMany(confirmationsMost*3, "lost", ahead(time.Hour))
	w.exec("update reservations set pod_name = 'gpu-dev-' || reservation_id")
	w.within(c)
	require.LessOrEqual(t, c.gets, 2*confirmationsMost, "two namespaces each")
}
