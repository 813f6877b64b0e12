package simulation

import (
	"context"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
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
)

// sabotages names what must make which invariant's checker fail.
var sabotages = map[string]string{
	neverEarly: earlyGrace, volumeProven: pendingCompleted, diskSettled: volumesGone, countedOnce: countedTwice,
	newestKept: disksDeleted, unknownNotGone: podsGone, warnedInTime: warningsLost, cleanedUp: cleanupsLost,
	factsGapless: factsLost, eventsAreHints: eventsBelieved, brokenAlone: brokenStops, newIsSafe: domainsByName,
}

// TestEveryInvariantCanBeSeenToBreak runs sabotaged worlds until each checker has failed.
func TestEveryInvariantCanBeSeenToBreak(t *testing.T) {
	t.Parallel()
	const seeds = 150 // most break within the first few
	begin := map[string]uint64{eventsAreHints: 181, brokenAlone: 16, newIsSafe: 324}
	d := newDatabase(t)
	for _, invariant := range invariants {
		broken, first := uint64(0), max(begin[invariant], 1)
		for seed := first; seed < first+seeds && broken == 0; seed++ {
			w := newWorld(d, seed, sabotages[invariant])
			w.live()
			for _, v := range w.checks.violated {
				if v.invariant == invariant {
					broken = seed
				}
			}
		}
		assert.NotZero(t, broken, "%s holds in %d worlds although %s", invariant, seeds, sabotages[invariant])
		t.Logf("%s: breaks in seed %d where %s", invariant, broken, sabotages[invariant])
	}
}

// store is the real one. A sabotaged world changes what some of its methods do.
type store struct {
	*postgres.DB
	w *world
}

func (w *world) sabotaged(how string) bool { return w.sabotage == how }

func (s store) CompleteSnapshot(ctx context.Context, r postgres.SnapshotRecord, seen disk.Snapshot) (bool, error) {
	counted, err := s.DB.CompleteSnapshot(ctx, r, seen)
	if counted && s.w.sabotaged(countedTwice) {
		s.w.data.platform(statement{"update disks set snapshot_count = snapshot_count + 1 where user_id = $1 and disk_name = $2", []any{r.User, r.DiskName}})
	}
	return counted, err
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

func (s store) PurgeSnapshot(ctx context.Context, r postgres.SnapshotRecord, remove func(context.Context, postgres.SnapshotRecord, *disk.Row) (bool, error)) (bool, error) {
	return s.DB.PurgeSnapshot(ctx, r, func(ctx context.Context, r postgres.SnapshotRecord, row *disk.Row) (bool, error) {
		if s.w.sabotaged(disksDeleted) {
			row = &longAgo
		}
		return remove(ctx, r, row)
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
