package event_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/event"
)

var (
	now      = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	deadline = time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)
	builder  = event.Builder{Now: func() time.Time { return now }}
)

const reservation = "0c7ee6cb-1c66-4ac2-b4fb-5ac1a1ab6b8e"

var followUps = map[string]event.FollowUp{
	event.WarningRequested: {Kind: "warning", Key: event.WarningKey(reservation, deadline, 30), ReservationID: reservation, Subject: reservation},
	event.NoticeRequested: {Kind: "notice", Key: event.NoticeKey(reservation, "containerd://a/b", deadline),
		ReservationID: reservation, Subject: reservation},
	event.CleanupRequested:            {Kind: "cleanup", Key: reservation, ReservationID: reservation, Subject: reservation},
	event.SnapshotSyncRequested:       {Kind: "snapshot.sync", Key: "7f1d8a3e-7b3a-4ad4-95b7-0f6a4f0b54a1", ReservationID: reservation, Subject: "snap-1"},
	event.SnapshotPurgeRequested:      {Kind: "snapshot.purge", Key: "snap-1", Subject: "snap-1"},
	event.AvailabilityUpdateRequested: {Kind: "availability.update", Key: event.AvailabilityKey, Subject: "all"},
}

var facts = map[string]any{
	event.ReservationWarned:    event.Warned{ReservationID: reservation, LevelMinutes: 30, ExpiresAt: deadline, WarnedAt: now},
	event.ReservationExpired:   event.Ended{ReservationID: reservation, UserID: "ada", Reason: "past its end", ExpiresAt: &deadline, EndedAt: now},
	event.ReservationFailed:    event.Ended{ReservationID: reservation, Reason: "Evicted", EndedAt: now},
	event.ReservationCancelled: event.Ended{ReservationID: reservation, Reason: "queued for too long", EndedAt: now},
	event.ReservationOOMKilled: event.OOMKilled{ReservationID: reservation, Container: "gpu-dev", KilledAt: now},
	event.ReservationCleanedUp: event.CleanedUp{ReservationID: reservation, Outcome: "released", CleanedUpAt: now},
	event.DiskSnapshotted:      event.DiskSnapshot{UserID: "ada", DiskName: "main", SnapshotID: "snap-1", CompletedAt: now},
	event.DiskReleased:         event.DiskRelease{UserID: "ada", DiskName: "main", ReleasedAt: now},
	event.SweepCompleted: event.Sweep{SweepID: reservation, Trigger: event.Ping, StartedAt: now, FinishedAt: now, Outcome: "partial",
		Counts: map[string]int{"expired": 2}, Failures: []event.PartFailure{{Part: "snapshots", Error: "throttled"}}},
}

// requireValid checks what the CloudEvents specification and this service's own schemas ask of every outgoing event.
func requireValid(t *testing.T, e ce.Event) {
	t.Helper()
	require.NoError(t, e.Validate())
	require.Equal(t, event.DataSchema(e.Type()), e.DataSchema())
	require.Equal(t, ce.ApplicationJSON, e.DataContentType())
	require.NoError(t, event.ValidateData(e.Type(), e.Data()))
	require.NotEmpty(t, e.Extensions()["partitionkey"])
	for name := range e.Extensions() {
		require.Regexp(t, `^[a-z0-9]{1,20}$`, name)
	}
	structured, err := json.Marshal(e)
	require.NoError(t, err)
	require.NotContains(t, string(structured), "data_base64", "people read these in dead letters and logs")
}

func TestEveryFollowUpEventIsValidAndNamesItsRow(t *testing.T) {
	t.Parallel()
	for eventType, f := range followUps {
		f.Dispatch = 3
		e, err := builder.FollowUp(f)
		require.NoError(t, err)
		require.Equal(t, eventType, e.Type())
		requireValid(t, e)
		require.Equal(t, f.Kind+"/"+f.Key+"/3", e.ID())
		require.Equal(t, f.Subject, e.Subject())
		require.Equal(t, event.DefaultSource, e.Source())
		require.Equal(t, now, e.Time())

		kind, key, err := event.KeyOf(e.Type(), e.Data())
		require.NoError(t, err)
		require.Equal(t, f.Kind, kind)
		require.Equal(t, f.Key, key)
	}
}

func TestEveryFactIsValidAndInOrder(t *testing.T) {
	t.Parallel()
	for factType, data := range facts {
		require.True(t, event.IsFact(factType))
		body, err := json.Marshal(data)
		require.NoError(t, err)
		e, err := builder.Fact(event.Fact{ID: "f1", Type: factType, Subject: reservation, Sequence: 12, Data: body, OccurredAt: deadline})
		require.NoError(t, err)
		requireValid(t, e)
		require.Equal(t, "f1", e.ID())
		require.Equal(t, deadline, e.Time())
		require.Equal(t, "0000000012", e.Extensions()["sequence"])
		require.Equal(t, reservation, e.Extensions()["partitionkey"])
	}
}

func TestTheIdChangesWithTheDispatchAndWithNothingElse(t *testing.T) {
	t.Parallel()
	f := followUps[event.CleanupRequested]
	first, err := builder.FollowUp(f)
	require.NoError(t, err)
	later := event.Builder{Now: func() time.Time { return now.Add(time.Hour) }}
	again, err := later.FollowUp(f)
	require.NoError(t, err)
	require.Equal(t, first.ID(), again.ID())
	f.Dispatch++
	asked, err := builder.FollowUp(f)
	require.NoError(t, err)
	require.NotEqual(t, first.ID(), asked.ID())
}

func TestOnlyWhatIsPointlessWhenLateExpires(t *testing.T) {
	t.Parallel()
	for eventType, f := range followUps {
		e, err := builder.FollowUp(f)
		require.NoError(t, err)
		switch eventType {
		case event.WarningRequested:
			require.Equal(t, ce.CloudEventsVersionV1, e.SpecVersion())
			require.Equal(t, "2026-03-01T12:30:00Z", extension(t, e, "expirytime"))
		case event.NoticeRequested:
			require.Equal(t, "2026-03-02T12:30:00Z", extension(t, e, "expirytime"))
		default:
			require.NotContains(t, e.Extensions(), "expirytime", eventType)
		}
	}
}

func extension(t *testing.T, e ce.Event, name string) string {
	t.Helper()
	structured, err := json.Marshal(e)
	require.NoError(t, err)
	var all map[string]any
	require.NoError(t, json.Unmarshal(structured, &all))
	require.Contains(t, all, name)
	return all[name].(string)
}

func TestEventsCarryTheTraceOfWhoAsked(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	f := followUps[event.CleanupRequested]
	f.Traceparent = parent
	e, err := builder.FollowUp(f)
	require.NoError(t, err)
	require.Equal(t, parent, e.Extensions()["traceparent"])
	without, err := builder.FollowUp(followUps[event.CleanupRequested])
	require.NoError(t, err)
	require.NotContains(t, without.Extensions(), "traceparent")
}

func TestKeysSurviveTheirWayThroughTheEvent(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(1, 80, -1).Filter(func(s string) bool { return !strings.ContainsRune(s, 0) }) // no row holds NUL
		id := text.Draw(t, "reservation")
		at := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "at"), 0)
		f := event.FollowUp{Kind: "warning", ReservationID: id, Subject: "s", Key: event.WarningKey(id, at, rapid.IntRange(0, 60).Draw(t, "level"))}
		if rapid.Bool().Draw(t, "notice") {
			f.Kind, f.Key = "notice", event.NoticeKey(id, text.Draw(t, "container"), at)
		}
		e, err := builder.FollowUp(f)
		require.NoError(t, err)
		require.NoError(t, event.ValidateData(e.Type(), e.Data()))
		kind, key, err := event.KeyOf(e.Type(), e.Data())
		require.NoError(t, err)
		require.Equal(t, f.Kind, kind)
		require.Equal(t, f.Key, key)
	})
}

func TestAKeyOfAnotherFormIsRefused(t *testing.T) {
	t.Parallel()
	for _, f := range []event.FollowUp{
		{Kind: "warning", Key: "r/soon/30", ReservationID: "r"},
		{Kind: "warning", Key: "r/1772368200", ReservationID: "r"},
		{Kind: "warning", Key: "other/1772368200/30", ReservationID: "r"},
		{Kind: "warning", Key: "/1772368200/30"},
		{Kind: "notice", Key: "r/containerd://x/later", ReservationID: "r"},
		{Kind: "tea", Key: "r", ReservationID: "r"},
	} {
		f.Subject = "s"
		_, err := builder.FollowUp(f)
		require.Error(t, err, f.Key)
	}
}

func TestOverridesOfASinkBindingAreOnEveryEvent(t *testing.T) {
	t.Parallel()
	b := event.Builder{Source: "//elsewhere", Extensions: map[string]string{"cluster": "blue"}}
	e, err := b.FollowUp(followUps[event.CleanupRequested])
	require.NoError(t, err)
	require.Equal(t, "blue", e.Extensions()["cluster"])
	require.Equal(t, "//elsewhere", e.Source())
}
