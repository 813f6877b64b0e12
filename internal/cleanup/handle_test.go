package cleanup_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// meanwhile lets something happen right after the record was read.
type meanwhile struct {
	*postgres.DB
	then func(reading int, c *postgres.CleanupRecord) (found bool)
	read int
}

func (m *meanwhile) LoadCleanup(ctx context.Context, id string) (postgres.CleanupRecord, bool, error) {
	c, found, err := m.DB.LoadCleanup(ctx, id)
	m.read++
	return c, found && m.then(m.read, &c), err
}

func TestAReservationThatEndsAsItsCleanupIsGivenUpIsCleanedUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.exec(t, "update reservations set status = 'active'")
	w.build(func(parts *cleanup.World) {
		parts.Store = &meanwhile{DB: w.db, then: func(int, *postgres.CleanupRecord) bool {
			w.exec(t, "update reservations set status = 'expired'")
			return true
		}}
	})
	require.Equal(t, followup.StatePostponed, w.deliver(t.Context(), t).State)
	require.Empty(t, w.calls)
	w.deliver(t.Context(), t)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestACleanupThatNobodyHasAskedForIsMadeByItsEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ('cleanup', $1, $1, $1)", id)
	require.Equal(t, followup.StateDone, w.deliver(t.Context(), t).State)
	require.Equal(t, postgres.OutcomeReleased, w.outcome(t))
}

func TestACleanupThatIsForgottenInMidDeliveryFreesNoDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.build(func(parts *cleanup.World) {
		parts.Store = &meanwhile{DB: w.db, then: func(reading int, c *postgres.CleanupRecord) bool {
			if reading < 3 { // the disk's
				return true
			}
			*c = postgres.CleanupRecord{}
			return false
		}}
	})
	report := w.deliver(t.Context(), t)
	require.Equal(t, followup.StateFailed, report.State)
	require.Contains(t, report.Error, "the cleanup of "+id+" is gone")
	require.Equal(t, "true", read[string](t, w, "select in_use::text from disks"))
}

func TestTheDomainsBehindOneThatIsNoNameBelowTheZoneGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.exec(t, "insert into domain_mappings (domain_name, reservation_id) values ('a b', $1)", id) // the first in order
	w.request(t)
	w.deliver(t.Context(), t)
	require.Empty(t, w.records)
	require.Contains(t, w.step(t, postgres.StepDNS), `not_ours: "a b" is no name below dev.example.com; `+domain+": 1 records")
}

func TestTheStepOfARecordThatWasDeletedIsDone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stand(t)
	w.request(t)
	w.deliver(t.Context(), t)
	require.Contains(t, w.step(t, postgres.StepDNS), "done: "+domain+": 1 records")
}
