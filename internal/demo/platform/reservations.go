package platform

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Reservation is a row in the platform's table. Times are relative to the database's clock.
type Reservation struct {
	ID       string // empty: a random UUID
	User     string
	Name     string
	Status   string        // empty: active
	Since    time.Duration // how long it has been in this status; 0: since its launch
	GPU      string        // empty: h100
	EndsIn   time.Duration // negative: it is past its end
	Deadline *string       // instead of EndsIn: a date as SQL has it, "" for NULL
	Disk     string
	Domain   string
	Master   string // reservation id of its set's first node
	Node     int    // its number in the set
	Nodes    int    // of the set; 0: it is none
}

const (
	createdAgo  = 6 * time.Hour
	launchedAgo = createdAgo - 4*time.Minute
)

// Reserve writes the row, and locks its disk, which is made if it is a new one.
func (p *Platform) Reserve(ctx context.Context, r Reservation) (Server, error) {
	if r.ID == "" {
		r.ID = uuid.NewString()
	}
	if r.Status == "" {
		r.Status = "active"
	}
	if r.GPU == "" {
		r.GPU = "h100"
	}
	created, since := createdAgo, r.Since
	if since == 0 {
		since = launchedAgo
	}
	if since > created {
		created = since + time.Minute
	}
	history, err := json.Marshal([]map[string]any{
		{"status": "pending", "timestamp": time.Now().UTC().Add(-created)},
		{"status": r.Status, "timestamp": time.Now().UTC().Add(-since)},
	})
	if err != nil {
		return Server{}, fmt.Errorf("encode a history: %w", err)
	}
	launched := r.Status != "queued" && r.Status != "pending" && r.Status != "preparing"
	_, err = p.SQL.Exec(ctx, `
		insert into reservations (reservation_id, user_id, name, status, gpu_type, gpu_count, instance_type, duration_hours,
		    created_at, launched_at, expires_at, pod_name, namespace, disk_name, domain_name, fqdn, status_history,
		    is_multinode, master_reservation_id, node_index, total_nodes)
		values ($1, $2, $3, $4, $5, 1, 'p5.48xlarge', 6,
		    clock_timestamp() - $6::interval, case when $7 then clock_timestamp() - $8::interval end,
		    case when $9::text is null then clock_timestamp() + $10::interval else nullif($9, '')::timestamptz end,
		    $11, $12, nullif($13, ''), nullif($14, ''), nullif($15, ''), $16,
		    $17 > 0, nullif($18, ''), $19, nullif($17, 0))`,
		r.ID, r.User, r.Name, r.Status, r.GPU, created, launched, min(since, launchedAgo), r.Deadline, r.EndsIn,
		podName(r.ID), Namespace, r.Disk, r.Domain, fqdn(r.Domain), string(history), r.Nodes, r.Master, r.Node)
	if err != nil {
		return Server{}, fmt.Errorf("reserve %s: %w", r.Name, err)
	}
	s := Server{ID: r.ID, User: r.User, Disk: r.Disk, Pod: podName(r.ID), Domain: r.Domain}
	if r.Disk != "" {
		_, err = p.SQL.Exec(ctx, `
			insert into disks (disk_name, user_id, size_gb, disk_size, in_use, reservation_id, last_used)
			values ($1, $2, 10, '1.0G', true, $3, clock_timestamp())
			on conflict (user_id, disk_name) do update set in_use = true, reservation_id = $3, last_used = clock_timestamp()`,
			r.Disk, r.User, r.ID)
		if err != nil {
			return Server{}, fmt.Errorf("lock disk %s: %w", r.Disk, err)
		}
	}
	return s, nil
}

// End writes what the platform writes when a reservation ends without this service: cancelled by its user, or failed.
func (p *Platform) End(ctx context.Context, id, status, reason string) error {
	return p.Exec(ctx, `
		update reservations
		set status = $2::text, reservation_ended = clock_timestamp(), failure_reason = case when $2::text = 'failed' then $3::text end,
		    failed_at = case when $2::text = 'failed' then clock_timestamp() end,
		    cancelled_at = case when $2::text = 'cancelled' then clock_timestamp() end,
		    status_history = status_history || jsonb_build_object('status', $2::text, 'timestamp', clock_timestamp(), 'message', $3::text)
		where reservation_id = $1`, id, status, reason)
}

// Extend moves a deadline, as a user does.
func (p *Platform) Extend(ctx context.Context, id string, endsIn time.Duration) error {
	return p.Exec(ctx, `update reservations set expires_at = clock_timestamp() + $2::interval where reservation_id = $1 and status = 'active'`, id, endsIn)
}

// Exec runs one statement.
func (p *Platform) Exec(ctx context.Context, statement string, args ...any) error {
	if _, err := p.SQL.Exec(ctx, statement, args...); err != nil {
		return fmt.Errorf("platform's database: %w", err)
	}
	return nil
}

// Text returns the one value that a query has.
func (p *Platform) Text(ctx context.Context, query string, args ...any) (string, error) {
	var text string
	if err := p.SQL.QueryRow(ctx, "select coalesce(("+query+")::text, '')", args...).Scan(&text); err != nil {
		return "", fmt.Errorf("platform's database: %w", err)
	}
	return text, nil
}
