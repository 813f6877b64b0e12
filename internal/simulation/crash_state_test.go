package simulation

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
)

// table is one whose rows count in the end.
type table struct {
	name string
	of   string // what a row is called by
	less string // columns that are no part of the state
}

// The platform's rows are told by what has become of them, the service's own by what they say: what for, how often and
// when something was tried is not told.
var (
	platformTables = []table{
		{"reservations", "name", "updated_at"},
		{"disks", "disk_name", "last_updated"},
		{"domain_mappings", "domain_name", ""},
		{"alb_target_groups", "reservation_id", ""},
	}
	ownTables = []table{
		{"expiry.cleanups", "reservation_id", "reservation_id,user_id,gpu_type,created_at,launched_at,expires_at,requested_at,settled_at," +
			"containers_terminated_at"}, // the kubelet says so for a moment,
		{"expiry.follow_ups", "concat_ws(', ', kind, reservation_id)", "kind,key,reservation_id,subject,detail,version,dispatch,due_at,ask_again_at," +
			"attempts,last_error,lease_token,lease_expires_at,traceparent,created_at,updated_at,finished_at"},
		{"expiry.snapshots", "disk_name", "disk_name,user_id,intent_id,attempt,looks,intended_at,settled_at"},
		{"expiry.pods", "reservation_id", "reservation_id,uid,namespace,name,created_at,first_seen_at"},
		{"expiry.missing_pods", "reservation_id", "reservation_id,first_seen_at,last_seen_at"},
		{"expiry.oom_kills", "reservation_id", "reservation_id,recorded_at"},
		{"expiry.cluster", "uid", "uid,singleton,first_seen_at"},
		{"expiry.aws_account", "account_id", "account_id,singleton,first_seen_at"},
	}
)

// cells are the rows of a table, by their names; those that have the same name are one after the other.
func (s *stage) cells(t table) map[string][]map[string]any {
	all := map[string][]map[string]any{}
	for _, r := range read[struct{ Of, Row string }](s.data, "select coalesce("+t.of+", ''), (to_jsonb(t) - $1::text[])::text from "+t.name+" t order by 1, 2", strings.Split(t.less, ",")) {
		var cells map[string]any
		_ = json.Unmarshal([]byte(r.Row), &cells)
		all[r.Of] = append(all[r.Of], cells)
	}
	return all
}

// state is all that counts in the end, by the names of things. at is how the platform's rows were in the beginning.
func (s *stage) state() string {
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, t := range platformTables {
		now := s.cells(t)
		for _, of := range slices.Sorted(maps.Keys(s.first[t.name])) {
			if len(now[of]) == 0 {
				say("%s, %s: gone", t.name, of)
				continue
			}
			say("%s, %s: %s", t.name, of, cmp.Or(became(s.first[t.name][of][0], now[of][0]), "untouched"))
		}
	}
	for _, t := range ownTables {
		for of, rows := range s.cells(t) {
			for _, cells := range rows {
				say("%s, %s: %s", t.name, of, cmp.Or(became(map[string]any{}, cells), "there"))
			}
		}
	}
	s.heard(say)
	s.left(say)
	lines = strings.Split(whoever.Replace(s.anonymous(strings.Join(lines, "\n"))), "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, abandoned) })
	slices.Sort(lines)
	return counted(lines)
}

// What may differ where a process has died.
var whoever = strings.NewReplacer(
	// Who purges what a dead process has purged without saying so finds it gone already.
	"outcome already_gone", "outcome purged", "detail it is gone, ", "",
	// A cleanup that comes back after the sync, which has gone on meanwhile, finds its disk released.
	"outcome snapshotting", "outcome released",
	// What a dead process had in hand is asked for again after four minutes: of the last five that may be too late.
	"announced of five minutes to go: reservation.warned.v1, ", "announced of five minutes to go: ",
	"warning, five minutes to go: outcome sent", "warning, five minutes to go: outcome void",
	"last_warning_time then, reservation_ended then", "reservation_ended then", `, warnings_sent {"5min_warning_sent":true}`, "",
)

// abandoned is what a dead process intended and never asked for; another intent came after it.
const abandoned = "state abandoned"

// counted says the same line once.
func counted(lines []string) string {
	var out []string
	for i := 0; i < len(lines); {
		n := 1
		for i+n < len(lines) && lines[i+n] == lines[i] {
			n++
		}
		if n > 1 {
			out = append(out, fmt.Sprintf("%s (%d times)", lines[i], n))
		} else {
			out = append(out, lines[i])
		}
		i += n
	}
	return strings.Join(out, "\n")
}

// became says in what a row differs from what it was.
func became(was, is map[string]any) string {
	var differs []string
	for _, column := range slices.Sorted(maps.Keys(is)) {
		if text := asText(is[column]); text != asText(was[column]) {
			differs = append(differs, column+" "+text)
		}
	}
	return strings.Join(differs, ", ")
}

func asText(cell any) string {
	if text, ok := cell.(string); ok {
		return cmp.Or(text, "''")
	}
	text, _ := json.Marshal(cell)
	return string(text)
}

// heard says which facts were announced of whom, in the order of their numbers.
func (s *stage) heard(say func(string, ...any)) {
	for subject, of := range s.checks.facts {
		var kinds []string
		for _, n := range slices.Sorted(maps.Keys(of)) {
			kinds = append(kinds, strings.TrimPrefix(of[n].kind, "dev.gpudev."))
		}
		if !strings.HasPrefix(kinds[0], "expiry.") {
			say("announced of %s: %s", subject, strings.Join(kinds, ", "))
		}
	}
	for _, n := range column[int](s.data, "select count(*)::int from expiry.facts where published_at is null") {
		say("facts not announced: %d", n)
	}
}

// left says what there is outside.
func (s *stage) left(say func(string, ...any)) {
	out := s.outside
	for _, r := range s.people.all {
		if r.pod == nil {
			continue
		}
		there := "gone"
		if s.people.podOf(s.world, r) {
			there = "there"
		}
		say("pod of %s: %s, files %v", r.id, there, slices.Sorted(maps.Keys(r.pod.Files)))
	}
	for _, service := range out.Cluster.Services() {
		say("service of %s", service.Owner)
	}
	for _, r := range s.people.all {
		if v, err := out.Cluster.GetVolume(context.Background(), "pv-"+r.id); err == nil {
			say("PersistentVolume of %s: %s", r.id, v.ReclaimPolicy)
		}
		if _, err := out.Cluster.GetClaim(context.Background(), "gpu-dev", "claim-"+r.id); err == nil {
			say("claim of %s", r.id)
		}
	}
	for _, v := range out.EC2.Volumes() {
		say("volume of %s: %s, %d attachments", v.Owner, v.State, len(v.Attachments))
	}
	for _, made := range out.EC2.Snapshots() {
		tags := maps.Clone(made.Tags)
		for _, tag := range []string{disk.TagUser, disk.TagDisk, disk.TagIntent, disk.TagAttempt, disk.TagCreatedAt} {
			delete(tags, tag)
		}
		say("snapshot of %s: %s, %s %v", made.Key().Name, made.State, whose(made), tags)
	}
	for name, owner := range out.Network.Records {
		say("record %s of %s", name, owner)
	}
	for _, owner := range out.Network.Rules {
		say("rule of %s", owner)
	}
	for _, g := range out.Network.Groups {
		say("target group of %s", g.Owner)
	}
	for key, text := range out.Network.Objects {
		say("object %s: %q", key, text)
	}
	say("availability counted anew: %t", out.Network.Invoked > 0)
}

func whose(s *model.Snapshot) string {
	if s.Owner == "" {
		return "somebody's"
	}
	return "of a volume of " + s.Owner
}

var (
	instants = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+00:00|\+00|Z| UTC)?`)
	clock    = regexp.MustCompile(`\d\d:\d\d(:\d\d)?( UTC)?|\b1[78]\d{8}\b`)
	numbers  = regexp.MustCompile(`\b(snap|vol|pod|pv|claim|containerd:/)-[0-9a-f]+`)
)

// anonymous has names for ids, and the words of the platform's times. What happened when is no part of a state.
func (s *stage) anonymous(text string) string {
	var names []string
	for i, r := range s.people.all {
		names = append(names, r.id, s.cast[i].what, r.podName, "its pod")
		if r.instance != "" {
			names = append(names, r.instance, "its instance", r.node, "its node")
		}
		if r.volume != "" {
			names = append(names, r.volume, "volume of "+s.cast[i].what)
		}
	}
	for _, d := range read[struct{ ID, Name string }](s.data, "select disk_id::text, disk_name from disks") {
		names = append(names, d.ID, "disk "+d.Name)
	}
	text = strings.NewReplacer(names...).Replace(text)
	text = instants.ReplaceAllStringFunc(text, func(at string) string {
		if t, err := time.Parse(time.RFC3339, at); err == nil && t.Before(s.began.Add(-time.Minute)) {
			return t.Sub(s.began).Round(time.Minute).String()
		}
		return "then"
	})
	text = clock.ReplaceAllString(text, "then")
	return numbers.ReplaceAllString(text, "$1")
}
