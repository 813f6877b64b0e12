package main

import (
	"context"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// clockAhead is how far the clock of a command started by a test is ahead of the real one.
const clockAhead = "TEST_CLOCK_AHEAD"

// commandOfTest is main, with that clock.
func commandOfTest() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	sh := theShell()
	if ahead, err := time.ParseDuration(os.Getenv(clockAhead)); err == nil {
		sh.clock = func() time.Time { return time.Now().Add(ahead) }
		sh.comeWithin = 100 * time.Millisecond // nobody else sends anything
	}
	code := run(ctx, os.Args[1:], sh)
	stop()
	os.Exit(code)
}

// day is a simulated day in the life of one reservation: the database's clock is ahead of the real one, by more and
// more, and so is the clock of each process. Kubernetes and AWS are the real components.
type day struct {
	t        *testing.T
	cluster  *stacktest.Cluster
	aws      *stacktest.Account
	compute  *ec2.Client
	relay    *relay
	rows     *pgxpool.Pool
	database string
	ahead    time.Duration

	id, user, podName, instance, volume string
}

// simulatedClock puts a clock_timestamp() before PostgreSQL's own, for statements and for the columns' defaults.
const simulatedClock = `
	create schema sim;
	create table sim.clock (ahead interval not null);
	insert into sim.clock values ('0');
	create function sim.clock_timestamp() returns timestamptz volatile language sql
	    as 'select pg_catalog.clock_timestamp() + (select ahead from sim.clock)';
	grant usage on schema sim to public;
	grant select on sim.clock to public;
	do $$
	declare c record;
	begin
	    execute format('alter database %I set search_path = sim, pg_catalog, public', current_database());
	    for c in select a.attrelid::regclass as tab, a.attname as col from pg_attrdef d
	             join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
	             where pg_get_expr(d.adbin, d.adrelid) in ('clock_timestamp()', 'now()') loop
	        execute format('alter table %s alter column %I set default sim.clock_timestamp()', c.tab, c.col);
	    end loop;
	end $$`

func newDay(t *testing.T) *day {
	t.Helper()
	d := &day{t: t, cluster: stacktest.Kubernetes(t), aws: stacktest.AWS(t), relay: newRelay(t), id: uuid.NewString()}
	d.user, d.podName, d.database = "ada-"+d.id[:8], "gpu-dev-"+d.id[:8], stacktest.Database(t)
	d.compute = ec2.NewFromConfig(d.aws.Config)
	setUp, err := pgxpool.New(t.Context(), d.database)
	require.NoError(t, err)
	_, err = setUp.Exec(t.Context(), simulatedClock)
	require.NoError(t, err)
	setUp.Close()
	d.rows, err = pgxpool.New(t.Context(), d.database) // anew: the search path is a session's
	require.NoError(t, err)
	t.Cleanup(d.rows.Close)
	return d
}

func (d *day) exec(sql string, args ...any) {
	d.t.Helper()
	_, err := d.rows.Exec(d.t.Context(), sql, args...)
	require.NoError(d.t, err)
}

// passes lets time go by.
func (d *day) passes(by time.Duration) {
	d.t.Helper()
	d.ahead += by
	d.exec("update sim.clock set ahead = $1", d.ahead)
}

// process starts one that serves, at the present time.
func (d *day) process(more ...string) *process {
	d.t.Helper()
	environ := append(d.aws.Environ(),
		"KUBECONFIG="+d.cluster.Kubeconfig, clockAhead+"="+d.ahead.String(), "HOME="+d.t.TempDir(), "BRAKE_MIN=100",
		"AVAILABILITY_UPDATER_FUNCTION_NAME=updater",
		"OTEL_EXPORTER_OTLP_ENDPOINT="+d.relay.URL, "OTEL_METRICS_EXPORTER=none",
		"JAEGER_QUERY_URL="+stacktest.Env(d.t, "JAEGER_QUERY_URL"))
	return startProcess(d.t, d.database, append(environ, more...)...)
}

// tick posts a tick and waits until that is answered.
func (d *day) tick(p *process) {
	d.t.Helper()
	require.Equal(d.t, 202, p.post(d.t, "/", binary(event.Ping), "").StatusCode)
}

// until waits until a query answers true.
func (d *day) until(what, query string, args ...any) {
	d.t.Helper()
	require.Eventually(d.t, func() bool {
		var yes bool
		return d.rows.QueryRow(d.t.Context(), query, args...).Scan(&yes) == nil && yes
	}, 90*time.Second, 50*time.Millisecond, what)
}

// remembered ticks until the root is written: a delivery leaves to the next what its time does not suffice for.
func (d *day) remembered(p *process) {
	d.t.Helper()
	require.Eventually(d.t, func() bool {
		var yes bool
		return p.post(d.t, "/", binary(event.Ping), "").StatusCode == http.StatusAccepted && d.rows.QueryRow(d.t.Context(),
			"select exists (select from expiry.traces where stage = 4 and lease_token is null)").Scan(&yes) == nil && yes
	}, 90*time.Second, 50*time.Millisecond, "the root is written, and that is remembered")
}

// ends a process as the platform does that scales it to zero.
func (d *day) ends(p *process) {
	d.t.Helper()
	require.NoError(d.t, p.cmd.Process.Signal(syscall.SIGTERM))
	err := <-p.exited
	p.exited <- err
	require.NoError(d.t, err, p.log.String())
}

// kills a process as a failing machine does.
func (d *day) kills(p *process) {
	d.t.Helper()
	require.NoError(d.t, p.cmd.Process.Kill())
	p.exited <- <-p.exited
}

// What the platform does.

func (d *day) queue() {
	d.exec(`insert into reservations (reservation_id, user_id, gpu_type, status, namespace, pod_name, disk_name, created_at, status_history)
		values ($1, $2, 'h100', 'queued', $3, $4, 'work', clock_timestamp(),
		        jsonb_build_array(jsonb_build_object('status', 'queued', 'timestamp', clock_timestamp())))`,
		d.id, d.user, d.cluster.Namespace, d.podName)
}

func (d *day) become(status string) {
	d.exec(`update reservations set status = $2::text, status_history = status_history ||
		jsonb_build_object('status', $2::text, 'timestamp', clock_timestamp()) where reservation_id = $1`, d.id, status)
}

// launch makes instance, volume and pod.
func (d *day) launch() {
	d.t.Helper()
	ctx, core := d.t.Context(), d.cluster.Client.CoreV1()
	instances, err := d.compute.RunInstances(ctx, &ec2.RunInstancesInput{
		ImageId: awssdk.String("ami-12345678"), MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1)})
	require.NoError(d.t, err)
	d.instance = *instances.Instances[0].InstanceId
	volume, err := d.compute.CreateVolume(ctx, &ec2.CreateVolumeInput{AvailabilityZone: awssdk.String("us-east-1a"), Size: awssdk.Int32(10),
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeVolume,
			Tags: []ec2types.Tag{{Key: awssdk.String("disk_name"), Value: awssdk.String("work")}}}}})
	require.NoError(d.t, err)
	d.volume = *volume.VolumeId
	_, err = d.compute.AttachVolume(ctx, &ec2.AttachVolumeInput{VolumeId: &d.volume, InstanceId: &d.instance, Device: awssdk.String("/dev/xvdba")})
	require.NoError(d.t, err)

	node := d.cluster.CreateNode(func(n *corev1.Node) { n.Spec.ProviderID = "aws:///us-east-1a/" + d.instance }).Name
	none, modes := "", []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}
	claim, err := core.PersistentVolumeClaims(d.cluster.Namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "disk"},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes, VolumeName: "pv-" + d.id, StorageClassName: &none,
			Resources: corev1.VolumeResourceRequirements{Requests: size}},
	}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	_, err = core.PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-" + d.id},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef: &corev1.ObjectReference{Namespace: d.cluster.Namespace, Name: claim.Name, UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: "ebs.csi.aws.com", VolumeHandle: d.volume}},
		}}, metav1.CreateOptions{})
	require.NoError(d.t, err)
	d.t.Cleanup(func() {
		_ = core.PersistentVolumes().Delete(context.Background(), "pv-"+d.id, metav1.DeleteOptions{})
	})
	d.cluster.CreatePod(d.podName, func(p *corev1.Pod) {
		p.Labels = map[string]string{"user-id": d.user}
		p.Spec.NodeName = node
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "home", MountPath: "/home/dev"}}
		p.Spec.Volumes = []corev1.Volume{{Name: "home", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name}}}}
	})
	d.exec("insert into disks (disk_name, user_id, in_use, reservation_id, ebs_volume_id) values ('work', $1, true, $2, $3)", d.user, d.id, d.volume)
	d.exec(`update reservations set launched_at = clock_timestamp(), expires_at = clock_timestamp() + interval '23 hours', ebs_volume_id = $2
		where reservation_id = $1`, d.id, d.volume)
	d.become("active")
}

// detach takes the volume off, as the CSI driver does once the pod is gone.
func (d *day) detach() {
	d.t.Helper()
	_, err := d.compute.DetachVolume(d.t.Context(), &ec2.DetachVolumeInput{VolumeId: &d.volume})
	require.NoError(d.t, err)
}
