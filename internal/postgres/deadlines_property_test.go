package postgres_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// What the statements select and change is what package reservation decides, whatever the rows hold.
func TestTheStatementsAgreeWithThePureRulesOnDeadlines(t *testing.T) {
	t.Parallel()
	const grace, within = 2 * time.Minute, 30 * time.Minute
	pooled, direct := stacktest.PooledDatabase(t)
	db, err := postgres.Open(t.Context(), pooled, postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	raw, err := pgx.Connect(t.Context(), direct)
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close(context.Background()) })
	lease, seen, ok, err := db.BeginSweep(t.Context(), uuid.New(), "test", "test", time.Hour)
	require.NoError(t, err)
	require.True(t, ok)
	now := seen.Now

	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339Nano) }
	dates := rapid.SampledFrom([]string{
		"", "infinity", "-infinity", "4713-11-24 00:00:00+00 BC", "1999-12-31 23:59:59.999999+00", "2000-01-01 00:00:00+00",
		"2000-01-01 00:00:00.000001+00", "294276-12-31 00:00:00+00",
		at(-time.Hour), at(-3 * time.Minute), at(-grace - time.Microsecond), at(-grace), at(-grace + time.Minute),
		at(-time.Microsecond), at(0), at(time.Microsecond), at(5 * time.Minute), at(within), at(within + time.Microsecond), at(time.Hour),
		at(reservation.Horizon), at(reservation.Horizon + time.Microsecond),
	})
	// Half of the dates are plain, so that whole rows make sense often enough.
	deadlines := rapid.OneOf(dates, rapid.SampledFrom([]string{at(-time.Hour), at(-4 * time.Minute), at(10 * time.Minute), at(time.Hour)}))
	starts := rapid.OneOf(dates, rapid.SampledFrom([]string{"", at(-9 * time.Hour), at(-9 * time.Hour)}), rapid.Just(at(-9*time.Hour)))
	statuses := rapid.SampledFrom([]string{"active", "active", "active", "active", "expired", "cancelled", "failed", "queued", "preparing", "", "Active", "frozen"})

	overdue, warned := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		ctx := context.Background()
		n := rapid.IntRange(1, 12).Draw(rt, "rows")
		ids := make([]string, n)
		_, err := raw.Exec(ctx, "delete from reservations")
		require.NoError(rt, err)
		for i := range n {
			ids[i] = fmt.Sprint("r", i)
			master := rapid.SampledFrom([]string{"", "", "", "r0", "r1", "r2", ids[i], "gone"}).Draw(rt, "master")
			_, err := raw.Exec(ctx, `
				insert into reservations (reservation_id, status, created_at, launched_at, expires_at, master_reservation_id)
				values ($1, nullif($2, ''), nullif($3, '')::timestamptz, nullif($4, '')::timestamptz, nullif($5, '')::timestamptz, nullif($6, ''))`,
				ids[i], statuses.Draw(rt, "status"), starts.Draw(rt, "created_at"), starts.Draw(rt, "launched_at"),
				deadlines.Draw(rt, "expires_at"), master)
			require.NoError(rt, err)
		}
		rows := make(map[string]reservation.Reservation, n)
		for _, id := range ids {
			r, found, err := db.Reservation(ctx, id)
			require.NoError(rt, err)
			require.True(rt, found)
			rows[id] = r
		}
		masterOf := func(r reservation.Reservation) *reservation.Reservation {
			if m, found := rows[r.MasterID]; found && r.MasterID != r.ID {
				return &m
			}
			return nil
		}

		var wantPast, wantNear []string
		for _, id := range ids {
			r := rows[id]
			deadline, anomaly := reservation.EffectiveDeadline(r, masterOf(r), now)
			switch {
			case r.Status != reservation.Active:
			case anomaly != reservation.NoAnomaly:
				wantPast = append(wantPast, id+" "+string(anomaly))
			case reservation.Overdue(r, masterOf(r), now, grace):
				wantPast = append(wantPast, id+" overdue")
				overdue++
			case deadline.After(now) && !deadline.After(now.Add(within)):
				wantNear = append(wantNear, id+" "+deadline.Format(time.RFC3339Nano))
				warned++
			}
		}

		past, err := db.DeadlinesPast(ctx, now, grace, nil)
		require.NoError(rt, err)
		var gotPast []string
		for _, r := range past {
			require.Equal(rt, masterOf(r.Reservation), r.Master)
			_, anomaly := reservation.EffectiveDeadline(r.Reservation, r.Master, now)
			gotPast = append(gotPast, r.ID+" "+cmp.Or(string(anomaly), "overdue"))
		}
		require.ElementsMatch(rt, wantPast, gotPast)

		near, err := db.DeadlinesNear(ctx, now, within, reservation.Levels(30), nil)
		require.NoError(rt, err)
		var gotNear []string
		for _, a := range near {
			gotNear = append(gotNear, a.ReservationID+" "+a.Deadline.Format(time.RFC3339Nano))
		}
		require.ElementsMatch(rt, wantNear, gotNear)

		// Asked to expire everything, the statement refuses what is not overdue by the database's clock.
		var expiries []postgres.Expiry
		for _, id := range ids {
			deadline, anomaly := reservation.EffectiveDeadline(rows[id], masterOf(rows[id]), now)
			if anomaly != reservation.NoAnomaly {
				deadline, _ = rows[id].ExpiresAt.Time()
			}
			if deadline.Year() < 1 || deadline.Year() > 9999 {
				deadline = now.Add(-time.Hour)
			}
			expiries = append(expiries, postgres.Expiry{ReservationID: id, Deadline: deadline, Reason: "asked to"})
		}
		expired, err := db.Expire(ctx, lease, now, grace, expiries)
		require.NoError(rt, err)
		later, err := db.Now(ctx)
		require.NoError(rt, err)
		for _, id := range ids {
			r := rows[id]
			if slices.Contains(expired, id) {
				deadline, anomaly := reservation.EffectiveDeadline(r, masterOf(r), now)
				require.Equal(rt, reservation.Active, r.Status, id)
				require.Equal(rt, reservation.NoAnomaly, anomaly, id)
				require.True(rt, deadline.Add(grace).Before(later), "%s is not overdue", id)
			} else {
				require.False(rt, reservation.Overdue(r, masterOf(r), now, grace), "%s is overdue", id)
			}
			after, _, err := db.Reservation(ctx, id)
			require.NoError(rt, err)
			require.Equal(rt, slices.Contains(expired, id), r.Status != after.Status)
		}
	})
	require.Positive(t, overdue)
	require.Positive(t, warned)
}
