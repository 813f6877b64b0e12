package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestADryRunPrintsWhatASweepWouldDoAndChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	// Somebody collects telemetry, of which rows remember what was sent.
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(collector.Close)
	b.withWorld("OTEL_EXPORTER_OTLP_ENDPOINT="+collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
	overdue, warned, quiet := b.reservation(-time.Hour), b.reservation(10*time.Minute), b.reservation(5*time.Hour)
	b.exec("update reservations set expires_at = null where reservation_id = $1", b.reservation(time.Hour))
	cancelled := b.reservation(time.Hour)
	b.exec("update reservations set status = 'cancelled' where reservation_id = $1", cancelled)
	_, err := b.db.StoreDeadLetter(t.Context(), postgres.DeadLetter{EventID: "e", EventType: "t", EventSource: "s", Event: "{}"})
	require.NoError(t, err)
	before := b.dump()
	require.Contains(t, before, overdue)

	r := b.run(0, "sweep", "--dry-run")
	require.Regexp(t, overdue+` +expire +expired: its time ended at `, r.out)
	require.Regexp(t, warned+` +warn +15-minute warning: .*passed over: \[30\]`, r.out)
	require.Regexp(t, cancelled+` +clean up +`, r.out)
	require.Contains(t, r.out, "left alone  1: expires_at is NULL")
	require.Contains(t, r.out, "nothing was changed")
	require.NotContains(t, r.out, quiet)
	require.Contains(t, r.err, "level=WARN")
	require.NotContains(t, r.err, "{", "who reads a table reads no JSON beside it")

	var result struct {
		DryRun  bool                             `json:"dryRun"`
		Planned []struct{ ReservationID string } `json:"planned"`
	}
	require.NoError(t, json.Unmarshal([]byte(b.run(0, "sweep", "--dry-run", "-o", "json", "--reservation", overdue[:13]).out), &result))
	require.True(t, result.DryRun)
	require.Equal(t, []struct{ ReservationID string }{{overdue}}, result.Planned, "only the one that was asked for")
	require.Contains(t, complaint(t, b.run(1, "sweep", "--dry-run", "--reservation", "nobody")), `there is no reservation "nobody"`)
	require.Equal(t, before, b.dump())
}

func TestASweepFromTheShellCarriesOutWhatFollows(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	var mu sync.Mutex
	var facts []string
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var e struct{ Type string }
		if json.NewDecoder(r.Body).Decode(&e) == nil {
			mu.Lock()
			defer mu.Unlock()
			facts = append(facts, e.Type)
		}
	}))
	t.Cleanup(sink.Close)
	b.withWorld("FACTS_SINK=" + sink.URL)
	cluster := stacktest.Kubernetes(t)
	warned, overdue := b.reservation(10*time.Minute), b.reservation(-time.Hour)
	for _, id := range []string{warned, overdue} {
		cluster.CreatePod("gpu-dev-"+id[:8], func(p *corev1.Pod) { p.Labels = map[string]string{"user-id": "ada"} })
		b.exec("update reservations set namespace = $2, created_at = now() - interval '1 minute', launched_at = null where reservation_id = $1", id, cluster.Namespace)
	}
	b.exec("update reservations set created_at = now() - interval '2 hours' where reservation_id = $1", overdue)

	r := b.run(0, "sweep", "-o", "json")
	var view report.Swept
	require.NoError(t, json.Unmarshal([]byte(r.out), &view))
	require.Equal(t, "shell", view.Trigger)
	require.Empty(t, view.Failures)
	var carried []string
	for _, f := range view.FollowUps {
		carried = append(carried, fmt.Sprintf("%s %s", f.Kind, f.State))
	}
	require.Subset(t, carried, []string{"warning done", "cleanup done", "availability.update done"})
	require.Contains(t, cluster.Files("gpu-dev-"+warned[:8]), "WARN_EXPIRES_IN_15MIN.txt")
	require.Equal(t, "expired", b.text("select status from reservations where reservation_id = $1", overdue))
	require.Equal(t, "nothing_to_keep", b.text("select outcome from expiry.cleanups where reservation_id = $1", overdue))
	require.Equal(t, "0", b.text("select count(*)::text from expiry.facts where published_at is null"))
	require.Equal(t, len(facts), view.Announced)
	require.Subset(t, facts, []string{event.ReservationExpired, event.ReservationWarned, event.ReservationCleanedUp, event.SweepCompleted})

	explained := b.run(0, "explain", "gpu-dev-"+overdue[:8]).out
	require.Regexp(t, `ended .*by this service: expired: its time ended`, explained)
	require.Contains(t, explained, "it is cleaned up: there was no volume")
	require.Regexp(t, `pod +done `, explained)
	explained = b.run(0, "explain", warned[:9]).out
	require.Regexp(t, `30 min .*passed over`, explained)
	require.Regexp(t, `15 min .*sent +written`, explained)
	require.Regexp(t, `in \S+ \S+ \(\S+ UTC\) +5-minute warning`, explained)

	status := b.run(0, "status").out
	require.Regexp(t, `shell +completed +.*expired 1, .*warnings requested 1`, status)
	require.Regexp(t, `reservations +1 active, 1 ended`, status)
	require.Regexp(t, `outbox +empty`, status)
}

func TestASweepOfWhichAPartFailedEndsWith1AndSaysWhich(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld("FACTS_SINK=http://127.0.0.1:1/")
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(`{
		"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "users": [{"name": "u", "user": {}}]}`), 0o600))
	b.environ = append(b.environ, "KUBECONFIG="+kubeconfig)
	overdue := b.reservation(-time.Hour)

	r := b.run(1, "sweep")
	require.Regexp(t, `^reservation-expiry: the sweep is partial; .*pods: .*connection refused`, complaint(t, r))
	require.Contains(t, r.out, overdue, "what was decided is printed all the same")
	require.Regexp(t, `outcome +partial`, r.out)
	require.Regexp(t, `failed +pods: `, r.out)
	require.Regexp(t, `cleanup +`+overdue+` +failed, looked at again in `, r.out)
	require.Equal(t, "expired", b.text("select status from reservations where reservation_id = $1", overdue))
	require.NotEqual(t, "0", b.text("select count(*)::text from expiry.facts where published_at is null"), "they stay recorded")

	status := b.run(0, "status").out
	require.Regexp(t, `last sweep +partial`, status)
	require.Regexp(t, `cleanups +1 unfinished`, status)
	require.Regexp(t, `outbox +\d facts not announced.*failing: .*connection refused`, status)
	require.Regexp(t, overdue+` .*failed once: `, status)
}

func TestWhereAnotherSweepRunsNothingIsDone(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld()
	overdue := b.reservation(-time.Hour)
	b.exec("update expiry.sweep_lease set token = gen_random_uuid(), expires_at = now() + interval '1 hour'")
	require.Equal(t, "Nothing was done: another sweep is running.\n", b.run(0, "sweep").out)
	require.Equal(t, "active", b.text("select status from reservations where reservation_id = $1", overdue))
}

func TestWhatTheTimeForFollowUpsDoesNotAllowStaysDue(t *testing.T) {
	t.Parallel()
	b := newBase(t)
	b.withWorld()
	overdue := b.reservation(-time.Hour)
	r := b.run(0, "sweep", "--follow-ups", "0s")
	require.Regexp(t, `still due +the time for follow-ups`, r.out)
	require.Equal(t, "due", b.text("select state from expiry.follow_ups where kind = 'cleanup' and reservation_id = $1", overdue))
	require.Regexp(t, `cleanups +1 unfinished`, b.run(0, "status").out)
	require.Regexp(t, `now +cleanup goes on +it was just asked for`, b.run(0, "explain", overdue).out)
}
