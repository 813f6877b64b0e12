package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const (
	user     = "alice"
	diskName = "work"
)

// clock is one that only sleeping moves; it begins at the real time, which the database has.
type clock struct {
	lock  sync.Mutex
	slept time.Duration
}

func (c *clock) now() time.Time {
	c.lock.Lock()
	defer c.lock.Unlock()
	return time.Now().Add(c.slept)
}

func (c *clock) sleep(ctx context.Context, d time.Duration) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.slept += d
	return ctx.Err()
}

// world is an ended reservation, its pod gone, whose volume is still attached, on the real components.
type world struct {
	*outside
	account *stacktest.Account
	cloud   *ec2.Client // the platform's and the administrators' way in
	cluster *stacktest.Cluster
	db      *postgres.DB
	sql     *pgxpool.Pool
	clock   *clock
	runner  *followup.Runner
	sts     *aws.STS

	id, newer, volume, instance, pv, claimed string
}

// ground is what the worlds of one test share.
type ground struct {
	shelf   *stacktest.Shelf
	cluster *stacktest.Cluster
}

func newGround(t *testing.T) ground {
	t.Helper()
	return ground{stacktest.NewShelf(t), stacktest.Kubernetes(t)}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newGround(t).world(t)
}

func (g ground) world(t *testing.T) *world {
	t.Helper()
	w := &world{account: stacktest.AWS(t), cluster: g.cluster, clock: &clock{}, id: uuid.NewString(), newer: uuid.NewString()}
	w.pv, w.claimed = "pv-"+w.id[:13], "disk-"+w.id[:13]
	w.cloud = ec2.NewFromConfig(w.account.Config)
	url := g.shelf.Database(t)
	var err error
	w.db, err = postgres.Open(t.Context(), stacktest.AsService(t, url), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(w.db.Close)
	w.sql, err = pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(w.sql.Close)

	w.instance = w.runInstance(t)
	w.volume = w.createVolume(t)
	w.attach(t, w.volume, w.instance)
	claimUID, pvUID := w.claim(t)
	w.rows(t, claimUID, pvUID)
	w.age(t, time.Minute) // the driver's
	w.outside = &outside{
		Cluster: kube.New(func(context.Context) (*rest.Config, error) { return w.cluster.Config, nil }, kube.Options{}),
		t:       t, w: w,
	}
	w.actIn(w.account.Config)
	return w
}

// actIn has the service act in an account and region, as a process that starts does.
func (w *world) actIn(config awssdk.Config) {
	w.EC2, w.sts = aws.NewEC2(config), aws.NewSTS(config)
	w.use(snapshot.Options{})
}

// use makes the actions anew, as a process that starts does.
func (w *world) use(o snapshot.Options) {
	quiet := slog.New(slog.DiscardHandler)
	o.Now, o.Sleep, o.Interval, o.Lag, o.Log = w.clock.now, w.clock.sleep, 5*time.Second, 1, quiet
	parts := snapshot.World{Store: w.db, EC2: cloudSide{w.outside}, Cluster: kubeSide{w.outside}, Identity: w.sts}
	w.runner = followup.NewRunner(w.db, map[postgres.FollowUpKind]followup.Action{
		postgres.Cleanup:       cleanupOf{w.db, snapshot.NewKeeper(parts, o)},
		postgres.SnapshotSync:  snapshot.NewSync(parts, o),
		postgres.SnapshotPurge: snapshot.NewPurge(parts, o),
	}, followup.Options{Log: quiet, Jitter: func() float64 { return 0 }})
}

// cleanupOf is a cleanup all of whose other steps are done.
type cleanupOf struct {
	db     *postgres.DB
	keeper *snapshot.Keeper
}

func (a cleanupOf) Handle(ctx context.Context, f postgres.FollowUp) (followup.Result, error) {
	c, _, err := a.db.LoadCleanup(ctx, f.ReservationID)
	if err == nil && c.EndedAgain {
		c, err = a.beginAnew(ctx, c.ReservationID)
	}
	switch {
	case err != nil:
		return followup.Result{}, err
	case !c.SettledAt.IsZero():
		return followup.Done(c.Outcome), nil
	case !c.Over():
		_, err := a.db.VoidCleanup(ctx, f)
		return followup.Recorded(postgres.Void), err
	}
	if err := a.db.BeginStep(ctx, f.ReservationID, postgres.StepDisk); err != nil {
		return followup.Result{}, err
	}
	r, err := a.keeper.Keep(ctx, c)
	if err != nil {
		return r, errors.Join(err, a.db.FailStep(context.WithoutCancel(ctx), f.ReservationID, postgres.StepDisk, err))
	}
	if !r.IsRecorded() {
		return r, nil
	}
	outcome, settled, err := a.db.SettleCleanup(ctx, f)
	if err == nil && !settled {
		err = fmt.Errorf("the keeper is done and the cleanup does not settle: %s", outcome)
	}
	if err == nil && r.Outcome != outcome && r.Outcome != string(postgres.DiskSettled) {
		err = fmt.Errorf("the keeper says %s of a disk that is %s", r.Outcome, outcome)
	}
	return followup.Recorded(outcome), err
}

// beginAnew has the steps before the disk's find no pod.
func (a cleanupOf) beginAnew(ctx context.Context, id string) (postgres.CleanupRecord, error) {
	if err := a.db.BeginCleanupAnew(ctx, id); err != nil {
		return postgres.CleanupRecord{}, err
	}
	c, _, err := a.db.LoadCleanup(ctx, id)
	err = errors.Join(err, a.db.RecordIdentity(ctx, id, postgres.Identity{VolumeID: c.FormerVolume}, "missing", ""),
		a.db.RecordPodGone(ctx, id, "already_gone", ""))
	for _, s := range postgres.Steps() {
		if s != postgres.StepDisk {
			err = errors.Join(err, a.db.FinishStep(ctx, id, s, "done", ""))
		}
	}
	if err != nil {
		return c, err
	}
	c, _, err = a.db.LoadCleanup(ctx, id)
	return c, err
}

func (w *world) runInstance(t *testing.T) string {
	t.Helper()
	out, err := w.cloud.RunInstances(t.Context(), &ec2.RunInstancesInput{
		ImageId: awssdk.String("ami-12345678"), MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1)})
	require.NoError(t, err)
	return *out.Instances[0].InstanceId
}

func (w *world) createVolume(t *testing.T) string {
	t.Helper()
	out, err := w.cloud.CreateVolume(t.Context(), &ec2.CreateVolumeInput{AvailabilityZone: awssdk.String("us-east-1a"), Size: awssdk.Int32(10)})
	require.NoError(t, err)
	return *out.VolumeId
}

func (w *world) attach(t *testing.T, volume, instance string) {
	t.Helper()
	_, err := w.cloud.AttachVolume(t.Context(), &ec2.AttachVolumeInput{VolumeId: &volume, InstanceId: &instance, Device: awssdk.String("/dev/xvdba")})
	require.NoError(t, err)
}

func (w *world) detach(t *testing.T) {
	t.Helper()
	_, err := w.cloud.DetachVolume(t.Context(), &ec2.DetachVolumeInput{VolumeId: &w.volume})
	require.NoError(t, err)
}

// vanish has somebody delete the volume, so long ago that it is gone if EC2 says so.
func (w *world) vanish(t *testing.T) {
	t.Helper()
	w.detach(t)
	_, err := w.cloud.DeleteVolume(t.Context(), &ec2.DeleteVolumeInput{VolumeId: &w.volume})
	require.NoError(t, err)
	w.age(t, 10*time.Minute)
}

// claim makes claim and volume object through which the pod had the disk.
func (w *world) claim(t *testing.T) (claimUID, pvUID string) {
	t.Helper()
	ctx, core, none := t.Context(), w.cluster.Client.CoreV1(), ""
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}
	claim, err := core.PersistentVolumeClaims(w.cluster.Namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: w.claimed},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes, VolumeName: w.pv, StorageClassName: &none,
			Resources: corev1.VolumeResourceRequirements{Requests: size}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	v, err := core.PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: w.pv},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef: &corev1.ObjectReference{Namespace: w.cluster.Namespace, Name: w.claimed, UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: "ebs.csi.aws.com", VolumeHandle: w.volume}},
		}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = core.PersistentVolumes().Delete(context.Background(), w.pv, metav1.DeleteOptions{}) })
	return string(claim.UID), string(v.UID)
}

func (w *world) rows(t *testing.T, claimUID, pvUID string) {
	t.Helper()
	system, err := w.cluster.Client.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{})
	require.NoError(t, err)
	w.exec(t, "insert into expiry.cluster (uid) values ($1)", string(system.UID))
	w.exec(t, `insert into reservations (reservation_id, user_id, status, created_at, launched_at, expires_at, reservation_ended, ebs_volume_id, disk_name)
		values ($1, $2, 'expired', now() - interval '6 hours', now() - interval '6 hours', now(), now(), $3, $4),
		       ($5, $2, 'queued', now(), null, null, null, null, null)`, w.id, user, w.volume, diskName, w.newer)
	w.exec(t, "insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id) values ($1, $2, true, $3, $4)", user, diskName, w.id, w.volume)
	_, err = w.db.EnsureCleanup(t.Context(), w.id)
	require.NoError(t, err)
	require.NoError(t, w.db.RecordIdentity(t.Context(), w.id, postgres.Identity{
		Namespace: w.cluster.Namespace, VolumeID: w.volume, DiskName: diskName, InstanceID: w.instance,
		ClaimName: w.claimed, ClaimUID: claimUID, PVName: w.pv, PVUID: pvUID,
	}, "done", ""))
	require.NoError(t, w.db.RecordListing(t.Context(), w.id, "1.2G", "s3://contents/alice/work", "done", ""))
	require.NoError(t, w.db.RecordPodGone(t.Context(), w.id, "done", ""))
	w.exec(t, `insert into expiry.cleanup_steps (reservation_id, step, finished_at, outcome)
		select $1, step, now(), 'done' from unnest($2::text[]) step where step <> $3 on conflict do nothing`,
		w.id, postgres.Steps(), postgres.StepDisk)
}

func (w *world) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	_, err := w.sql.Exec(context.WithoutCancel(t.Context()), statement, args...)
	require.NoError(t, err)
}

func read[V any](t *testing.T, w *world, query string, args ...any) V {
	t.Helper()
	rows, err := w.sql.Query(context.WithoutCancel(t.Context()), query, args...)
	require.NoError(t, err)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[V])
	require.NoError(t, err)
	return v
}

// deliver brings the one event of a kind that is due, its pause over, and says how it stands then.
func (w *world) deliver(t *testing.T, kind postgres.FollowUpKind) followup.Report {
	t.Helper()
	key := read[string](t, w, "select coalesce(max(key), '') from expiry.follow_ups where kind = $1 and state = 'due'", string(kind))
	require.NotEmpty(t, key, "no %s is due", kind)
	return w.deliverKey(t.Context(), t, kind, key)
}

func (w *world) deliverKey(ctx context.Context, t *testing.T, kind postgres.FollowUpKind, key string) followup.Report {
	t.Helper()
	w.exec(t, "update expiry.follow_ups set due_at = least(due_at, clock_timestamp()) where kind = $1 and key = $2 and state = 'due'", string(kind), key)
	report, err := w.runner.Run(ctx, kind, key)
	require.NoError(t, err)
	return report
}

// settle brings what is due, again and again, all pauses over, until nothing is or rounds are over.
func (w *world) settle(t *testing.T, rounds int) {
	t.Helper()
	for range rounds {
		due := read[[]string](t, w, `select coalesce(array_agg(kind || ' ' || key order by kind, key), '{}') from expiry.follow_ups
			where state = 'due' and kind in ('cleanup', 'snapshot.sync', 'snapshot.purge')`)
		if len(due) == 0 {
			return
		}
		for _, d := range due {
			kind, key, _ := strings.Cut(d, " ")
			w.deliverKey(t.Context(), t, postgres.FollowUpKind(kind), key)
		}
	}
}

// age moves everything that was recorded so far into the past.
func (w *world) age(t *testing.T, by time.Duration) {
	t.Helper()
	w.exec(t, `update expiry.cleanups set pod_gone_at = pod_gone_at - $1::interval,
		detach_requested_at = detach_requested_at - $1::interval, detach_forced_at = detach_forced_at - $1::interval,
		writer_gone_at = writer_gone_at - $1::interval`, by)
	w.exec(t, `update expiry.snapshots set intended_at = intended_at - $1::interval, settled_at = settled_at - $1::interval`, by)
}

// takeOver hands the disk to a newer reservation as the platform does: by user and name, without asking.
func (w *world) takeOver(ctx context.Context) error {
	_, err := w.sql.Exec(ctx, "update reservations set status = 'preparing', disk_name = $2 where reservation_id = $1", w.newer, diskName)
	if err == nil {
		_, err = w.sql.Exec(ctx, "update disks set in_use = true, reservation_id = $1 where user_id = $2 and disk_name = $3", w.newer, user, diskName)
	}
	return err
}

// row is the disk as the platform sees it.
type row struct {
	InUse, BackingUp bool
	Holder, Volume   string
	Snapshots        int
	Pending          int
	Size, Content    string
}

func (w *world) disk(t *testing.T) row {
	t.Helper()
	var r row
	require.NoError(t, w.sql.QueryRow(context.WithoutCancel(t.Context()), `
		select in_use, coalesce(is_backing_up, false), coalesce(reservation_id, ''), coalesce(ebs_volume_id, ''), snapshot_count,
		       pending_snapshot_count, coalesce(disk_size, ''), coalesce(latest_snapshot_content_s3, '')
		from disks where user_id = $1 and disk_name = $2`, user, diskName).
		Scan(&r.InUse, &r.BackingUp, &r.Holder, &r.Volume, &r.Snapshots, &r.Pending, &r.Size, &r.Content))
	return r
}

// released is the disk's row once all went well.
var released = row{Snapshots: 1, Size: "1.2G", Content: "s3://contents/alice/work"}

func (w *world) outcome(t *testing.T) string {
	t.Helper()
	return read[string](t, w, "select coalesce(outcome, 'open') from expiry.cleanups where reservation_id = $1", w.id)
}

func (w *world) facts(t *testing.T) string {
	t.Helper()
	return read[string](t, w, `select coalesce(string_agg(regexp_replace(type, '^dev.gpudev.(.*).v1$', '\1'), ' ' order by sequence), '')
		from expiry.facts where subject = $1`, w.id)
}

// snapshots says in which states they are, in order of their attempts.
func (w *world) snapshots(t *testing.T) string {
	t.Helper()
	return read[string](t, w, "select coalesce(string_agg(state, ' ' order by attempt), '') from expiry.snapshots where reservation_id = $1", w.id)
}

// snapshotID is the id of the newest attempt's snapshot.
func (w *world) snapshotID(t *testing.T) string {
	t.Helper()
	return read[string](t, w, "select snapshot_id from expiry.snapshots where reservation_id = $1 order by attempt desc limit 1", w.id)
}

// exists reports whether EC2 knows the volume.
func (w *world) exists(t *testing.T) bool {
	t.Helper()
	_, err := w.EC2.DescribeVolume(context.WithoutCancel(t.Context()), w.volume)
	if !fault.Is(err, fault.Gone) {
		require.NoError(t, err)
	}
	return err == nil
}

func (w *world) attachments(t *testing.T) int {
	t.Helper()
	v, err := w.EC2.DescribeVolume(context.WithoutCancel(t.Context()), w.volume)
	require.NoError(t, err)
	return len(v.Attachments)
}

// made is every snapshot of the volume that EC2 has.
func (w *world) made(t *testing.T) []disk.Snapshot {
	t.Helper()
	found, err := w.EC2.FindSnapshots(context.WithoutCancel(t.Context()), disk.CleanupTags(w.id))
	require.NoError(t, err)
	return found
}

// objects says whether claim and volume object are there, and not on their way out.
func (w *world) objects(t *testing.T) bool {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	claim, err1 := w.cluster.Client.CoreV1().PersistentVolumeClaims(w.cluster.Namespace).Get(ctx, w.claimed, metav1.GetOptions{})
	v, err2 := w.cluster.Client.CoreV1().PersistentVolumes().Get(ctx, w.pv, metav1.GetOptions{})
	kept := err1 == nil && claim.DeletionTimestamp == nil
	require.Equal(t, kept, err2 == nil && v.DeletionTimestamp == nil, "one without the other")
	return kept
}

const (
	wait = 15 * time.Second
	tick = 20 * time.Millisecond
)
