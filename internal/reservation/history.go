package reservation

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"
)

// stateEntered returns when the reservation entered the status it has now, as far as its status_history tells: the
// time of the first entry in the last unbroken run of entries with that status. ok is false where the history tells
// nothing, or where its last word is another status.
//
// Several services have written this column over the years. Taken are an array (or an array in a string) of objects
// with a status under "status", "state" or "to", and a time under "timestamp", "time", "at" or "changed_at": RFC 3339,
// the same without zone (Python's utcnow) or with a space, unix seconds or milliseconds, as a number or in a string.
// Entries that name no status, such as {"timestamp": …, "message": …}, say nothing about it and break no run.
func stateEntered(column []byte, status Status) (entered time.Time, ok bool) {
	inRun := false
	for _, entry := range historyEntries(column) {
		entryStatus, named := entry.status()
		if !named {
			continue
		}
		if entryStatus != status {
			inRun, ok = false, false
			continue
		}
		if inRun && ok {
			continue
		}
		inRun = true
		entered, ok = entry.time()
	}
	return entered, ok
}

// FirstEntered returns when a reservation first had one of the given statuses, as far as its status_history (see
// stateEntered) tells.
func FirstEntered(column []byte, statuses ...Status) (time.Time, bool) {
	for _, entry := range historyEntries(column) {
		if status, named := entry.status(); named && slices.Contains(statuses, status) {
			if t, ok := entry.time(); ok && !absurd(At(t)) {
				return t, true
			}
		}
	}
	return time.Time{}, false
}

type historyEntry map[string]json.RawMessage

func historyEntries(column []byte) []historyEntry {
	var values []json.RawMessage
	if json.Unmarshal(unquoted(column), &values) != nil {
		return nil
	}
	entries := make([]historyEntry, 0, len(values))
	for _, value := range values {
		var entry historyEntry
		if json.Unmarshal(unquoted(value), &entry) == nil {
			entries = append(entries, entry)
		}
	}
	return entries
}

// unquoted returns the JSON inside a JSON string, for writers that encode twice, nothing for null, and anything else as it is.
func unquoted(value []byte) []byte {
	var inner string
	if json.Unmarshal(value, &inner) == nil {
		return []byte(inner)
	}
	return value
}

func (e historyEntry) status() (Status, bool) {
	for _, key := range []string{"status", "state", "to"} {
		var word string
		if json.Unmarshal(e[key], &word) == nil && strings.TrimSpace(word) != "" {
			return Status(strings.ToLower(strings.TrimSpace(word))), true
		}
	}
	return "", false
}

func (e historyEntry) time() (time.Time, bool) {
	for _, key := range []string{"timestamp", "time", "at", "changed_at"} {
		if t, ok := parseHistoryTime(e[key]); ok {
			return t, true
		}
	}
	return time.Time{}, false
}

var historyLayouts = []string{
	time.RFC3339Nano,
	"2006-01-02T15:04:05.999999999", // no zone: UTC
	"2006-01-02 15:04:05.999999999Z07:00",
	"2006-01-02 15:04:05.999999999Z07",
	"2006-01-02 15:04:05.999999999",
}

func parseHistoryTime(value json.RawMessage) (time.Time, bool) {
	text := string(bytes.TrimSpace(value))
	var quoted string
	if json.Unmarshal(value, &quoted) == nil {
		text = strings.TrimSpace(quoted)
	}
	for _, layout := range historyLayouts {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), true
		}
	}
	const latestSeconds = 1e11 // the year 5138: whatever is larger counts milliseconds
	seconds, err := strconv.ParseFloat(text, 64)
	switch {
	case err != nil || !(seconds > 0 && seconds < latestSeconds*1000): // NaN fails every comparison
		return time.Time{}, false
	case seconds >= latestSeconds:
		return time.UnixMilli(int64(seconds)).UTC(), true
	}
	return time.UnixMicro(int64(seconds * 1e6)).UTC(), true
}
