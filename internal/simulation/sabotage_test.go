package simulation

import (
	"context"
	"strings"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// A sabotaged world has one thing in it that is wrong, so that an invariant must be seen to break. A checker that nothing
// makes fail would prove nothing.
const (
	earlyGrace       = "the grace period is negative"
	pendingCompleted = "EC2's adapter takes pending snapshots for completed"
	volumesGone      = "EC2's adapter takes every volume for gone"
	countedTwice     = "a completed snapshot is counted twice"
	disksDeleted     = "every disk counts as deleted long ago"
	podsGone         = "the cluster's adapter takes every pod for gone"
	warningsLost     = "the cluster's adapter says that it has written what it has not"
	cleanupsLost     = "no cleanup is ever delivered"
	factsLost        = "some facts are taken and dropped"
	eventsBelieved   = "a delivery does what its event says"
	brokenStops      = "one broken row hides all that are overdue"
	domainsByName    = "a domain is taken for the ended reservation's by its name"
	disksMistaken    = "EC2's adapter takes a snapshot for another disk's"
	pauseIgnored     = "a sweep takes a pause for none"
	rehearsalReal    = "a dry run is a sweep like any other"

	volumesFree      = "EC2's adapter takes every volume for free"
	snapshotsForeign = "EC2's adapter says of a snapshot made without tags that this service made it"
	lockedAgain      = "a disk that is released is locked again"
	pendingForgotten = "more pending snapshots are taken off a disk than it has"
	pendingTwice     = "a completed snapshot is taken off the pending ones twice"
	unheldReleased   = "a sweep releases every disk that no reservation has"
	recordsStay      = "the adapter says that it has deleted the records that it has not"
	warnedLate       = "a cleanup warns once more"
	warnedTwice      = "a warning's fact is recorded twice"
	numbersReused    = "every fact of a subject has the same number"
	preparingFails   = "a sweep has whoever is preparing fail"
	queuedCancelled  = "a sweep cancels whoever is queued"
	activeFails      = "a sweep has whoever is active fail"
	endedAgain       = "a sweep expires whom users have cancelled"
	liveReleased     = "a sweep releases the disks of those who live"
	snapshotsHidden  = "EC2's adapter has no answer for who makes a snapshot, and lists none"
	heardOfNever     = "what EC2 denies is believed after hours only"
	volumesLeft      = "EC2's adapter takes every volume for gone of which there is a snapshot"
)

// rude is what a sweep writes in a sabotaged world, whatever it decides.
var rude = map[string]string{
	preparingFails:  "update reservations set status = 'failed' where status = 'preparing'",
	queuedCancelled: "update reservations set status = 'cancelled' where status in ('queued', 'pending')",
	activeFails:     "update reservations set status = 'failed' where status = 'active'",
	endedAgain:      "update reservations set status = 'expired' where status = 'cancelled'",
	liveReleased:    "update disks set in_use = false where in_use",
	unheldReleased:  "update disks set in_use = false where in_use and reservation_id is null",
}

// sabotages is what must make which checker fail, told by what it says where an invariant has several; most break
// within the first few seeds from the one given on.
var sabotages = []struct {
	invariant, how, says string
	from                 uint64
}{
	{neverEarly, earlyGrace, "expires at", 1},
	{neverEarly, pauseIgnored, "while paused", 50},
	{volumeProven, pendingCompleted, "", 1},
	{diskSettled, volumesGone, "", 1},
	{countedOnce, countedTwice, "", 1},
	{countedOnce, disksMistaken, "is captured as", 1},
	{newestKept, disksDeleted, "", 1},
	{unknownNotGone, podsGone, "", 3},
	{warnedInTime, warningsLost, "", 1},
	{cleanedUp, cleanupsLost, "", 1},
	{factsGapless, factsLost, "", 1},
	{eventsAreHints, eventsBelieved, "was not asked for", 24},
	{eventsAreHints, rehearsalReal, "a dry run", 25},
	{brokenAlone, brokenStops, "", 11},
	{newIsSafe, domainsByName, "", 91},
	{neverEarly, preparingFails, "fails after", 5},
	{neverEarly, queuedCancelled, "is cancelled after", 2},
	{neverEarly, endedAgain, "and is made", 3},
	{volumeProven, volumesFree, "the last write was at", 9},
	{volumeProven, snapshotsForeign, "was not made by us", 1},
	{diskSettled, lockedAgain, "stays locked", 3},
	{countedOnce, pendingForgotten, "has -1 pending", 1},
	{countedOnce, pendingTwice, "its snapshots allow", 1},
	{diskSettled, unheldReleased, "which nobody has", 75},
	{unknownNotGone, activeFails, "its pod never died", 1},
	{warnedInTime, warnedLate, "which has ended", 2},
	{warnedInTime, warnedTwice, "is recorded twice", 1},
	{cleanedUp, recordsStay, "record ", 1},
	{factsGapless, numbersReused, "two facts", 1},
	{newIsSafe, liveReleased, "is released, and its holder", 1},
	{countedOnce, snapshotsHidden, "is captured by attempt 2", 1},
	{cleanedUp, heardOfNever, "quiet ticks", 1},
	{cleanedUp, volumesLeft, "is recorded as deleted", 1},
}

// TestEveryInvariantCanBeSeenToBreak runs sabotaged worlds until each checker has failed.
func TestEveryInvariantCanBeSeenToBreak(t *testing.T) {
	t.Parallel()
	const seeds = 150
	d := newDatabase(t)
	seen := map[string]bool{}
	for _, s := range sabotages {
		broken := uint64(0)
		for seed := s.from; seed < s.from+seeds && broken == 0; seed++ {
			w := newWorld(d, seed, s.how)
			w.live()
			for _, v := range w.checks.violated {
				if v.invariant == s.invariant && strings.Contains(v.what, s.says) {
					broken = seed
				}
			}
		}
		assert.NotZero(t, broken, "%s holds in %d worlds although %s", s.invariant, seeds, s.how)
		t.Logf("%s: breaks in seed %d where %s", s.invariant, broken, s.how)
		seen[s.invariant] = true
	}
	assert.Len(t, seen, len(invariants), "an invariant that nothing sabotages")
}

// store is the real one. A sabotaged world changes what some of its methods do.
type store struct {
	*postgres.DB
	w *world
}

func (w *world) sabotaged(how string) bool { return w.sabotage == how }

func (s store) BeginSweep(ctx context.Context, id uuid.UUID, trigger, holder string, ttl time.Duration) (postgres.SweepLease, postgres.Observation, bool, error) {
	lease, seen, begun, err := s.DB.BeginSweep(ctx, id, trigger, holder, ttl)
	if s.w.sabotaged(pauseIgnored) {
		seen.Pause = nil
	}
	if sql := rude[s.w.sabotage]; sql != "" {
		s.w.data.asService(sql)
	}
	return lease, seen, begun, err
}

// asService has the simulation write what counts as the service's doing.
func (d *database) asService(sql string) {
	d.tell()
	d.changed(writing{rows: true})
	d.run(d.users, "reset sim.who; "+sql+"; set sim.who = 'user'")
}

func (s store) CompleteSnapshot(ctx context.Context, r postgres.SnapshotRecord, seen disk.Snapshot) (bool, error) {
	counted, err := s.DB.CompleteSnapshot(ctx, r, seen)
	if counted && s.w.sabotaged(countedTwice) {
		s.w.data.platform(statement{"update disks set snapshot_count = snapshot_count + 1 where user_id = $1 and disk_name = $2", []any{r.User, r.DiskName}})
	}
	if counted && s.w.sabotaged(pendingForgotten) {
		s.w.data.platform(statement{"update disks set pending_snapshot_count = pending_snapshot_count - 1 where user_id = $1 and disk_name = $2", []any{r.User, r.DiskName}})
	}
	if counted && s.w.sabotaged(pendingTwice) {
		s.w.data.asService("update disks set pending_snapshot_count = pending_snapshot_count - 1 where pending_snapshot_count > 0")
	}
	return counted, err
}

func (s store) ReleaseDisk(ctx context.Context, r postgres.SnapshotRecord, fate postgres.VolumeFate, last func(context.Context) error) (postgres.DiskVerdict, error) {
	verdict, err := s.DB.ReleaseDisk(ctx, r, fate, last)
	if s.w.sabotaged(lockedAgain) {
		s.w.data.platform(statement{"update disks set in_use = true, reservation_id = $3 where user_id = $1 and disk_name = $2", []any{r.User, r.DiskName, r.ReservationID}})
	}
	return verdict, err
}

var longAgo = disk.Row{Deleted: true, DeleteDate: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}

func (s store) DiskRows(ctx context.Context) (map[disk.Key]disk.Row, error) {
	rows, err := s.DB.DiskRows(ctx)
	if s.w.sabotaged(disksDeleted) {
		for key := range rows {
			rows[key] = longAgo
		}
	}
	return rows, err
}

func (s store) PurgeSnapshot(ctx context.Context, r postgres.SnapshotRecord, remove func(context.Context, postgres.SnapshotRecord, *disk.Row, []string) (bool, error)) (bool, error) {
	return s.DB.PurgeSnapshot(ctx, r, func(ctx context.Context, r postgres.SnapshotRecord, row *disk.Row, going []string) (bool, error) {
		if s.w.sabotaged(disksDeleted) {
			row = &longAgo
		}
		return remove(ctx, r, row, going)
	})
}

func (s store) DeadlinesPast(ctx context.Context, now time.Time, grace time.Duration, only []string) ([]postgres.SetMember, error) {
	past, err := s.DB.DeadlinesPast(ctx, now, grace, only)
	for _, r := range s.w.people.all {
		if !r.healthy && s.w.sabotaged(brokenStops) {
			return nil, err
		}
	}
	return past, err
}

func (s store) DomainsOf(ctx context.Context, id string) ([]string, error) {
	domains, err := s.DB.DomainsOf(ctx, id)
	if r := s.w.people.byID(id); r != nil && r.domain != "" && s.w.sabotaged(domainsByName) {
		return []string{r.domain}, err
	}
	return domains, err
}

func (s store) RemoveDomain(ctx context.Context, id, domain string, remove func(context.Context) error) (bool, error) {
	if s.w.sabotaged(domainsByName) {
		return true, remove(ctx)
	}
	return s.DB.RemoveDomain(ctx, id, domain, remove)
}

// believe does what an event says without asking the rows.
func (s *service) believe(p *process, e ce.Event) {
	if r := s.w.people.byID(e.Subject()); r != nil && r.pod != nil {
		_ = cluster{w: s.w, Cluster: s.w.outside.Cluster}.DeletePod(p.ctx, r.pod.Namespace, r.pod.Name, r.pod.UID, time.Minute)
	}
}
