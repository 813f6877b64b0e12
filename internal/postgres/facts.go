package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// Fact is something that became true and is announced to others at least once.
type Fact struct {
	ID         uuid.UUID
	Type       string // the CloudEvents type
	Subject    string // the reservation, or the sweep
	Sequence   int64  // gapless per subject, from 1
	Data       json.RawMessage
	OccurredAt time.Time
	Attempts   int
	// Traceparent, W3C, is of the work that made it true; empty where nobody traced.
	Traceparent string

	lease uuid.UUID
}

// newFact is a fact about to be recorded.
type newFact struct {
	Type    string
	Subject string
	Data    any
}

// recordFact adds a fact to the outbox within the transaction that makes it true. The sequence row it locks orders
// concurrent facts of one subject.
func recordFact(ctx context.Context, tx pgx.Tx, factType, subject string, data any) error {
	return recordFacts(ctx, tx, []newFact{{factType, subject, data}})
}

// recordFacts is recordFact for many at once. Those of one subject keep their order.
func recordFacts(ctx context.Context, tx pgx.Tx, facts []newFact) error {
	var types, subjects, data []string
	for _, f := range facts {
		body, err := json.Marshal(f.Data)
		if err != nil {
			return fmt.Errorf("encode fact %s of %s: %w", f.Type, f.Subject, err)
		}
		types, subjects = append(types, f.Type), append(subjects, f.Subject)
		data = append(data, string(body)) // a string: without a prepared statement pgx would send bytes as bytea
	}
	_, err := tx.Exec(ctx, `
		with given as (
		    select *, row_number() over (partition by subject order by n) as nth, count(*) over (partition by subject) as of
		    from unnest($1::text[], $2::text[], $3::text[]) with ordinality as g (type, subject, data, n)
		),
		next as (
		    insert into expiry.fact_sequences as s (subject, last)
		    select subject, count(*) from given group by subject order by subject -- in one order everywhere, against deadlocks
		    on conflict (subject) do update set last = s.last + excluded.last
		    returning subject, last
		)
		insert into expiry.facts (fact_id, type, subject, sequence, data, traceparent)
		select gen_random_uuid(), type, subject, last - of + nth, data::jsonb, nullif($4, '')
		from given join next using (subject) order by n`, types, subjects, data, telemetry.TraceParent(ctx))
	if err != nil {
		return fmt.Errorf("record %d facts, %s of %s first: %w", len(facts), facts[0].Type, facts[0].Subject, err)
	}
	return nil
}

// ClaimFacts leases unpublished facts whose time has come, of one subject or of all (""), oldest first. A fact waits for
// the earlier ones of its subject, so that a consumer sees the sequence in order as long as nothing is sent twice.
func (db *DB) ClaimFacts(ctx context.Context, subject string, limit int, token uuid.UUID, lease time.Duration) ([]Fact, error) {
	scan := func(row pgx.CollectableRow) (Fact, error) {
		var f Fact
		err := row.Scan(&f.ID, &f.Type, &f.Subject, &f.Sequence, &f.Data, &f.OccurredAt, &f.Attempts, &f.Traceparent, &f.lease)
		return f, err
	}
	facts, err := query(unseen(ctx), db, scan, `
		with picked as (
		    select f.fact_id as picked_id from expiry.facts f
		    where f.published_at is null and f.try_again_at <= clock_timestamp()
		      and (f.lease_expires_at is null or f.lease_expires_at <= clock_timestamp())
		      and ($4 = '' or f.subject = $4)
		      and not exists (
		          select from expiry.facts earlier
		          where earlier.subject = f.subject and earlier.sequence < f.sequence and earlier.published_at is null)
		    order by f.occurred_at, f.subject, f.sequence
		    limit $1
		    for update of f skip locked
		)
		update expiry.facts f
		set lease_token = $2, lease_expires_at = clock_timestamp() + $3
		from picked where f.fact_id = picked_id
		returning f.fact_id, f.type, f.subject, f.sequence, f.data, f.occurred_at, f.attempts, coalesce(f.traceparent, ''),
		    f.lease_token`, limit, token, lease, subject)
	if err != nil {
		return nil, fmt.Errorf("claim facts: %w", err)
	}
	return facts, nil
}

// FactPublished records that the sink took the fact.
func (db *DB) FactPublished(ctx context.Context, f Fact) error {
	_, err := db.exec(unseen(ctx), `
		update expiry.facts
		set published_at = clock_timestamp(), last_error = null, lease_token = null, lease_expires_at = null
		where fact_id = $1 and lease_token = $2`, f.ID, f.lease)
	if err != nil {
		return fmt.Errorf("record that fact %s is published: %w", f.ID, err)
	}
	return nil
}

// FactFailed gives the fact back with the reason why the sink did not take it, to be tried again after pause.
func (db *DB) FactFailed(ctx context.Context, f Fact, cause error, pause time.Duration) error {
	_, err := db.exec(ctx, `
		update expiry.facts
		set attempts = attempts + 1, last_error = $3, try_again_at = clock_timestamp() + $4,
		    lease_token = null, lease_expires_at = null
		where fact_id = $1 and lease_token = $2`, f.ID, f.lease, storable(cause.Error()), pause)
	if err != nil {
		return fmt.Errorf("record that fact %s was not taken: %w", f.ID, err)
	}
	return nil
}
