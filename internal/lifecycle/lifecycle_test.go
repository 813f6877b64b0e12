package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/lifecycle"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestEachPhaseIsWrittenOnceWhenItEndsAndTheRootLast(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	writer := w.writer()
	id := w.queue()
	see := func(want ...string) {
		t.Helper()
		_, err := writer.Write(t.Context(), id)
		require.NoError(t, err)
		n, err := writer.Write(t.Context(), id)
		require.NoError(t, err)
		require.Zero(t, n, "nothing is written twice")
		expected := map[string]int{}
		for _, name := range want {
			expected[name] = 1
		}
		require.Equal(t, expected, w.c.count(id))
	}
	see()
	w.prepare(id)
	see("queued")
	w.launch(id)
	see("queued", "preparing")
	w.expire(id)
	see("queued", "preparing", "active")
	w.step(id, postgres.StepPod, "done")
	see("queued", "preparing", "active", "step pod")
	w.step(id, postgres.StepDisk, "released")
	w.snapshot(id)
	w.settle(id)
	see("queued", "preparing", "active", "step pod", "step disk", "cleanup", "disk held", "snapshot", "reservation")

	w.exec("update expiry.cleanups set settled_at = null where reservation_id = $1", id) // reopened
	w.step(id, postgres.StepServices, "done")
	w.settle(id)
	see("queued", "preparing", "active", "step pod", "step disk", "cleanup", "disk held", "snapshot", "reservation")
}

func TestTheSpansOfALifeAreNestedInOrderAndSearchable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.live()
	_, err := w.writer().Write(t.Context())
	require.NoError(t, err)
	require.Equal(t, whole(), w.c.count(id))
	seen, err := w.c.Trace(t.Context(), strings.ReplaceAll(id, "-", ""))
	require.NoError(t, err, "the reservation's id can be pasted")

	byName, byID := map[string]int{}, map[string]int{}
	for i, s := range seen.Spans {
		byName[s.Name], byID[s.ID] = i, i
	}
	root := seen.Spans[byName["reservation"]]
	require.Empty(t, root.ParentID)
	for _, s := range seen.Spans {
		require.Equal(t, id, s.Attributes["reservation.id"])
		require.Equal(t, "ada", s.Attributes["user.id"])
		require.Equal(t, "h100", s.Attributes["gpu.type"])
		require.Equal(t, "expired", s.Attributes["reservation.status"])
		require.NotEmpty(t, s.Attributes["reservation.outcome"], s.Name)
		if s.Name == "reservation" {
			continue
		}
		i, known := byID[s.ParentID]
		require.True(t, known, "%s has its parent", s.Name)
		parent := seen.Spans[i]
		require.False(t, s.Start.Before(parent.Start), "%s begins within %s", s.Name, parent.Name)
		require.False(t, s.End().After(parent.End()), "%s ends within %s", s.Name, parent.Name)
	}
	require.Equal(t, seen.Spans[byName["queued"]].End(), seen.Spans[byName["preparing"]].Start)
	require.Equal(t, seen.Spans[byName["preparing"]].End(), seen.Spans[byName["active"]].Start)
	require.Equal(t, seen.Spans[byName["active"]].End(), seen.Spans[byName["cleanup"]].Start)
	require.Equal(t, "released", root.Attributes["reservation.outcome"])
	require.Equal(t, "its time was over", root.Attributes["reservation.reason"])
	require.Equal(t, "its time was over", seen.Spans[byName["active"]].Attributes["reservation.reason"])
	for _, name := range []string{"reservation", "active", "cleanup", "step identify", "step listing", "step services", "step pod"} {
		require.Equal(t, "gpu-dev-1", seen.Spans[byName[name]].Attributes["k8s.pod.name"], name)
		require.Equal(t, "gpu-dev", seen.Spans[byName[name]].Attributes["k8s.namespace.name"], name)
	}
	for _, name := range []string{"reservation", "cleanup", "step disk"} {
		about := seen.Spans[byName[name]].Attributes
		require.Equal(t, "vol-0123456789abcdef0", about["aws.ebs.volume_id"], name)
		require.Equal(t, "data", about["disk.name"], name)
		require.Equal(t, "snap-"+id, about["aws.ebs.snapshot_id"], name)
	}
	require.Equal(t, "ada/data.txt", seen.Spans[byName["step listing"]].Attributes["aws.s3.key"])
}

func TestAReasonIsWithThePhaseInWhichALifeEndedAndADiskIsHeldUntilItsLockIsFreed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	queued, preparing, superseded := w.queue(), w.queue(), w.queue()
	w.fails(queued, "queued for 50 hours")
	w.free(queued)
	w.settleAs(queued, postgres.OutcomeNothingToKeep)
	w.prepare(preparing)
	w.fails(preparing, "preparing for 2 hours") // and it never had the disk's lock
	w.settleAs(preparing, postgres.OutcomeNothingToKeep)
	w.prepare(superseded)
	w.launch(superseded)
	w.expire(superseded)
	w.settleAs(superseded, postgres.OutcomeSuperseded) // another has the lock
	_, err := w.writer().Write(t.Context())
	require.NoError(t, err)
	for id, want := range map[string]struct{ last, reason, held string }{
		queued:     {"queued", "queued for 50 hours", "18m"},
		preparing:  {"preparing", "preparing for 2 hours", ""},
		superseded: {"active", "its time was over", ""},
	} {
		seen, err := w.c.Trace(t.Context(), telemetry.TraceID(id).String())
		require.NoError(t, err)
		held := ""
		for _, s := range seen.Spans {
			reason := s.Attributes["reservation.reason"]
			if s.Name == want.last || s.Name == "reservation" {
				require.Equal(t, want.reason, reason, s.Name)
			} else {
				require.Empty(t, reason, s.Name)
			}
			if s.Name == "disk held" {
				require.Equal(t, "data", s.Attributes["disk.name"])
				held = strings.TrimSuffix(s.Duration.Round(time.Minute).String(), "0s")
			}
		}
		require.Equal(t, want.held, held, want.last)
	}
}

func TestADiskHeldForLongSaysSoInAWord(t *testing.T) {
	t.Parallel()
	for held, word := range map[string]string{"5 hours": "", "7 hours": "long"} {
		w := newWorld(t)
		id := w.live()
		w.exec("update reservations set reservation_ended = clock_timestamp() - $2::interval where reservation_id = $1", id, held)
		_, err := w.writer().Write(t.Context())
		require.NoError(t, err)
		seen, err := w.c.Trace(t.Context(), telemetry.TraceID(id).String())
		require.NoError(t, err)
		for _, s := range seen.Spans {
			if s.Name == "disk held" {
				require.Equal(t, word, s.Attributes["disk.held"], held)
			}
		}
	}
}

func TestALifeWhoseRowIsDeletedWithoutACleanupEndsAsVanished(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	writer := w.writer()
	id := w.queue()
	w.prepare(id)
	w.launch(id)
	_, err := writer.Write(t.Context())
	require.NoError(t, err)
	w.exec("delete from reservations where reservation_id = $1", id)
	for range 2 {
		_, err = writer.Write(t.Context())
		require.NoError(t, err)
	}
	require.Equal(t, map[string]int{"queued": 1, "preparing": 1, "active": 1, "reservation": 1}, w.c.count(id))
	seen, err := w.c.Trace(t.Context(), strings.ReplaceAll(id, "-", ""))
	require.NoError(t, err)
	for _, s := range seen.Spans {
		require.Equal(t, "ada", s.Attributes["user.id"], s.Name)
		require.Equal(t, "h100", s.Attributes["gpu.type"], s.Name)
		require.Equal(t, "active", s.Attributes["reservation.status"], s.Name)
		if s.Name == "active" || s.Name == "reservation" {
			require.Equal(t, "vanished", s.Attributes["reservation.outcome"], s.Name)
			require.WithinDuration(t, time.Now(), s.End(), time.Minute)
		}
	}
}

func TestManyProcessesWriteEachSpanOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var ids []string
	for range 60 {
		ids = append(ids, w.live())
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			writer := w.writer(func(o *lifecycle.Options) { o.Batch = 5 })
			for done := range 10 {
				_, err := writer.Write(t.Context(), ids[done])
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for n := 1; n > 0; { // what the loops had no time for
		var err error
		n, err = w.writer().Write(t.Context())
		require.NoError(t, err)
	}
	for _, id := range ids {
		require.Equal(t, whole(), w.c.count(id))
	}
}

func TestWithoutACollectorNothingIsClaimed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.live()
	n, err := lifecycle.New(w.db, telemetry.Disabled(), lifecycle.Options{}).Write(t.Context())
	require.NoError(t, err)
	require.Zero(t, n)
	var rows int
	require.NoError(t, w.raw.QueryRow(t.Context(), "select count(*) from expiry.traces").Scan(&rows))
	require.Zero(t, rows)
}

// dying is a store whose process dies at a moment: what it was to do then is not done, nor is anything later.
type dying struct {
	*postgres.DB
	unclaimed bool // it dies before it claims, else before it marks
}

var errKilled = errors.New("killed")

func (d dying) ClaimTraces(ctx context.Context, token uuid.UUID, lease time.Duration, limit int, also ...string) ([]postgres.Lifecycle, error) {
	lives, err := d.DB.ClaimTraces(ctx, token, lease, limit, also...)
	if d.unclaimed {
		return nil, errKilled
	}
	return lives, err
}

func (d dying) SettleTraces(context.Context, uuid.UUID, []postgres.TraceMark) error { return errKilled }

func TestOnlyAKillBeforeTheMarkOrALostAnswerWritesTwiceAndOnlyWhereNobodyCanLook(t *testing.T) {
	t.Parallel()
	twice := whole()
	for name := range twice {
		twice[name] = 2
	}
	for name, c := range map[string]struct {
		kill    func(w *world) lifecycle.Store // nil: none
		manner  manner
		viewing bool
		want    map[string]int
	}{
		"nothing happens":                              {want: whole()},
		"killed between claim and export":              {kill: func(w *world) lifecycle.Store { return dying{w.db, true} }, want: whole()},
		"killed between acknowledgement and mark":      {kill: func(w *world) lifecycle.Store { return dying{w.db, false} }, want: twice},
		"the same, and somebody can look":              {kill: func(w *world) lifecycle.Store { return dying{w.db, false} }, viewing: true, want: whole()},
		"refused":                                      {manner: refuses, want: whole()},
		"it fails, and nobody can look":                {manner: fails, want: whole()},
		"it fails, and somebody can look":              {manner: fails, viewing: true, want: whole()},
		"answered too late":                            {manner: answersTooLate, want: twice},
		"answered too late, and somebody can look":     {manner: answersTooLate, viewing: true, want: whole()},
		"the answer is lost":                           {manner: losesAnswers, want: twice},
		"the answer is lost, and somebody can look":    {manner: losesAnswers, viewing: true, want: whole()},
		"the request is lost, and somebody can look":   {manner: losesRequests, viewing: true, want: whole()},
		"the request is lost, and nobody can look":     {manner: losesRequests, want: whole()},
		"killed, the answer is lost, and one can look": {kill: func(w *world) lifecycle.Store { return dying{w.db, false} }, manner: losesAnswers, viewing: true, want: whole()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.live()
			var options []func(*lifecycle.Options)
			if c.viewing {
				options = append(options, w.viewing)
			}
			store := lifecycle.Store(w.db)
			if c.kill != nil {
				store = c.kill(w)
			}
			w.c.become(c.manner)
			_, err := w.writerTo(store, options...).Write(t.Context())
			if c.kill != nil || c.manner != takes {
				require.Error(t, err)
			}
			w.c.become(takes)
			for range 3 {
				w.timePasses()
				_, err := w.writer(options...).Write(t.Context())
				require.NoError(t, err)
			}
			require.Equal(t, c.want, w.c.count(id))
		})
	}
}

func TestWhatMayHaveArrivedTwiceIsSentOnceAnHourWhereNobodyCanLook(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.live()
	w.c.become(answersTooLate)
	pause := func() (minutes int) {
		w.timePasses()
		_, err := w.writer().Write(t.Context())
		require.Error(t, err)
		require.NoError(t, w.raw.QueryRow(t.Context(), `
			select round(extract(epoch from lease_expires_at - clock_timestamp()) / 60) from expiry.traces`).Scan(&minutes))
		return minutes
	}
	require.Equal(t, []int{1, 60, 60}, []int{pause(), pause(), pause()})
}

// slow is a Jaeger that takes a second to answer.
type slow struct{ *collector }

func (s slow) Trace(ctx context.Context, traceID string) (jaeger.Trace, error) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < time.Second {
		return jaeger.Trace{}, context.DeadlineExceeded
	}
	return s.collector.Trace(ctx, traceID)
}

func TestWhatASweepHasNoTimeToLookAtIsLookedAtByADelivery(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.live()
	var log bytes.Buffer
	looking := func(o *lifecycle.Options) {
		o.Viewer, o.Within, o.Log = slow{w.c}, 900*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))
	}
	w.c.become(losesRequests)
	_, err := w.writer().Write(t.Context())
	require.Error(t, err)
	w.c.become(takes)
	w.timePasses()
	_, err = w.writer(looking).Write(t.Context())
	require.NoError(t, err)
	require.Empty(t, w.c.count(id))
	require.Contains(t, log.String(), id)
	w.timePasses()
	_, err = w.writer(looking).Write(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, whole(), w.c.count(id))
}

func TestWhateverTheCollectorDoesEverySpanIsWrittenAndOnceWhereSomebodyCanLook(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rapid.Check(t, func(r *rapid.T) {
		viewing := rapid.Bool().Draw(r, "viewing")
		var options []func(*lifecycle.Options)
		if viewing {
			options = append(options, w.viewing)
		}
		id := w.queue()
		life := []func(){
			func() { w.prepare(id) }, func() { w.launch(id) }, func() { w.expire(id) },
			func() { w.step(id, postgres.StepPod, "done") }, func() { w.step(id, postgres.StepDNS, "done") },
			func() { w.settle(id) },
		}
		for _, event := range life {
			event()
			for range rapid.IntRange(0, 2).Draw(r, "writes") {
				w.c.become(rapid.SampledFrom([]manner{takes, refuses, fails, losesAnswers, losesRequests, answersTooLate}).Draw(r, "manner"))
				if rapid.Bool().Draw(r, "later") {
					w.timePasses()
				}
				store := lifecycle.Store(w.db)
				if rapid.IntRange(0, 3).Draw(r, "dies") == 0 {
					store = dying{w.db, rapid.Bool().Draw(r, "before")}
				}
				_, _ = w.writerTo(store, options...).Write(t.Context(), id)
			}
		}
		w.c.become(takes)
		for range 3 {
			w.timePasses()
			if _, err := w.writer(options...).Write(t.Context(), id); err != nil {
				r.Fatal(err)
			}
		}
		seen := w.c.count(id)
		for name, n := range seen {
			if n > 1 && viewing {
				r.Fatalf("%s was written %d times", name, n)
			}
		}
		if len(seen) != 8 {
			r.Fatalf("of 8 spans these were written: %v", seen)
		}
	})
}

func TestATraceOfOneWhoIsForgottenIsForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.live()
	gone := w.live()
	_, err := w.writer().Write(t.Context())
	require.NoError(t, err)
	w.exec("delete from expiry.cleanups")
	w.exec("delete from reservations where reservation_id = $1", gone)
	lease, _, ok, err := w.db.BeginSweep(t.Context(), uuid.New(), "test", "test", time.Minute)
	require.NoError(t, err)
	require.True(t, ok)
	_, err = w.db.ForgetHistory(t.Context(), lease, time.Now().Add(time.Hour), 100)
	require.NoError(t, err)
	var rows int
	require.NoError(t, w.raw.QueryRow(t.Context(), "select count(*) from expiry.traces").Scan(&rows))
	require.Equal(t, 1, rows, "what is still the platform's might otherwise be written again")
}
