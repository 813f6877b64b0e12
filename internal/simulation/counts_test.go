package simulation

import "gpudev.internal/reservation-expiry/internal/disk"

// counts is how often a disk's counters of snapshots went up and down.
type counts struct{ morePending, lessPending, more, less int }

func (n counts) plus(before, after *row) counts {
	n.morePending += max(0, after.Pending-before.Pending)
	n.lessPending += max(0, before.Pending-after.Pending)
	n.more += max(0, after.Count-before.Count)
	n.less += max(0, before.Count-after.Count)
	return n
}

// stages is how far a snapshot is: each stage is counted once.
var stages = map[string]int{"pending": 1, "completed": 2, "error": 2, "purged": 3}

// flipped judges what the service has counted by what has become of the disk's snapshots meanwhile. What was taken off
// where nothing was left does not show, and does no harm.
func (c *checks) flipped(key disk.Key, n counts) {
	type snapshot struct {
		Intent, State string
		Own           bool
	}
	var allowed counts
	for _, s := range read[snapshot](c.w.data, `
		select intent_id::text, state, reservation_id is not null from expiry.snapshots where user_id = $1 and disk_name = $2`, key.User, key.Name) {
		was := c.states[s.Intent]
		c.states[s.Intent] = s.State
		from, to := stages[was], stages[s.State]
		if from < 1 && to >= 1 && s.Own { // who made the others has counted them
			allowed.morePending++
		}
		if from < 2 && to >= 2 {
			allowed.lessPending++
		}
		if from < 2 && to >= 2 && s.State != "error" {
			allowed.more++
		}
		if from < 3 && to == 3 && was != "error" {
			allowed.less++
		}
	}
	c.require(countedOnce, n.morePending <= allowed.morePending && n.lessPending <= allowed.lessPending && n.more <= allowed.more && n.less <= allowed.less,
		"disk %s of %s is counted %+v, and its snapshots allow %+v", key.Name, key.User, n, allowed)
}
