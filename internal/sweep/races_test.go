package sweep

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

const racesAtOnce = 40 // user transactions in each round

// raceRounds is how many rounds each race goes; make races sets RACE_ROUNDS.
func raceRounds() int {
	if rounds, err := strconv.Atoi(os.Getenv("RACE_ROUNDS")); err == nil {
		return rounds
	}
	return 40
}

// user runs a user's transaction: a change to one row, a moment's thought, the commit. It returns the status that the
// row had when the change was made.
func (w *world) user(ctx context.Context, change, id string, thought time.Duration) (was string, err error) {
	tx, err := w.raw.Begin(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	err = tx.QueryRow(ctx, `
		with before as (select reservation_id, status from reservations where reservation_id = $1 for update)
		update reservations r set `+change+` from before where r.reservation_id = before.reservation_id
		returning before.status`, id).Scan(&was)
	if err != nil {
		return "", err
	}
	if _, err := tx.Exec(ctx, "select pg_sleep($1)", thought.Seconds()); err != nil {
		return "", err
	}
	return was, tx.Commit(ctx)
}

// race lets users change rows while sweeps run, and returns the status each row had when its user's change was made.
func (w *world) race(change func(i int) string, ids []string) []string {
	w.t.Helper()
	was := make([]string, len(ids))
	stop := make(chan struct{})
	var users, sweeps sync.WaitGroup
	sweeps.Go(func() {
		s := w.sweeper()
		for {
			if r, err := s.Sweep(w.t.Context(), event.Ping, event.SweepRequest{}); err != nil || len(r.Failures) > 0 {
				w.t.Errorf("sweep: %v %v", err, r.Failures)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for i, id := range ids {
		thought := time.Duration(rand.IntN(6)) * time.Millisecond
		users.Go(func() {
			var err error
			if was[i], err = w.user(w.t.Context(), change(i), id, thought); err != nil {
				w.t.Errorf("a user's change failed: %v", err)
			}
		})
	}
	users.Wait()
	close(stop)
	sweeps.Wait()
	return was
}

func TestAUserWhoCommitsFirstHasWon(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := map[string]int{}
	for round := range raceRounds() {
		w.insertMany(racesAtOnce, "r", ago(time.Hour))
		ids := w.texts("select reservation_id from reservations order by 1")
		changes := []string{"expires_at = clock_timestamp() + interval '9 hours'", "status = 'cancelled', cancelled_at = clock_timestamp()"}
		was := w.race(func(i int) string { return changes[i%2] }, ids)
		statuses := w.texts("select status from reservations order by reservation_id")
		facts := w.texts(`
			select count(f.subject)::text from reservations r left join expiry.facts f on f.subject = r.reservation_id
			group by r.reservation_id order by r.reservation_id`)
		for i := range ids {
			switch {
			case was[i] == "active" && i%2 == 0:
				require.Equal(t, "active", statuses[i], "round %d: an extension was overridden", round)
				require.Equal(t, "0", facts[i])
			case was[i] == "active":
				require.Equal(t, "cancelled", statuses[i], "round %d: a cancellation was overridden", round)
				require.Equal(t, "0", facts[i])
			default:
				require.Equal(t, "expired", was[i])
				require.Equal(t, "1", facts[i])
			}
			first[was[i]]++
		}
		w.exec("with gone as (delete from reservations) delete from expiry.facts")
	}
	t.Logf("%d races: users first in %d, the sweep in %d", raceRounds()*racesAtOnce, first["active"], first["expired"])
	require.Positive(t, first["active"])
	require.Positive(t, first["expired"])
}

func TestAnExtensionOfTheMasterHoldsTheNodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := map[string]int{}
	for round := range raceRounds() {
		w.insertMany(racesAtOnce, "master", ago(time.Hour))
		w.insertMany(racesAtOnce, "node", ago(2*time.Hour))
		w.exec("update reservations set master_reservation_id = replace(reservation_id, 'node', 'master') where reservation_id like 'node-%'")
		masters := w.texts("select reservation_id from reservations where reservation_id like 'master-%' order by 1")
		was := w.race(func(int) string { return "expires_at = clock_timestamp() + interval '9 hours'" }, masters)
		sets := w.texts(`
			select m.status || ' ' || n.status from reservations m join reservations n on n.master_reservation_id = m.reservation_id
			order by m.reservation_id`)
		for i := range masters {
			first[was[i]]++
			if was[i] == "active" {
				require.Equal(t, "active active", sets[i], "round %d: a set ended though it was extended first", round)
			}
		}
		w.exec("delete from reservations")
	}
	t.Logf("%d races: users first in %d, the sweep in %d", raceRounds()*racesAtOnce, first["active"], first["expired"])
	require.Positive(t, first["active"])
	require.Positive(t, first["expired"])
}

// A user's transaction that takes several rows in an order of its own must never be the victim of a deadlock with us.
func TestUsersWhoLockManyRowsAreNeverMadeToFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const set = 8
	for round := range raceRounds() {
		ids := w.insert(slices.Repeat([]row{{"expires_at": ago(time.Hour)}}, set)...)
		w.exec("update reservations set master_reservation_id = $1 where reservation_id <> $1", ids[0])
		var users sync.WaitGroup
		errs := make([]error, 4)
		for u := range errs {
			order := slices.Clone(ids)
			slices.Sort(order)
			if round%2 == 0 {
				slices.Reverse(order)
			}
			users.Go(func() {
				errs[u] = pgx.BeginFunc(t.Context(), w.raw, func(tx pgx.Tx) error {
					for _, id := range order {
						if _, err := tx.Exec(t.Context(), "update reservations set node_index = $2 where reservation_id = $1", id, u); err != nil {
							return err
						}
					}
					return nil
				})
			})
		}
		r, err := w.sweeper().Sweep(t.Context(), event.Ping, event.SweepRequest{})
		require.NoError(t, err)
		require.Empty(t, r.Failures)
		users.Wait()
		require.NoError(t, errors.Join(errs...))
		w.exec("delete from reservations")
	}
}

// crashing is a process that dies at its nth call to the database: before it, or after it took effect.
type crashing struct {
	Store
	calls  *int
	at     int
	before bool
}

var errDead = errors.New("the process is dead")

func call[T any](c crashing, work func() (T, error)) (T, error) {
	*c.calls++
	var none T
	switch {
	case *c.calls > c.at, *c.calls == c.at && c.before:
		return none, errDead
	case *c.calls == c.at:
		if _, err := work(); err != nil {
			return none, err
		}
		return none, errDead
	}
	return work()
}

func (c crashing) DeadlinesPast(ctx context.Context, now time.Time, grace time.Duration, only []string) ([]postgres.SetMember, error) {
	return call(c, func() ([]postgres.SetMember, error) { return c.Store.DeadlinesPast(ctx, now, grace, only) })
}

func (c crashing) Expire(ctx context.Context, lease postgres.SweepLease, now time.Time, grace time.Duration, e []postgres.Expiry) ([]string, error) {
	return call(c, func() ([]string, error) { return c.Store.Expire(ctx, lease, now, grace, e) })
}

func (c crashing) RequestWarnings(ctx context.Context, lease postgres.SweepLease, now time.Time, r []postgres.WarningRequest) ([]string, error) {
	return call(c, func() ([]string, error) { return c.Store.RequestWarnings(ctx, lease, now, r) })
}

func (c crashing) VoidWarnings(ctx context.Context, lease postgres.SweepLease, now time.Time, only []string) (int, error) {
	return call(c, func() (int, error) { return c.Store.VoidWarnings(ctx, lease, now, only) })
}

func (c crashing) EndStuck(ctx context.Context, lease postgres.SweepLease, now time.Time, s []postgres.StuckEnding) ([]string, error) {
	return call(c, func() ([]string, error) { return c.Store.EndStuck(ctx, lease, now, s) })
}

func (c crashing) FinishSweep(ctx context.Context, lease postgres.SweepLease, end postgres.SweepEnd) (time.Time, error) {
	return call(c, func() (time.Time, error) { return c.Store.FinishSweep(ctx, lease, end) })
}

func TestASweepThatDiesAnywhereIsMadeGoodByTheNext(t *testing.T) {
	t.Parallel()
	// outcome is all that counts in the end, by the rows' names.
	outcome := func(w *world) string {
		return fmt.Sprint(
			w.texts("select name || ' ' || status || ' ' || (reservation_ended is not null) from reservations where name is not null order by 1"),
			w.texts(`select concat_ws(' ', f.kind, r.name, f.state, f.outcome, split_part(f.key, '/', 3))
			         from expiry.follow_ups f join reservations r using (reservation_id) order by 1`),
			w.texts(`select concat_ws(' ', f.type, r.name, f.sequence)
			         from expiry.facts f join reservations r on r.reservation_id = f.subject order by 1`))
	}
	build := func(t *testing.T) *world {
		w := newWorld(t)
		a, b, c, d := w.populate()
		for name, id := range map[string]string{"overdue": a, "near": b, "preparing": c, "queued": d} {
			w.exec("alter table reservations disable trigger user")
			w.exec("update reservations set name = $1 where reservation_id = $2", name, id)
			w.exec("alter table reservations enable trigger user")
		}
		return w
	}
	calls := 0
	faultless := build(t)
	_, err := New(crashing{Store: faultless.db, calls: &calls, at: 1_000}, Outside{}, testOptions()).Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	want := outcome(faultless)
	require.Contains(t, want, "overdue expired true")
	require.Equal(t, 6, calls)

	for at := 1; at <= calls; at++ {
		for _, early := range []bool{true, false} {
			t.Run(fmt.Sprintf("call %d, before it: %t", at, early), func(t *testing.T) {
				t.Parallel()
				w := build(t)
				made := 0
				_, err := New(crashing{w.db, &made, at, early}, Outside{}, testOptions()).Sweep(t.Context(), event.Ping, event.SweepRequest{})
				require.ErrorIs(t, err, errDead)
				w.lapse()
				w.sweep()
				require.Equal(t, want, outcome(w))
			})
		}
	}
}
