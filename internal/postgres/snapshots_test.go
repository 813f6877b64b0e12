package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestSizeAndListingAreOfTheNewestSnapshotInWhateverOrderTheyComplete(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		exec(t, db, `insert into disks (user_id, disk_name, pending_snapshot_count, is_backing_up, disk_size) values ('alice', 'work', 3, true, '0.5G')`)
		now := time.Now().UTC().Truncate(time.Second)
		seen := func(id string, age time.Duration, size string) disk.Snapshot {
			s := disk.Snapshot{ID: id, State: disk.SnapshotPending, StartedAt: now.Add(-age), Tags: map[string]string{disk.TagUser: "alice", disk.TagDisk: "work"}}
			if size != "" {
				s.Tags[disk.TagSize], s.Tags[disk.TagContents] = size, "s3://"+size
			}
			return s
		}
		old, newer, newest := seen("snap-1", 3*time.Hour, "1G"), seen("snap-2", 2*time.Hour, "2G"), seen("snap-3", time.Hour, "")
		n, err := db.AdoptSnapshots(t.Context(), []disk.Snapshot{old, newer, newest})
		require.NoError(t, err)
		require.Equal(t, 3, n)
		complete := func(s disk.Snapshot) {
			record, known, err := db.SnapshotByID(t.Context(), s.ID)
			require.NoError(t, err)
			require.True(t, known)
			for i := range 2 {
				done, err := db.CompleteSnapshot(t.Context(), record, s)
				require.NoError(t, err)
				require.Equal(t, i == 0, done)
			}
		}
		state := func() string {
			return text(t, db, `select concat_ws(' ', snapshot_count, pending_snapshot_count, is_backing_up, disk_size, latest_snapshot_content_s3,
				(extract(epoch from $1::timestamptz - last_snapshot_at) / 3600)::int) from disks`, now)
		}
		complete(newer)
		require.Equal(t, "1 2 t 2G s3://2G 2", state())
		complete(old)
		require.Equal(t, "2 1 t 2G s3://2G 2", state())
		complete(newest)
		require.Equal(t, "3 0 f 2G s3://2G 1", state(), "what is not known of the newest stays as it was")
	})
}

// books is a disk with all that happens to its snapshots, in EC2 and in the database.
type books struct {
	db        *postgres.DB
	user      string
	ec2       []disk.Snapshot
	completed int // that ever did, and are there
	ours      bool
}

func (b *books) exec(t *rapid.T, statement string, args ...any) {
	require.NoError(t, postgres.Exec(context.Background(), b.db, statement, args...))
}

func (b *books) count(t *rapid.T) (counted, pending int, backingUp bool) {
	got, err := postgres.Text(context.Background(), b.db, `
		select format('%s %s %s', snapshot_count, pending_snapshot_count, is_backing_up::text) from disks where user_id = $1`, b.user)
	require.NoError(t, err)
	_, err = fmt.Sscan(got, &counted, &pending, &backingUp)
	require.NoError(t, err)
	return counted, pending, backingUp
}

func (b *books) tags(more map[string]string) map[string]string {
	tags := map[string]string{disk.TagUser: b.user, disk.TagDisk: "work"}
	maps.Copy(tags, more)
	return tags
}

// appear adds a pending snapshot to EC2.
func (b *books) appear(tags map[string]string) disk.Snapshot {
	s := disk.Snapshot{ID: "snap-" + uuid.NewString(), VolumeID: volume, State: disk.SnapshotPending, StartedAt: time.Now().Add(-time.Hour), Tags: b.tags(tags)}
	b.ec2 = append(b.ec2, s)
	return s
}

func (b *books) end(i int, as disk.SnapshotState) {
	if b.ec2[i].State == disk.SnapshotPending {
		b.ec2[i].State = as
		if as == disk.SnapshotCompleted {
			b.completed++
		}
	}
}

// sync does for each snapshot in the books what snapshot.sync does.
func (b *books) sync(t *rapid.T) {
	for _, s := range b.ec2 {
		record, known, err := b.db.SnapshotByID(context.Background(), s.ID)
		require.NoError(t, err)
		if !known {
			continue
		}
		switch s.State {
		case disk.SnapshotCompleted:
			_, err = b.db.CompleteSnapshot(context.Background(), record, s)
		case disk.SnapshotError:
			_, err = b.db.FailSnapshot(context.Background(), record, "error")
		}
		require.NoError(t, err)
	}
}

func (b *books) adopt(t *rapid.T) {
	_, err := b.db.AdoptSnapshots(context.Background(), b.ec2)
	require.NoError(t, err)
	b.ours = true
}

// attempt is a cleanup's attempt; the answer may be lost after it took effect, or the request before.
func (b *books) attempt(t *rapid.T, id string, fate string) {
	ctx := context.Background()
	s, made, _, err := b.db.IntendSnapshot(ctx, id, uuid.New())
	require.NoError(t, err)
	if !made {
		if s.State == postgres.SnapshotIntended {
			b.look(t, s)
		}
		return
	}
	_, _, err = b.db.MakeSnapshot(ctx, s, func(context.Context) (disk.Snapshot, error) {
		if fate == "lost before" {
			return disk.Snapshot{}, errors.New(fate)
		}
		snapshot := b.appear(disk.IntentTags(s.IntentID.String()))
		if fate == "lost after" {
			return disk.Snapshot{}, errors.New(fate)
		}
		return snapshot, nil
	})
	require.Equal(t, fate == "answered", err == nil, err)
}

// look finds what an intent made, or gives it up.
func (b *books) look(t *rapid.T, s postgres.SnapshotRecord) {
	ctx := context.Background()
	for _, f := range b.ec2 {
		if f.Tags[disk.TagIntent] == s.IntentID.String() && rapid.Bool().Draw(t, "listed") {
			require.NoError(t, b.db.FoundSnapshot(ctx, s, f))
			return
		}
	}
	require.NoError(t, b.db.AbandonSnapshot(ctx, s.IntentID, "not found"))
}

func TestAPurgeKnowsWhichOfItsDisksSnapshotsWereOrAreToBePurged(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	exec(t, db, `
		insert into expiry.snapshots (intent_id, snapshot_id, user_id, disk_name, state)
		select gen_random_uuid(), id, 'alice', disk, state from (values
		    ('snap-it', 'default', 'completed'), ('snap-stays', 'default', 'completed'), ('snap-purged', 'default', 'purged'),
		    ('snap-due', 'default', 'completed'), ('snap-kept', 'default', 'completed'), ('snap-other', 'another', 'purged')) s(id, disk, state)`)
	exec(t, db, `
		insert into expiry.follow_ups (kind, key, subject, state) values
		    ('snapshot.purge', 'snap-it', 'a', 'due'), ('snapshot.purge', 'snap-due', 'a', 'due'), ('snapshot.purge', 'snap-kept', 'a', 'done')`)
	record, known, err := db.SnapshotByID(t.Context(), "snap-it")
	require.NoError(t, err)
	require.True(t, known)
	_, err = db.PurgeSnapshot(t.Context(), record, func(_ context.Context, _ postgres.SnapshotRecord, _ *disk.Row, going []string) (bool, error) {
		require.ElementsMatch(t, []string{"snap-it", "snap-due", "snap-purged"}, going)
		return false, nil
	})
	require.NoError(t, err)
}

func TestEachCompletedSnapshotIsCountedOnceAndPendingOnesEndAtNone(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	rapid.Check(t, func(t *rapid.T) {
		id := uuid.NewString()
		b := &books{db: db, user: id}
		b.exec(t, "update disks set ebs_volume_id = null") // the one that was tried before has the volume no more
		held(t, db, id, b.user)
		some := func() int {
			if len(b.ec2) == 0 {
				// The property draws another step; no test is skipped.
				t.Skip("nothing is there yet")
			}
			return rapid.IntRange(0, len(b.ec2)-1).Draw(t, "which")
		}
		t.Repeat(map[string]func(*rapid.T){
			"the platform makes one": func(t *rapid.T) {
				b.exec(t, "update disks set pending_snapshot_count = pending_snapshot_count + 1, is_backing_up = true where user_id = $1", b.user)
				b.appear(nil)
			},
			"an earlier version counts one": func(t *rapid.T) {
				if b.ours {
					// The property draws another step; no test is skipped.
					t.Skip("it has been replaced")
				}
				b.exec(t, "update disks set snapshot_count = snapshot_count + 1 where user_id = $1", b.user)
				b.appear(nil)
				b.end(len(b.ec2)-1, disk.SnapshotCompleted)
			},
			"the cleanup tries": func(t *rapid.T) {
				b.attempt(t, id, rapid.SampledFrom([]string{"answered", "lost before", "lost after"}).Draw(t, "fate"))
			},
			"the volume has a writer again": func(t *rapid.T) { require.NoError(t, db.ForgetWriterGone(context.Background(), id)) },
			"time passes": func(t *rapid.T) {
				b.exec(t, "update expiry.snapshots set intended_at = intended_at - interval '5 minutes' where user_id = $1", b.user)
				b.exec(t, "update expiry.cleanups set writer_gone_at = writer_gone_at - interval '5 minutes' where reservation_id = $1", id)
			},
			"one completes": func(t *rapid.T) { b.end(some(), disk.SnapshotCompleted) },
			"one fails":     func(t *rapid.T) { b.end(some(), disk.SnapshotError) },
			"one is purged": func(t *rapid.T) {
				i := some()
				record, known, err := db.SnapshotByID(context.Background(), b.ec2[i].ID)
				require.NoError(t, err)
				if !known {
					// The property draws another step; no test is skipped.
					t.Skip("not in the books")
				}
				gone, err := db.PurgeSnapshot(context.Background(), record, func(context.Context, postgres.SnapshotRecord, *disk.Row, []string) (bool, error) { return true, nil })
				require.NoError(t, err)
				if gone {
					if b.ec2[i].State == disk.SnapshotCompleted {
						b.completed--
					}
					b.ec2 = append(b.ec2[:i:i], b.ec2[i+1:]...)
				}
			},
			"sweep": b.adopt,
			"sync":  b.sync,
			"": func(t *rapid.T) {
				if _, pending, _ := b.count(t); pending < 0 {
					t.Fatalf("%d pending", pending)
				}
			},
		})
		// All that is under way ends, and what is in doubt gets its time.
		for i := range b.ec2 {
			b.end(i, disk.SnapshotCompleted)
		}
		b.exec(t, "update expiry.snapshots set state = 'abandoned' where user_id = $1 and state = 'intended'", b.user)
		b.exec(t, "update expiry.snapshots set intended_at = intended_at - interval '5 minutes' where user_id = $1", b.user)
		for range 3 { // what an attempt has made comes into the books first, which changes the disk's row
			b.exec(t, "update disks set last_updated = last_updated - interval '10 minutes' where user_id = $1", b.user)
			b.adopt(t)
			b.sync(t)
		}
		counted, pending, backingUp := b.count(t)
		if counted != b.completed || pending != 0 || backingUp {
			t.Fatalf("%d counted of %d, %d pending, backing up %t", counted, b.completed, pending, backingUp)
		}
	})
}

func TestADiskThatSomebodyWorksOnIsAdoptedNextTime(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		held(t, db, "old", "alice")
		all := []disk.Snapshot{
			{ID: "snap-1", State: disk.SnapshotPending, Tags: map[string]string{disk.TagUser: "alice", disk.TagDisk: "work"}},
			{ID: "snap-2", State: disk.SnapshotPending, Tags: map[string]string{disk.TagUser: "bob", disk.TagDisk: "work"}},
		}
		_, err := db.WithDisk(t.Context(), "old", func(ctx context.Context) error {
			n, err := db.AdoptSnapshots(ctx, all)
			require.NoError(t, err)
			require.Equal(t, 1, n, "the sweep does not wait")
			return nil
		})
		require.NoError(t, err)
		n, err := db.AdoptSnapshots(t.Context(), all)
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
}

func TestSyncsAreAskedForAtOnceWhereEC2SaysThatASnapshotHasEnded(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		var all []disk.Snapshot
		for i := range 3 {
			all = append(all, disk.Snapshot{ID: fmt.Sprintf("snap-%d", i), State: disk.SnapshotPending, Tags: map[string]string{disk.TagUser: "alice"}})
		}
		lease, _, _, err := db.BeginSweep(t.Context(), uuid.New(), "test", "test", time.Minute)
		require.NoError(t, err)
		_, err = db.SweepSnapshots(t.Context(), lease, all)
		require.NoError(t, err)
		exec(t, db, "update expiry.follow_ups set due_at = now() + interval '4 minutes'")
		exec(t, db, "update expiry.follow_ups set attempts = 1 where subject = 'snap-2'")
		all[0].State, all[2].State = disk.SnapshotCompleted, disk.SnapshotError
		n, err := db.RequestSyncs(t.Context(), lease, all)
		require.NoError(t, err)
		require.Equal(t, 2, n)
		require.Equal(t, "snap-0", text(t, db, "select string_agg(subject, ' ') from expiry.follow_ups where due_at <= clock_timestamp()"),
			"one that fails keeps its pause")
	})
}
