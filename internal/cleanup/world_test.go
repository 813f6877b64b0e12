package cleanup_test

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

const (
	id      = "deadbeef-0000-4000-8000-000000000001"
	podName = "gpu-dev-deadbeef"
	podKey  = "gpu-dev/" + podName
	volume  = "vol-0123456789abcdef0"
	node    = "node-7"
	host    = "i-0123456789abcdef0"
	domain  = "grumpy-bear"
	fqdn    = domain + ".dev.example.com"
)

// clock is one that only sleeping moves.
type clock struct {
	lock sync.Mutex
	at   time.Time
}

func (c *clock) now() time.Time {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.at
}

func (c *clock) sleep(ctx context.Context, d time.Duration) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.at = c.at.Add(d)
	return ctx.Err()
}

// world is a real database and a model of all else.
type world struct {
	*outside
	clock  *clock
	db     *postgres.DB
	sql    *pgxpool.Pool
	trace  *telemetry.Telemetry // nil: disabled
	log    *slog.Logger         // nil: discarded
	action *cleanup.Action
	runner *followup.Runner
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldIn(t, stacktest.NewShelf(t))
}

func newWorldIn(t *testing.T, shelf *stacktest.Shelf) *world {
	t.Helper()
	url := shelf.Database(t)
	db, err := postgres.Open(t.Context(), stacktest.AsService(t, url), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	sql, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(sql.Close)
	clock := &clock{at: time.Now()}
	w := &world{clock: clock, outside: newOutside(clock.now), db: db, sql: sql}
	w.keep = func(c postgres.CleanupRecord) (followup.Result, error) {
		return followup.Recorded(postgres.OutcomeReleased), release(t.Context(), db, sql, c, "")
	}
	w.build(func(*cleanup.World) {})
	w.exec(t, "insert into expiry.cluster (uid) values ($1)", w.uid)
	w.exec(t, "insert into expiry.aws_account (account_id, region) values ($1, $2)", w.account.ID, w.account.Region)
	return w
}

// release ends the disk's part of a cleanup as whoever releases the disk does.
func release(ctx context.Context, db *postgres.DB, sql *pgxpool.Pool, c postgres.CleanupRecord, detail string) error {
	_, err := sql.Exec(ctx, "update expiry.cleanups set disk_released_at = clock_timestamp() where reservation_id = $1", c.ReservationID)
	return errors.Join(err, db.FinishReleased(ctx, c, detail))
}

// build makes the action, with a change to its world.
func (w *world) build(change func(*cleanup.World)) {
	parts := cleanup.World{Store: w.db, Cluster: w.outside, EC2: w.outside, Identity: w.outside, Router: w.outside, Disk: w.outside, DNS: w.outside, Bucket: w.outside}
	change(&parts)
	quiet := slog.New(slog.DiscardHandler)
	w.action = cleanup.New(parts, cleanup.Options{Domain: "dev.example.com", Lag: 1, Now: w.clock.now, Sleep: w.clock.sleep, Log: cmp.Or(w.log, quiet), Trace: w.trace})
	w.runner = followup.NewRunner(w.db, map[postgres.FollowUpKind]followup.Action{postgres.Cleanup: w.action}, followup.Options{Log: quiet})
}

func (w *world) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	_, err := w.sql.Exec(t.Context(), statement, args...)
	require.NoError(t, err)
}

func read[V any](t *testing.T, w *world, query string, args ...any) V {
	t.Helper()
	rows, err := w.sql.Query(context.WithoutCancel(t.Context()), query, args...)
	require.NoError(t, err)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[V])
	require.NoError(t, err)
	return v
}

// reserve writes the row of a reservation that ran for five hours, with a disk, and has just expired.
func (w *world) reserve(t *testing.T, id string) {
	t.Helper()
	w.exec(t, `
		insert into reservations (reservation_id, user_id, status, gpu_type, created_at, launched_at, expires_at,
		                          reservation_ended, ebs_volume_id, disk_name, domain_name)
		values ($1, 'alice', 'expired', 'h100', now() - interval '5 hours', now() - interval '5 hours',
		        now() - interval '5 minutes', now() - interval '2 minutes', $2, 'default', $3)`, id, volume, domain)
	w.exec(t, `insert into disks (user_id, disk_name, in_use, reservation_id, ebs_volume_id) values ('alice', 'default', true, $1, $2)`, id, volume)
}

// stand puts everything behind the reservation that can stand there.
func (w *world) stand(t *testing.T) {
	t.Helper()
	w.reserve(t, id)
	w.pods[podKey] = w.pod("uid-1")
	w.services[podKey+"-ssh"] = w.service(podName+"-ssh", nil)
	w.services["gpu-dev/jupyter"] = w.service("jupyter", map[string]string{"app": podName})
	w.services["gpu-dev/everybody"] = w.service("everybody", map[string]string{"tier": "dev"})
	w.pods["gpu-dev/gpu-dev-other"] = pod.Pod{Namespace: "gpu-dev", Name: "gpu-dev-other", UID: "uid-o", Labels: map[string]string{"tier": "dev"}}
	w.claims["gpu-dev/disk-alice"] = pod.Claim{Namespace: "gpu-dev", Name: "disk-alice", UID: "claim-1", VolumeName: "pv-alice"}
	w.volumes["pv-alice"] = pod.PersistentVolume{Name: "pv-alice", UID: "pv-1", ReclaimPolicy: "Delete", VolumeID: volume, ClaimName: "disk-alice", ClaimNamespace: "gpu-dev"}
	w.nodes[node] = pod.Node{Name: node, UID: "node-1", Ready: true, InstanceID: host}
	w.instances[host] = disk.Instance{ID: host, State: disk.InstanceRunning}
	w.records[fqdn], w.rules["rule-1"], w.groups["group-1"] = true, true, 2
	w.exec(t, "insert into domain_mappings (domain_name, reservation_id) values ($1, $2)", domain, id)
	w.exec(t, `insert into alb_target_groups (reservation_id, domain_name, jupyter_target_group_arn, jupyter_rule_arn)
		values ($1, $2, 'group-1', 'rule-1')`, id, domain)
}

// nameNoVolume leaves the volume to be found out from the pod.
func (w *world) nameNoVolume(t *testing.T) {
	t.Helper()
	w.exec(t, "update reservations set ebs_volume_id = null")
	w.exec(t, "update disks set ebs_volume_id = null")
}

func (w *world) pod(uid string) pod.Pod {
	return pod.Pod{
		Namespace: "gpu-dev", Name: podName, UID: uid, Created: w.now().Add(-5*time.Hour + time.Minute).UTC(), Phase: pod.Running, Node: node,
		Labels:     map[string]string{"app": podName, "tier": "dev"},
		Containers: []pod.Container{{Name: pod.MainContainer, Kind: pod.App, Running: true}},
		Claims:     []string{"disk-alice"}, HomeClaim: "disk-alice",
	}
}

func (w *world) service(name string, selector map[string]string) pod.Service {
	return pod.Service{Namespace: "gpu-dev", Name: name, UID: "uid-" + name, Created: w.now().Add(-4 * time.Hour).UTC(), Selector: selector}
}

// request asks for the cleanup as a hand-posted event does.
func (w *world) request(t *testing.T) {
	t.Helper()
	asked, err := w.db.EnsureCleanup(t.Context(), id)
	require.NoError(t, err)
	require.True(t, asked)
}

// deliver brings the event once, pauses over.
func (w *world) deliver(ctx context.Context, t *testing.T) followup.Report {
	t.Helper()
	_, err := w.sql.Exec(context.WithoutCancel(ctx), "update expiry.follow_ups set due_at = least(due_at, clock_timestamp()) where state = 'due'")
	require.NoError(t, err)
	report, err := w.runner.Run(ctx, postgres.Cleanup, id)
	require.NoError(t, err)
	return report
}

// step returns "outcome: detail" of a step, or "open: last error".
func (w *world) step(t *testing.T, s postgres.Step) string {
	t.Helper()
	return read[string](t, w, `
		select coalesce(max(case when finished_at is null then 'open: ' || coalesce(last_error, detail, '')
		                         else outcome || ': ' || coalesce(detail, '') end), 'not begun')
		from expiry.cleanup_steps where reservation_id = $1 and step = $2`, id, s)
}

func (w *world) outcome(t *testing.T) string {
	t.Helper()
	return read[string](t, w, "select coalesce(outcome, 'open') from expiry.cleanups where reservation_id = $1", id)
}

func (w *world) facts(t *testing.T, kind string) int {
	t.Helper()
	return read[int](t, w, "select count(*)::int from expiry.facts where type = $1", kind)
}
