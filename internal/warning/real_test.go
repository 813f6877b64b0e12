package warning_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/warning"
)

// server is an active reservation in a real database with a pod in a real cluster.
type server struct {
	*stacktest.Cluster
	runner *followup.Runner
	sql    *pgx.Conn
	id     string
}

func newServer(t *testing.T) server {
	t.Helper()
	r := server{Cluster: stacktest.Kubernetes(t), id: uuid.NewString()}
	url := stacktest.Database(t)
	db, err := postgres.Open(t.Context(), stacktest.AsService(t, url), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	r.sql, err = pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.sql.Close(context.Background()) })
	cluster := kube.New(func(context.Context) (*rest.Config, error) { return r.Config, nil }, kube.Options{})
	quiet := slog.New(slog.DiscardHandler)
	o := warning.Options{Log: quiet}
	r.runner = followup.NewRunner(db, map[postgres.FollowUpKind]followup.Action{
		postgres.Warning: warning.NewWarnings(db, cluster, o), postgres.Notice: warning.NewNotices(db, cluster, o),
	}, followup.Options{Log: quiet})

	r.exec(t, `insert into reservations (reservation_id, user_id, status, namespace, disk_name, created_at, launched_at, expires_at)
		values ($1, 'alice', 'active', $2, 'default', now() - interval '1 hour', now() - interval '1 hour',
		        date_trunc('second', now()) + interval '14 minutes')`, r.id, r.Namespace)
	r.CreatePod("gpu-dev-" + r.id[:8])
	return r
}

func (r server) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	_, err := r.sql.Exec(t.Context(), statement, args...)
	require.NoError(t, err)
}

func (r server) text(t *testing.T, query string) (s string) {
	t.Helper()
	require.NoError(t, r.sql.QueryRow(t.Context(), query).Scan(&s))
	return s
}

// run makes a follow-up due and carries it out.
func (r server) run(t *testing.T, kind postgres.FollowUpKind, key string) followup.Report {
	t.Helper()
	r.exec(t, "insert into expiry.follow_ups (kind, key, reservation_id, subject) values ($1, $2, $3, $3) on conflict do nothing", kind, key, r.id)
	report, err := r.runner.Run(t.Context(), kind, key)
	require.NoError(t, err)
	require.Empty(t, report.Error)
	return report
}

func TestWarningsReachTheServer(t *testing.T) {
	t.Parallel()
	r := newServer(t)
	var deadline time.Time
	require.NoError(t, r.sql.QueryRow(t.Context(), "select expires_at from reservations").Scan(&deadline))
	for _, level := range []int{15, 5} {
		report := r.run(t, postgres.Warning, event.WarningKey(r.id, deadline, level))
		require.Equal(t, followup.StateDone, report.State)
	}
	podName := "gpu-dev-" + r.id[:8]
	require.Equal(t, []string{"WARN_EXPIRES_IN_5MIN.txt"}, r.Files(podName), "the older one is replaced")
	said := r.ReadFile(podName, "WARN_EXPIRES_IN_5MIN.txt")
	require.Contains(t, said, deadline.UTC().Format("2006-01-02 15:04:05 UTC"))
	require.Contains(t, said, "gpu-dev edit "+r.id+" --extend")
	require.JSONEq(t, `{"15min_warning_sent": true, "5min_warning_sent": true}`, r.text(t, "select warnings_sent::text from reservations"))
	require.Equal(t, "1 2", r.text(t, "select string_agg(sequence::text, ' ' order by sequence) from expiry.facts where type = '"+event.ReservationWarned+"'"))

	require.Equal(t, followup.StateAlready, r.run(t, postgres.Warning, event.WarningKey(r.id, deadline, 5)).State, "a doubled event")
	require.Equal(t, "2", r.text(t, "select count(*)::text from expiry.facts"))
}

func TestTheOutOfMemoryNoticeReachesTheServer(t *testing.T) {
	t.Parallel()
	r := newServer(t)
	at := time.Now().Add(-time.Minute).Truncate(time.Second)
	r.exec(t, "insert into expiry.oom_kills (reservation_id, container_id, finished_at, container) values ($1, 'containerd://1', $2, 'gpu-dev')", r.id, at)
	r.exec(t, "update reservations set oom_count = 1")
	report := r.run(t, postgres.Notice, event.NoticeKey(r.id, "containerd://1", at))
	require.Equal(t, "sent", report.Outcome)
	require.Contains(t, r.ReadFile("gpu-dev-"+r.id[:8], "OOM_DETECTED.txt"), at.UTC().Format("2006-01-02 15:04:05 UTC"))
}
