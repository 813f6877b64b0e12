package cleanup

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// heardOf is the cleanup of which EC2 has heard all that there is.
var heardOf = postgres.CleanupRecord{Now: time.Time{}.Add(disk.Lag)}

func TestAVolumeThatIsGoneOrSetAsideIsNoAnswerWhileAnotherIsLeft(t *testing.T) {
	t.Parallel()
	known := map[string]disk.Volume{"there": {}, "other": {}, "aside": {}}
	aside := []string{"aside", "deleted"} // the books say so; EC2 does not know "deleted" and "gone"
	for name, c := range map[string]struct{ of, left named }{
		"all are there":                              {named{row: "there", disk: "other"}, named{row: "there", disk: "other"}},
		"what the row names is gone":                 {named{row: "gone", disk: "there"}, named{disk: "there"}},
		"what the row names is set aside":            {named{row: "aside", disk: "there"}, named{disk: "there"}},
		"what the former life had is deleted":        {named{former: "deleted", disk: "there"}, named{disk: "there"}},
		"the disk names one set aside":               {named{row: "there", disk: "aside"}, named{row: "there", disk: "aside"}},
		"so does the row":                            {named{row: "aside", disk: "aside"}, named{row: "aside", disk: "aside"}},
		"the pod has its home on one set aside":      {named{row: "there", home: "aside"}, named{row: "there", home: "aside"}},
		"so it has, and the row names that":          {named{row: "aside", home: "aside", disk: "there"}, named{row: "aside", home: "aside", disk: "there"}},
		"the pod's home is gone":                     {named{row: "there", home: "gone"}, named{row: "there"}},
		"the pod has two, of which one is aside":     {named{pod: []string{"aside", "there"}}, named{pod: []string{"aside", "there"}}},
		"the pod has nothing but one set aside":      {named{pod: []string{"aside"}}, named{pod: []string{"aside"}}},
		"the pod's are gone":                         {named{row: "aside", pod: []string{"gone"}}, named{}},
		"each is gone":                               {named{row: "gone", disk: "deleted", former: "gone"}, named{}},
		"the row's is set aside, the disk's is gone": {named{row: "aside", disk: "gone"}, named{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			left := c.of.left(known, aside)
			if len(left.pod) == 0 {
				left.pod = nil
			}
			require.Equal(t, c.left, left)
		})
	}
}

func TestWhereNoneIsLeftTheOneGoesOnOfWhichNobodyKnowsWhatBecameOfIt(t *testing.T) {
	t.Parallel()
	aside := []string{"deleted", "aside"}
	for want, n := range map[string]named{
		"deleted": {row: "deleted"},
		"row":     {row: "row", disk: "disk", former: "former"},
		"disk":    {row: "deleted", disk: "disk", former: "former"},
		"former":  {row: "deleted", disk: "aside", former: "former"},
		"aside":   {disk: "aside", former: "deleted"},
		"":        {},
	} {
		require.Equal(t, want, n.last(aside))
	}
}

func TestAVolumeWasTheReservationsIfItWasMadeInItsTimeOrIsWhereItsPodRan(t *testing.T) {
	t.Parallel()
	start, end := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), time.Date(2026, 3, 1, 17, 0, 0, 0, time.UTC)
	attached := func(instance string) []disk.Attachment { return []disk.Attachment{{InstanceID: instance}} }
	const apart = 30 * time.Second // two clocks
	for name, c := range map[string]struct {
		had      bool
		made     time.Time
		attached []disk.Attachment
		unknown  bool // when it started, and where it ran
	}{
		"in its time":                       {had: true, made: start.Add(time.Hour)},
		"as it started":                     {had: true, made: start.Add(-apart)},
		"before":                            {made: start.Add(-2 * time.Minute)},
		"as it ended":                       {had: true, made: end.Add(apart)},
		"after":                             {made: end.Add(2 * time.Minute)},
		"before it ended, unknown when":     {made: start, unknown: true},
		"before, and is where it ran":       {had: true, made: start.Add(-time.Hour), attached: attached("i-1")},
		"before, and is elsewhere":          {made: start.Add(-time.Hour), attached: attached("i-2")},
		"before, and is nobody knows where": {made: start.Add(-time.Hour), attached: attached(""), unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := postgres.CleanupRecord{Started: start, Ended: end, Identity: postgres.Identity{InstanceID: "i-1"}}
			if c.unknown {
				r.Started, r.InstanceID = time.Time{}, ""
			}
			require.Equal(t, c.had, hadVolume(r, disk.Volume{CreatedAt: c.made, Attachments: c.attached}))
		})
	}
}

// somewhere is what our books and EC2 say of volumes.
type somewhere struct {
	Store
	EC2
	aside   []string
	volumes []disk.Volume
	broken  string // the call that fails
}

func (s somewhere) answer(call string) error {
	if s.broken == call {
		return errors.New(call + " is away")
	}
	return nil
}

func (s somewhere) Account(context.Context) (disk.Account, error) { return disk.Account{ID: "1"}, nil }
func (s somewhere) KnownAccount(context.Context) (disk.Account, error) {
	return disk.Account{ID: "1"}, nil
}

func (s somewhere) VolumesSetAside(_ context.Context, ids []string) (aside []string, err error) {
	for _, id := range ids {
		if slices.Contains(s.aside, id) {
			aside = append(aside, id)
		}
	}
	return aside, s.answer("the books")
}

func (s somewhere) DescribeVolume(_ context.Context, id string) (disk.Volume, error) {
	for _, v := range s.volumes {
		if v.ID == id {
			return v, s.answer("EC2")
		}
	}
	return disk.Volume{}, cmp.Or(s.answer("EC2"), fault.Errorf(fault.Gone, "no volume %q", id))
}

func (s somewhere) FindVolumes(_ context.Context, tags map[string]string) (found []disk.Volume, err error) {
	for _, v := range s.volumes {
		if maps.Equal(v.Tags, tags) {
			found = append(found, v)
		}
	}
	return found, s.answer("the tags")
}

func (s somewhere) action() *Action {
	return New(World{Store: s, EC2: s, Identity: s}, Options{Sleep: func(context.Context, time.Duration) error { return nil }})
}

func TestWhichVolumeIsTheDisk(t *testing.T) {
	t.Parallel()
	key := disk.Key{User: "alice", Name: "default"}
	there := []disk.Volume{
		{ID: "a"}, {ID: "b"}, {ID: "aside"}, {ID: "leaving", State: disk.VolumeDeleting},
		{ID: "hers", Tags: key.Tags()}, {ID: "hers too", Tags: key.Tags()}, {ID: "teams", Tags: disk.Key{User: "team"}.Tags()},
	}
	without := func(ids ...string) []disk.Volume {
		return slices.DeleteFunc(slices.Clone(there), func(v disk.Volume) bool { return slices.Contains(ids, v.ID) })
	}
	untagged := without("hers", "hers too")
	const row, pod, former, tags = "the row", "the pod", "its former life", "its tags, or as the only one"
	for name, c := range map[string]struct {
		of    named
		there []disk.Volume // nil: all
		key   *disk.Key     // nil: alice's
		is    answer
	}{
		"nothing names one": {},

		"the pod alone":                     {of: named{home: "a"}, is: answer{id: "a", from: pod}},
		"row and pod the same":              {of: named{row: "a", home: "a", disk: "b"}, is: answer{id: "a", from: row}},
		"another than the row":              {of: named{row: "a", home: "b"}, is: answer{id: "b", from: pod, misnamed: "a"}},
		"so, but the row's has the tags":    {of: named{row: "hers", home: "b"}, is: answer{id: "hers", from: row}},
		"so, and both have them":            {of: named{row: "hers", home: "hers too"}, is: answer{id: "hers too", from: pod, misnamed: "hers"}},
		"so, but the pod's is another's":    {of: named{row: "a", home: "teams"}, is: answer{id: "a", from: row}},
		"so, but the row's is gone":         {of: named{row: "gone", home: "b"}, is: answer{id: "b", from: pod, misnamed: "gone"}},
		"so, and both are gone":             {of: named{row: "gone", home: "gone too"}, is: answer{misnamed: "gone", last: "gone"}},
		"the row's goes, the pod's is gone": {of: named{row: "leaving", home: "gone"}, is: answer{misnamed: "leaving", last: "leaving"}},

		"the row alone, and gone":        {of: named{row: "gone"}, is: answer{id: "gone", from: row}},
		"the row alone, and set aside":   {of: named{row: "aside"}, is: answer{id: "aside", from: anOldRow}},
		"the row, of what the pod has":   {of: named{row: "a", pod: []string{"hers", "a"}}, is: answer{id: "a", from: row}},
		"the row, of what is not there":  {of: named{row: "gone", pod: []string{"gone", "a"}}, is: answer{id: "gone", from: row}},
		"the row, but not what pod has":  {of: named{row: "a", pod: []string{"hers"}}, is: answer{id: "a", from: row}},
		"the row's gone, not the disk's": {of: named{row: "gone", disk: "a"}, is: answer{id: "a", from: theDisk, misnamed: "gone"}},
		"the row, not the former":        {of: named{row: "a", former: "b"}, is: answer{id: "a", from: row}},
		"the disk alone, and gone":       {of: named{disk: "gone"}, is: answer{id: "gone", from: theDisk}},
		"the disk, and another is gone":  {of: named{disk: "a", former: "gone"}, is: answer{id: "a", from: theDisk}},

		"the former alone":                          {of: named{former: "a"}, is: answer{id: "a", from: former}},
		"the former, and gone":                      {of: named{former: "gone"}, is: answer{last: "gone"}},
		"former and disk the same":                  {of: named{former: "a", disk: "a"}, is: answer{id: "a", from: former}},
		"former and disk":                           {of: named{former: "b", disk: "a"}, is: answer{undecided: []string{"a", "b"}}},
		"so, and one has the tags":                  {of: named{former: "a", disk: "hers"}, is: answer{id: "hers", from: tags}},
		"the former, and the pod has it":            {of: named{former: "a", pod: []string{"a", "b"}}, is: answer{id: "a", from: former}},
		"the former, the pod another's":             {of: named{former: "a", pod: []string{"teams"}}, is: answer{id: "a", from: former}},
		"the former, but the pod's is the only one": {of: named{former: "a", pod: []string{"b"}}, there: untagged, is: answer{id: "b", from: tags}},

		"one of the pod's":                    {of: named{pod: []string{"a"}}, there: untagged, is: answer{id: "a", from: tags}},
		"so, but another has the tags":        {of: named{pod: []string{"a"}}, there: without("hers too"), is: answer{undecided: []string{"a", "hers"}}},
		"so, and nobody knows whose":          {of: named{pod: []string{"a"}}, key: &disk.Key{Name: "default"}, is: answer{undecided: []string{"a"}}},
		"so, and nobody knows the disk":       {of: named{pod: []string{"a"}}, key: &disk.Key{User: "alice"}, is: answer{undecided: []string{"a"}}},
		"the one that is left of the pod's":   {of: named{pod: []string{"a", "gone"}}, there: untagged, is: answer{id: "a", from: tags}},
		"the pod's only one is another's":     {of: named{pod: []string{"teams"}}},
		"of the pod's all but one another's":  {of: named{pod: []string{"a", "teams"}}, is: answer{undecided: []string{"a"}}},
		"one of the pod's has the tags":       {of: named{pod: []string{"a", "hers"}}, is: answer{id: "hers", from: tags}},
		"two of the pod's have them":          {of: named{pod: []string{"hers", "hers too"}}, is: answer{undecided: []string{"hers", "hers too"}}},
		"none of the pod's has them":          {of: named{pod: []string{"b", "a"}}, is: answer{undecided: []string{"a", "b"}}},
		"the disk's, of which the pod has it": {of: named{disk: "a", pod: []string{"b", "a"}}, is: answer{id: "a", from: theDisk}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := somewhere{aside: []string{"aside"}, volumes: there}
			if c.there != nil {
				s.volumes = c.there
			}
			k := key
			if c.key != nil {
				k = *c.key
			}
			is, err := s.action().which(t.Context(), heardOf, k, c.of)
			require.NoError(t, err)
			if is.id != "" {
				is.undecided = nil
			} else {
				is.from = ""
			}
			require.Equal(t, c.is, is)
		})
	}
}

func TestWhatEC2DeniesIsBelievedOnlySixMinutesAfterTheCleanupWasAskedFor(t *testing.T) {
	t.Parallel()
	key := disk.Key{User: "alice", Name: "default"}
	old := disk.Volume{ID: "old", Tags: key.Tags()}
	for name, c := range map[string]struct {
		there []disk.Volume
		ask   func(*Action, postgres.CleanupRecord) (answer, error)
		is    answer // once it is believed
	}{
		"the volume that the row of a second life names": {[]disk.Volume{old}, func(a *Action, c postgres.CleanupRecord) (answer, error) {
			return a.which(t.Context(), c, key, named{row: "new", former: "old"})
		}, answer{id: "old", from: "its former life", misnamed: "new"}},
		"one of a pod's two": {[]disk.Volume{old}, func(a *Action, c postgres.CleanupRecord) (answer, error) {
			return a.which(t.Context(), c, key, named{pod: []string{"old", "new"}})
		}, answer{id: "old", from: "its tags, or as the only one"}},
		"any that has the tags": {[]disk.Volume{{ID: "old"}}, func(a *Action, c postgres.CleanupRecord) (answer, error) {
			return a.which(t.Context(), c, key, named{pod: []string{"old"}})
		}, answer{id: "old", from: "its tags, or as the only one"}},
		"any that was made for it": {[]disk.Volume{old}, func(a *Action, c postgres.CleanupRecord) (answer, error) {
			return a.newer(t.Context(), c, key, answer{id: "old", from: theDisk})
		}, answer{id: "old", from: theDisk}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := somewhere{volumes: c.there}.action()
			young := heardOf
			young.RequestedAt = young.RequestedAt.Add(1)
			_, err := c.ask(a, young)
			require.ErrorContains(t, err, "may not have heard of it")
			unheard := &unheardError{}
			require.ErrorAs(t, err, &unheard)
			require.Equal(t, time.Duration(1), unheard.again, "no later than it is believed")
			is, err := c.ask(a, heardOf)
			require.NoError(t, err)
			require.Equal(t, c.is, is)
		})
	}
	young := heardOf
	young.RequestedAt = young.RequestedAt.Add(1)
	is, err := somewhere{aside: []string{"over"}, volumes: []disk.Volume{old}}.action().which(t.Context(), young, key, named{row: "over", disk: "old"})
	require.NoError(t, err, "what is over by our own books is")
	require.Equal(t, "old", is.id)
}

func TestWhereOurBooksOrEC2DoNotAnswerNoVolumeIsTheDisk(t *testing.T) {
	t.Parallel()
	for _, broken := range []string{"the books", "EC2", "the tags"} {
		s := somewhere{broken: broken, volumes: []disk.Volume{{ID: "a"}}}
		_, err := s.action().which(t.Context(), heardOf, disk.Key{User: "alice", Name: "default"}, named{pod: []string{"a"}})
		require.ErrorContains(t, err, broken+" is away")
	}
}

// lister answers one list of volumes after the other, or fails where there is none.
type lister struct {
	somewhere
	lists *[][]disk.Volume
}

func (l lister) FindVolumes(context.Context, map[string]string) ([]disk.Volume, error) {
	if len(*l.lists) == 0 || (*l.lists)[0] == nil {
		return nil, errors.New("the tags are away")
	}
	list := (*l.lists)[0]
	*l.lists = (*l.lists)[1:]
	return list, nil
}

func TestAnEmptyListIsAskedForOnceMoreAfterFiveSecondsAndNoOther(t *testing.T) {
	t.Parallel()
	empty, full := []disk.Volume{}, []disk.Volume{{ID: "a"}}
	for name, c := range map[string]struct {
		lists, unread [][]disk.Volume // nil: EC2 fails
		found         []disk.Volume
		pauses        int
		fails         bool
	}{
		"found at once":  {lists: [][]disk.Volume{full, empty}, found: full, unread: [][]disk.Volume{empty}},
		"found later":    {lists: [][]disk.Volume{empty, full}, found: full, pauses: 1, unread: [][]disk.Volume{}},
		"never found":    {lists: [][]disk.Volume{empty, empty, full}, found: empty, pauses: 1, unread: [][]disk.Volume{full}},
		"EC2 fails":      {lists: [][]disk.Volume{nil, full}, fails: true, unread: [][]disk.Volume{nil, full}},
		"EC2 fails then": {lists: [][]disk.Volume{empty, nil}, fails: true, pauses: 1, unread: [][]disk.Volume{nil}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, pauses := lister{lists: &c.lists}, 0
			a := New(World{Store: l, EC2: l, Identity: l}, Options{Sleep: func(_ context.Context, pause time.Duration) error {
				require.Equal(t, 5*time.Second, pause)
				pauses++
				return nil
			}})
			found, err := a.tagged(t.Context(), heardOf, disk.Key{User: "alice", Name: "default"})
			require.Equal(t, c.fails, err != nil, err)
			require.Equal(t, c.found, found)
			require.Equal(t, c.pauses, pauses)
			require.Equal(t, c.unread, c.lists)
		})
	}
}

func TestOfAVolumeThatTheDisksRowAloneNamesTheOneMadeForTheReservationIsTheDisk(t *testing.T) {
	t.Parallel()
	key, ended := disk.Key{User: "alice", Name: "default"}, time.Date(2026, 3, 1, 17, 0, 0, 0, time.UTC)
	made := func(id string, ago time.Duration) disk.Volume {
		return disk.Volume{ID: id, Tags: key.Tags(), CreatedAt: ended.Add(-ago)}
	}
	const before, within = 48 * time.Hour, time.Hour
	for name, c := range map[string]struct {
		key   disk.Key
		there []disk.Volume
		is    answer
	}{
		"itself":                  {key, []disk.Volume{made("a", within)}, answer{id: "a", from: theDisk}},
		"none, as both are older": {key, []disk.Volume{made("a", before), made("b", before)}, answer{id: "a", from: theDisk}},
		"the other":               {key, []disk.Volume{made("a", before), made("b", within)}, answer{id: "b", from: "its tags"}},
		"either":                  {key, []disk.Volume{made("b", within), made("a", within)}, answer{undecided: []string{"a", "b"}}},
		"it, or two others":       {key, []disk.Volume{made("c", within), made("b", within)}, answer{undecided: []string{"a", "b", "c"}}},
		"unknown whose":           {disk.Key{Name: "default"}, []disk.Volume{{ID: "b", Tags: disk.Key{Name: "default"}.Tags(), CreatedAt: ended}}, answer{id: "a", from: theDisk}},
		"unknown which disk":      {disk.Key{User: "alice"}, []disk.Volume{{ID: "b", Tags: disk.Key{User: "alice"}.Tags(), CreatedAt: ended}}, answer{id: "a", from: theDisk}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := heardOf
			r.Started, r.Ended = ended.Add(-5*time.Hour), ended
			is, err := somewhere{volumes: c.there}.action().newer(t.Context(), r, c.key, answer{id: "a", from: theDisk})
			require.NoError(t, err)
			require.Equal(t, c.is, is)
		})
	}
	_, err := somewhere{broken: "the tags"}.action().newer(t.Context(), postgres.CleanupRecord{}, key, answer{id: "a", from: theDisk})
	require.ErrorContains(t, err, "the tags is away")
}

// waiter is a cleanup whose record grows older while its step waits.
type waiter struct {
	Store
	record postgres.CleanupRecord
}

func (w *waiter) BeginStep(context.Context, string, postgres.Step) error { return nil }

func (w *waiter) LoadCleanup(context.Context, string) (postgres.CleanupRecord, bool, error) {
	return w.record, true, nil
}

func TestWhatEC2WillHaveHeardOfWithinADeliveryIsWaitedForInIt(t *testing.T) {
	t.Parallel()
	for left, waits := range map[time.Duration]bool{time.Second: true, time.Minute + jitter: true, time.Minute + jitter + 1: false} {
		w := &waiter{}
		w.record.Now = w.record.RequestedAt.Add(disk.Lag - left)
		var slept time.Duration
		a := New(World{Store: w}, Options{Sleep: func(_ context.Context, pause time.Duration) error {
			slept += pause
			w.record.Now = w.record.Now.Add(pause)
			return nil
		}})
		r, err := a.run(t.Context(), &delivery{record: w.record}, step{run: func(_ context.Context, d *delivery) (result, error) {
			return result{outcome: done}, a.heard(d.record, "denies it")
		}})
		require.NoError(t, err)
		if waits {
			require.Equal(t, left+time.Second, slept, "the database's clock may be slower than ours")
			require.Equal(t, done, r.outcome)
			continue
		}
		require.Zero(t, slept, "that is a later delivery's")
		require.Positive(t, r.again)
	}
}
