package main

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// lives leads the reservation from queued to released in nine processes. Three are killed: one in mid-cleanup, one
// while it deletes the volume, and one between the collector's acknowledgement of the root and the mark that remembers it.
func (d *day) lives() {
	d.t.Helper()
	warned := `select exists (select from expiry.follow_ups where kind = 'warning' and key like '%/' || $1::text and outcome = 'sent')`
	d.aws.Set(stacktest.Settings{Snapshot: -1}) // as long as it pleases

	d.queue()
	first := d.process()
	d.tick(first)
	d.passes(10 * time.Minute)
	d.become("preparing")
	d.ends(first)

	d.passes(5 * time.Minute)
	d.launch()
	d.passes(22*time.Hour + 31*time.Minute) // 29 minutes before the deadline
	second := d.process()
	d.tick(second)
	d.until("the first warning is sent", warned, "30")
	d.ends(second)

	d.passes(15 * time.Minute)
	third := d.process()
	d.tick(third)
	d.until("the second warning is sent", warned, "15")
	d.ends(third)

	d.passes(10 * time.Minute)
	fourth := d.process()
	d.tick(fourth)
	d.until("the last warning is sent", warned, "5")
	d.ends(fourth)

	d.passes(7 * time.Minute) // and three minutes past the deadline
	fifth := d.process()
	d.tick(fifth)
	d.until("the pod is gone, and the cleanup waits for the disk", `
		select exists (select from expiry.cleanup_steps where step = 'pod' and finished_at is not null)
		   and exists (select from expiry.cleanup_steps where step = 'disk' and finished_at is null)
		   and exists (select from expiry.follow_ups where kind = 'cleanup' and lease_token is not null)`)
	d.kills(fifth)

	d.detach()
	d.passes(5 * time.Minute)
	sixth := d.process()
	d.tick(sixth)
	d.until("the snapshot is pending", `select exists (select from expiry.snapshots where state = 'pending')`)
	d.ends(sixth)

	d.passes(40 * time.Minute)
	d.aws.Set(stacktest.Settings{})
	d.aws.Alter(d.snapshotID(), map[string]any{"state": "completed"})
	const deletion = "ec2:DeleteVolume"
	d.aws.Fail(stacktest.Fault{Action: deletion, Delay: 20 * time.Second})
	seventh := d.process()
	d.tick(seventh)
	require.Eventually(d.t, func() bool { return d.aws.Count(deletion) > 0 }, 60*time.Second, 50*time.Millisecond)
	d.until("the snapshot is counted", `select exists (select from expiry.snapshots where state = 'completed')
		and exists (select from expiry.follow_ups where kind = 'snapshot.sync' and lease_token is not null)`)
	d.kills(seventh)

	d.aws.Fail()
	d.passes(5 * time.Minute)
	eighth := d.process()
	d.relay.killAfter(telemetry.RootSpanID(d.id), eighth)
	if answer, err := eighth.try(d.t, http.MethodPost, "/", binary(event.Ping), nil); err == nil { // else it was killed before it could
		require.Equal(d.t, http.StatusAccepted, answer.StatusCode)
	}
	d.until("the disk is free", `select exists (select from expiry.cleanups where outcome = 'released')`)
	<-eighth.exited //nolint:errcheck // killed: it says so
	eighth.exited <- nil
	d.seen("reservation", 1)
	d.until("nobody remembers that the root is written", `select exists (select from expiry.traces where stage < 4 and lease_token is not null)`)

	d.passes(5 * time.Minute)
	ninth := d.process()
	d.remembered(ninth)
	d.ends(ninth)
}

// seen waits until Jaeger has so many spans of a name.
func (d *day) seen(name string, n int) {
	d.t.Helper()
	viewer := d.viewer()
	require.Eventually(d.t, func() bool {
		life, err := viewer.Trace(d.t.Context(), telemetry.TraceID(d.id).String())
		found := 0
		for _, s := range life.Spans {
			if s.Name == name {
				found++
			}
		}
		return err == nil && found >= n
	}, 20*time.Second, 50*time.Millisecond)
}

func (d *day) viewer() *jaeger.Client {
	d.t.Helper()
	viewer, err := jaeger.New(stacktest.Env(d.t, "JAEGER_QUERY_URL"), &http.Client{Transport: &http.Transport{DisableKeepAlives: true}})
	require.NoError(d.t, err)
	return viewer
}

func (d *day) snapshotID() (id string) {
	d.t.Helper()
	require.NoError(d.t, d.rows.QueryRow(d.t.Context(), "select snapshot_id from expiry.snapshots").Scan(&id))
	return id
}

func TestADayInTheLifeOfAReservationIsOneTrace(t *testing.T) {
	t.Parallel()
	d := newDay(t)
	d.lives()
	viewer := d.viewer()
	life, err := viewer.Trace(t.Context(), telemetry.TraceID(d.id).String())
	require.NoError(t, err)
	defer func() {
		if t.Failed() {
			for _, s := range life.Spans {
				if s.Attributes["span.kind"] == "client" {
					continue
				}
				t.Logf("%s %s<%s %s +%s %v", s.Name, s.ID, s.ParentID, s.Start.Format(time.RFC3339Nano), s.Duration, s.Attributes)
			}
		}
	}()

	require.NotEmpty(t, d.relay.taken())
	for id, times := range d.relay.taken() { // some storages, this one among them, show only one of two that are the same
		require.Equal(t, 1, times, "span %s was exported more than once", id)
	}
	spans := nested(t, life)
	whole(t, spans)
	require.NotEmpty(t, spans["snapshot.sync"])
	searchable(t, d, life)
	linkedBothWays(t, viewer, life)

	for attribute, value := range map[string]string{"reservation.id": d.id, "reservation.outcome": "released", "user.id": d.user} {
		found, err := viewer.Search(t.Context(), jaeger.Query{Service: "reservation-expiry", Limit: 1500,
			Attributes: map[string]string{attribute: value}, From: life.Spans[0].Start.Add(-time.Hour), To: life.Spans[0].End().Add(time.Hour)})
		require.NoError(t, err)
		var ids []string
		for _, one := range found {
			ids = append(ids, one.ID)
		}
		if attribute == "reservation.outcome" { // others are released, too
			require.Contains(t, ids, life.ID)
			continue
		}
		require.Equal(t, []string{life.ID}, ids, "what %s finds is one trace", attribute)
	}

	var drawn bytes.Buffer
	sh := shell{out: &drawn, err: &drawn, environ: []string{"JAEGER_QUERY_URL=" + stacktest.Env(t, "JAEGER_QUERY_URL")}}
	require.Zero(t, run(t.Context(), []string{"trace", d.id}, sh), drawn.String())
	http.DefaultClient.CloseIdleConnections()
	for _, line := range []string{"reservation  ", "├─ active", "│  ├─ warning 30 min", "snapshot"} {
		require.Contains(t, drawn.String(), line)
	}
	t.Log(drawn.String())
}

func TestALifeWhoseRowThePlatformDeletesInMidCleanupSaysToItsEndWhoseItIs(t *testing.T) {
	t.Parallel()
	d := newDay(t)
	d.queue()
	d.become("preparing")
	d.passes(5 * time.Minute)
	d.launch()
	live := d.process()
	d.tick(live) // it sees the pod
	d.ends(live)
	d.passes(23*time.Hour + 3*time.Minute) // and three minutes past the deadline
	first := d.process()
	d.tick(first)
	d.until("the cleanup waits for the disk", `
		select exists (select from expiry.cleanup_steps where step = 'pod' and finished_at is not null)
		   and exists (select from expiry.cleanup_steps where step = 'disk' and finished_at is null)`)
	d.ends(first)

	d.exec("delete from reservations where reservation_id = $1", d.id)
	d.detach()
	d.passes(5 * time.Minute)
	second := d.process()
	d.tick(second)
	d.until("the disk is free", `select exists (select from expiry.cleanups where outcome = 'released')`)
	d.remembered(second)
	d.ends(second)
	d.seen("reservation", 1)

	life, err := d.viewer().Trace(t.Context(), telemetry.TraceID(d.id).String())
	require.NoError(t, err)
	spans := nested(t, life)
	for _, name := range []string{"active!", "cleanup", "cleanup!", "disk held!", "snapshot!", "snapshot.sync", "step disk!", "disk"} {
		require.NotEmpty(t, spans[name], name)
	}
	searchable(t, d, life)
	for _, s := range life.Spans {
		if s.Attributes["span.kind"] != "client" && s.Name != "queued" && s.Name != "preparing" && s.Name != "warning" {
			require.Equal(t, "expired", s.Attributes["reservation.status"], s.Name)
		}
	}
}

// whole checks that every phase and step is there once, where it belongs, and in order.
func whole(t *testing.T, spans map[string][]jaeger.Span) {
	t.Helper()
	the := func(name string) jaeger.Span {
		require.Len(t, spans[name], 1, name)
		return spans[name][0]
	}
	below := func(parent jaeger.Span, children ...jaeger.Span) {
		for _, child := range children {
			require.Equal(t, parent.ID, child.ParentID, "%s hangs below %s", child.Name, parent.Name)
		}
	}
	root, active, cleanup := the("reservation"), the("active!"), the("cleanup!")
	phases := []jaeger.Span{the("queued!"), the("preparing!"), active, cleanup}
	below(root, append(phases, the("expire"))...)
	require.Equal(t, root.Start, phases[0].Start)
	for i, next := range phases[1:] {
		require.WithinDuration(t, phases[i].End(), next.Start, time.Millisecond, "%s follows", next.Name)
	}
	require.WithinDuration(t, root.End(), cleanup.End(), time.Millisecond)

	snapshot, held := the("snapshot!"), the("disk held!")
	below(cleanup, snapshot, held)
	require.Greater(t, snapshot.Duration, 39*time.Minute)
	require.False(t, held.End().Before(snapshot.End()), "the disk is held until its snapshot has completed")
	below(cleanup, spans["cleanup"]...)
	below(cleanup, spans["snapshot.sync"]...)
	for _, step := range postgres.Steps() {
		lasted := the("step " + string(step) + "!")
		below(cleanup, lasted)
		below(lasted, spans[string(step)]...)
	}
	require.NotEmpty(t, spans["disk"], "attempts at what outlasted the killed process")
	inOrder := []postgres.Step{postgres.StepIdentify, postgres.StepNotice, postgres.StepListing, postgres.StepRetain,
		postgres.StepServices, postgres.StepPod, postgres.StepDisk} // DNS and load balancer wait for nothing but the first
	for i, next := range inOrder[1:] {
		before, step := the("step "+string(inOrder[i])+"!"), the("step "+string(next)+"!")
		require.False(t, step.Start.Before(before.End()), "%s comes after %s", next, inOrder[i])
	}
	require.False(t, snapshot.Start.Before(the("step "+string(postgres.StepPod)+"!").End()), "the writer was stopped before")

	var levels []string
	for i, s := range spans["warning"] {
		require.Equal(t, "sent", s.Attributes["reservation.outcome"])
		require.True(t, i == 0 || s.Start.After(spans["warning"][i-1].End()))
		levels = append(levels, s.Attributes["warning.level"])
	}
	below(active, spans["warning"]...)
	require.Equal(t, []string{"30", "15", "5"}, levels)
}

// nested checks that a finished trace is one tree, in which what belongs to a phase lies within it, and returns the
// spans by name. Those made from rows, which are exact, are named with an exclamation mark.
func nested(t *testing.T, life jaeger.Trace) map[string][]jaeger.Span {
	t.Helper()
	id := life.Spans[0].Attributes["reservation.id"]
	byID, spans := map[string]jaeger.Span{}, map[string][]jaeger.Span{}
	for _, s := range life.Spans {
		require.NotContains(t, byID, s.ID, "%s was exported twice", s.Name)
		byID[s.ID] = s
		name := s.Name
		if s.ID == telemetry.PhaseSpanID(id, telemetry.Phase(name)).String() {
			name += "!"
		}
		spans[name] = append(spans[name], s)
	}
	roots := 0
	for _, s := range life.Spans {
		if s.ParentID == "" {
			roots++
			require.Equal(t, "reservation", s.Name)
			require.Equal(t, telemetry.RootSpanID(id).String(), s.ID)
			continue
		}
		parent, known := byID[s.ParentID]
		require.True(t, known, "%s hangs below nothing", s.Name)
		if s.Attributes["span.kind"] == "client" {
			continue // those who make them know the real clock only
		}
		// Rows are exact; a span of work ends a moment after it has written the row that ends its phase.
		tolerance := 2 * time.Second
		if s.ID == telemetry.PhaseSpanID(id, telemetry.Phase(s.Name)).String() {
			tolerance = time.Millisecond
		}
		require.False(t, s.Start.Before(parent.Start.Add(-tolerance)), "%s begins before %s", s.Name, parent.Name)
		require.False(t, s.End().After(parent.End().Add(tolerance)), "%s ends after %s", s.Name, parent.Name)
	}
	require.Equal(t, 1, roots)
	return spans
}

// searchable checks that every span of the life, calls aside, says what the life is about.
func searchable(t *testing.T, d *day, life jaeger.Trace) {
	t.Helper()
	for _, s := range life.Spans {
		if s.Attributes["span.kind"] == "client" {
			continue
		}
		require.Equal(t, d.id, s.Attributes["reservation.id"], s.Name)
		require.Equal(t, d.user, s.Attributes["user.id"], s.Name)
		require.Equal(t, "h100", s.Attributes["gpu.type"], s.Name)
		require.NotEmpty(t, s.Attributes["reservation.status"], s.Name)
		require.NotEmpty(t, s.Attributes["reservation.outcome"], s.Name)
		require.Equal(t, s.Attributes["otel.status_code"] == "ERROR", s.Attributes["reservation.outcome"] == "error", s.Name)
		switch s.Name {
		case "warning", "snapshot.sync":
			require.Equal(t, "pubsub", s.Attributes["faas.trigger"])
			require.NotEmpty(t, s.Attributes["cloudevents.event_id"])
		case "expire":
			require.Equal(t, "timer", s.Attributes["faas.trigger"])
			require.Equal(t, event.Ping, s.Attributes["cloudevents.event_type"])
		}
		switch s.Name {
		case "pod", "step pod", "warning", "expire":
			require.Equal(t, d.podName, s.Attributes["k8s.pod.name"], s.Name)
			require.Equal(t, d.cluster.Namespace, s.Attributes["k8s.namespace.name"], s.Name)
			require.NotEmpty(t, s.Attributes["k8s.pod.uid"], s.Name)
		case "disk", "step disk", "disk held":
			require.Equal(t, d.volume, s.Attributes["aws.ebs.volume_id"], s.Name)
			require.Equal(t, "work", s.Attributes["disk.name"], s.Name)
		}
	}
}

// linkedBothWays checks that each action that a sweep asked for leads to that sweep, and the sweep back.
func linkedBothWays(t *testing.T, viewer *jaeger.Client, life jaeger.Trace) {
	t.Helper()
	sweeps := map[string]bool{}
	for _, s := range life.Spans {
		if s.Name != "warning" && s.Name != "expire" && s.Name != "cleanup" || s.Attributes["faas.trigger"] == "" {
			continue
		}
		linked := false
		for _, link := range s.Links {
			if link.TraceID != life.ID {
				linked, sweeps[link.TraceID] = true, true
			}
		}
		require.True(t, linked, "%s links back", s.Name)
	}
	require.GreaterOrEqual(t, len(sweeps), 4)
	for id := range sweeps {
		asked, err := viewer.Trace(t.Context(), id)
		require.NoError(t, err)
		there := false
		for _, s := range asked.Spans {
			for _, link := range s.Links {
				there = there || s.Name == "sweep" && link.TraceID == life.ID
			}
		}
		require.True(t, there, "sweep %s links to the reservation", id)
	}
}
