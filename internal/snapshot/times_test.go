package snapshot_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
)

func TestHowASnapshotStandsDecidesWhatIsDoneWithIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in     func(*script)
		want   followup.Result
		counts string // the call that counts it
	}{
		"under way":             {func(s *script) { pending(s); s.seen.State = disk.SnapshotPending }, followup.LookAgain(12 * time.Second), "none"},
		"completed":             {pending, followup.Done(postgres.OutcomeReleased), "CompleteSnapshot"},
		"failed":                {func(s *script) { pending(s); s.seen.State = disk.SnapshotError }, followup.Done("error"), "FailSnapshot"},
		"not yet known to EC2":  {func(s *script) { unlisted(s, 10*time.Minute-1) }, followup.LookAgain((10*time.Minute - 1) / 5), "none"},
		"known to it no more":   {func(s *script) { unlisted(s, 10*time.Minute) }, followup.Done("error"), "FailSnapshot"},
		"of no reservation":     {func(s *script) { s.record.ReservationID = "" }, followup.Done("completed"), "none"},
		"failed before":         {func(s *script) { s.record.State = postgres.SnapshotError }, followup.Done("error"), "none"},
		"purged, which settled": {func(s *script) { s.record.State = postgres.SnapshotPurged }, followup.Done(postgres.OutcomeReleased), "none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			s.record.IntendedAt = s.now.Add(-time.Minute)
			c.in(s)
			got, err := s.sync(t)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			for _, counting := range []string{"CompleteSnapshot", "FailSnapshot"} {
				require.Equal(t, counting == c.counts, s.count(counting) == 1, "%v", s.calls)
			}
			require.Equal(t, c.want.Outcome == postgres.OutcomeReleased, s.count("FinishReleased") == 1)
		})
	}
}

func unlisted(s *script, after time.Duration) {
	pending(s)
	s.record.IntendedAt = s.now.Add(-after)
	s.errs["DescribeSnapshot"] = fault.Errorf(fault.Gone, "no such snapshot")
}

// timed is a context whose deadline is by the script's clock.
type timed struct {
	context.Context
	end time.Time
}

func (d timed) Deadline() (time.Time, bool) { return d.end, true }

func TestADeliveryLooksForAsLongAsItHas(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		begun    time.Duration // that the snapshot was
		deadline time.Duration // of the delivery
		looks    int
	}{
		"it has just begun":                {0, time.Hour, 60},
		"begun a while ago":                {50 * time.Second, time.Hour, 10},
		"begun long ago":                   {time.Hour, time.Hour, 1},
		"no time is left for what follows": {0, 35 * time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			pending(s)
			s.patience, s.record.IntendedAt, s.seen.State = time.Minute, s.now.Add(-c.begun), disk.SnapshotPending
			w, o := s.parts()
			_, err := snapshot.NewSync(w, o).Handle(timed{t.Context(), s.now.Add(c.deadline)}, postgres.FollowUp{Kind: postgres.SnapshotSync, Key: s.record.IntentID.String()})
			require.NoError(t, err)
			require.Equal(t, c.looks, s.count("DescribeSnapshot"))
		})
	}
}

func TestADeliveryThatIsInterruptedSaysSo(t *testing.T) {
	t.Parallel()
	s := newScript()
	pending(s)
	s.patience, s.record.IntendedAt, s.seen.State = time.Minute, s.now, disk.SnapshotPending
	s.errs["sleep"] = errSaid
	_, err := s.sync(t)
	require.ErrorIs(t, err, errSaid)
	require.Equal(t, 1, s.count("DescribeSnapshot"))
}

func TestAVolumeSetAsideGoesAtTheVeryEndOfItsTime(t *testing.T) {
	t.Parallel()
	for left, want := range map[time.Duration]followup.Result{
		0: followup.Done(postgres.OutcomeReleased), time.Nanosecond: followup.LookAgain(time.Nanosecond),
	} {
		s := newScript()
		s.record.VolumeAsideAt, s.record.CrashConsistent, s.standing = s.now.Add(-time.Hour), true, nil
		s.seen.StartedAt = s.now.Add(left - disk.CrashConsistentHold)
		got, err := s.sync(t)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestAnAttemptIsGivenUpAfterTwoLooksOnceAllOfEC2MustHaveHeardOfIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		looks   int
		passed  time.Duration
		givenUp bool
	}{
		"both": {1, disk.Lag, true}, "more": {5, time.Hour, true},
		"one look": {0, time.Hour, false}, "too soon": {5, disk.Lag - 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			intended(s)
			s.record.Looks, s.record.IntendedAt = c.looks, s.now.Add(-c.passed)
			_, err := s.keep(t)
			require.NoError(t, err)
			require.Equal(t, c.givenUp, s.count("AbandonSnapshot") == 1)
			require.Equal(t, c.givenUp, s.count("LookedInVain") == 0)
			require.Equal(t, c.givenUp, s.count("ec2:CreateSnapshot") == 1, "tried anew")
			require.Equal(t, c.givenUp, strings.Contains(s.said.String(), fmt.Sprintf("looked for %d times", c.looks+1)))
		})
	}
}

func TestACleanupComesBackWhenTheDriversTimeIsOver(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		volume func(*script)
		gone   time.Duration // that the pod is
		asked  time.Duration // that a detach was asked for
		pause  time.Duration
	}{
		"the driver has its time": {func(s *script) { s.attached(disk.Attached) }, 55 * time.Second, 0, 5 * time.Second},
		"much of it":              {func(s *script) { s.attached(disk.Attached) }, 5 * time.Second, 0, 10 * time.Second},
		"EC2 has its time":        {func(s *script) { s.attached(disk.Detaching) }, time.Hour, 55 * time.Second, 11 * time.Second},
		"it is over":              {creating, time.Minute, 0, 12 * time.Second},
		"long since":              {creating, 100 * time.Second, 0, 20 * time.Second},
		"almost a failure":        {creating, 30 * time.Minute, 0, 4 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			none(s)
			c.volume(s)
			s.cleanup.PodGoneAt = s.now.Add(-c.gone)
			if c.asked != 0 {
				s.cleanup.DetachRequestedAt = s.now.Add(-c.asked)
			}
			got, err := s.keep(t)
			require.NoError(t, err)
			require.Equal(t, followup.LookAgain(c.pause), got)
		})
	}
}

// Where only ticks bring deliveries, one that ends just before the driver's time would cost another tick.
func TestWhatTheDriverLeavesAttachedIsDetachedByTheDeliveryThatSawThePodGo(t *testing.T) {
	t.Parallel()
	s := newScript()
	none(s)
	s.attached(disk.Attached)
	s.cleanup.PodGoneAt, s.patience = s.now, time.Minute
	_, err := s.keep(t)
	require.NoError(t, err)
	require.Equal(t, 1, s.count("ec2:DetachVolume"))
}

func creating(s *script) { s.volumes[scripted] = disk.Volume{ID: scripted, State: "creating"} }
