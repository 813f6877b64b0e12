package postgres_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func claimFacts(t *testing.T, db *postgres.DB, lease time.Duration) []postgres.Fact {
	t.Helper()
	facts, err := db.ClaimFacts(t.Context(), "", 100, uuid.New(), lease)
	require.NoError(t, err)
	return facts
}

func TestSequencesAreGaplessWhoeverWritesAndWhateverIsRolledBack(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		const writers, each, subjects = 12, 20, 3
		rolledBack := errors.New("rolled back")
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					var fail error
					if (w+i)%4 == 0 {
						fail = rolledBack
					}
					err := postgres.RecordFact(t.Context(), db, event.ReservationExpired, fmt.Sprint("r", (w+i)%subjects), map[string]int{"i": i}, fail)
					if !errors.Is(err, fail) {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()

		last := map[string]int64{}
		for {
			facts := claimFacts(t, db, live)
			if len(facts) == 0 {
				break
			}
			for _, f := range facts {
				last[f.Subject]++
				require.Equal(t, last[f.Subject], f.Sequence, "in order and without a gap")
				require.NoError(t, db.FactPublished(t.Context(), f))
			}
		}
		var all int64
		for _, n := range last {
			all += n
		}
		require.EqualValues(t, writers*each*3/4, all)
	})
}

func TestAFactWaitsForTheEarlierOnesOfItsSubject(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		for _, subject := range []string{"r1", "r1", "r2"} {
			require.NoError(t, postgres.RecordFact(t.Context(), db, event.ReservationExpired, subject, struct{}{}, nil))
		}
		facts := claimFacts(t, db, live)
		require.Len(t, facts, 2)
		require.Empty(t, claimFacts(t, db, live), "all that may go are under lease")
		for _, f := range facts {
			require.EqualValues(t, 1, f.Sequence)
			require.NoError(t, db.FactFailed(t.Context(), f, errors.New("no sink"), 0))
		}
		again := claimFacts(t, db, live)
		require.Len(t, again, 2, "the second of r1 goes on waiting")
		for _, f := range again {
			require.Equal(t, 1, f.Attempts)
			require.NoError(t, db.FactPublished(t.Context(), f))
		}
		rest := claimFacts(t, db, live)
		require.Len(t, rest, 1)
		require.EqualValues(t, 2, rest[0].Sequence)
		require.NoError(t, db.FactFailed(t.Context(), rest[0], errors.New("no sink"), live))
		require.Empty(t, claimFacts(t, db, live), "its pause is not over")
	})
}

func TestAFactWhoseSenderDiedIsSentByAnother(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	require.NoError(t, postgres.RecordFact(t.Context(), db, event.ReservationExpired, "r1", struct{}{}, nil))
	dead := claimFacts(t, db, 0)
	require.Len(t, dead, 1)
	alive := claimFacts(t, db, live)
	require.Equal(t, dead[0].ID, alive[0].ID)
	require.NoError(t, db.FactPublished(t.Context(), dead[0]), "it may come back, and changes nothing")
	require.NoError(t, db.FactFailed(t.Context(), alive[0], errors.New("no sink"), 0))
	require.Len(t, claimFacts(t, db, live), 1)
}

func TestRowsRememberTheTraceThatAsked(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	ctx := trace.ContextWithSpanContext(t.Context(), span)
	const parent = "00-01000000000000000000000000000000-0200000000000000-01"

	require.NoError(t, postgres.RecordFact(ctx, db, event.ReservationExpired, "r1", struct{}{}, nil))
	require.Equal(t, parent, claimFacts(t, db, live)[0].Traceparent)
	require.NoError(t, postgres.RequestFollowUp(ctx, db, cleanupOf("r1")))
	require.Equal(t, parent, claim(t, db, cleanupOf("r1"), live).Traceparent)
}
