package postgres_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// open returns the pool of a fresh database, and closes it with the test.
func open(t *testing.T, url string) *postgres.DB {
	t.Helper()
	db, err := postgres.Open(t.Context(), url, postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	return db
}

// bothWays runs a test on a fresh database each: directly, and through PgBouncer in transaction mode.
func bothWays(t *testing.T, test func(t *testing.T, db *postgres.DB)) {
	t.Helper()
	t.Run("direct", func(t *testing.T) {
		t.Parallel()
		test(t, open(t, stacktest.Database(t)))
	})
	t.Run("through PgBouncer", func(t *testing.T) {
		t.Parallel()
		pooled, _ := stacktest.PooledDatabase(t)
		test(t, open(t, pooled))
	})
}

const live = time.Hour // a lease or a pause that no test outlives

func cleanupOf(reservation string) postgres.FollowUp {
	return postgres.FollowUp{Kind: postgres.Cleanup, Key: reservation, ReservationID: reservation, Subject: reservation}
}

func request(t require.TestingT, db *postgres.DB, f postgres.FollowUp) {
	require.NoError(t, postgres.RequestFollowUp(context.Background(), db, f))
}

func claim(t *testing.T, db *postgres.DB, f postgres.FollowUp, lease time.Duration) postgres.FollowUp {
	t.Helper()
	claimed, ok, err := db.ClaimFollowUp(t.Context(), f.Kind, f.Key, uuid.New(), lease)
	require.NoError(t, err)
	require.True(t, ok, "must be claimable")
	return claimed
}

func requireStanding(t *testing.T, db *postgres.DB, f postgres.FollowUp, want postgres.Standing) {
	t.Helper()
	got, err := db.FollowUpStanding(t.Context(), f.Kind, f.Key)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestOneOfManyClaimsADueFollowUp(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		f := cleanupOf("r1")
		request(t, db, f)
		for round := range 20 {
			var winners atomic.Int32
			var won postgres.FollowUp
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					claimed, ok, err := db.ClaimFollowUp(t.Context(), f.Kind, f.Key, uuid.New(), live)
					if err != nil {
						t.Error(err)
					}
					if ok {
						winners.Add(1)
						won = claimed
					}
				})
			}
			wg.Wait()
			require.EqualValues(t, 1, winners.Load(), "round %d", round)
			requireStanding(t, db, f, postgres.Held)
			held, err := db.HandBackFollowUp(t.Context(), won)
			require.NoError(t, err)
			require.True(t, held)
		}
	})
}

func TestALapsedLeaseCanBeTakenOverAndItsHolderCanWriteNoMore(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		f := cleanupOf("r1")
		request(t, db, f)
		slow := claim(t, db, f, 0)
		requireStanding(t, db, f, postgres.Claimable)
		fast := claim(t, db, f, live)
		for name, write := range map[string]func() (bool, error){
			"finish":    func() (bool, error) { return db.FinishFollowUp(t.Context(), slow, "late") },
			"postpone":  func() (bool, error) { return db.PostponeFollowUp(t.Context(), slow, live) },
			"fail":      func() (bool, error) { return db.FailFollowUp(t.Context(), slow, errors.New("late"), live) },
			"hand back": func() (bool, error) { return db.HandBackFollowUp(t.Context(), slow) },
		} {
			held, err := write()
			require.NoError(t, err)
			require.False(t, held, name)
			requireStanding(t, db, f, postgres.Held)
		}
		held, err := db.FinishFollowUp(t.Context(), fast, "sent")
		require.NoError(t, err)
		require.True(t, held)
		requireStanding(t, db, f, postgres.Finished)
	})
}

func TestALapsedLeaseThatNobodyTookOverStillFinishes(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	f := cleanupOf("r1")
	request(t, db, f)
	held, err := db.FinishFollowUp(t.Context(), claim(t, db, f, 0), "sent")
	require.NoError(t, err)
	require.True(t, held)
}

func TestWhatIsAskedForWhileWorkedOnBecomesDueOnceMore(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(ctx context.Context, db *postgres.DB, f postgres.FollowUp) (bool, error){
		"finished": func(ctx context.Context, db *postgres.DB, f postgres.FollowUp) (bool, error) {
			return db.FinishFollowUp(ctx, f, "sent")
		},
		"postponed": func(ctx context.Context, db *postgres.DB, f postgres.FollowUp) (bool, error) {
			return db.PostponeFollowUp(ctx, f, live)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t, stacktest.Database(t))
			f := cleanupOf("r1")
			request(t, db, f)
			claimed := claim(t, db, f, live)
			request(t, db, f)
			requireStanding(t, db, f, postgres.Held)
			held, err := end(t.Context(), db, claimed)
			require.NoError(t, err)
			require.True(t, held)
			requireStanding(t, db, f, postgres.Claimable)
			again := claim(t, db, f, live)
			require.Equal(t, claimed.Version+1, again.Version)
			_, err = db.FinishFollowUp(t.Context(), again, "sent")
			require.NoError(t, err)
			requireStanding(t, db, f, postgres.Finished)
		})
	}
}

func TestAFailureIsKeptUntilSuccess(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		f := cleanupOf("r1")
		request(t, db, f)
		for n := range 3 {
			claimed := claim(t, db, f, live)
			require.Equal(t, n, claimed.Attempts)
			request(t, db, f) // a sweep that finds it unfinished forgets nothing
			held, err := db.FailFollowUp(t.Context(), claimed, errors.New("no \x00route\xff"), 0)
			require.NoError(t, err)
			require.True(t, held)
		}
		claimed := claim(t, db, f, live)
		require.Equal(t, "no route\uFFFD", claimed.LastError)
		_, err := db.PostponeFollowUp(t.Context(), claimed, 0)
		require.NoError(t, err)
		claimed = claim(t, db, f, live)
		require.Zero(t, claimed.Attempts)
		require.Empty(t, claimed.LastError)
	})
}

func TestEachDueFollowUpIsDispatchedByOne(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		const rows = 60
		for range rows {
			request(t, db, cleanupOf(uuid.NewString()))
		}
		var mu sync.Mutex
		seen := map[string]int{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for empty := 0; empty < 3; { // a pick skips what another holds at that moment
					picked, err := db.DispatchDue(t.Context(), 4, live)
					if err != nil {
						t.Error(err)
						return
					}
					if len(picked) == 0 {
						empty++
					}
					mu.Lock()
					for _, f := range picked {
						seen[f.Key] += f.Dispatch
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		require.Len(t, seen, rows)
		for key, dispatches := range seen {
			require.Equal(t, 1, dispatches, key)
		}
	})
}

func TestDispatch(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		ctx := t.Context()
		pick := func() []postgres.FollowUp {
			t.Helper()
			picked, err := db.DispatchDue(ctx, 10, live)
			require.NoError(t, err)
			return picked
		}
		next := func() (time.Duration, bool) {
			t.Helper()
			wait, some, err := db.NextDispatch(ctx)
			require.NoError(t, err)
			return wait, some
		}
		_, some := next()
		require.False(t, some, "nothing was asked for")

		f := cleanupOf("r1")
		request(t, db, f)
		wait, some := next()
		require.True(t, some)
		require.Zero(t, wait)
		first := pick()
		require.Len(t, first, 1)
		require.Equal(t, 1, first[0].Dispatch)
		require.Empty(t, pick(), "asked for a moment ago")
		wait, _ = next()
		require.InDelta(t, live, wait, float64(time.Minute))

		require.NoError(t, db.UndoDispatch(ctx, first[0], 0))
		second := pick()
		require.Len(t, second, 1, "nobody took it: at once")
		require.Equal(t, 2, second[0].Dispatch)
		require.NoError(t, db.UndoDispatch(ctx, first[0], 0))
		require.Empty(t, pick(), "an older dispatch undoes nothing")

		require.NoError(t, db.RefuseDispatch(ctx, second[0], errors.New("no sink takes this")))
		require.Empty(t, pick(), "a refusal is no reason to hurry")
		claimed := claim(t, db, f, live)
		require.Equal(t, 1, claimed.Attempts)
		require.Equal(t, "no sink takes this", claimed.LastError)

		_, err := db.HandBackFollowUp(ctx, claimed)
		require.NoError(t, err)
		require.Len(t, pick(), 1, "handed back: at once")

		claimed = claim(t, db, f, live)
		require.Empty(t, pick(), "being worked on")
		_, err = db.PostponeFollowUp(ctx, claimed, 10*time.Minute)
		require.NoError(t, err)
		require.Empty(t, pick(), "postponed")
		wait, _ = next()
		require.InDelta(t, 10*time.Minute, wait, float64(time.Minute))
	})
}

func TestWarningsAreDispatchedBeforeWhatTakesLong(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	request(t, db, cleanupOf("r1"))
	request(t, db, cleanupOf("r2"))
	request(t, db, postgres.FollowUp{Kind: postgres.Warning, Key: "r3/1/5", ReservationID: "r3", Subject: "r3"})
	for _, want := range []string{"r3/1/5", "r1", "r2"} {
		picked, err := db.DispatchDue(t.Context(), 1, live)
		require.NoError(t, err)
		require.Len(t, picked, 1)
		require.Equal(t, want, picked[0].Key)
	}
}

// row is the model of one follow-up: what the callers were promised, in as few words as possible. Times are either
// past or far.
type row struct {
	exists, done bool
	later        bool // due in a long time
	asked        bool // an event for it was sent a moment ago
	attempts     int
	version      int
	holder       int // index of the claim that may write; -1: none
	held         bool
}

func (r *row) standing() postgres.Standing {
	switch {
	case !r.exists:
		return postgres.Absent
	case r.done:
		return postgres.Finished
	case r.held:
		return postgres.Held
	case r.later:
		return postgres.NotDue
	}
	return postgres.Claimable
}

func TestFollowUpsBehaveLikeTheirModel(t *testing.T) {
	t.Parallel()
	db := open(t, stacktest.Database(t))
	ctx := t.Context()
	rapid.Check(t, func(t *rapid.T) {
		f := cleanupOf(uuid.NewString())
		m := row{holder: -1}
		var claims []postgres.FollowUp
		// end plays what a holder, rightful or not, does to the row.
		end := func(write func(postgres.FollowUp) (bool, error), effect func(claimed postgres.FollowUp)) func(*rapid.T) {
			return func(t *rapid.T) {
				if len(claims) == 0 {
					// The property draws another step; no test is skipped.
					t.Skip("nothing was claimed")
				}
				i := rapid.IntRange(0, len(claims)-1).Draw(t, "claim")
				held, err := write(claims[i])
				require.NoError(t, err)
				require.Equal(t, i == m.holder, held)
				if held {
					m.holder, m.held, m.asked = -1, false, false
					effect(claims[i])
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"request": func(t *rapid.T) {
				request(t, db, f)
				if !m.exists {
					m.exists, m.version = true, 1
				} else if m.done || m.held {
					if m.done {
						m.attempts = 0
					}
					m.done, m.later, m.asked = false, false, false
					m.version++
				}
			},
			"claim": func(t *rapid.T) {
				lease := rapid.SampledFrom([]time.Duration{0, live}).Draw(t, "lease")
				claimed, ok, err := db.ClaimFollowUp(ctx, f.Kind, f.Key, uuid.New(), lease)
				require.NoError(t, err)
				require.Equal(t, m.standing() == postgres.Claimable, ok)
				if ok {
					require.Equal(t, m.attempts, claimed.Attempts)
					require.Equal(t, m.version, claimed.Version)
					claims = append(claims, claimed)
					m.holder, m.held, m.asked = len(claims)-1, lease > 0, false
				}
			},
			"finish": end(
				func(f postgres.FollowUp) (bool, error) { return db.FinishFollowUp(ctx, f, "sent") },
				func(claimed postgres.FollowUp) { m.done, m.attempts = claimed.Version == m.version, 0 }),
			"postpone": end(
				func(f postgres.FollowUp) (bool, error) { return db.PostponeFollowUp(ctx, f, live) },
				func(claimed postgres.FollowUp) { m.later, m.attempts = claimed.Version == m.version, 0 }),
			"fail": end(
				func(f postgres.FollowUp) (bool, error) { return db.FailFollowUp(ctx, f, errors.New("boom"), live) },
				func(postgres.FollowUp) { m.later = true; m.attempts++ }),
			"hand back": end(
				func(f postgres.FollowUp) (bool, error) { return db.HandBackFollowUp(ctx, f) },
				func(postgres.FollowUp) {}),
			"dispatch": func(t *rapid.T) {
				picked, err := db.DispatchDue(ctx, 1_000_000, live)
				require.NoError(t, err)
				found := false
				for _, p := range picked {
					found = found || p.Key == f.Key
				}
				require.Equal(t, m.standing() == postgres.Claimable && !m.asked, found)
				m.asked = m.asked || found
			},
			"time passes": func(*rapid.T) {
				require.NoError(t, postgres.Exec(ctx, db, `
					update expiry.follow_ups set due_at = due_at - interval '2 hours', ask_again_at = ask_again_at - interval '2 hours',
					    lease_expires_at = lease_expires_at - interval '2 hours' where key = $1`, f.Key))
				m.later, m.asked, m.held = false, false, false
			},
			"": func(t *rapid.T) {
				standing, err := db.FollowUpStanding(ctx, f.Kind, f.Key)
				require.NoError(t, err)
				require.Equal(t, m.standing(), standing)
			},
		})
	})
}
