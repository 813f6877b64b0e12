package event

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// WarningRequest is the data of WarningRequested. Times in the data of follow-ups are to the second, as in their keys.
type WarningRequest struct {
	ReservationID string    `json:"reservationId"`
	Deadline      time.Time `json:"deadline"`
	LevelMinutes  int       `json:"levelMinutes"`
}

// NoticeRequest is the data of NoticeRequested.
type NoticeRequest struct {
	ReservationID string    `json:"reservationId"`
	ContainerID   string    `json:"containerId"`
	FinishedAt    time.Time `json:"finishedAt"`
}

// CleanupRequest is the data of CleanupRequested.
type CleanupRequest struct {
	ReservationID string `json:"reservationId"`
}

// SnapshotSyncRequest is the data of SnapshotSyncRequested.
type SnapshotSyncRequest struct {
	IntentID string `json:"intentId"`
}

// SnapshotPurgeRequest is the data of SnapshotPurgeRequested.
type SnapshotPurgeRequest struct {
	SnapshotID string `json:"snapshotId"`
}

// AvailabilityUpdateRequest is the data of AvailabilityUpdateRequested.
type AvailabilityUpdateRequest struct{}

// AvailabilityKey is the one key of availability updates.
const AvailabilityKey = "all"

// WarningKey identifies the warning of one deadline and level: an extension re-arms it.
func WarningKey(reservationID string, deadline time.Time, levelMinutes int) string {
	return fmt.Sprintf("%s/%d/%d", reservationID, deadline.Unix(), levelMinutes)
}

// NoticeKey identifies the notice of one out-of-memory kill.
func NoticeKey(reservationID, containerID string, finishedAt time.Time) string {
	return fmt.Sprintf("%s/%s/%d", reservationID, containerID, finishedAt.Unix())
}

const (
	ownPrefix    = "dev.gpudev."
	expiryPrefix = ownPrefix + "expiry."
	askSuffix    = ".requested.v1"
)

// TypeOf returns the type of the event that asks for a follow-up of the given kind.
func TypeOf(kind string) string { return expiryPrefix + kind + askSuffix }

// KindOf returns the kind of follow-up that an event of this type asks for. It reports false for other types.
func KindOf(eventType string) (string, bool) {
	switch eventType {
	case WarningRequested, NoticeRequested, CleanupRequested, SnapshotSyncRequested, SnapshotPurgeRequested, AvailabilityUpdateRequested:
		return strings.TrimSuffix(strings.TrimPrefix(eventType, expiryPrefix), askSuffix), true
	}
	return "", false
}

// IsFact reports whether events of this type are announced by this service, and so are never meant for it.
func IsFact(eventType string) bool {
	switch eventType {
	case ReservationWarned, ReservationExpired, ReservationFailed, ReservationCancelled, ReservationOOMKilled,
		ReservationCleanedUp, DiskSnapshotted, DiskReleased, SweepCompleted:
		return true
	}
	return false
}

// dataOf returns what an event says about the follow-up (kind, key), and when it becomes pointless, if ever.
func dataOf(f FollowUp) (data any, expires time.Time, err error) {
	switch TypeOf(f.Kind) {
	case WarningRequested:
		deadline, level, ok := cutKey(f)
		unix, err1 := strconv.ParseInt(deadline, 10, 64)
		minutes, err2 := strconv.Atoi(level)
		if !ok || err1 != nil || err2 != nil {
			return nil, expires, badKey(f)
		}
		expires = time.Unix(unix, 0).UTC()
		return WarningRequest{f.ReservationID, expires, minutes}, expires, nil
	case NoticeRequested:
		container, finished, ok := cutKey(f)
		unix, err := strconv.ParseInt(finished, 10, 64)
		if !ok || err != nil {
			return nil, expires, badKey(f)
		}
		at := time.Unix(unix, 0).UTC()
		return NoticeRequest{f.ReservationID, container, at}, at.Add(noticeWorth), nil
	case CleanupRequested:
		return CleanupRequest{f.Key}, expires, nil
	case SnapshotSyncRequested:
		return SnapshotSyncRequest{f.Key}, expires, nil
	case SnapshotPurgeRequested:
		return SnapshotPurgeRequest{f.Key}, expires, nil
	case AvailabilityUpdateRequested:
		return AvailabilityUpdateRequest{}, expires, nil
	}
	return nil, expires, fmt.Errorf("no event asks for a %s", f.Kind)
}

// noticeWorth is how long after an out-of-memory kill anybody wants to be told.
const noticeWorth = 24 * time.Hour

// cutKey splits <reservation>/<middle>/<last>; the id of a container may hold slashes, and so may a reservation's.
func cutKey(f FollowUp) (middle, last string, ok bool) {
	rest, ok := strings.CutPrefix(f.Key, f.ReservationID+"/")
	i := strings.LastIndexByte(rest, '/')
	if !ok || f.ReservationID == "" || i < 1 {
		return "", "", false
	}
	return rest[:i], rest[i+1:], true
}

func badKey(f FollowUp) error {
	return fmt.Errorf("key %q is none of a %s of reservation %q", f.Key, f.Kind, f.ReservationID)
}

// KeyOf reads from the data of a follow-up event which row it is about: its kind, its key and nothing more. The
// data must have been validated.
func KeyOf(eventType string, data []byte) (kind, key string, err error) {
	kind, ok := KindOf(eventType)
	if !ok {
		return "", "", fmt.Errorf("%s asks for no follow-up", eventType)
	}
	switch eventType {
	case WarningRequested:
		key, err = keyFrom(data, func(r WarningRequest) string { return WarningKey(r.ReservationID, r.Deadline, r.LevelMinutes) })
	case NoticeRequested:
		key, err = keyFrom(data, func(r NoticeRequest) string { return NoticeKey(r.ReservationID, r.ContainerID, r.FinishedAt) })
	case CleanupRequested:
		key, err = keyFrom(data, func(r CleanupRequest) string { return r.ReservationID })
	case SnapshotSyncRequested:
		key, err = keyFrom(data, func(r SnapshotSyncRequest) string { return r.IntentID })
	case SnapshotPurgeRequested:
		key, err = keyFrom(data, func(r SnapshotPurgeRequest) string { return r.SnapshotID })
	case AvailabilityUpdateRequested:
		key = AvailabilityKey
	}
	if err != nil {
		return "", "", fmt.Errorf("read the data of %s: %w", eventType, err)
	}
	return kind, key, nil
}

// ReservationOf returns the reservation that the data of a follow-up event names, "" where it names none.
func ReservationOf(data []byte) string {
	var of struct {
		ReservationID string `json:"reservationId"`
	}
	_ = json.Unmarshal(data, &of) // of what is no object it stays empty
	return of.ReservationID
}

func keyFrom[T any](data []byte, key func(T) string) (string, error) {
	var request T
	if err := json.Unmarshal(data, &request); err != nil {
		return "", err //nolint:wrapcheck // by the caller, once
	}
	return key(request), nil
}
