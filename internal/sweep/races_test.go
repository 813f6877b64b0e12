package sweep

import (
	"context"
	"errors"
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
)

const racesAtOnce = 40 // user transactions in each round

// raceRounds is how many rounds each race goes; make races sets RACE_ROUNDS.
func raceRounds() int {
	if rounds, err := strconv.Atoi(os.Getenv("RACE_ROUNDS")); err == nil {
		return rounds
	}
	return 40
}

// sofar says now and then how far it is, to who waits for it.
func sofar(t *testing.T, round int) {
	t.Helper()
	if round > 0 && round%100 == 0 {
		t.Logf("%d of %d rounds", round, raceRounds())
	}
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

// race lets users change rows while sweeps run, and returns the status each row had when its user's change was made. One
// in seven comes when the first sweep is over, lest on a slow machine all of them be first.
func (w *world) race(change func(i int) string, ids []string) []string {
	w.t.Helper()
	was := make([]string, len(ids))
	swept, stop := make(chan struct{}), make(chan struct{})
	var users, sweeps sync.WaitGroup
	sweeps.Go(func() {
		s, first := w.sweeper(), sync.OnceFunc(func() { close(swept) })
		for {
			if r, err := s.Sweep(w.t.Context(), event.Ping, event.SweepRequest{}); err != nil || len(r.Failures) > 0 {
				w.t.Errorf("sweep: %v %v", err, r.Failures)
			}
			first()
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
			if i%7 == 0 {
				<-swept
			}
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
		sofar(t, round)
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
		sofar(t, round)
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
		sofar(t, round)
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
