package report_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

func swept(since, took time.Duration, outcome string, changes ...func(*postgres.SweepRow)) postgres.SweepRow {
	finished := ago(since - took)
	row := postgres.SweepRow{
		SweepID: uuid.MustParse("22222222-2222-4222-8222-222222222222"), Trigger: event.Ping, StartedAt: ago(since), FinishedAt: &finished, Outcome: outcome,
		Counts: map[string]int{"podsListed": 40}, Brake: json.RawMessage("null"), Anomalies: json.RawMessage("[]"),
	}
	for _, change := range changes {
		change(&row)
	}
	return row
}

// bad is the worst of all nights.
func bad() report.Standing {
	until := ahead(90 * time.Minute)
	stuck := followUp(postgres.Cleanup, id, ahead(40*time.Minute))
	stuck.Attempts, stuck.LastError = 12, "delete pod gpu-dev/gpu-dev-5f0c2d1e: forbidden"
	return report.Standing{
		Backlog: postgres.Backlog{
			Now: now, Reservations: map[string]int{"active": 41, "preparing": 2, "queued": 1, "expired": 903, "failed": 12, "": 1},
			Cleanups: 8, CleanupsStuck: 1, OldestCleanup: ago(5 * time.Hour), DisksHeld: 3, Snapshots: 2, OldestSnapshot: ago(2 * time.Hour),
			FollowUps: postgres.FollowUpCounts{UnderWay: 1, Due: 4, Waiting: 2, Failing: 3, Stuck: 1},
			Facts:     1204, FactsFailing: 8, OldestFact: ago(49 * time.Hour), FactError: "send dev.gpudev.reservation.expired.v1 to the sink: connection refused",
			DeadLetters: 2,
		},
		Pause: &postgres.Pause{At: ago(30 * time.Minute), Until: &until, Why: "prod-142: wrong deadlines"},
		Forecast: sweep.Forecast{Expire: 20, Fail: 1, Brake: &sweep.Brake{
			State: reservation.BrakeAll, Active: 41, Overdue: 20,
			Reason: "would end 20 of 41 active reservations at once (20 by deadline, 0 dead, 0 missing), more than 20% and more than 5, and the database clock differs from this machine's by 5m0s: nothing ends by deadline or for a missing pod"}},
		Sweeps: []postgres.SweepRow{
			swept(2*time.Minute, 59*time.Second, "partial", func(r *postgres.SweepRow) {
				r.Braked, r.Paused, r.Trigger = true, true, event.SweepRequested
				r.Failures = []event.PartFailure{{Part: "pods", Error: "list pods in gpu-dev:\n\ti/o timeout"}}
				r.Anomalies = json.RawMessage(`[{"kind":"deadline_null","sentence":"…","count":2,"reservationIds":["a","b"]}]`)
			}),
			swept(7*time.Minute, 800*time.Millisecond, "completed", func(r *postgres.SweepRow) {
				r.Counts = map[string]int{"expired": 3, "warningsRequested": 2, "expiriesOvertaken": 0}
			}),
			swept(12*time.Minute, 0, "abandoned", func(r *postgres.SweepRow) { r.FinishedAt = nil }),
			swept(17*time.Minute, 3*time.Second, "failed", func(r *postgres.SweepRow) { r.Brake, r.Anomalies = json.RawMessage(`"?"`), json.RawMessage(`{}`) }),
			swept(22*time.Minute, time.Second, "completed"), swept(27*time.Minute, time.Second, "completed"),
		},
		Past: []postgres.SetMember{
			{Reservation: reservation.Reservation{ID: id, UserID: "ada", Status: reservation.Active, ExpiresAt: at(ago(40 * time.Minute))}},
			{Reservation: reservation.Reservation{ID: "odd", Status: reservation.Active}},
			{Reservation: reservation.Reservation{ID: "in grace by now", Status: reservation.Active, ExpiresAt: at(ago(time.Minute))}},
		},
		Cleanups: []postgres.UnfinishedCleanup{
			{ReservationID: id, UserID: "ada", DiskName: "default", Since: ago(5 * time.Hour), Begun: true, StepsDone: 3, OpenStep: postgres.StepPod, StepError: "forbidden", FollowUp: &stuck},
			{ReservationID: "b", UserID: "bob", Since: ago(time.Hour), Begun: true, StepsDone: 8, OpenStep: postgres.StepDisk, WaitsFor: "volume vol-1 is detaching"},
			{ReservationID: "c", Since: ago(time.Minute), FollowUp: &postgres.FollowUpRecord{FollowUp: postgres.FollowUp{DueAt: ago(time.Minute)}}},
			{ReservationID: "d", Since: ago(time.Minute), Begun: true, StepsDone: 8, FollowUp: &postgres.FollowUpRecord{
				FollowUp: postgres.FollowUp{Kind: postgres.SnapshotSync, DueAt: ahead(20 * time.Second)}}},
			{ReservationID: "e", Since: ago(time.Minute), Begun: true, FollowUp: &postgres.FollowUpRecord{HeldUntil: ahead(time.Minute)}},
			{ReservationID: "f", Since: ago(time.Minute), Begun: true},
		},
		Snapshots: []postgres.SnapshotRecord{
			{State: postgres.SnapshotIntended, User: "ada", DiskName: "default", VolumeID: "vol-0123456789abcdef0", ReservationID: id, IntendedAt: ago(2 * time.Hour)},
			{SnapshotID: "snap-0fedcba9876543210", State: postgres.SnapshotPending, User: "bob", DiskName: "data", IntendedAt: ago(time.Minute)},
		},
		Stuck: []postgres.FollowUpRecord{stuck},
		DeadLetters: []postgres.DeadLetter{
			{ID: 8, ReceivedAt: ago(3 * time.Minute), Arrivals: 2, EventType: event.CleanupRequested, EventSubject: id, ErrorCode: "503", ErrorData: "shutting down"},
			{ID: 7, ReceivedAt: ago(2 * time.Hour), Arrivals: 1, EventType: "com.example.stray", ErrorCode: "400", ErrorData: `{"error":"events of type \"com.example.stray\" are not taken"}`},
		},
	}
}

func TestStatusLooksLikeThis(t *testing.T) {
	t.Parallel()
	quiet := report.Standing{
		Backlog: postgres.Backlog{Now: now, Reservations: map[string]int{"active": 12, "expired": 903}},
		Sweeps:  []postgres.SweepRow{swept(3*time.Minute, 400*time.Millisecond, "completed"), swept(8*time.Minute, 400*time.Millisecond, "completed")},
	}
	late := quiet
	late.Sweeps = []postgres.SweepRow{swept(3*time.Hour, time.Second, "completed", func(r *postgres.SweepRow) {
		r.Braked, r.Brake = true, json.RawMessage(`{"state":"missing_pods_stopped","reason":"would end 30 of 40: nothing ends for a missing pod","active":40,"missing":30}`)
	})}
	late.Backlog.Facts = 12
	for name, in := range map[string]report.Standing{"status-quiet": quiet, "status-late": late, "status-bad": bad(), "status-new": {Backlog: postgres.Backlog{Now: now}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			looksLike(t, name, report.Status(in, rules.Grace()))
		})
	}
}

func TestSweepsLookLikeThis(t *testing.T) {
	t.Parallel()
	decisions := []sweep.Decision{
		{ReservationID: id, Action: sweep.Expire, Reason: "expired: its time ended at 2026-03-14 12:20:00 UTC"},
		{ReservationID: "7e57ab1e-0000-4000-8000-000000000000", Action: sweep.Warn, Reason: "15-minute warning: its time ends at 2026-03-14 12:45:00 UTC; passed over: [30]"},
		{Subject: "snap-0fedcba9876543210", Action: "purge", Reason: "its disk ada/default is deleted since 2026-01-01"},
	}
	whole := report.Swept{
		Result: sweep.Result{
			Trigger: "shell", SweepID: "22222222-2222-4222-8222-222222222222", StartedAt: ago(time.Minute), FinishedAt: ago(58 * time.Second), Outcome: sweep.Completed,
			Decided: decisions, Counts: map[string]int{"expired": 1, "warningsRequested": 1},
		},
		FollowUps: []report.FollowUp{
			report.Carried(followup.Report{Kind: postgres.Cleanup, Key: id, State: followup.StatePostponed, Next: 30 * time.Second}, nil),
			report.Carried(followup.Report{Kind: postgres.Warning, Key: id + "/1773491100/15", State: followup.StateDone, Outcome: "sent"}, nil),
			report.Carried(followup.Report{Kind: postgres.Notice, Key: id + "/containerd://0123/1773491100", State: followup.StateFailed, Next: time.Minute, Error: "no pod\nto write to"}, nil),
			report.Carried(followup.Report{Kind: postgres.AvailabilityUpdate, Key: "all"}, errors.New("record the result:\n\tconnection reset")),
		},
		Left: "the time for follow-ups, 4m, is over: what is left is done by the next sweep", Announced: 3,
	}
	until := ahead(time.Hour)
	dry := report.Swept{Result: sweep.Result{
		Trigger: "shell", StartedAt: now, Outcome: sweep.Partial, DryRun: true, Planned: decisions, Counts: map[string]int{"missingHeldBack": 30},
		Paused:   &postgres.Pause{At: ago(time.Hour), Until: &until, Why: "EKS upgrade"},
		Failures: []event.PartFailure{{Part: "pods", Error: "list pods in gpu-dev: i/o timeout"}},
		Brake:    &sweep.Brake{State: reservation.BrakeMissing, Reason: "would end 30 of 41 active reservations at once: nothing ends for a missing pod", Active: 41, Missing: 30},
		Anomalies: []sweep.Anomaly{
			{Kind: reservation.DeadlineNull, Sentence: reservation.DeadlineNull.Sentence(), Count: 3, ReservationIDs: []string{"a", "b"}},
			{Kind: "snapshots_kept", Sentence: "snapshots are kept", Count: 1, Subjects: []string{"ada/work"}},
		},
	}}
	for name, view := range map[string]report.Swept{
		"sweep-whole": whole, "sweep-dry": dry, "sweep-skipped": {Result: sweep.Result{Outcome: sweep.Skipped}},
		"sweep-idle": {Result: sweep.Result{Outcome: sweep.Completed, StartedAt: now, FinishedAt: now}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			looksLike(t, name, view)
		})
	}
}

func TestDeadLettersLookLikeThis(t *testing.T) {
	t.Parallel()
	letters := append([]postgres.DeadLetter{}, bad().DeadLetters...)
	letters = append(letters,
		postgres.DeadLetter{ID: 6, ReceivedAt: ago(time.Hour), Arrivals: 3, EventType: event.Ping, ReplayedAt: ago(2 * time.Hour), Replays: 1, ErrorCode: "500"},
		postgres.DeadLetter{ID: 5, ReceivedAt: ago(3 * time.Hour), Arrivals: 1, EventType: event.Ping, ReplayedAt: ago(2 * time.Hour), Replays: 1})
	looksLike(t, "dead-letters", report.ListDeadLetters(letters, now))
	looksLike(t, "dead-letters-none", report.ListDeadLetters(nil, now))
}

func TestAheadSaysHowManyWillEndAndHow(t *testing.T) {
	t.Parallel()
	require.Equal(t, "no reservation will end", report.Ahead(sweep.Forecast{}))
	require.Equal(t, "1 reservation will end: 1 will expire", report.Ahead(sweep.Forecast{Expire: 1}))
	require.Equal(t, "6 reservations will end: 3 will expire, 2 will fail, 1 will be cancelled", report.Ahead(sweep.Forecast{Expire: 3, Fail: 2, Cancel: 1}))
	require.Empty(t, report.Braking(sweep.Forecast{}))
	until := ahead(2 * time.Hour)
	require.Equal(t, "until 14:31:00 UTC, for 2h: EKS upgrade", report.Until(postgres.Pause{At: now, Until: &until, Why: "EKS\nupgrade"}))
	require.Equal(t, "until resumed: because", report.Until(postgres.Pause{At: now, Why: "because"}))
}

func TestSpansHaveTheTwoUnitsThatMatter(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "<1ms", time.Microsecond: "<1ms", 30 * time.Millisecond: "30ms", time.Second: "1s", 1500 * time.Millisecond: "1.5s", 12700 * time.Millisecond: "12s",
		4 * time.Minute: "4m", 4*time.Minute + 5*time.Second: "4m 05s", 3 * time.Hour: "3h", 47*time.Hour + 59*time.Minute: "47h 59m", 50 * time.Hour: "2d 02h",
		-90 * time.Second: "1m 30s",
	} {
		require.Equal(t, want, report.Span(d))
	}
}
