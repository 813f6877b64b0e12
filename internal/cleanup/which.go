package cleanup

import (
	"cmp"
	"context"
	"slices"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// named are the volumes that may be the disk, by what names them, each empty where nothing does.
type named struct {
	row    string   // the reservation's row
	home   string   // the pod, which has the user's home on it
	pod    []string // the pod, of which nobody can say on which of these that is
	disk   string   // the disk's row
	former string   // the former life's cleanup
}

func (n named) ids() []string {
	ids := slices.Sorted(slices.Values(append([]string{n.row, n.home, n.disk, n.former}, n.pod...)))
	return slices.DeleteFunc(slices.Compact(ids), func(id string) bool { return id == "" })
}

// left is n without the volumes that are no disk's any more: EC2 does not have them (known are those that it has), or our
// own books have set them aside, or deleted. The books are newer than what the row names and the former life had, unless
// the pod or the disk's row names it as well: then somebody has found a use for it.
func (n named) left(known map[string]disk.Volume, aside []string) named {
	gone := func(id string) bool { return !has(known, id) }
	over := func(id string) bool {
		used := id == n.home || id == n.disk || slices.Contains(n.pod, id)
		return gone(id) || !used && slices.Contains(aside, id)
	}
	without := func(drop func(string) bool, id string) string {
		if drop(id) {
			return ""
		}
		return id
	}
	return named{row: without(over, n.row), home: without(gone, n.home), former: without(over, n.former), disk: without(gone, n.disk),
		pod: slices.DeleteFunc(slices.Clone(n.pod), gone)}
}

// answer is which volume is the disk.
type answer struct {
	id, from  string   // and by what; empty where that is not known
	undecided []string // the volumes of which it is one
	misnamed  string   // the volume that the row names and that is not it
	last      string   // the volume to go on with where none is found: it is no disk's any more
}

// which decides which volume is the disk. Where nothing names one that is left, EC2 is asked for it once the pod is gone.
func (a *Action) which(ctx context.Context, c postgres.CleanupRecord, k disk.Key, all named) (answer, error) {
	ids := all.ids()
	if len(ids) == 0 {
		return answer{}, nil
	}
	if all.home != "" && (all.row == "" || all.row == all.home) {
		return answer{id: all.home, from: all.by()}, nil
	}
	aside, err := a.Store.VolumesSetAside(ctx, ids)
	if err != nil {
		return answer{}, err
	}
	if one := cmp.Or(all.row, all.disk); one != "" && all.former == "" && len(aside) == 0 && (len(ids) == 1 || slices.Contains(all.pod, all.row)) {
		return answer{id: one, from: all.by()}, nil // the keeper says what has become of it
	}
	known, err := a.known(ctx, c, ids, aside)
	if err != nil {
		return answer{}, err
	}
	n := all.left(known, aside)
	if n.row != "" && n.home != "" && misnamed(k, known[n.row], known[n.home]) {
		n.row = ""
	}
	v := answer{id: cmp.Or(n.row, n.home), from: n.by(), undecided: n.pod}
	switch {
	case v.id != "":
	case n.former != "" && n.disk != "" && n.former != n.disk:
		v.undecided = append(v.undecided, n.former, n.disk)
	case n.former == "" && (len(n.pod) == 0 || slices.Contains(n.pod, n.disk)):
		v.id = n.disk
	case n.former == "" && n.disk != "":
		v.undecided = append(v.undecided, n.disk)
	case len(n.pod) == 0 || slices.Contains(n.pod, n.former):
		v.id = n.former
	}
	if v.id == "" {
		if v.id, v.undecided, err = a.byTags(ctx, c, k, v.undecided, known); err != nil {
			return answer{}, err
		}
		v.from = "its tags, or as the only one"
	}
	switch {
	case v.id != "" || len(v.undecided) > 0:
	case n.former != "":
		v.id, v.from = n.former, "its former life"
	case has(known, all.row): // set aside once, but nothing else is named
		n.row = all.row
		v.id, v.from = n.row, anOldRow
	default:
		v.last = all.last(aside)
	}
	if n.row == "" {
		v.misnamed = all.row
	}
	return v, nil
}

// by says what names the first of the volumes.
func (n named) by() string {
	switch {
	case n.row != "":
		return "the row"
	case n.home != "":
		return "the pod"
	case n.former != "":
		return "its former life"
	}
	return theDisk
}

// What names a volume alone, and may have been written for whoever had the disk before, or for a former life.
const (
	theDisk  = "the disk"
	anOldRow = "the row, though it was set aside once"
)

// newer is the volume that was the reservation's, by the disk's tags, where a row that may be of before names another.
func (a *Action) newer(ctx context.Context, c postgres.CleanupRecord, k disk.Key, v answer) (answer, error) {
	if k.User == "" || k.Name == "" {
		return v, nil
	}
	had, err := a.tagged(ctx, c, k)
	if err != nil {
		return answer{}, err
	}
	named, err := a.known(ctx, c, []string{v.id}, nil)
	if err != nil {
		return answer{}, err
	}
	had = slices.DeleteFunc(had, func(t disk.Volume) bool { return t.ID == v.id || !hadVolume(c, t) })
	its := hadVolume(c, named[v.id])
	switch {
	case len(had) == 0 && its:
		return v, nil
	case len(had) == 0:
		return v, a.heard(c, "lists no volume that was the reservation's")
	case len(had) == 1 && !its:
		return answer{id: had[0].ID, from: "its tags", misnamed: c.VolumeID}, nil
	}
	return answer{undecided: slices.Sorted(slices.Values(append(idsOf(had), v.id))), misnamed: c.VolumeID}, nil
}

// last returns the volume with which to go on where all are gone or set aside: one of which our books do not know what
// became of it, if there is one.
func (n named) last(aside []string) string {
	last := ""
	for _, id := range []string{n.row, n.disk, n.former} {
		if id != "" && (last == "" || slices.Contains(aside, last) && !slices.Contains(aside, id)) {
			last = id
		}
	}
	return last
}

// unheardError says that EC2 denies something of which it may not have heard: the step waits.
type unheardError struct {
	denies      string
	again, left time.Duration // when to look again, and until it is believed
}

func (u *unheardError) Error() string {
	return "EC2 " + u.denies + ", and may not have heard of it yet"
}

// heard is an unheardError while EC2 may not have heard of all that the reservation had: what it denies is not believed.
func (a *Action) heard(c postgres.CleanupRecord, denies string) error {
	since := c.Now.Sub(c.RequestedAt)
	if left := a.opts.Lag - since; left > 0 {
		return &unheardError{denies, min(left, max(10*time.Second, since/2)), left}
	}
	return nil
}

// known returns those of the volumes that EC2 has, and does not delete. Those that it denies are not among them if they
// are over by our books, or once it must have heard of them.
func (a *Action) known(ctx context.Context, c postgres.CleanupRecord, ids, over []string) (map[string]disk.Volume, error) {
	known := map[string]disk.Volume{}
	for _, id := range ids {
		v, err := a.EC2.DescribeVolume(ctx, id)
		gone, err := a.home.Gone(ctx, err)
		if err == nil && gone && !slices.Contains(over, id) {
			err = a.heard(c, "does not know volume "+id)
		}
		if err != nil {
			return nil, err
		}
		if !gone && !v.Deleting() {
			known[id] = v
		}
	}
	return known, nil
}

func has(known map[string]disk.Volume, id string) bool {
	_, ok := known[id]
	return ok
}

// misnamed reports whether the row names a volume that is not the disk, since the pod has the user's home on another. So
// it is not where the tags speak for the named one alone, or say that the other is somebody else's.
func misnamed(k disk.Key, named, onHome disk.Volume) bool {
	return k.Others(onHome) == "" && (!k.Named(named) || k.Named(onHome))
}

// byTags returns the one of several volumes that is the disk by its tags, or as the only one where none has those; else
// undecided are the volumes that may be it, as far as EC2 knows them.
func (a *Action) byTags(ctx context.Context, c postgres.CleanupRecord, k disk.Key, ids []string, known map[string]disk.Volume) (id string, undecided []string, err error) {
	var volumes []disk.Volume
	for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
		if v, ok := known[id]; ok {
			volumes = append(volumes, v)
		}
	}
	id, undecided = k.Choose(volumes)
	if id != "" || len(volumes) != 1 || len(undecided) != 1 || k.User == "" || k.Name == "" {
		return id, undecided, nil
	}
	tagged, err := a.tagged(ctx, c, k)
	if err != nil {
		return "", nil, err
	}
	if len(tagged) == 0 {
		return volumes[0].ID, nil, nil
	}
	return "", append(undecided, idsOf(tagged)...), nil
}

// lagging lies between two lists: an empty one is not believed by itself.
const lagging = 5 * time.Second

// tagged returns the volumes with the disk's tags, but for those that are no disk's any more. That there are none is an
// error while EC2 may not have heard of one.
func (a *Action) tagged(ctx context.Context, c postgres.CleanupRecord, k disk.Key) ([]disk.Volume, error) {
	found, err := a.EC2.FindVolumes(ctx, k.Tags())
	if err == nil && len(found) == 0 {
		if err = a.opts.Sleep(ctx, lagging); err == nil {
			found, err = a.EC2.FindVolumes(ctx, k.Tags())
		}
	}
	if err == nil {
		_, err = a.home.Account(ctx) // another's would have none
	}
	if err == nil && len(found) == 0 {
		err = a.heard(c, "lists no volume with the disk's tags")
	}
	if err != nil {
		return nil, err
	}
	aside, err := a.Store.VolumesSetAside(ctx, idsOf(found))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(v disk.Volume) bool { return v.Deleting() || slices.Contains(aside, v.ID) }), nil
}

func idsOf(volumes []disk.Volume) []string {
	var ids []string
	for _, v := range volumes {
		ids = append(ids, v.ID)
	}
	return ids
}
