package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// DeadLetter is an event that the broker gave up on.
type DeadLetter struct {
	ID           int64
	ReceivedAt   time.Time // the last time it came
	Arrivals     int       // how often
	EventID      string
	EventType    string
	EventSource  string
	EventSubject string
	Event        string // structured mode, without the broker's attributes
	ErrorCode    string
	ErrorData    string
	ErrorDest    string
	Replays      int
	ReplayedAt   time.Time // zero where it never was
}

// Open reports whether it has not been sent again since it came.
func (d DeadLetter) Open() bool { return d.ReplayedAt.Before(d.ReceivedAt) }

// StoreDeadLetter keeps what the broker gave up on. The same event that comes again is the same dead letter: it
// counts one more arrival and takes over the newest error. Two events under one id, as a person may send, are two.
func (db *DB) StoreDeadLetter(ctx context.Context, d DeadLetter) (int64, error) {
	ids, err := query(ctx, db, pgx.RowTo[int64], `
		insert into expiry.dead_letters as d
		    (event_id, event_type, event_source, event_subject, event, error_code, error_data, error_dest)
		values ($1, $2, $3, nullif($4, ''), $5, nullif($6, ''), nullif($7, ''), nullif($8, ''))
		on conflict (md5(event_source), md5(event_id), md5(event)) do update
		set received_at = clock_timestamp(), arrivals = d.arrivals + 1,
		    error_code = excluded.error_code, error_data = excluded.error_data, error_dest = excluded.error_dest
		returning dead_letter_id`,
		storable(d.EventID), storable(d.EventType), storable(d.EventSource), storable(d.EventSubject), storable(d.Event),
		storable(d.ErrorCode), storable(d.ErrorData), storable(d.ErrorDest))
	if err != nil {
		return 0, fmt.Errorf("store the dead letter of event %s: %w", d.EventID, err)
	}
	return ids[0], nil
}

const deadLetterColumns = `dead_letter_id, received_at, arrivals, event_id, event_type, event_source, coalesce(event_subject, ''), event,
	coalesce(error_code, ''), coalesce(error_data, ''), coalesce(error_dest, ''), replays, replayed_at`

func scanDeadLetter(row pgx.CollectableRow) (DeadLetter, error) {
	var (
		d        DeadLetter
		replayed *time.Time
	)
	err := row.Scan(&d.ID, &d.ReceivedAt, &d.Arrivals, &d.EventID, &d.EventType, &d.EventSource, &d.EventSubject, &d.Event,
		&d.ErrorCode, &d.ErrorData, &d.ErrorDest, &d.Replays, &replayed)
	if replayed != nil {
		d.ReplayedAt = *replayed
	}
	return d, err
}

// DeadLetters returns the newest dead letters.
func (db *DB) DeadLetters(ctx context.Context, limit int) ([]DeadLetter, error) {
	letters, err := query(ctx, db, scanDeadLetter,
		`select `+deadLetterColumns+` from expiry.dead_letters order by received_at desc, dead_letter_id desc limit $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return letters, nil
}

// DeadLetter returns one dead letter, or an error of kind fault.Gone.
func (db *DB) DeadLetter(ctx context.Context, id int64) (DeadLetter, error) {
	letters, err := query(ctx, db, scanDeadLetter,
		`select `+deadLetterColumns+` from expiry.dead_letters where dead_letter_id = $1`, id)
	if err != nil {
		return DeadLetter{}, fmt.Errorf("read dead letter %d: %w", id, err)
	}
	if len(letters) == 0 {
		return DeadLetter{}, fault.Errorf(fault.Gone, "there is no dead letter %d", id)
	}
	return letters[0], nil
}

// DeadLetterReplayed records that a dead letter was sent again.
func (db *DB) DeadLetterReplayed(ctx context.Context, id int64) error {
	_, err := db.exec(ctx, `
		update expiry.dead_letters set replays = replays + 1, replayed_at = clock_timestamp() where dead_letter_id = $1`, id)
	if err != nil {
		return fmt.Errorf("record that dead letter %d was sent again: %w", id, err)
	}
	return nil
}
