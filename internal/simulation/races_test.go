package simulation

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/sweep"
)

// races is a world in which nobody waits for a turn: sweeps, cleanups, snapshot syncs, the platform and its users work
// side by side on a PostgreSQL with its own clock. Only the models take one call at a time, and their clock is ahead by
// what the service has slept.
type races struct {
	*world
	t       *testing.T
	db      *postgres.DB
	sql     *pgxpool.Pool // the platform's and the users'
	sweeper *sweep.Sweeper
	runner  *followup.Runner
	lanes   []*lane

	lock    sync.Mutex // of the models, and of all below
	slept   time.Duration
	revived map[string]bool
	work    int
	busy    int        // racers that are at something
	free    *sync.Cond // one of them is no more
}

// lane is one disk, its reservation, which is overdue, and what its user and the platform do to them meanwhile.
type lane struct {
	sync.Mutex
	first, newer *reservation
	acts         []act
	left         atomic.Int32 // acts to come
	was, wish    string       // what the row said when the user extended or cancelled, and what he made of it
}

const (
	racers   = 4     // that work at once
	workMost = 3_000 // deliveries in one round, before it counts as never settling
)

//nolint:tparallel // the rounds do
func TestWhoeverCommitsFirstHasWonWhileAllWorkOnTheSameDisks(t *testing.T) {
	t.Parallel()
	rounds := 1
	if n, err := strconv.Atoi(os.Getenv("RACE_ROUNDS")); err == nil {
		rounds = n
	}
	shelf, s := stacktest.NewShelf(t), &score{t: t, of: rounds, began: time.Now(), first: map[string]int{}}
	t.Run("rounds", func(t *testing.T) {
		for round := range rounds {
			t.Run(fmt.Sprint(round+1), func(t *testing.T) {
				t.Parallel()
				defer s.over(t)
				r := newRaces(t, shelf)
				r.begin()
				r.storm()
				s.add(r.survivors())
				_, err := r.sql.Exec(t.Context(), `
					update reservations set status = 'cancelled', cancelled_at = clock_timestamp(), reservation_ended = clock_timestamp()
					where status not in ('expired', 'cancelled', 'failed')`)
				require.NoError(t, err)
				r.storm()
				r.atTheEnd()
			})
		}
	})
	s.say()
}

// score is what became of the rounds so far.
type score struct {
	sync.Mutex
	t              *testing.T
	of, done, lost int
	first          map[string]int
	began, said    time.Time
}

func (s *score) add(first map[string]int) {
	s.Lock()
	defer s.Unlock()
	for who, n := range first {
		s.first[who] += n
	}
}

// over counts a round, and says every few seconds how far it is.
func (s *score) over(t *testing.T) {
	s.Lock()
	defer s.Unlock()
	if s.done++; t.Failed() {
		s.lost++
	}
	if took := time.Since(s.began); s.done < s.of && took > 10*time.Second && time.Since(s.said) > 10*time.Second {
		s.said = time.Now()
		s.t.Logf("%d of %d rounds, %s left, %d lost", s.done, s.of, (took * time.Duration(s.of-s.done) / time.Duration(s.done)).Round(time.Second), s.lost)
	}
}

func (s *score) say() {
	s.t.Logf("%d rounds of %d disks, %d lost; who came first: %v", s.done, len(fates), s.lost, s.first)
}

func newRaces(t *testing.T, shelf *stacktest.Shelf) *races {
	t.Helper()
	url := shelf.Database(t)
	random := rand.New(rand.NewPCG(rand.Uint64(), 0))
	w := &world{rand: random, data: &database{t: t}, outside: model.New(time.Now(), random)}
	w.outside.EC2.Sound = true
	w.faults, w.checks = &faults{w: w}, newChecks(w)
	w.people.disks = map[disk.Key]*savedDisk{}
	r := &races{world: w, t: t, revived: map[string]bool{}}
	r.free = sync.NewCond(&r.lock)
	w.atOnce, w.outside.Watch = r.inTurn, r.watch

	var err error
	r.db, err = postgres.Open(t.Context(), stacktest.AsService(t, url), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(r.db.Close)
	r.sql, err = pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(r.sql.Close)
	w.data.users, err = pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.data.users.Close(context.Background()) })
	_, err = r.sql.Exec(t.Context(), releasesLog)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(strings.Join(w.history, "\n"))
		}
	})

	log := slog.New(slog.DiscardHandler)
	kube, ec2, aws := newCluster(w), amazon{w, w.outside.EC2}, services{w, w.outside.Network}
	outside := snapshot.World{Store: r.db, EC2: ec2, Cluster: kube, Identity: aws}
	const lag = time.Nanosecond // the model's EC2 is never behind here
	disks := snapshot.Options{DriverGrace: 5 * time.Second, Interval: 4 * time.Second, Lag: lag, Now: r.now, Sleep: r.sleep, Log: log}
	r.sweeper = sweep.New(r.db, sweep.Outside{Cluster: kube, EC2: ec2, Account: aws}, sweep.Options{
		Grace: grace, WarningMinutes: 30, BrakePercent: 100, MissingConfirm: confirm, Log: log,
	})
	r.runner = followup.NewRunner(r.db, map[postgres.FollowUpKind]followup.Action{
		postgres.Cleanup: cleanup.New(cleanup.World{
			Store: r.db, Cluster: kube, EC2: ec2, Identity: aws, Router: aws, Disk: snapshot.NewKeeper(outside, disks), DNS: aws, Bucket: aws,
		}, cleanup.Options{Domain: zone, Interval: 3 * time.Second, Lag: lag, Now: r.now, Sleep: r.sleep, Log: log}),
		postgres.SnapshotSync:  snapshot.NewSync(outside, disks),
		postgres.SnapshotPurge: snapshot.NewPurge(outside, disks),
	}, followup.Options{Deadline: 1000 * time.Hour, Log: log})
	return r
}

// releasesLog has each release of a disk written down by the transaction that makes it.
const releasesLog = `
create table if not exists releases (holder text, status text, unsettled bigint);
create or replace function released() returns trigger language plpgsql security definer as $$
begin
    insert into releases
    select old.reservation_id, (select status from reservations where reservation_id = old.reservation_id),
           (select count(*) from expiry.snapshots where reservation_id = old.reservation_id and state in ('intended', 'pending'));
    return null;
end $$;
create or replace trigger released after update on disks for each row when (old.in_use and not new.in_use) execute function released();`

// inTurn has the models take one call, after what happened by itself since the last one.
func (r *races) inTurn(effect func() error) error {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.catchUp()
	return effect()
}

func (r *races) catchUp() {
	if behind := time.Now().Add(r.slept).Sub(r.outside.Now()); behind > 0 {
		r.outside.Advance(behind)
	}
}

func (r *races) now() time.Time {
	r.lock.Lock()
	defer r.lock.Unlock()
	return time.Now().Add(r.slept)
}

func (r *races) sleep(ctx context.Context, d time.Duration) error {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.slept += d
	r.catchUp()
	return ctx.Err()
}

// watch judges what is about to be taken away. Where the platform brings back to life what has ended, in the midst of
// its cleanup, what has begun nobody can take back; its data is safe all the same.
func (r *races) watch(e model.Effect) {
	r.say("effect", "%s %s of %s", e.What, e.Name, e.Owner)
	switch e.What {
	case "delete volume":
		r.checks.volumeGoes(e.Volume)
	case "delete snapshot":
		r.checks.snapshotGoes(e.Snapshot)
		return
	}
	live := column[string](r.data, "select status from reservations where reservation_id = $1 and status not in ('expired', 'cancelled', 'failed')", e.Owner)
	r.checks.require(newIsSafe, len(live) == 0 || r.revived[e.Owner], "%s %s of %s, which is %v", e.What, e.Name, e.Owner, live)
	if e.Volume != nil {
		others := column[string](r.data, "select reservation_id from disks where user_id = $1 and disk_name = $2 and reservation_id <> $3",
			e.Volume.Tags[disk.TagUser], e.Volume.Tags[disk.TagDisk], e.Owner)
		r.checks.require(newIsSafe, len(others) == 0, "%s %s of %s, and its disk is %v's", e.What, e.Name, e.Owner, others)
	}
}

// begin makes the lanes: servers that run with a disk each, an hour past their ends.
func (r *races) begin() {
	r.exec("insert into expiry.cluster (uid) values ($1)", r.outside.Cluster.UID)
	for _, acts := range fates {
		l := &lane{first: r.reservation(fmt.Sprintf("disk-%d", len(r.lanes)), time.Now().Add(-3*time.Hour)), acts: acts}
		l.left.Store(int32(len(acts)))
		r.launched(l.first, -time.Hour)
		r.lanes = append(r.lanes, l)
	}
}

// reservation makes the row of one that takes a disk.
func (r *races) reservation(disk string, created time.Time) *reservation {
	r.lock.Lock()
	id := r.uuid().String()
	n := &reservation{id: id, user: "ada", disk: disk, podName: "gpu-dev-" + id[:8], domain: disk, gpu: "a100", healthy: true, entered: created}
	r.people.all = append(r.people.all, n)
	take := r.people.take(r.world, n)
	r.lock.Unlock()
	r.write(append([]statement{n.row("preparing", created)}, take...)...)
	return n
}

// launched gives a reservation its server.
func (r *races) launched(n *reservation, ends time.Duration) {
	r.lock.Lock()
	r.catchUp()
	r.people.makePod(r.world, n, n.entered)
	volume := r.outside.EC2.Volume(n.volume)
	volume.Stuck = false
	route := n.route(r.world)
	r.lock.Unlock()
	r.write(append(route, statement{`
		update reservations set status = 'active', launched_at = $2, expires_at = $3, ebs_volume_id = $4 where reservation_id = $1 and status = 'preparing'`,
		[]any{n.id, n.entered, time.Now().Add(ends), n.volume}}, statement{"update disks set ebs_volume_id = $2 where reservation_id = $1", []any{n.id, n.volume}})...)
	r.lock.Lock()
	n.makeRoute(r.outside.Network)
	r.lock.Unlock()
}

func (r *races) write(statements ...statement) {
	err := pgx.BeginFunc(r.t.Context(), r.sql, func(tx pgx.Tx) error {
		for _, s := range statements {
			if _, err := tx.Exec(r.t.Context(), s.sql, s.args...); err != nil {
				return fmt.Errorf("%s: %w", s.sql, err)
			}
		}
		return nil
	})
	if err != nil {
		r.t.Errorf("the platform was made to fail: %v", err)
	}
}

func (r *races) exec(sql string, args ...any) { r.write(statement{sql, args}) }

func (r *races) note(who, format string, args ...any) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.say(who, format, args...)
}

// storm has racers do whatever there is to do, until nothing is.
func (r *races) storm() {
	var all sync.WaitGroup
	for range racers {
		all.Go(func() {
			for !r.t.Failed() && r.step() {
			}
		})
	}
	all.Wait()
	require.False(r.t, r.t.Failed())
	require.Empty(r.t, r.checks.violated)
}

// step does one thing: an act, a sweep, or a delivery. It reports false once nothing is left to do.
func (r *races) step() bool {
	r.lock.Lock()
	dice, l := r.rand.IntN(12), r.lanes[r.rand.IntN(len(r.lanes))]
	r.slept += time.Second
	r.busy++
	r.lock.Unlock()
	worked := r.try(dice, l)
	r.lock.Lock()
	r.busy--
	if !worked && r.busy > 0 { // what the others are at may leave something to do
		r.free.Wait()
		r.lock.Unlock()
		return true
	}
	r.lock.Unlock()
	defer r.free.Broadcast()
	return worked || r.pass()
}

// try reports false where nothing is to be done at the moment.
func (r *races) try(dice int, l *lane) bool {
	switch {
	case dice < 4 && r.act(l):
		return true
	case dice == 4:
		r.tick()
		return true
	case dice == 5: // a process is thought dead that is not
		r.exec("update expiry.follow_ups set lease_expires_at = clock_timestamp() where lease_token is not null and random() < 0.3")
	}
	if f := r.read(dueFollowUp); f != "" {
		r.deliver(f)
		return true
	}
	if dice < 6 || !slices.ContainsFunc(r.lanes, (*lane).open) {
		return slices.ContainsFunc(r.lanes, r.act)
	}
	r.tick()
	return true
}

// open reports whether somebody is still to act.
func (l *lane) open() bool { return l.left.Load() > 0 }

// act has the user of a lane, or the platform, do what comes next, if it is time for that.
func (r *races) act(l *lane) bool {
	if !l.open() || !l.TryLock() {
		return false
	}
	defer l.Unlock()
	if len(l.acts) == 0 || !l.acts[0](r, l) {
		return false
	}
	l.acts = l.acts[1:]
	l.left.Add(-1)
	return true
}

func (r *races) tick() {
	s, err := r.sweeper.Sweep(r.t.Context(), event.Ping, event.SweepRequest{})
	if err != nil || len(s.Failures) > 0 {
		r.t.Errorf("sweep: %v %v", err, s.Failures)
	}
}

// pass lets time go by where nothing else is to come, until what is listed late is seen and a disk has been left alone,
// and then the next tick come. It reports false once nothing is left to do.
func (r *races) pass() bool {
	left := r.read(owed)
	if left == "" {
		return slices.ContainsFunc(r.lanes, (*lane).open)
	}
	r.exec("update disks set last_updated = clock_timestamp() - interval '15 minutes' where pending_snapshot_count > 0")
	r.lock.Lock()
	r.slept += time.Minute
	if r.work++; r.work > workMost && !r.t.Failed() {
		r.t.Errorf("not settled: %s", left)
	}
	r.lock.Unlock()
	r.tick()
	return true
}

// deliver brings the event of a follow-up, all pauses over.
func (r *races) deliver(f string) {
	kind, key, _ := strings.Cut(f, " ")
	r.exec("update expiry.follow_ups set due_at = least(due_at, clock_timestamp()) where kind = $1 and key = $2 and state = 'due'", kind, key)
	report, err := r.runner.Run(r.t.Context(), postgres.FollowUpKind(kind), key)
	if err != nil {
		r.t.Errorf("deliver %s: %v", f, err)
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	r.say("process", "%s → %s %s %s", f, report.State, report.Outcome, report.Error)
	if r.work++; r.work > workMost && !r.t.Failed() {
		r.t.Errorf("not settled after %d deliveries: %s", r.work, r.read(owed))
	}
}

// dueFollowUp is any that is due, now or later, and that nobody works on.
const dueFollowUp = `
select coalesce((select kind || ' ' || key from expiry.follow_ups
                 where state = 'due' and kind in ('cleanup', 'snapshot.sync', 'snapshot.purge') and coalesce(lease_expires_at <= clock_timestamp(), true)
                 order by random() limit 1), '')`

// owed is what is left to do; empty once all is settled.
const owed = `
select coalesce(string_agg(what, '; '), '') from (
    select kind || ' ' || key || ' ' || coalesce(last_error, '') as what from expiry.follow_ups
    where state = 'due' and kind in ('cleanup', 'snapshot.sync', 'snapshot.purge')
    union all select reservation_id || ' is overdue' from reservations where status = 'active' and expires_at < clock_timestamp() - interval '10 minutes'
    union all select reservation_id || ' is not cleaned up' from reservations r left join expiry.cleanups c using (reservation_id)
    where r.status in ('expired', 'cancelled', 'failed') and c.settled_at is null
    union all select disk_name || ' counts pending snapshots' from disks where pending_snapshot_count > 0
    union all select d.disk_name || ' is locked for ' || coalesce(reservation_id, 'nobody') from disks d left join reservations r using (reservation_id)
    where in_use and (r.status is null or r.status in ('expired', 'cancelled', 'failed'))) owed`

// read returns the one text that a query has.
func (r *races) read(query string, args ...any) (text string) {
	if err := r.sql.QueryRow(r.t.Context(), "select ("+query+")::text", args...).Scan(&text); err != nil {
		r.t.Errorf("%s: %v", query, err)
	}
	return text
}

// survivors judges who has ended, and that the others have all that they were given. It returns who came first how often.
func (r *races) survivors() map[string]int {
	first := map[string]int{}
	for _, l := range r.lanes {
		expired := "1"
		if l.was == "active" {
			expired = "0"
		}
		first[map[string]string{"0": "users", "1": "sweeps"}[expired]]++
		require.Equal(r.t, expired, r.read("select count(*) from expiry.facts where subject = $1 and type = $2", l.first.id, event.ReservationExpired),
			"how often %s, which was %q to its user, was expired", l.first.id, l.was)
		now := r.read("select coalesce((select status from reservations where reservation_id = $1), 'forgotten')", l.first.id)
		if l.was == "active" {
			require.Contains(r.t, []string{l.wish, "forgotten"}, now, "what %s came to", l.first.id)
		}
		if now == "active" && !r.revived[l.first.id] {
			r.unharmed(l.first)
		}
		if l.newer != nil {
			r.unharmed(l.newer)
		}
	}
	return first
}

// unharmed requires that a live reservation has all that it was given.
func (r *races) unharmed(n *reservation) {
	require.Equal(r.t, "active", r.read("select status from reservations where reservation_id = $1", n.id))
	require.Equal(r.t, n.disk, r.read("select coalesce(max(disk_name), '') from disks where in_use and reservation_id = $1", n.id), "the disk's lock")
	require.True(r.t, r.people.podOf(r.world, n) && n.pod.Deleting.IsZero(), "the pod of %s is gone", n.id)
	v := r.outside.EC2.Volume(n.volume)
	require.True(r.t, v != nil && v.Writer() == n.pod, "the volume of %s is gone", n.id)
	require.Equal(r.t, n.id, r.outside.Network.Records[n.domain+"."+zone], "the record")
}

// atTheEnd judges a world in which all have ended and everything has settled.
func (r *races) atTheEnd() {
	r.checks.disksAtTheEnd()
	require.Empty(r.t, r.checks.violated)
	again := slices.Collect(maps.Keys(r.revived)) // they may end twice
	for what, query := range map[string]string{
		"disks released for the living, or while a snapshot is unsettled": `
			from releases where (status not in ('expired', 'cancelled', 'failed') or unsettled > 0) and holder <> all($1)`,
		"disks released twice": `
			from (select holder from releases where holder <> all($1) group by holder having count(*) > 1) twice`,
		"releases without a fact of their own": `
			from (select count(*) from releases) r (n), (select count(*) from expiry.facts where type like '%.disk.released.v1') f (n)
			where r.n <> f.n and $1::text[] is not null`,
		"subjects whose facts have gaps": `
			from (select from expiry.facts right join expiry.fact_sequences using (subject) where $1::text[] is not null
			      group by subject, last having coalesce(max(sequence), 0) <> last or count(sequence) <> last) gaps`,
		"facts that are there twice": `
			from (select from expiry.facts where subject <> all($1) and type not like '%.reservation.warned.v1'
			      group by subject, type, data ->> 'snapshotId' having count(*) > 1) twice`,
		"ended reservations that were cleaned up other than once": `
			from (select from expiry.cleanups left join expiry.facts on subject = reservation_id and type like '%.cleanedUp.v1'
			      where reservation_id <> all($1) group by reservation_id having count(subject) <> 1) other`,
	} {
		require.Equal(r.t, "0", r.read("select count(*) "+query, again), what)
	}
}
