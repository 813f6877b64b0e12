package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/report"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// outside is a world with one reservation of each kind, on the real components, and the wires to them.
type outside struct {
	*base
	*wires
	cluster *stacktest.Cluster
	aws     *stacktest.Account
	compute *ec2.Client
	volume  string
	limit   time.Duration     // for the follow-ups of one tick
	ids     map[string]string // of reservations, by what they are
	killed  int               // processes, by SIGKILL
}

func newOutside(t *testing.T, front func(what, address string) string) *outside {
	t.Helper()
	return newOutsideOn(t, newBase(t), front)
}

func newOutsideOn(t *testing.T, b *base, front func(what, address string) string) *outside {
	t.Helper()
	o := &outside{
		base: b, wires: &wires{t: t}, cluster: stacktest.Kubernetes(t), aws: stacktest.AWS(t), limit: time.Minute, ids: map[string]string{},
	}
	// Without the SDK's own second try, which may make a second snapshot of a slow one.
	o.compute = ec2.NewFromConfig(o.aws.Config, func(options *ec2.Options) { options.Retryer = awssdk.NopRetryer{} })
	o.lead(front)
	o.reservations()
	o.disks()
	return o
}

// lead makes a process find its way over the wires, or over what is put in front of them.
func (o *outside) lead(front func(what, address string) string) {
	o.base.t.Helper()
	if front == nil {
		front = func(_, address string) string { return address }
	}
	db, err := url.Parse(o.database)
	require.NoError(o.base.t, err)
	server := db.Host
	db.Host = front("postgres", o.postgres(server))
	host := func(what, address string) string {
		return "http://" + front(what, strings.TrimPrefix(address, "http://"))
	}
	kubeconfig := o.kubernetes(o.cluster.Config)
	kubeconfig.Clusters["wire"].Server = host("kubernetes", kubeconfig.Clusters["wire"].Server)
	environ := o.aws.Environ()
	environ[0] = "AWS_ENDPOINT_URL=" + host("aws", o.wires.aws(awssdk.ToString(o.aws.Config.BaseEndpoint)))
	o.environ = append(append(login(o.base.t, db.String()), environ...), "KUBECONFIG="+writeKubeconfig(o.base.t, kubeconfig),
		"MISSING_CONFIRM=1s", "BRAKE_MIN=100", "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none", "AVAILABILITY_UPDATER_FUNCTION_NAME=")
}

// reserve writes a reservation that is called what it is, and gives it a pod that runs.
func (o *outside) reserve(what, status, columns string, pod bool) (podName string) {
	o.base.t.Helper()
	id := uuid.NewString()
	o.ids[what], podName = id, "gpu-dev-"+id[:8]
	o.exec(`insert into reservations (reservation_id, user_id, name, status, namespace, pod_name, created_at, launched_at, expires_at)
		values ($1, 'ada', $2, $3, $4, $5, now() - interval '1 minute', now() - interval '1 minute', now() + interval '5 hours')`, id, what, status, o.cluster.Namespace, podName)
	if pod {
		o.cluster.CreatePod(podName, func(p *corev1.Pod) { p.Labels = map[string]string{"user-id": "ada"} })
	}
	o.exec("alter table reservations disable trigger user")
	o.exec("update reservations set created_at = now() - interval '3 days', launched_at = now() - interval '2 days', updated_at = now() - interval '2 days' where reservation_id = $1", id)
	if columns != "" {
		o.exec("update reservations set "+columns+" where reservation_id = $1", id)
	}
	o.exec("alter table reservations enable trigger user")
	return podName
}

func (o *outside) reservations() {
	o.base.t.Helper()
	o.reserve("a bystander", "active", "", true)
	o.reserve("due for a warning", "active", "expires_at = now() + interval '20 minutes'", true)
	ended := o.reserve("past its end, with a disk", "active", "expires_at = now() - interval '10 minutes', disk_name = 'work'", true)
	volume, err := o.compute.CreateVolume(o.base.t.Context(), &ec2.CreateVolumeInput{AvailabilityZone: awssdk.String("us-east-1a"), Size: awssdk.Int32(10),
		TagSpecifications: tagged(ec2types.ResourceTypeVolume, map[string]string{"gpu-dev-user": "ada", "disk_name": "work"})})
	require.NoError(o.base.t, err)
	o.volume = *volume.VolumeId
	o.exec("update reservations set ebs_volume_id = $1 where pod_name = $2", o.volume, ended)
	o.exec("insert into disks (disk_name, user_id, in_use, reservation_id, ebs_volume_id) values ('work', 'ada', true, $1, $2)",
		o.ids["past its end, with a disk"], o.volume)
	o.reserve("its pod is missing", "active", "", false)
	dead := o.reserve("its pod is dead", "active", "", true)
	o.cluster.SetStatus(dead, func(s *corev1.PodStatus) {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, "Evicted", "The node was low on memory."
	})
	oom := o.reserve("out of memory", "active", "", true)
	o.cluster.SetStatus(oom, func(s *corev1.PodStatus) {
		s.ContainerStatuses[0].LastTerminationState = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 137, Reason: "OOMKilled", FinishedAt: metav1.Now(), ContainerID: "containerd://1"}}
	})
	o.reserve("stuck while preparing", "preparing", "", true)
	o.reserve("stuck in the queue", "queued", "launched_at = null, expires_at = null, pod_name = null", false)
	o.reserve("cancelled, its pod left over", "cancelled", "cancelled_at = now(), reservation_ended = now()", true)
}

// disks are three that no reservation uses: one with too many snapshots, one that is deleted, one whose lock is stale.
func (o *outside) disks() {
	o.base.t.Helper()
	once, err := o.compute.CreateVolume(o.base.t.Context(), &ec2.CreateVolumeInput{AvailabilityZone: awssdk.String("us-east-1a"), Size: awssdk.Int32(10)})
	require.NoError(o.base.t, err)
	for i := range 5 {
		o.snapshot(*once.VolumeId, "old", i+8, nil)
	}
	o.exec("insert into disks (disk_name, user_id, snapshot_count) values ('old', 'ada', 5)")
	o.snapshot(*once.VolumeId, "deleted", 20, map[string]string{"delete-date": "2020-01-01", "marked-deleted-at": "1577836800"})
	o.exec("insert into disks (disk_name, user_id, snapshot_count, is_deleted, delete_date, marked_deleted_at) values ('deleted', 'ada', 1, true, '2020-01-01', now() - interval '20 days')")
	o.exec("alter table disks disable trigger user")
	o.exec("insert into disks (disk_name, user_id, in_use, created_at, last_used, last_updated) values ('stale', 'ada', true, now() - interval '9 days', now() - interval '3 hours', now() - interval '3 hours')")
	o.exec("alter table disks enable trigger user")
	_, _ = o.compute.DeleteVolume(o.base.t.Context(), &ec2.DeleteVolumeInput{VolumeId: once.VolumeId}) // tried again where an answer is lost
}

// snapshot makes one that is so many days old.
func (o *outside) snapshot(volume, diskName string, days int, more map[string]string) {
	o.base.t.Helper()
	tags := map[string]string{"gpu-dev-user": "ada", "disk_name": diskName, "gpu-dev-snapshot-type": "shutdown", "SnapshotType": "shutdown"}
	maps.Copy(tags, more)
	made, err := o.compute.CreateSnapshot(o.base.t.Context(), &ec2.CreateSnapshotInput{VolumeId: &volume, TagSpecifications: tagged(ec2types.ResourceTypeSnapshot, tags)})
	require.NoError(o.base.t, err)
	o.aws.Alter(*made.SnapshotId, map[string]any{"start_time": time.Now().UTC().AddDate(0, 0, -days).Format("2006-01-02T15:04:05")})
}

func tagged(kind ec2types.ResourceType, tags map[string]string) []ec2types.TagSpecification {
	spec := ec2types.TagSpecification{ResourceType: kind}
	for key, value := range tags {
		spec.Tags = append(spec.Tags, ec2types.Tag{Key: awssdk.String(key), Value: awssdk.String(value)})
	}
	return []ec2types.TagSpecification{spec}
}

// tick runs one sweep with its follow-ups, in a process of its own, which may die.
func (o *outside) tick(more ...string) (report.Swept, ran) {
	o.base.t.Helper()
	cmd := exec.CommandContext(o.base.t.Context(), os.Args[0], "sweep", "-o", "json", "--follow-ups", o.limit.String())
	cmd.Env = append(append(asCommand("HOME=/nonexistent"), o.environ...), more...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	require.NoError(o.base.t, cmd.Start())
	o.connect(func() { _ = cmd.Process.Kill() })
	hangs := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) }) // it says where
	_ = cmd.Wait()
	require.True(o.base.t, hangs.Stop(), "the process hangs: %s", &errOut)
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		o.killed++
	}
	r := ran{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
	var view report.Swept
	if strings.HasPrefix(r.out, "{") {
		require.NoError(o.base.t, json.Unmarshal([]byte(r.out), &view), r.out)
	}
	return view, r
}

// later lets so much time pass that all which was put off is due, leases have lapsed, and what is in doubt may be decided.
func (o *outside) later() {
	o.base.t.Helper()
	for _, statement := range []string{
		"update expiry.sweep_lease set expires_at = '-infinity'",
		`update expiry.follow_ups set due_at = clock_timestamp(), ask_again_at = '-infinity', lease_expires_at = null, lease_token = null where state = 'due'`,
		"update expiry.missing_pods set first_seen_at = first_seen_at - interval '10 minutes', last_seen_at = last_seen_at - interval '5 minutes'",
		`update expiry.cleanups set pod_gone_at = pod_gone_at - interval '3 minutes', detach_requested_at = detach_requested_at - interval '3 minutes',
			writer_gone_at = writer_gone_at - interval '3 minutes'`,
		"update expiry.snapshots set intended_at = intended_at - interval '3 minutes', settled_at = settled_at - interval '3 minutes'",
		"update expiry.facts set try_again_at = '-infinity', lease_token = null, lease_expires_at = null where published_at is null",
	} {
		o.exec(statement)
	}
}

// settle ticks until nothing changes any more, and returns the state of then. A tick that dies is followed by others.
func (o *outside) settle() string {
	o.base.t.Helper()
	last := ""
	for range 15 {
		view, r := o.tick()
		_, died := o.made()
		if !died {
			require.Zero(o.base.t, r.code, "%s\n%s", r.out, r.err)
			require.Empty(o.base.t, view.Failures)
		}
		o.later()
		now := o.state()
		if !died && now == last && o.text("select count(*)::text from expiry.follow_ups where state = 'due'") == "0" {
			return now
		}
		last = now
	}
	o.base.t.Fatalf("it does not settle:\n%s\n%s", last, o.text(`select string_agg(concat_ws(' ', f.kind, r.name, f.attempts, f.last_error, s.step, s.detail, s.last_error), E'\n')
		from expiry.follow_ups f left join reservations r using (reservation_id)
		left join expiry.cleanup_steps s on s.reservation_id = f.reservation_id and s.finished_at is null where f.state = 'due'`))
	return ""
}

// state is what counts in the end, by the names of things.
func (o *outside) state() string {
	o.base.t.Helper()
	var lines []string
	for _, query := range []string{
		`select concat_ws(', ', 'reservation', name, status, failure_reason is not null, reservation_ended is not null, oom_count, warnings_sent, last_warning_time is not null)
		 from reservations`,
		`select concat_ws(', ', 'disk', disk_name, in_use, reservation_id is null, ebs_volume_id is null, is_backing_up, snapshot_count, pending_snapshot_count) from disks`,
		`select concat_ws(', ', 'cleanup of', name, outcome) from expiry.cleanups join reservations using (reservation_id)`,
		// Who purges what another process has purged without saying so finds it gone already, and a cleanup that comes back
		// after the sync, which has gone on meanwhile, finds its disk released.
		`select concat_ws(', ', 'follow-up', kind, r.name, split_part(key, '/', 3), state, became, count(*))
		 from (select *, case kind || ' ' || outcome when 'snapshot.purge already_gone' then 'purged' when 'cleanup released' then 'snapshotting'
		                 else outcome end as became from expiry.follow_ups) f
		 left join reservations r on r.reservation_id = f.reservation_id
		 where kind <> 'availability.update' group by kind, r.name, split_part(key, '/', 3), state, became`,
		`select concat_ws(', ', 'fact', type, coalesce(r.name, d.disk_name), count(*))
		 from expiry.facts f left join reservations r on r.reservation_id = f.subject left join disks d on d.disk_id::text = f.subject
		 where type not like '%sweep.completed%' group by type, r.name, d.disk_name`,
		`select concat_ws(', ', 'snapshots', disk_name, state, count(*)) from expiry.snapshots where state <> 'abandoned' group by disk_name, state`,
		`select concat_ws(', ', 'gaps in facts', count(*)) from (select subject from expiry.facts where type not like '%sweep.completed%'
		 group by subject having max(sequence) <> count(*)) gaps`,
	} {
		lines = append(lines, strings.FieldsFunc(o.text("select coalesce(string_agg(line, E'\\n'), '') from ("+query+") as q (line)"), func(r rune) bool { return r == '\n' })...)
	}
	ctx := o.base.t.Context()
	snapshots, err := o.compute.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}})
	require.NoError(o.base.t, err)
	counts := map[string]int{}
	for _, s := range snapshots.Snapshots {
		for _, tag := range s.Tags {
			if *tag.Key == "disk_name" {
				counts[*tag.Value]++
			}
		}
	}
	volumes, err := o.compute.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{})
	require.NoError(o.base.t, err)
	lines = append(lines, fmt.Sprintf("EC2: %d volumes, snapshots %v", len(volumes.Volumes), counts))
	lines = append(lines, o.pods()...)
	for _, what := range []string{"due for a warning", "out of memory"} {
		lines = append(lines, fmt.Sprintf("files of %s: %v", what, o.cluster.Files("gpu-dev-"+o.ids[what][:8])))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// pods says which reservations have one that nobody has asked to end.
func (o *outside) pods() (lines []string) {
	o.base.t.Helper()
	pods, err := o.cluster.Client.CoreV1().Pods(o.cluster.Namespace).List(context.WithoutCancel(o.base.t.Context()), metav1.ListOptions{})
	require.NoError(o.base.t, err)
	for _, p := range pods.Items {
		for what, id := range o.ids {
			if strings.HasSuffix(p.Name, id[:8]) && p.DeletionTimestamp == nil {
				lines = append(lines, "pod of "+what)
			}
		}
	}
	return lines
}

// settled is the state in which all of it ends, whatever happens on the way.
func settled(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/settled.txt")
	require.NoError(t, err)
	return strings.TrimSpace(string(text))
}
