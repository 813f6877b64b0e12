package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Step names a part of a cleanup, as stored.
type Step string

// The steps, in the order in which people read them.
const (
	StepIdentify     Step = "identify"
	StepNotice       Step = "final_notice"
	StepListing      Step = "listing"
	StepRetain       Step = "retain_volume"
	StepServices     Step = "services"
	StepPod          Step = "pod"
	StepDNS          Step = "dns"
	StepLoadBalancer Step = "load_balancer"
	StepDisk         Step = "disk"
)

// Steps returns every step of a cleanup, in order.
func Steps() []Step {
	return []Step{StepIdentify, StepNotice, StepListing, StepRetain, StepServices, StepPod, StepDNS, StepLoadBalancer, StepDisk}
}

func stepNames() []string {
	var names []string
	for _, s := range Steps() {
		names = append(names, string(s))
	}
	return names
}

// StepRecord is how far one step of a cleanup is.
type StepRecord struct {
	Step       Step
	StartedAt  time.Time
	FinishedAt time.Time // zero while it is open
	Outcome    string    // one word: done, already_gone, not_ours, missing, skipped; the disk's is the cleanup's
	Detail     string
	Attempts   int // failures
	LastError  string
}

// Finished reports whether nothing is left to do.
func (s StepRecord) Finished() bool { return !s.FinishedAt.IsZero() }

// CleanupSteps returns the steps that were ever begun.
func (db *DB) CleanupSteps(ctx context.Context, reservationID string) (map[Step]StepRecord, error) {
	all, err := query(ctx, db, scanStep, `
		select step, started_at, finished_at, coalesce(outcome, ''), coalesce(detail, ''), attempts, coalesce(last_error, '')
		from expiry.cleanup_steps where reservation_id = $1`, reservationID)
	if err != nil {
		return nil, fmt.Errorf("read the cleanup steps of %s: %w", reservationID, err)
	}
	steps := make(map[Step]StepRecord, len(all))
	for _, s := range all {
		steps[s.Step] = s
	}
	return steps, nil
}

func scanStep(row pgx.CollectableRow) (StepRecord, error) {
	var s StepRecord
	var finished *time.Time
	err := row.Scan(&s.Step, &s.StartedAt, &finished, &s.Outcome, &s.Detail, &s.Attempts, &s.LastError)
	s.FinishedAt = orZero(finished)
	return s, err
}

// BeginStep records that a step was begun. A step begun before keeps its time.
func (db *DB) BeginStep(ctx context.Context, reservationID string, step Step) error {
	_, err := db.exec(ctx, `
		insert into expiry.cleanup_steps (reservation_id, step) values ($1, $2) on conflict do nothing`, reservationID, step)
	if err != nil {
		return fmt.Errorf("begin %s of the cleanup of %s: %w", step, reservationID, err)
	}
	return nil
}

// FinishStep records that nothing is left to do for a step, how it ended and, for people, what was found. The first
// to finish it stands.
func (db *DB) FinishStep(ctx context.Context, reservationID string, step Step, outcome, detail string) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return finishStep(ctx, db.pool, reservationID, step, outcome, detail)
}

func finishStep(ctx context.Context, tx executor, reservationID string, step Step, outcome, detail string) error {
	_, err := tx.Exec(ctx, `
		insert into expiry.cleanup_steps as s (reservation_id, step, finished_at, outcome, detail)
		values ($1, $2, clock_timestamp(), $3, nullif($4, ''))
		on conflict (reservation_id, step) do update
		set finished_at = excluded.finished_at, outcome = excluded.outcome, detail = excluded.detail
		where s.finished_at is null`, reservationID, step, outcome, storable(detail))
	if err != nil {
		return fmt.Errorf("finish %s of the cleanup of %s: %w", step, reservationID, err)
	}
	return nil
}

// FailStep counts a failure of a step, which stays open.
func (db *DB) FailStep(ctx context.Context, reservationID string, step Step, cause error) error {
	_, err := db.exec(ctx, `
		update expiry.cleanup_steps set attempts = attempts + 1, last_error = $3
		where reservation_id = $1 and step = $2 and finished_at is null`, reservationID, step, storable(cause.Error()))
	if err != nil {
		return fmt.Errorf("record the failure of %s of the cleanup of %s: %w", step, reservationID, err)
	}
	return nil
}

// NoteStep records, for people, what an open step waits for.
func (db *DB) NoteStep(ctx context.Context, reservationID string, step Step, detail string) error {
	_, err := db.exec(ctx, `
		update expiry.cleanup_steps set detail = $3
		where reservation_id = $1 and step = $2 and finished_at is null`, reservationID, step, storable(detail))
	if err != nil {
		return fmt.Errorf("note what %s of the cleanup of %s waits for: %w", step, reservationID, err)
	}
	return nil
}

// RecordIdentity stores what stood behind the reservation and finishes the step. What was known before and is not now
// stays; a pod's UID is recorded for good. A volume other than the known one is taken for the right one.
func (db *DB) RecordIdentity(ctx context.Context, reservationID string, id Identity, outcome, detail string) error {
	return db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			update expiry.cleanups
			set namespace   = coalesce(nullif($2, ''), namespace),   pod_name   = coalesce(nullif($3, ''), pod_name),
			    pod_uid     = coalesce(nullif($4, ''), pod_uid),     node_name  = coalesce(nullif($5, ''), node_name),
			    instance_id = coalesce(nullif($6, ''), instance_id), claim_name = coalesce(nullif($7, ''), claim_name),
			    pv_name     = coalesce(nullif($8, ''), pv_name),     volume_id  = coalesce(nullif($9, ''), nullif(volume_id, $13)),
			    former_volume_id = coalesce(nullif($14, ''), former_volume_id),
			    misnamed_volume_id = coalesce(nullif($13, ''), misnamed_volume_id),
			    claim_uid   = coalesce(nullif($11, ''), claim_uid),  pv_uid     = coalesce(nullif($12, ''), pv_uid),
			    disk_name   = coalesce(disk_name, nullif($10, '')),
			    disk_size   = case when former_volume_id <> $9 and pod_gone_at is null then null else disk_size end, -- that was the former one's
			    content_key = case when former_volume_id <> $9 and pod_gone_at is null then null else content_key end
			where reservation_id = $1`,
			reservationID, id.Namespace, id.PodName, id.PodUID, id.NodeName, id.InstanceID, id.ClaimName, id.PVName, id.VolumeID, id.DiskName,
			id.ClaimUID, id.PVUID, id.Misnamed, id.Last)
		if err != nil {
			return fmt.Errorf("record what stood behind %s: %w", reservationID, err)
		}
		if id.PodUID != "" {
			_, err = tx.Exec(ctx, `
				insert into expiry.pods (uid, reservation_id, namespace, name, created_at) values ($1, $2, $3, $4, $5)
				on conflict do nothing`, id.PodUID, reservationID, id.Namespace, id.PodName, id.PodCreated)
			if err != nil {
				return fmt.Errorf("record the pod of %s: %w", reservationID, err)
			}
		}
		return finishStep(ctx, tx, reservationID, StepIdentify, outcome, detail)
	})
}

// RecordListing stores the size of a disk and where its listing is, each empty where unknown, and finishes the step.
func (db *DB) RecordListing(ctx context.Context, reservationID, size, url, outcome, detail string) error {
	return db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			update expiry.cleanups
			set disk_size = coalesce(nullif($2, ''), disk_size), content_key = coalesce(nullif($3, ''), content_key)
			where reservation_id = $1`, reservationID, size, url)
		if err != nil {
			return fmt.Errorf("record the listing of %s: %w", reservationID, err)
		}
		return finishStep(ctx, tx, reservationID, StepListing, outcome, detail)
	})
}

// RecordTermination remembers that the kubelet reports every container of the pod terminated.
func (db *DB) RecordTermination(ctx context.Context, reservationID string) error {
	_, err := db.exec(ctx, `
		update expiry.cleanups set containers_terminated_at = clock_timestamp()
		where reservation_id = $1 and containers_terminated_at is null`, reservationID)
	if err != nil {
		return fmt.Errorf("record that the containers of %s terminated: %w", reservationID, err)
	}
	return nil
}

// RecordPodGone finishes the pod's step. Where there ever was a pod, the first call asks for the availability to be
// computed anew.
func (db *DB) RecordPodGone(ctx context.Context, reservationID, outcome, detail string) error {
	return db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var hadPod bool
		err := tx.QueryRow(ctx, `
			update expiry.cleanups c set pod_gone_at = clock_timestamp()
			where c.reservation_id = $1 and c.pod_gone_at is null
			returning c.pod_uid is not null or exists (
			    select from reservations r where r.reservation_id = c.reservation_id and r.launched_at is not null)`,
			reservationID).Scan(&hadPod)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("record that the pod of %s is gone: %w", reservationID, err)
		}
		if hadPod {
			if err := markAvailabilityDirty(ctx, tx); err != nil {
				return err
			}
		}
		return finishStep(ctx, tx, reservationID, StepPod, outcome, detail)
	})
}
