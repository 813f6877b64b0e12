package disk

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Tags that the platform's own services write and read.
const (
	TagUser            = "gpu-dev-user"
	TagDisk            = "disk_name"
	TagType            = "gpu-dev-snapshot-type"
	TagTypeShort       = "SnapshotType"
	TagCreatedAt       = "created_at"          // unix seconds
	TagContents        = "snapshot_content_s3" // s3://bucket/key of the listing
	TagSize            = "disk_size"           // what du said, such as 1.2G
	TagDeleteDate      = "delete-date"         // YYYY-MM-DD
	TagMarkedDeletedAt = "marked-deleted-at"   // unix seconds
)

// Tags of this service, which prove that a cleanup made the snapshot.
const (
	TagReservation     = "gpu-dev-reservation-id"
	TagAttempt         = "gpu-dev-cleanup-attempt"
	TagIntent          = "gpu-dev-snapshot-intent"
	TagCrashConsistent = "gpu-dev-crash-consistent"
	TagVolumeGivenUp   = "gpu-dev-volume-given-up-at" // unix seconds; from then on the snapshot has to have what was on the volume
)

// snapshotType is what the platform calls a snapshot taken when a reservation ends.
const snapshotType = "shutdown"

// EC2's limits, in characters.
const (
	maxTagValue    = 256
	maxDescription = 255
)

// NewSnapshot is what a cleanup knows of the snapshot that it is about to ask for.
type NewSnapshot struct {
	VolumeID        string
	Disk            Key
	ReservationID   string
	Attempt         int
	IntentID        string // of the record that was committed, once the writer was gone, before EC2 was asked
	CreatedAt       time.Time
	ContentsURL     string // empty where no listing could be had
	Size            string // empty where unknown
	CrashConsistent bool
}

// Tags returns the snapshot's tags: the platform's, and those by which MadeBy knows it again. Values longer than
// EC2 takes are cut and keep a hash, so that two different names stay different.
func (n NewSnapshot) Tags() map[string]string {
	tags := CleanupTags(n.ReservationID)
	maps.Copy(tags, n.Disk.Tags())
	tags[TagAttempt] = strconv.Itoa(n.Attempt)
	tags[TagType] = snapshotType
	tags[TagTypeShort] = snapshotType
	tags[TagCreatedAt] = strconv.FormatInt(n.CreatedAt.Unix(), 10)
	if n.IntentID != "" {
		tags[TagIntent] = n.IntentID
	}
	if n.ContentsURL != "" {
		tags[TagContents] = tagValue(n.ContentsURL)
	}
	if n.Size != "" {
		tags[TagSize] = tagValue(n.Size)
	}
	if n.CrashConsistent {
		tags[TagCrashConsistent] = "true"
	}
	return tags
}

// CleanupTags returns the tags that every snapshot made by a reservation's cleanup carries, whichever its attempt.
func CleanupTags(reservationID string) map[string]string {
	return map[string]string{TagReservation: tagValue(reservationID)}
}

// IntentTags returns the tags by which a snapshot is found whose maker got no answer.
func IntentTags(intentID string) map[string]string {
	return map[string]string{TagIntent: intentID}
}

// Tags returns the tags that every snapshot of the disk carries.
func (k Key) Tags() map[string]string {
	tags := map[string]string{TagUser: tagValue(k.User)}
	if k.Name != "" {
		tags[TagDisk] = tagValue(k.Name)
	}
	return tags
}

// Description returns the snapshot's description in the platform's words.
func (n NewSnapshot) Description() string {
	text := fmt.Sprintf("gpu-dev %s snapshot for %s", snapshotType, n.Disk.User)
	if n.Disk.Name != "" {
		text += fmt.Sprintf(" (disk: %s)", n.Disk.Name)
	}
	if n.Size != "" {
		text += fmt.Sprintf(" (%s)", n.Size)
	}
	return firstRunes(strings.ToValidUTF8(text, "?"), maxDescription)
}

// deletionTags returns the tags by which the platform shows that a snapshot's disk is deleted: now, where the row does
// not say since when.
func deletionTags(row Row, now time.Time) map[string]string {
	return map[string]string{
		TagDeleteDate:      row.DeleteDate.UTC().Format(time.DateOnly),
		TagMarkedDeletedAt: strconv.FormatInt(cmp.Or(row.MarkedDeletedAt, now).Unix(), 10),
	}
}

// GivenUpTags returns the tag of a snapshot for which its volume is given up now.
func GivenUpTags(now time.Time) map[string]string {
	return map[string]string{TagVolumeGivenUp: strconv.FormatInt(now.Unix(), 10)}
}

// DeletionTagKeys are the tags that a restored disk's snapshots lose.
func DeletionTagKeys() []string { return []string{TagDeleteDate, TagMarkedDeletedAt} }

func tagValue(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if utf8.RuneCountInString(s) <= maxTagValue {
		return s
	}
	mark := "~" + shortHash(s)
	return firstRunes(s, maxTagValue-len(mark)) + mark
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

func firstRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}
