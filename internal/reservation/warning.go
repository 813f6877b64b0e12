package reservation

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// Level is a warning's level: minutes before the deadline.
type Level int

// Duration returns the level as a length of time.
func (l Level) Duration() time.Duration { return time.Duration(l) * time.Minute }

// Levels returns the levels at which users are warned: first (the configured WARNING_MINUTES), 15 and 5, each once,
// earliest warning first. A first below 15 or 5 is simply one more level: 15 and 5 stay.
func Levels(first int) []Level {
	levels := []Level{Level(first), 15, 5}
	slices.SortFunc(levels, func(a, b Level) int { return int(b - a) })
	return slices.Compact(levels)
}

// DueWarning returns the one warning that is due: the most urgent level whose time has come, unless it is recorded
// already. passedOver holds the less urgent levels whose time has come too and which are not recorded: they will not
// be sent any more and are recorded as such. Nothing is due at the deadline or after it.
//
// recorded are the levels sent or passed over for this very deadline, whatever the order. A new deadline starts with
// none: so an extension re-arms every level. Rows of a set are warned by their effective deadline.
func DueWarning(deadline, now time.Time, levels, recorded []Level) (level Level, passedOver []Level, due bool) {
	if !now.Before(deadline) {
		return 0, nil, false
	}
	for _, l := range levels {
		if !now.Before(deadline.Add(-l.Duration())) && (!due || l < level) {
			level, due = l, true
		}
	}
	if !due || slices.Contains(recorded, level) {
		return 0, nil, false
	}
	for _, l := range levels {
		if l > level && !slices.Contains(recorded, l) { // longer before the deadline, so its time has come as well
			passedOver = append(passedOver, l)
		}
	}
	return level, passedOver, true
}

// sentFlag matches the keys by which the platform marks a level as sent.
var sentFlag = regexp.MustCompile(`^[0-9]+min_warning_sent$`)

// SentFlag returns the platform's key for a level, "30min_warning_sent".
func SentFlag(l Level) string { return strconv.Itoa(int(l)) + "min_warning_sent" }

// MergeWarningsSent returns the new value of the platform's column warnings_sent: the flags of the levels sent for
// the present deadline are true, every other flag is removed, all other keys stay. What is no JSON object is replaced.
//
// The flags carry no deadline, so they are written for the platform's readers and never read: what was sent is known
// from this service's own record, which is kept per deadline. Two things follow. A row that an earlier job has marked
// is warned again, since that job marked without recording and a mark may stem from before an extension: once too
// often beats never. And after an extension the first warning for the new deadline removes the stale flags of the old
// one. Levels passed over get no flag: nothing was sent.
func MergeWarningsSent(column []byte, sent []Level) []byte {
	var old map[string]json.RawMessage
	if json.Unmarshal(column, &old) != nil {
		old = nil
	}
	merged := make(map[string]json.RawMessage, len(old)+len(sent))
	for key, value := range old {
		if !sentFlag.MatchString(key) {
			merged[key] = value
		}
	}
	for _, l := range sent {
		merged[SentFlag(l)] = json.RawMessage("true")
	}
	out, err := json.Marshal(merged)
	if err != nil { // cannot be: every value has just been parsed
		return []byte("{}")
	}
	return out
}
