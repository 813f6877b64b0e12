package reservation

import "time"

// LaunchGrace is how long after its launch a reservation may be without a pod.
const LaunchGrace = 10 * time.Minute

// MissingEligible reports whether a missing pod may be held against a reservation: it is active and was launched over
// ten minutes ago. A launch that is NULL or absurd is no launch.
func MissingEligible(r Reservation, now time.Time) bool {
	launched, ok := r.LaunchedAt.Time()
	return ok && r.Status == Active && !launched.Before(Epoch) && launched.Add(LaunchGrace).Before(now)
}

// MissingDecision is what follows from finding a pod absent once more.
type MissingDecision string

const (
	// MissingIgnored: nothing is concluded and nothing recorded.
	MissingIgnored MissingDecision = "ignored"
	// MissingNoted: a series begins. Record now as its first and last sight.
	MissingNoted MissingDecision = "noted"
	// MissingWaiting: the series goes on but is still too short. Record now as its last sight.
	MissingWaiting MissingDecision = "waiting"
	// MissingConfirmed: absent on two ticks far enough apart. The reservation may end, if the brake allows.
	MissingConfirmed MissingDecision = "confirmed"
)

// MissingSeriesGap is how long a series of absences may go without a look before it counts for nothing.
const MissingSeriesGap = 24 * time.Hour

// MissingVerdict decides about a pod that is absent from this tick's listing and for which a direct GET has answered
// 404. first and last are when the present series of absences was first and last recorded, zero where there is none
// (seeing the pod, or a new launch, deletes the record). sameCluster says that the cluster asked is the one the service
// has always asked: in another one nothing is missing or gone.
func MissingVerdict(first, last, now time.Time, confirm time.Duration, sameCluster bool) MissingDecision {
	switch {
	case !sameCluster:
		return MissingIgnored
	case first.IsZero(), last.Before(first), last.Add(MissingSeriesGap).Before(now):
		return MissingNoted
	case now.Before(first.Add(confirm)):
		return MissingWaiting
	}
	return MissingConfirmed
}
