package sweep

import (
	"context"
	"errors"
	"net/url"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// lease takes the lease for the test itself.
func (w *world) lease() postgres.SweepLease {
	w.t.Helper()
	lease, _, ok, err := w.db.BeginSweep(w.t.Context(), uuid.New(), "test", "test", time.Minute)
	require.NoError(w.t, err)
	require.True(w.t, ok)
	return lease
}

// lapse makes the lease end now, as time would.
func (w *world) lapse() {
	w.t.Helper()
	w.exec("update expiry.sweep_lease set expires_at = clock_timestamp()")
}

// gate is a part that says when it has begun and goes on when told, at the latest when the test is over.
type gate struct {
	begun chan struct{}
	over  context.Context
	goOn  func()
}

func newGate(t *testing.T) gate {
	over, goOn := context.WithCancel(context.Background())
	t.Cleanup(goOn)
	return gate{make(chan struct{}), over, goOn}
}

func (g gate) part() part {
	return part{name: "gate", plan: func(ctx context.Context, _ *pass) (plan, error) {
		close(g.begun)
		<-g.over.Done()
		return plan{}, nil
	}}
}

func before(s *Sweeper, pt part) *Sweeper {
	s.parts = slices.Insert(s.parts, 0, pt)
	return s
}

func TestOfManySweepsAtOnceOneRunsAndTheOthersAreSkipped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insert(row{"expires_at": ago(time.Hour)})
	g := newGate(t)
	running := before(w.sweeper(), g.part())
	first := make(chan Result, 1)
	go func() {
		r, _ := running.Sweep(t.Context(), event.Ping, event.SweepRequest{})
		first <- r
	}()
	<-g.begun
	for range 5 {
		r, err := w.sweeper().Sweep(t.Context(), event.Ping, event.SweepRequest{})
		require.NoError(t, err)
		require.Equal(t, Skipped, r.Outcome)
		require.Empty(t, r.SweepID)
	}
	require.Empty(t, w.followUps())
	g.goOn()
	require.Equal(t, Completed, (<-first).Outcome)
	require.Equal(t, []string{"completed"}, w.texts("select outcome from expiry.sweeps"))
	require.Equal(t, 0, w.sweep().Counts["expired"], "the lease is free again")
}

func TestSweepsThatRaceForTheLeaseNeverOverlap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var inside, most, ran int
	var mu sync.Mutex
	count := part{name: "count", plan: func(context.Context, *pass) (plan, error) {
		mu.Lock()
		inside++
		ran++
		most = max(most, inside)
		mu.Unlock()
		return plan{apply: func(context.Context) (done, error) {
			mu.Lock()
			defer mu.Unlock()
			inside--
			return done{}, nil
		}}, nil
	}}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			s := before(w.sweeper(), count)
			for range 10 {
				r, err := s.Sweep(t.Context(), event.Ping, event.SweepRequest{})
				if err != nil || (r.Outcome != Completed && r.Outcome != Skipped) {
					t.Errorf("%s: %v", r.Outcome, err)
				}
			}
		})
	}
	all.Wait()
	require.Equal(t, 1, most)
	require.Positive(t, ran)
}

func TestASweepWhoseLeaseLapsedWritesNothingMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := newGate(t)
	slow := before(w.sweeper(), g.part())
	type answer struct {
		Result
		error
	}
	answers := make(chan answer, 1)
	go func() {
		r, err := slow.Sweep(t.Context(), event.Ping, event.SweepRequest{})
		answers <- answer{r, err}
	}()
	<-g.begun
	w.lapse()
	next := w.sweep()
	w.insert(row{"expires_at": ago(time.Hour)}, row{"expires_at": ahead(10 * time.Minute)})
	before := w.dump()
	g.goOn()
	late := <-answers
	require.ErrorIs(t, late.error, postgres.ErrLeaseLost)
	require.True(t, fault.Is(late.error, fault.Conflict))
	require.Equal(t, Failed, late.Outcome)
	require.Equal(t, before, w.dump())
	require.Equal(t, []string{"abandoned " + late.SweepID, "completed " + next.SweepID},
		w.texts("select outcome || ' ' || sweep_id from expiry.sweeps order by 1"))
}

func TestALongSweepKeepsItsLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := newGate(t)
	short := func(o *Options) { o.LeaseFor, o.RenewEvery = 2*time.Second, 100*time.Millisecond }
	result := make(chan error, 1)
	go func() {
		_, err := before(w.sweeper(short), g.part()).Sweep(t.Context(), event.Ping, event.SweepRequest{})
		result <- err
	}()
	<-g.begun
	w.eventually("select clock_timestamp() > started_at + interval '3 seconds' from expiry.sweeps")
	r, err := w.sweeper(short).Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.NoError(t, err)
	require.Equal(t, Skipped, r.Outcome)
	g.goOn()
	require.NoError(t, <-result)
}

func TestWhenTheLeaseCannotBeRenewedWorkStopsBeforeItEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := New(noRenewal{w.db}, Outside{}, func() Options {
		o := testOptions()
		o.LeaseFor, o.RenewEvery = 2*time.Second, 100*time.Millisecond
		return o
	}())
	var cause error
	var left time.Duration
	before(s, part{name: "outside call", plan: func(ctx context.Context, _ *pass) (plan, error) {
		<-ctx.Done()
		cause = context.Cause(ctx)
		left = w.leaseLeft()
		return plan{}, ctx.Err()
	}})
	r, err := s.Sweep(t.Context(), event.Ping, event.SweepRequest{})
	require.ErrorIs(t, cause, postgres.ErrLeaseLost)
	require.Positive(t, left, "the call ended while the lease was still held")
	require.Equal(t, Failed, r.Outcome)
	require.NoError(t, err, "there was time left to say so")
}

func (w *world) leaseLeft() time.Duration {
	var left time.Duration
	_ = w.raw.QueryRow(w.t.Context(), "select expires_at - clock_timestamp() from expiry.sweep_lease").Scan(&left)
	return left
}

type noRenewal struct{ *postgres.DB }

func (noRenewal) RenewSweep(context.Context, postgres.SweepLease, time.Duration) error {
	return fault.Errorf(fault.Transient, "no connection")
}

func TestAWriteUnderALapsedLeaseIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	lease := w.lease()
	_, err := w.db.VoidWarnings(t.Context(), lease, time.Now(), nil)
	require.NoError(t, err)
	w.lapse()
	_, err = w.db.VoidWarnings(t.Context(), lease, time.Now(), nil)
	require.ErrorIs(t, err, postgres.ErrLeaseLost, "though nobody has taken it over")
	require.ErrorIs(t, w.db.RenewSweep(t.Context(), lease, time.Minute), postgres.ErrLeaseLost)
}

func TestEveryWriteOfASweepIsUnderItsLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	readOnly, err := url.Parse(w.raw.Config().ConnString())
	require.NoError(t, err)
	settings := readOnly.Query()
	settings.Set("default_transaction_read_only", "on")
	readOnly.RawQuery = settings.Encode()
	reader, err := postgres.Open(t.Context(), readOnly.String(), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(reader.Close)

	w.exec("insert into expiry.snapshots (intent_id, user_id, disk_name, snapshot_id, state) values (gen_random_uuid(), 'ada', 'd', 'snap-1', 'pending')")
	pending := reflect.ValueOf([]disk.Snapshot{{ID: "snap-1", State: disk.SnapshotCompleted}, {ID: "snap-2"}})
	lease := reflect.TypeFor[postgres.SweepLease]()
	for m := range reflect.TypeFor[Store]().Methods() {
		if m.Name == "BeginSweep" { // takes it
			continue
		}
		leased := false
		args := []reflect.Value{reflect.ValueOf(t.Context())}
		for in := 1; in < m.Type.NumIn(); in++ {
			arg := reflect.Zero(m.Type.In(in))
			if arg.Kind() == reflect.Slice { // with nothing to write nobody looks at the lease
				arg = reflect.MakeSlice(arg.Type(), 1, 1)
			}
			if arg.Type() == pending.Type() {
				arg = pending
			}
			leased = leased || arg.Type() == lease
			args = append(args, arg)
		}
		db := reader
		if leased {
			db = w.db
		}
		out := reflect.ValueOf(db).MethodByName(m.Name).Call(args)
		err, _ := reflect.TypeAssert[error](out[len(out)-1])
		if leased {
			require.ErrorIs(t, err, postgres.ErrLeaseLost, m.Name)
		} else {
			require.NoError(t, err, "%s writes without the lease", m.Name)
		}
	}
}

// The lock by which a write holds the lease lets renewals pass and makes a takeover wait.
func TestATakeoverWaitsForWritesUnderTheOldLeaseAndARenewalDoesNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	lease := w.lease()
	obstacle, err := w.raw.Begin(t.Context())
	require.NoError(t, err)
	_, err = obstacle.Exec(t.Context(), "lock table expiry.follow_ups in access exclusive mode")
	require.NoError(t, err)
	written, taken := make(chan error, 1), make(chan error, 1)
	waiting := `select exists (select from pg_stat_activity
		where datname = current_database() and wait_event_type = 'Lock' and query like $1)`
	go func() {
		_, err := w.db.VoidWarnings(t.Context(), lease, time.Now(), nil)
		written <- err
	}()
	w.eventually(waiting, "%update expiry.follow_ups%")

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.NoError(t, w.db.RenewSweep(ctx, lease, time.Minute))

	w.lapse()
	go func() {
		_, _, ok, err := w.db.BeginSweep(t.Context(), uuid.New(), "test", "test", time.Minute)
		if !ok && err == nil {
			err = errors.New("not taken")
		}
		taken <- err
	}()
	w.eventually(waiting, "%update expiry.sweep_lease%")
	require.Empty(t, taken)
	require.NoError(t, obstacle.Commit(t.Context()))
	require.NoError(t, <-written)
	require.NoError(t, <-taken)
}
