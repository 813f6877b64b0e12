package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/event"
)

// SweepEnd is what is recorded of a sweep when it is over.
type SweepEnd struct {
	Outcome   string // completed, partial or failed
	Braked    bool
	Counts    map[string]int
	Failures  []event.PartFailure
	Brake     any              // kept as JSON; nil: the brake was not asked
	Anomalies any              // kept as JSON
	Durations map[string]int64 // milliseconds, by part
}

// FinishSweep records how the sweep ended, announces it and gives the lease back, all at once. It returns the time of
// the end by the database's clock.
func (db *DB) FinishSweep(ctx context.Context, lease SweepLease, end SweepEnd) (time.Time, error) {
	if end.Failures == nil {
		end.Failures = []event.PartFailure{}
	}
	texts := make(map[string]string)
	for column, value := range map[string]any{
		"counts": end.Counts, "failures": end.Failures, "brake": end.Brake, "anomalies": end.Anomalies, "durations": end.Durations,
	} {
		body, err := json.Marshal(value)
		if err != nil {
			return time.Time{}, fmt.Errorf("encode the %s of sweep %s: %w", column, lease.token, err)
		}
		texts[column] = string(body)
	}
	var data event.Sweep
	err := db.underLease(ctx, lease, func(ctx context.Context, tx pgx.Tx) error {
		data = event.Sweep{
			SweepID: lease.token.String(), Outcome: end.Outcome, Braked: end.Braked, Counts: end.Counts, Failures: end.Failures,
		}
		err := tx.QueryRow(ctx, `
			update expiry.sweeps
			set finished_at = clock_timestamp(), outcome = @outcome, braked = @braked, counts = @counts, failures = @failures,
			    brake = nullif(@brake::jsonb, 'null'), anomalies = @anomalies, durations = @durations
			where sweep_id = @id and outcome = 'running'
			returning trigger, started_at, finished_at, paused`, pgx.NamedArgs{
			"id": lease.token, "outcome": end.Outcome, "braked": end.Braked, "counts": texts["counts"], "failures": texts["failures"],
			"brake": texts["brake"], "anomalies": texts["anomalies"], "durations": texts["durations"],
		}).Scan(&data.Trigger, &data.StartedAt, &data.FinishedAt, &data.Paused)
		if err != nil {
			return fmt.Errorf("record the end of sweep %s: %w", lease.token, err)
		}
		data.StartedAt, data.FinishedAt = data.StartedAt.UTC(), data.FinishedAt.UTC()
		if err := recordFact(ctx, tx, event.SweepCompleted, data.SweepID, data); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			update expiry.sweep_lease set token = null, holder = null, expires_at = '-infinity' where token = $1`, lease.token)
		if err != nil {
			return fmt.Errorf("give back the lease of sweep %s: %w", lease.token, err)
		}
		return nil
	})
	if err != nil {
		return time.Time{}, err
	}
	return data.FinishedAt, nil
}

// SweepRow is a sweep as it is recorded.
type SweepRow struct {
	SweepID    uuid.UUID
	Trigger    string
	StartedAt  time.Time
	FinishedAt *time.Time // nil while it runs
	Outcome    string     // running, completed, partial, failed, or abandoned by a process that died
	Braked     bool
	Paused     bool
	Counts     map[string]int
	Failures   []event.PartFailure
	Brake      json.RawMessage // null where the brake was not asked
	Anomalies  json.RawMessage
	Durations  map[string]int64 // milliseconds, by part
}

// Sweeps reads the newest sweeps, the newest first.
func (db *DB) Sweeps(ctx context.Context, limit int) ([]SweepRow, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := db.pool.Query(ctx, `
		select sweep_id, trigger, started_at, finished_at, outcome, braked, paused, counts, failures,
		       coalesce(brake, 'null'), anomalies, durations
		from expiry.sweeps order by started_at desc limit $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("read the newest sweeps: %w", err)
	}
	sweeps, err := pgx.CollectRows(rows, pgx.RowToStructByPos[SweepRow])
	if err != nil {
		return nil, fmt.Errorf("read the newest sweeps: %w", err)
	}
	return sweeps, nil
}
