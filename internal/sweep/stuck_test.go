package sweep

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// untouched keeps the platform's trigger from moving updated_at while a test writes the past.
func (w *world) untouched(rows ...row) []string {
	for _, r := range rows {
		if r["updated_at"] == "" {
			r["updated_at"] = r["created_at"]
		}
		r["launched_at"], r["expires_at"] = "null", "null"
	}
	return w.insert(rows...)
}

func TestWhatIsStuckEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	history := func(status string, since time.Duration) string {
		return fmt.Sprintf(`jsonb_build_array(jsonb_build_object('status', '%s', 'timestamp', %s))`, status, ago(since))
	}
	for name, tc := range map[string]struct {
		row  row
		want string
	}{
		"preparing for long":          {row{"status": "'preparing'", "created_at": ago(2 * time.Hour)}, "failed"},
		"preparing for a while":       {row{"status": "'preparing'", "created_at": ago(50 * time.Minute)}, "preparing"},
		"preparing since lately":      {row{"status": "'preparing'", "created_at": ago(9 * time.Hour), "status_history": history("preparing", time.Minute)}, "preparing"},
		"preparing, says its history": {row{"status": "'preparing'", "created_at": ago(9 * time.Hour), "updated_at": ago(time.Second), "status_history": history("preparing", 2*time.Hour)}, "failed"},
		"queued for long":             {row{"status": "'queued'", "created_at": ago(49 * time.Hour)}, "cancelled"},
		"queued for a while":          {row{"status": "'queued'", "created_at": ago(47 * time.Hour)}, "queued"},
		"pending for long":            {row{"status": "'pending'", "created_at": ago(49 * time.Hour)}, "cancelled"},
		"nobody knows since when":     {row{"status": "'pending'", "created_at": "null", "updated_at": "null"}, "pending"},
	} {
		tc.row["name"], tc.row["failure_reason"] = quote(name), quote(tc.want)
		tc.row["reservation_id"] = quote(name)
		w.untouched(tc.row)
	}
	r := w.sweep()
	require.Equal(t, 2, r.Counts["stuckFailed"])
	require.Equal(t, 2, r.Counts["stuckCancelled"])
	require.Len(t, r.Anomalies, 1)
	require.Equal(t, reservation.StateAgeUnknown, r.Anomalies[0].Kind)
	require.Empty(t, w.texts("select name from reservations where status in ('preparing', 'queued', 'pending') and status <> failure_reason"))
	require.Equal(t, []string{"preparing for long", "preparing, says its history"}, w.texts(`
		select name from reservations
		where status = 'failed' and failed_at = $1 and reservation_ended = $1 and cancelled_at is null
		  and failure_reason like 'failed: preparing for over an hour%' and current_detailed_status = failure_reason order by 1`, r.StartedAt))
	require.Equal(t, []string{"pending for long", "queued for long"}, w.texts(`
		select name from reservations
		where status = 'cancelled' and cancelled_at = $1 and reservation_ended = $1 and failed_at is null
		  and failure_reason like 'cancelled: %for over 48 hours%' order by 1`, r.StartedAt))
	require.Len(t, w.texts("select key from expiry.follow_ups where kind = 'cleanup' and state = 'due'"), 4)

	var fact event.Ended
	require.NoError(t, json.Unmarshal([]byte(w.text(
		"select data::text from expiry.facts where type = $1 and subject = 'queued for long'", event.ReservationCancelled)), &fact))
	require.Nil(t, fact.ExpiresAt, "no deadline passed")
	require.Contains(t, fact.Reason, "queued for over 48 hours")
	require.Len(t, w.texts("select subject from expiry.facts where type = $1", event.ReservationFailed), 2)
}

func TestProgressBetweenReadingAndEndingWins(t *testing.T) {
	t.Parallel()
	for name, progress := range map[string]string{
		"it became active":       "update reservations set status = 'active'",
		"it went back and again": `update reservations set status_history = '[{"status": "preparing", "timestamp": "2026-01-01T00:00:00Z"}]'`,
		"somebody wrote to it":   "update reservations set current_detailed_status = 'pulling the image'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.untouched(row{"status": "'preparing'", "created_at": ago(2 * time.Hour)})
			p := w.sweeper().newPass(w.lease(), observation{}, nil)
			p.now = time.Now()
			pl, err := stuck(w.db).plan(t.Context(), p)
			require.NoError(t, err)
			require.Len(t, pl.decisions, 1)
			w.exec(progress)
			d, err := pl.apply(t.Context())
			require.NoError(t, err)
			require.Empty(t, d.decisions)
			require.Equal(t, 1, d.counts["stuckOvertaken"])
			require.Empty(t, w.followUps())
			require.Empty(t, w.texts("select subject from expiry.facts"))
		})
	}
}
