package snapshot_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// snapshotOf makes a completed snapshot as the platform does, so many days ago.
func (w *world) snapshotOf(t *testing.T, name string, days int) string {
	t.Helper()
	tag := func(k, v string) ec2types.Tag { return ec2types.Tag{Key: &k, Value: &v} }
	out, err := w.cloud.CreateSnapshot(t.Context(), &ec2.CreateSnapshotInput{VolumeId: &w.volume, Description: awssdk.String("gpu-dev"),
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeSnapshot,
			Tags: []ec2types.Tag{tag(disk.TagUser, user), tag(disk.TagDisk, name)}}}})
	require.NoError(t, err)
	started := time.Now().UTC().Add(-time.Duration(days) * 24 * time.Hour)
	w.account.Alter(*out.SnapshotId, map[string]any{"start_time": started.Format("2006-01-02T15:04:05")})
	return *out.SnapshotId
}

// adopt takes all snapshots into the books, as the sweep does.
func (w *world) adopt(t *testing.T) int {
	t.Helper()
	found, err := w.EC2.FindSnapshots(t.Context(), map[string]string{disk.TagUser: user})
	require.NoError(t, err)
	n, err := w.db.AdoptSnapshots(t.Context(), found)
	require.NoError(t, err)
	return n
}

func (w *world) purge(t *testing.T, id string) followup.Report {
	t.Helper()
	w.exec(t, `insert into expiry.follow_ups (kind, key, subject) values ('snapshot.purge', $1, $1)
		on conflict (kind, key) do update set state = 'due', due_at = now()`, id)
	return w.deliverKey(t.Context(), t, postgres.SnapshotPurge, id)
}

func (w *world) hasSnapshot(t *testing.T, id string) bool {
	t.Helper()
	_, err := w.EC2.DescribeSnapshot(context.WithoutCancel(t.Context()), id)
	if !fault.Is(err, fault.Gone) {
		require.NoError(t, err)
	}
	return err == nil
}

func TestTheNewestThreeOfALiveDiskStayAndOlderOnesGoOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var ids []string
	for days := range 5 {
		ids = append(ids, w.snapshotOf(t, diskName, 8+days))
	}
	require.Equal(t, 5, w.adopt(t))
	w.exec(t, "update disks set snapshot_count = 5")
	for _, id := range ids[:3] {
		require.Equal(t, "kept", w.purge(t, id).Outcome)
	}
	require.Equal(t, "purged", w.purge(t, ids[4]).Outcome)
	require.False(t, w.hasSnapshot(t, ids[4]))
	require.Equal(t, "already_gone", w.purge(t, ids[4]).Outcome)
	require.Equal(t, 4, w.disk(t).Snapshots)
	require.Equal(t, "purged", w.purge(t, ids[3]).Outcome)
	require.Equal(t, 3, w.disk(t).Snapshots)
	for _, id := range ids[:3] {
		require.Equal(t, "kept", w.purge(t, id).Outcome)
		require.True(t, w.hasSnapshot(t, id))
	}
}

func TestAPurgeIsATraceOfItsOwnThatLeadsToWhomTheSnapshotWasMadeFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	spans := tracetest.NewInMemoryExporter()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans})
	require.NoError(t, err)
	w.use(snapshot.Options{Trace: tel})
	id := w.snapshotOf(t, diskName, 1)
	w.adopt(t)
	const asked = "00-000102030405060708090a0b0c0d0e0f-0102030405060708-01"
	for _, reservation := range []string{"", w.id} {
		spans.Reset()
		w.exec(t, "update expiry.snapshots set reservation_id = $1", sql.NullString{String: reservation, Valid: reservation != ""})
		w.exec(t, "insert into expiry.follow_ups (kind, key, subject) values ('snapshot.purge', $1, $1) on conflict (kind, key) do update set state = 'due', due_at = now()", id)
		require.Equal(t, "kept", w.deliverKey(telemetry.WithTraceParent(t.Context(), asked), t, postgres.SnapshotPurge, id).Outcome)
		require.NoError(t, tel.Flush(t.Context()))
		require.Len(t, spans.GetSpans(), 1)
		purge := spans.GetSpans()[0]
		require.Equal(t, "snapshot.purge", purge.Name)
		require.False(t, purge.Parent.IsValid(), "neither the sweep's span nor a phase that is over lasts until then")
		links := []string{purge.Links[0].SpanContext.TraceID().String()}
		want := []string{"000102030405060708090a0b0c0d0e0f"}
		if reservation != "" {
			want = append(want, telemetry.TraceID(reservation).String())
			links = append(links, purge.Links[1].SpanContext.TraceID().String())
			require.Contains(t, purge.Attributes, telemetry.KeyReservationID.String(reservation), "a search for it finds both")
		}
		require.Equal(t, want, links)
	}
}

func TestADeletedDisksSnapshotsGoOnItsDateAndStayIfItIsRestored(t *testing.T) {
	t.Parallel()
	shared := newGround(t)
	for name, c := range map[string]struct {
		disks string
		gone  bool
	}{
		"its date has come":      {"is_deleted = true, delete_date = current_date - 1, in_use = false, reservation_id = null", true},
		"its date is to come":    {"is_deleted = true, delete_date = current_date + 2, in_use = false, reservation_id = null", false},
		"restored":               {"is_deleted = false, delete_date = current_date - 1, in_use = false, reservation_id = null", false},
		"deleted but in use":     {"is_deleted = true, delete_date = current_date - 1", false},
		"deleted without a date": {"is_deleted = true, delete_date = null, in_use = false, reservation_id = null", false},
		"deleted for ever":       {"is_deleted = true, delete_date = '-infinity', in_use = false, reservation_id = null", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := shared.world(t)
			id := w.snapshotOf(t, diskName, 1)
			w.adopt(t)
			w.exec(t, "update disks set snapshot_count = 1, "+c.disks)
			w.purge(t, id)
			require.Equal(t, !c.gone, w.hasSnapshot(t, id))
			require.Equal(t, c.gone, w.disk(t).Snapshots == 0)
		})
	}
}

func TestNeitherAForeignSnapshotNorOneOfNoDiskIsPurged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "update disks set is_deleted = true, delete_date = current_date - 1, in_use = false, reservation_id = null")
	ours := w.snapshotOf(t, diskName, 30)
	original, err := w.EC2.DescribeSnapshot(t.Context(), ours)
	require.NoError(t, err)
	foreign, stranger := w.copyOf(t, original), w.snapshotOf(t, diskName, 30)
	w.account.Alter(stranger, map[string]any{"owner_id": "999999999999"})
	nameless := w.snapshotOf(t, "unheard-of", 30)
	for _, id := range []string{foreign, stranger, nameless} {
		require.Equal(t, "kept", w.purge(t, id).Outcome, id)
		require.True(t, w.hasSnapshot(t, id))
	}
	require.Equal(t, "purged", w.purge(t, ours).Outcome, "never adopted, and purged all the same")
	require.Equal(t, "already_gone", w.purge(t, "snap-0123456789abcdef0").Outcome)
}

func TestASnapshotInUseIsKeptReportedAndTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "update disks set is_deleted = true, delete_date = current_date - 1, in_use = false, reservation_id = null, snapshot_count = 1")
	id := w.snapshotOf(t, diskName, 30)
	w.adopt(t)
	w.account.Fail(stacktest.Fault{Action: "ec2:DeleteSnapshot", Times: 1, Status: 400, Code: "InvalidSnapshot.InUse"})
	report := w.purge(t, id)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, report.Error, "in use")
	require.Equal(t, 1, w.disk(t).Snapshots)
	require.Contains(t, read[string](t, w, "select last_error from expiry.follow_ups where kind = 'snapshot.purge'"), "in use")
	require.Equal(t, "purged", w.purge(t, id).Outcome)
	require.Zero(t, w.disk(t).Snapshots)
}

func TestAPurgeWhoseAnswerIsLostCountsOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "update disks set is_deleted = true, delete_date = current_date - 1, in_use = false, reservation_id = null, snapshot_count = 2")
	id := w.snapshotOf(t, diskName, 30)
	w.adopt(t)
	w.reset(nil, func(call string) error {
		if call == "DeleteSnapshot" {
			return fault.Errorf(fault.Transient, "no answer")
		}
		return nil
	})
	require.Equal(t, followup.StateFailed, w.purge(t, id).State)
	require.Equal(t, 2, w.disk(t).Snapshots)
	w.reset(nil, nil)
	for range 2 {
		require.Equal(t, "already_gone", w.purge(t, id).Outcome)
		require.Equal(t, 1, w.disk(t).Snapshots)
	}
}

func TestADiskRestoredWhileItsSnapshotIsAboutToGoLosesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, "update disks set is_deleted = true, delete_date = current_date - 1, in_use = false, reservation_id = null")
	id := w.snapshotOf(t, diskName, 30)
	w.adopt(t)
	w.reset(func(call string) error {
		if call == "DescribeSnapshot" { // the first look, before the lock
			w.exec(t, "update disks set is_deleted = false")
		}
		return nil
	}, nil)
	require.Equal(t, "kept", w.purge(t, id).Outcome)
	require.True(t, w.hasSnapshot(t, id))
}

func TestASnapshotThatThePlatformMadeIsFollowedAndCountedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account.Set(stacktest.Settings{Snapshot: -1})
	id := w.snapshotOf(t, diskName, 0)
	w.exec(t, "update disks set pending_snapshot_count = 1, is_backing_up = true")
	require.Equal(t, 1, w.adopt(t))
	require.Equal(t, followup.StatePostponed, w.deliver(t, postgres.SnapshotSync).State)
	w.account.Alter(id, map[string]any{"state": "completed"})
	found, err := w.EC2.FindSnapshots(t.Context(), map[string]string{disk.TagUser: user})
	require.NoError(t, err)
	lease, _, _, err := w.db.BeginSweep(t.Context(), uuid.New(), "test", "test", time.Minute)
	require.NoError(t, err)
	n, err := w.db.RequestSyncs(t.Context(), lease, found)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, 1, read[int](t, w, "select count(*)::int from expiry.follow_ups where kind = 'snapshot.sync' and due_at <= now()"))
	for range 2 {
		require.Equal(t, "completed", w.deliver(t, postgres.SnapshotSync).Outcome)
		w.exec(t, "update expiry.follow_ups set state = 'due'")
	}
	require.Equal(t, row{InUse: true, Holder: w.id, Volume: w.volume, Snapshots: 1}, w.disk(t), "it is no proof for any cleanup")
	require.True(t, w.exists(t))
	require.Equal(t, 1, read[int](t, w, "select count(*)::int from expiry.facts where type = 'dev.gpudev.disk.snapshotted.v1' and subject = $1", id))
}
