package sweep

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
)

func TestTheMostUrgentWarningIsRequestedAndTheOthersArePassedOver(t *testing.T) {
	t.Parallel()
	for left, want := range map[time.Duration][]string{
		31 * time.Minute:               nil,
		29 * time.Minute:               {"30 due"},
		14 * time.Minute:               {"15 due", "30 done passed_over"},
		4 * time.Minute:                {"5 due", "15 done passed_over", "30 done passed_over"},
		-time.Second:                   nil,
		-testGrace - 10*time.Second:    nil,
		4*time.Minute + 59*time.Second: {"5 due", "15 done passed_over", "30 done passed_over"},
	} {
		t.Run(left.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.insert(row{"expires_at": ahead(left)})[0]
			for range 2 { // the second sweep has nothing to add
				w.sweep()
				require.Equal(t, want, w.warningsOf(id))
			}
		})
	}
}

func TestAWarningStillDueIsPassedOverByAMoreUrgentOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"expires_at": ahead(14 * time.Minute)})[0]
	w.sweep()
	// Ten minutes later: the clock cannot be turned, so the row and its warnings are.
	w.exec("update reservations set expires_at = expires_at - interval '10 minutes' where reservation_id = $1", id)
	w.exec(`update expiry.follow_ups set key = reservation_id || '/' || (split_part(key, '/', 2)::bigint - 600) || '/' || split_part(key, '/', 3)`)
	r := w.sweep()
	require.Equal(t, 1, r.Counts["warningsRequested"])
	require.Equal(t, []string{"5 due", "15 done passed_over", "30 done passed_over"}, w.warningsOf(id))
}

func TestAReservationThatHasItsWarningKeepsNoOtherFromIts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insert(row{"expires_at": ahead(14 * time.Minute)})
	w.sweep()
	later := w.insert(row{"expires_at": ahead(29 * time.Minute)})[0]
	planned := w.run(w.sweeper(), event.SweepRequest{DryRun: true}).Planned
	require.Len(t, planned, 1)
	require.NotContains(t, planned[0].Reason, "passed over", "it is the first")
	require.Equal(t, 1, w.sweep().Counts["warningsRequested"])
	require.Equal(t, []string{"30 due"}, w.warningsOf(later))
}

func TestAnExtensionRearmsAndGoingBackRearmsToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"expires_at": ahead(14 * time.Minute)})[0]
	w.sweep()
	w.exec("update expiry.follow_ups set state = 'done', outcome = 'sent', finished_at = clock_timestamp() where state = 'due'")
	deadline := w.text("select expires_at::text from reservations")

	w.exec("update reservations set expires_at = expires_at + interval '10 minutes'")
	require.Equal(t, 1, w.sweep().Counts["warningsRequested"])
	require.Equal(t, []string{"30 due"}, w.warningsOf(id))

	w.exec("update reservations set expires_at = $1::text::timestamptz", deadline)
	r := w.sweep()
	require.Equal(t, 1, r.Counts["warningsVoided"], "of the deadline that is no more")
	require.Zero(t, r.Counts["warningsRequested"], "this deadline's was sent")
	require.Equal(t, []string{"15 done sent", "30 done passed_over"}, w.warningsOf(id))

	w.exec("update reservations set expires_at = expires_at + interval '10 minutes'")
	require.Equal(t, 1, w.sweep().Counts["warningsRequested"])
	require.Equal(t, []string{"30 due"}, w.warningsOf(id), "a void warning was never sent")
}

func TestPointlessWarningsAreClosed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"the reservation was cancelled": "update reservations set status = 'cancelled'",
		"it was extended":               "update reservations set expires_at = expires_at + interval '5 hours'",
		"its deadline is unknown":       "update reservations set expires_at = null",
		"its deadline has passed":       "update reservations set expires_at = clock_timestamp() - interval '1 second'",
		"its row is gone":               "delete from reservations",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.insert(row{"expires_at": ahead(14 * time.Minute)})
			w.sweep()
			w.exec(change)
			require.Equal(t, 1, w.sweep().Counts["warningsVoided"])
			require.Equal(t, []string{"passed_over", "void"}, w.texts("select outcome from expiry.follow_ups where kind = 'warning' order by 1"))
		})
	}
}

func TestAWarningBeingWrittenWhileItIsClosedEndsAsSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.insert(row{"expires_at": ahead(29 * time.Minute)})[0]
	w.sweep()
	key := w.text("select key from expiry.follow_ups")
	f, claimed, err := w.db.ClaimFollowUp(t.Context(), "warning", key, [16]byte{1}, time.Minute)
	require.NoError(t, err)
	require.True(t, claimed)
	w.exec("update reservations set expires_at = expires_at + interval '5 hours' where reservation_id = $1", id)
	w.sweep()
	held, err := w.db.FinishFollowUp(t.Context(), f, "sent")
	require.NoError(t, err)
	require.True(t, held)
	require.Equal(t, "done sent", w.text("select state || ' ' || outcome from expiry.follow_ups"))
}

func TestTheNodesOfASetAreWarnedByTheSetsDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	master := w.insert(row{"expires_at": ahead(14 * time.Minute)})[0]
	early := w.insert(row{"expires_at": ahead(4 * time.Minute), "master_reservation_id": quote(master)})[0]
	over := w.insert(row{"expires_at": ago(time.Minute), "master_reservation_id": quote(master)})[0]
	late := w.insert(row{"expires_at": ahead(5 * time.Hour), "master_reservation_id": quote(master)})[0]
	w.sweep()
	due := w.texts("select reservation_id || ' ' || split_part(key, '/', 3) from expiry.follow_ups where state = 'due' order by 1")
	require.ElementsMatch(t, []string{master + " 15", early + " 15", over + " 15"}, due)
	require.NotContains(t, fmt.Sprint(due), late)
	require.Equal(t, "1", w.text("select count(distinct split_part(key, '/', 2))::text from expiry.follow_ups"))
}

func TestThousandsOfWarningsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insertMany(1_500, "due", ahead(time.Hour))
	w.exec("update reservations set expires_at = clock_timestamp() + interval '14 minutes'") // far from the next level
	r := w.sweep()
	t.Logf("1,500 deadlines near: %s, by part in ms %v", r.FinishedAt.Sub(r.StartedAt), r.Durations)
	require.Equal(t, fmt.Sprint(r.Counts["warningsRequested"]), w.text("select count(*)::text from expiry.follow_ups where state = 'due'"))
	require.Equal(t, 1_500, r.Counts["warningsRequested"])
	require.Zero(t, w.sweep().Counts["warningsRequested"])
}
