package report_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

const id = "5f0c2d1e-93b4-4b2b-8a57-6f3f6f0b2c11"

func at(t time.Time) reservation.Instant { return reservation.At(t) }

// running is a reservation with so much time left.
func running(left time.Duration, changes ...func(*postgres.Life)) postgres.Life {
	l := postgres.Life{
		Now: now, ReservationID: id, Deadline: ahead(left),
		Row: &reservation.Reservation{
			ID: id, UserID: "ada", Status: reservation.Active, Name: "trainer", GPUType: "h100", GPUCount: 8, PodName: "gpu-dev-5f0c2d1e",
			CreatedAt: at(ago(8 * time.Hour)), LaunchedAt: at(ago(7*time.Hour + 50*time.Minute)), ExpiresAt: at(ahead(left)),
			DiskName: "default",
		},
	}
	for _, change := range changes {
		change(&l)
	}
	return l
}

func warning(deadline time.Time, level int, done bool, outcome string, finished time.Time) postgres.FollowUpRecord {
	return postgres.FollowUpRecord{
		FollowUp: postgres.FollowUp{Kind: postgres.Warning, Key: event.WarningKey(id, deadline, level), ReservationID: id, DueAt: ago(time.Minute)},
		Done:     done, Outcome: outcome, FinishedAt: finished,
	}
}

func followUp(kind postgres.FollowUpKind, key string, due time.Time) postgres.FollowUpRecord {
	return postgres.FollowUpRecord{FollowUp: postgres.FollowUp{Kind: kind, Key: key, ReservationID: id, DueAt: due, Dispatch: 1}}
}

// over is a reservation that this service has expired, with its cleanup under way.
func over(changes ...func(*postgres.Life)) postgres.Life {
	const reason = "expired: its time ended at 2026-03-14 12:20:00 UTC"
	l := running(-11 * time.Minute)
	l.Row.Status, l.Row.ReservationEnded = reservation.Expired, at(ago(8*time.Minute))
	l.Ended = &postgres.Announced{Type: event.ReservationExpired, Ended: event.Ended{ReservationID: id, Reason: reason, EndedAt: ago(8 * time.Minute)}}
	l.FollowUps = []postgres.FollowUpRecord{
		warning(l.Deadline, 30, true, "sent", ago(40*time.Minute)), warning(l.Deadline, 15, true, "sent", ago(26*time.Minute)),
		warning(l.Deadline, 5, true, "sent", ago(15*time.Minute)),
		followUp(postgres.Cleanup, id, ahead(20*time.Second)),
	}
	l.Cleanup = &postgres.CleanupRecord{
		Identity:      postgres.Identity{Namespace: "gpu-dev", PodName: "gpu-dev-5f0c2d1e", VolumeID: "vol-0123456789abcdef0", DiskName: "default"},
		ReservationID: id, Reason: reason, UserID: "ada", GPUType: "h100", Ended: ago(8 * time.Minute), ContentURL: "s3://disks/ada/default/contents.txt",
		RequestedAt: ago(8 * time.Minute), PodGoneAt: ago(6 * time.Minute), DetachRequestedAt: ago(5 * time.Minute),
	}
	done := func(step postgres.Step, detail string) postgres.StepRecord {
		return postgres.StepRecord{Step: step, StartedAt: ago(8 * time.Minute), FinishedAt: ago(7 * time.Minute), Outcome: "done", Detail: detail}
	}
	l.Steps = map[postgres.Step]postgres.StepRecord{
		postgres.StepIdentify: done(postgres.StepIdentify, "pod gpu-dev/gpu-dev-5f0c2d1e on node-7"),
		postgres.StepNotice:   done(postgres.StepNotice, ""),
		postgres.StepListing: {Step: postgres.StepListing, StartedAt: ago(8 * time.Minute), FinishedAt: ago(7*time.Minute + 30*time.Second),
			Outcome: "missing", Attempts: 2, LastError: "list /home/dev: command timed out after 15s"},
		postgres.StepServices: done(postgres.StepServices, "gpu-dev-5f0c2d1e-ssh"),
		postgres.StepPod:      done(postgres.StepPod, ""),
		postgres.StepDNS: {Step: postgres.StepDNS, StartedAt: ago(7 * time.Minute), Attempts: 11,
			LastError: "list records of grumpy-bear.dev.example.org: Throttling: Rate exceeded"},
		postgres.StepDisk: {Step: postgres.StepDisk, StartedAt: ago(6 * time.Minute), Detail: "volume vol-0123456789abcdef0 is in-use, detaching since 5m"},
	}
	l.Disks = []postgres.DiskRecord{{
		UserID: "ada", Name: "default", InUse: true, HolderID: id, VolumeID: "vol-0123456789abcdef0", Size: "112G", Snapshots: 3, LastSnapshotAt: ago(26 * time.Hour),
	}}
	for _, change := range changes {
		change(&l)
	}
	return l
}

func snapshotOf(state postgres.SnapshotState, change ...func(*postgres.SnapshotRecord)) postgres.SnapshotRecord {
	s := postgres.SnapshotRecord{
		IntentID: uuid.MustParse("11111111-1111-4111-8111-111111111111"), SnapshotID: "snap-0fedcba9876543210", ReservationID: id, User: "ada", DiskName: "default",
		VolumeID: "vol-0123456789abcdef0", Attempt: 1, State: state, DiskSize: "112G", IntendedAt: ago(4 * time.Minute),
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func settled(l *postgres.Life) {
	l.FollowUps = l.FollowUps[:3]
	l.Cleanup.WriterGoneAt, l.Cleanup.DiskReleasedAt, l.Cleanup.SettledAt = ago(4*time.Minute), ago(time.Minute), ago(time.Minute)
	l.Cleanup.DetachForcedAt, l.Cleanup.Outcome = ago(270*time.Second), postgres.OutcomeReleased
	for _, step := range postgres.Steps() {
		l.Steps[step] = postgres.StepRecord{Step: step, StartedAt: ago(8 * time.Minute), FinishedAt: ago(time.Minute), Outcome: "done"}
	}
	l.Snapshots = []postgres.SnapshotRecord{
		snapshotOf(postgres.SnapshotError, func(s *postgres.SnapshotRecord) { s.SettledAt, s.Detail = ago(3*time.Minute), "EC2: internal error" }),
		snapshotOf(postgres.SnapshotCompleted, func(s *postgres.SnapshotRecord) {
			s.Attempt, s.SettledAt, s.CrashConsistent, s.VolumeAsideAt = 2, ago(time.Minute), true, ago(time.Minute)
		}),
	}
	l.Disks[0] = postgres.DiskRecord{UserID: "ada", Name: "default", Size: "112G", Snapshots: 4, LastSnapshotAt: ago(4 * time.Minute)}
}

func TestExplanationsLookLikeThis(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]postgres.Life{
		"explain-live": running(12*time.Minute, func(l *postgres.Life) {
			l.FollowUps = []postgres.FollowUpRecord{
				warning(ago(time.Hour), 30, true, "sent", ago(90*time.Minute)), // of before an extension
				warning(l.Deadline, 30, true, postgres.PassedOver, ago(2*time.Minute)), warning(l.Deadline, 15, true, "sent", ago(2*time.Minute)),
			}
			l.Disks = []postgres.DiskRecord{{UserID: "ada", Name: "default", InUse: true, HolderID: id, VolumeID: "vol-0123456789abcdef0", Snapshots: 1}}
		}),
		"explain-troubled": running(12*time.Minute, func(l *postgres.Life) {
			until := ahead(2 * time.Hour)
			l.Row.ExpiresAt, l.Row.IsMultinode, l.Row.MasterID, l.Row.NodeIndex, l.Row.TotalNodes = at(ahead(10*time.Minute)), true, "0a0a0a0a", 1, 4
			l.Pause = &postgres.Pause{At: ago(time.Hour), Until: &until, Why: "EKS upgrade, ask Bob"}
			l.Missing = &postgres.MissingPod{FirstSeen: ago(3 * time.Minute), LastSeen: ago(time.Minute)}
			l.OOMKill = &postgres.OOMKill{Container: "gpu-dev", FinishedAt: ago(20 * time.Minute)}
			l.Row.OOMCount = 3
			w := warning(l.Deadline, 15, false, "", time.Time{})
			w.Attempts, w.LastError, w.DueAt = 4, "write to pod gpu-dev/gpu-dev-5f0c2d1e: container not running", ahead(90*time.Second)
			l.FollowUps = []postgres.FollowUpRecord{w}
		}),
		"explain-unsound": running(0, func(l *postgres.Life) {
			l.Row.ExpiresAt, l.Deadline, l.Anomaly = reservation.Instant{}, time.Time{}, reservation.DeadlineNull
		}),
		"explain-cleaning": over(func(l *postgres.Life) { l.Snapshots = []postgres.SnapshotRecord{snapshotOf(postgres.SnapshotPending)} }),
		"explain-settled":  over(settled),
		"explain-gone": over(settled, func(l *postgres.Life) {
			l.Row, l.Ended, l.Disks, l.Cleanup.Outcome = nil, nil, nil, postgres.OutcomeLost
			l.Cleanup.Vanished, l.Cleanup.Deadline = true, ago(11*time.Minute)
		}),
		"explain-hostile": running(time.Hour, func(l *postgres.Life) {
			l.Row.UserID, l.Row.Name = "eve\x1b[2J\x00", "a\nb\r\tc\u202e"
			w := warning(l.Deadline, 30, false, "", time.Time{})
			w.Attempts, w.LastError = 12, "\x1b]0;owned\x07\nsecond line of an error that goes on, and on, and on, and is wider than any screen that anybody has"
			l.FollowUps = []postgres.FollowUpRecord{w}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			looksLike(t, name, report.Explain(l, rules))
		})
	}
}

func TestWhatComesNextAndWhy(t *testing.T) {
	t.Parallel()
	status := func(s reservation.Status) func(*postgres.Life) { return func(l *postgres.Life) { l.Row.Status = s } }
	for name, c := range map[string]struct {
		life postgres.Life
		want []string // when: what, the first thing first
	}{
		"long before its end":  {running(3 * time.Hour), []string{"in 2h 30m (15:01:00 UTC): 30-minute warning", "in 3h 02m (15:33:00 UTC): expires"}},
		"a warning is due":     {running(14 * time.Minute), []string{"next tick: 15-minute warning", "in 16m (12:47:00 UTC): expires"}},
		"past the last":        {running(4*time.Minute, func(l *postgres.Life) { l.FollowUps = append(l.FollowUps, warning(l.Deadline, 5, true, "sent", now)) }), []string{"in 6m (12:37:00 UTC): expires"}},
		"in its grace":         {running(-time.Minute), []string{"in 1m (12:32:00 UTC): expires"}},
		"overdue":              {running(-5 * time.Minute), []string{"next tick: expires"}},
		"of unheard-of status": {running(time.Hour, status("migrating")), []string{"–: nothing"}},
		"queued": {running(time.Hour, status(reservation.Queued), func(l *postgres.Life) { l.Row.LaunchedAt = reservation.Instant{} }),
			[]string{"in 40h (2026-03-16 04:31:00 UTC): is cancelled unless it gets its server"}},
		"preparing for too long": {running(time.Hour, status(reservation.Preparing)), []string{"next tick: fails"}},
		"of unknown age": {running(time.Hour, status(reservation.Preparing), func(l *postgres.Life) {
			l.Row.CreatedAt, l.Row.LaunchedAt = reservation.Instant{}, reservation.Infinity()
		}), []string{"–: nothing"}},
		"missing for long enough": {running(time.Hour, func(l *postgres.Life) {
			l.Missing = &postgres.MissingPod{FirstSeen: ago(5 * time.Minute), LastSeen: ago(time.Minute)}
		}), []string{"next tick: expires for want of its server", "in 30m (13:01:00 UTC): 30-minute warning", "in 1h 02m (13:33:00 UTC): expires"}},
		"ended, never cleaned up":         {ended(time.Hour), []string{"next tick: cleanup"}},
		"ended long ago":                  {ended(8*24*time.Hour, func(l *postgres.Life) { l.Leftover = false }), []string{"–: nothing"}},
		"its cleanup nobody is asked for": {over(func(l *postgres.Life) { l.FollowUps = l.FollowUps[:3] }), []string{"next tick: cleanup goes on"}},
		"its cleanup is under way": {over(func(l *postgres.Life) { l.FollowUps[3].HeldUntil = ahead(time.Minute) }),
			[]string{"now: cleanup goes on"}},
		"its cleanup is due": {over(func(l *postgres.Life) { l.FollowUps[3].DueAt = ago(time.Minute) }), []string{"now: cleanup goes on"}},
		"its snapshot is waited for": {over(func(l *postgres.Life) {
			l.FollowUps[3] = followUp(postgres.SnapshotSync, "intent", ahead(30*time.Second))
		}), []string{"in 30s (12:31:30 UTC): snapshot is looked at"}},
		"ended again, a volume set aside of its first life": {over(settled, func(l *postgres.Life) {
			l.Cleanup.EndedAgain, l.Leftover = true, true
			l.FollowUps = []postgres.FollowUpRecord{followUp(postgres.SnapshotSync, "intent", ahead(6*24*time.Hour))}
		}), []string{"next tick: cleanup", "in 6d (2026-03-20 12:31:00 UTC): snapshot is looked at"}},
		"settled": {over(settled), []string{"–: nothing"}},
		"settled, a notice left": {over(settled, func(l *postgres.Life) {
			l.FollowUps = append(l.FollowUps, followUp(postgres.Notice, id+"/c/1", ago(time.Second)))
		}), []string{"now: out-of-memory notice is written", "–: nothing"}},
		"known by a follow-up alone": {postgres.Life{Now: now, ReservationID: id}, []string{"–: nothing"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, n := range report.Explain(c.life, rules).Next {
				require.NotEmpty(t, n.Why)
				got = append(got, n.Moment(now)+": "+n.What)
			}
			require.Equal(t, c.want, got)
		})
	}
}

// ended is a reservation that somebody else has cancelled, so long ago.
func ended(since time.Duration, changes ...func(*postgres.Life)) postgres.Life {
	l := running(time.Hour)
	l.Row.Status, l.Row.CancelledAt, l.Leftover = reservation.Cancelled, at(ago(since)), true
	for _, change := range changes {
		change(&l)
	}
	return l
}

func TestAPauseIsSaidOfWhatItHolds(t *testing.T) {
	t.Parallel()
	pause := func(l *postgres.Life) { l.Pause = &postgres.Pause{At: now, Why: "because"} }
	for name, l := range map[string]postgres.Life{
		"warning": running(14*time.Minute, pause), "expiry": running(-time.Hour, pause), "cleanup": ended(time.Hour, pause),
	} {
		require.Contains(t, report.Explain(l, rules).Next[0].Why, "paused", name)
	}
	require.NotContains(t, report.Explain(over(pause), rules).Next[0].Why, "paused", "what was begun goes on")
}

func TestExplainGivesTheLatestEnd(t *testing.T) {
	t.Parallel()
	l := over(func(l *postgres.Life) {
		l.Row.Status, l.Row.CancelledAt = reservation.Cancelled, at(ago(time.Minute))
		l.Row.ReservationEnded = at(ago(3 * time.Hour)) // of its first life
		l.Cleanup.Ended = ago(time.Minute)
	})
	require.Equal(t, ago(time.Minute), report.Explain(l, rules).Ended.At)
}

func TestAnEndIsOursOnlyWhereTheRowStillSaysSo(t *testing.T) {
	t.Parallel()
	require.Equal(t, "this service", report.Explain(over(), rules).Ended.By)
	revived := over(func(l *postgres.Life) { // and cancelled by its user since
		l.Row.Status, l.Row.ReservationEnded, l.Row.FailureReason = reservation.Cancelled, at(ago(time.Minute)), "by its user"
		l.Cleanup = nil
	})
	end := report.Explain(revived, rules).Ended
	require.Equal(t, "somebody else", end.By)
	require.Equal(t, "by its user", end.Reason)
	require.Equal(t, ago(time.Minute), end.At)
	require.Nil(t, report.Explain(running(time.Hour), rules).Ended)
}
