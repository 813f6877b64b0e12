package warning_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/pod"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
	"gpudev.internal/reservation-expiry/internal/telemetry"
	"gpudev.internal/reservation-expiry/internal/warning"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// model stands in for the rows and for the cluster.
type model struct {
	subject  postgres.WarningSubject
	gone     bool
	kill     *postgres.OOMKill
	unguard  bool // the guarded recording finds the row changed
	recorded []reservation.Level
	pods     map[string]pod.Pod
	written  map[string]pod.File
	owner    postgres.Ownership
	theirs   string // the UID of a pod that was seen as another's
	failure  error
}

func newModel() *model {
	m := &model{pods: map[string]pod.Pod{}, written: map[string]pod.File{}}
	m.subject = postgres.WarningSubject{
		Reservation: reservation.Reservation{ID: "deadbeef-1", UserID: "alice", Status: reservation.Active, CreatedAt: reservation.At(now.Add(-time.Hour))},
		Deadline:    now.Add(20 * time.Minute), Now: now,
	}
	m.pods["gpu-dev/gpu-dev-deadbeef"] = podIn("gpu-dev")
	return m
}

func podIn(namespace string) pod.Pod {
	return pod.Pod{Namespace: namespace, Name: "gpu-dev-deadbeef", UID: "u", Created: now.Add(-50 * time.Minute), Phase: pod.Running,
		Containers: []pod.Container{{Name: pod.MainContainer, Kind: pod.App, Running: true}}}
}

func (m *model) LoadWarningSubject(context.Context, string) (postgres.WarningSubject, bool, error) {
	return m.subject, !m.gone, nil
}

func (m *model) RecordWarningSent(_ context.Context, _ postgres.FollowUp, _ time.Time, level reservation.Level) (bool, error) {
	if m.unguard {
		return false, nil
	}
	m.recorded = append(m.recorded, level)
	return true, nil
}

func (m *model) NewestOOMKill(context.Context, string) (postgres.OOMKill, bool, error) {
	if m.kill == nil {
		return postgres.OOMKill{}, false, nil
	}
	return *m.kill, true, nil
}

func (m *model) Ownership(_ context.Context, _, _, uid string) (postgres.Ownership, error) {
	owner := m.owner
	owner.Theirs = owner.Theirs || uid == m.theirs
	return owner, nil
}

func (m *model) GetPod(_ context.Context, namespace, name string) (pod.Pod, error) {
	if p, ok := m.pods[namespace+"/"+name]; ok {
		return p, nil
	}
	return pod.Pod{}, fault.Errorf(fault.Gone, "no pod %s/%s", namespace, name)
}

func (m *model) WriteFile(_ context.Context, namespace, name, container string, f pod.File) error {
	if m.failure != nil {
		return m.failure
	}
	m.written[namespace+"/"+name+"/"+container] = f
	return nil
}

func (m *model) warn() (followup.Result, error) {
	f := postgres.FollowUp{Kind: postgres.Warning, ReservationID: "deadbeef-1", Key: event.WarningKey("deadbeef-1", now.Add(20*time.Minute), 30)}
	return warning.NewWarnings(m, m, warning.Options{Log: slog.New(slog.DiscardHandler)}).Handle(context.Background(), f)
}

func (m *model) tell() (followup.Result, error) {
	f := postgres.FollowUp{Kind: postgres.Notice, ReservationID: "deadbeef-1", Key: event.NoticeKey("deadbeef-1", "containerd://1", now)}
	return warning.NewNotices(m, m, warning.Options{Log: slog.New(slog.DiscardHandler)}).Handle(context.Background(), f)
}

func TestAWarningIsWrittenAndThenRecorded(t *testing.T) {
	t.Parallel()
	m := newModel()
	result, err := m.warn()
	require.NoError(t, err)
	require.Equal(t, followup.Recorded("sent"), result)
	f := m.written["gpu-dev/gpu-dev-deadbeef/gpu-dev"]
	require.Equal(t, "WARN_EXPIRES_IN_30MIN.txt", f.Name)
	require.Equal(t, "/home/dev", f.Dir)
	require.Equal(t, "WARN_", f.Replaces)
	require.Contains(t, f.Content, "2026-03-01 12:20:00 UTC, in 20 minutes")
	require.Contains(t, f.Content, "has no persistent disk")
	require.Equal(t, []reservation.Level{30}, m.recorded)
}

func TestOfVolumesThatNobodyNamesAWarningPromisesNothing(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]func(*pod.Pod){
		"by a claim": func(p *pod.Pod) { p.Claims = []string{"disk-alice"} },
		"by its id":  func(p *pod.Pod) { p.VolumeIDs = []string{"vol-0123456789abcdef0"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel()
			p := podIn("gpu-dev")
			mount(&p)
			m.pods["gpu-dev/gpu-dev-deadbeef"] = p
			_, err := m.warn()
			require.NoError(t, err)
			text := m.written["gpu-dev/gpu-dev-deadbeef/gpu-dev"].Content
			require.NotContains(t, text, "nothing")
			require.Contains(t, text, "perhaps what is on this server's volumes")
		})
	}
}

func TestAWarningThatNobodyNeedsAnyMoreIsVoid(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*model){
		"the row is gone":         func(m *model) { m.gone = true },
		"cancelled":               func(m *model) { m.subject.Status = reservation.Cancelled },
		"extended":                func(m *model) { m.subject.Deadline = now.Add(2 * time.Hour) },
		"shortened":               func(m *model) { m.subject.Deadline = now.Add(10 * time.Minute) },
		"the deadline is reached": func(m *model) { m.subject.Now = now.Add(20 * time.Minute) },
		"no deadline any more":    func(m *model) { m.subject.Anomaly = reservation.DeadlineNull },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel()
			change(m)
			result, err := m.warn()
			require.NoError(t, err)
			require.Equal(t, followup.Done("void"), result)
			require.Empty(t, m.written)
			require.Empty(t, m.recorded)
		})
	}
}

func TestAWarningOvertakenWhileItWasWrittenIsVoid(t *testing.T) {
	t.Parallel()
	m := newModel()
	m.unguard = true
	result, err := m.warn()
	require.NoError(t, err)
	require.Equal(t, followup.Done("void"), result)
	require.Len(t, m.written, 1)
}

func TestAWarningThatCannotBeWrittenIsAFailureAndNotRecorded(t *testing.T) {
	t.Parallel()
	const key = "gpu-dev/gpu-dev-deadbeef"
	for name, c := range map[string]struct {
		change func(*model)
		says   string
	}{
		"no pod":                  {func(m *model) { clear(m.pods) }, "there is none"},
		"the API is down":         {func(m *model) { m.failure = errors.New("no route") }, "no route"},
		"its container restarts":  {func(m *model) { p := m.pods[key]; p.Containers[0].Running = false; m.pods[key] = p }, "does not run"},
		"an earlier one's pod":    {func(m *model) { p := m.pods[key]; p.Created = now.Add(-2 * time.Hour); m.pods[key] = p }, "before the reservation started"},
		"another one's pod":       {func(m *model) { m.owner.Theirs = true }, "another reservation's"},
		"a name that two have":    {func(m *model) { m.owner.NameIsLive = true }, "a live reservation has pod name"},
		"a name that is no pod's": {func(m *model) { m.subject.PodName = "No Pod" }, "names nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel()
			c.change(m)
			_, err := m.warn()
			require.ErrorContains(t, err, c.says)
			require.Empty(t, m.recorded)
			require.Empty(t, m.written)
		})
	}
}

func TestAFailedWarningIsAnErrorToSearchBy(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Spans: spans})
	require.NoError(t, err)
	m := newModel()
	f := postgres.FollowUp{Kind: postgres.Warning, ReservationID: "deadbeef-1", Key: event.WarningKey("deadbeef-1", now.Add(20*time.Minute), 30)}
	warn := warning.NewWarnings(m, m, warning.Options{Log: slog.New(slog.DiscardHandler), Trace: tel})
	_, err = warn.Handle(t.Context(), f)
	require.NoError(t, err)
	clear(m.pods)
	_, err = warn.Handle(t.Context(), f)
	require.Error(t, err)
	require.NoError(t, tel.Flush(t.Context()))
	var outcomes []string
	for _, span := range spans.GetSpans() {
		for _, a := range span.Attributes {
			if a.Key == "reservation.outcome" {
				outcomes = append(outcomes, a.Value.AsString())
			}
		}
	}
	require.Equal(t, []string{"sent", "error"}, outcomes)
}

// lateness adds up how late warnings were, in seconds, as is pushed.
type lateness float64

func (*lateness) Temporality(sdkmetric.InstrumentKind) metricdata.Temporality {
	return metricdata.CumulativeTemporality
}

func (*lateness) Aggregation(k sdkmetric.InstrumentKind) sdkmetric.Aggregation {
	return sdkmetric.DefaultAggregationSelector(k)
}

func (l *lateness) Export(_ context.Context, rm *metricdata.ResourceMetrics) error {
	for _, scope := range rm.ScopeMetrics {
		for _, metric := range scope.Metrics {
			if metric.Name == "reservation_expiry.warning.lateness" {
				*l += lateness(metric.Data.(metricdata.Histogram[float64]).DataPoints[0].Sum)
			}
		}
	}
	return nil
}

func (*lateness) ForceFlush(context.Context) error { return nil }
func (*lateness) Shutdown(context.Context) error   { return nil }

func TestAWarningIsLateFromTheMomentThatItsLevelWasReached(t *testing.T) {
	t.Parallel()
	var late lateness
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Getenv: func(string) string { return "" }, Metrics: &late})
	require.NoError(t, err)
	m := newModel()
	f := postgres.FollowUp{Kind: postgres.Warning, ReservationID: "deadbeef-1", Key: event.WarningKey("deadbeef-1", now.Add(20*time.Minute), 30)}
	_, err = warning.NewWarnings(m, m, warning.Options{Trace: tel}).Handle(t.Context(), f) // the log is the default one
	require.NoError(t, err)
	require.NoError(t, tel.Flush(t.Context()))
	require.InDelta(t, (10 * time.Minute).Seconds(), float64(late), 0)
}

func TestAPodSeenAsTheReservationsOwnIsWrittenToWhoeverSharesItsName(t *testing.T) {
	t.Parallel()
	m := newModel()
	m.owner = postgres.Ownership{NameIsLive: true, UIDs: []string{"u"}}
	_, err := m.warn()
	require.NoError(t, err)
	require.Len(t, m.recorded, 1)
}

func TestThePodIsFoundInEitherNamespaceOfAPlaceholder(t *testing.T) {
	t.Parallel()
	m := newModel()
	m.subject.NamespaceName = "default"
	clear(m.pods)
	m.pods["default/gpu-dev-deadbeef"] = podIn("default")
	_, err := m.warn()
	require.NoError(t, err)
	require.Contains(t, m.written, "default/gpu-dev-deadbeef/gpu-dev")
}

func TestAnotherPodOfTheNameInTheFirstNamespaceDoesNotHideTheOneInTheSecond(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*model, *pod.Pod){
		"another reservation's": func(m *model, p *pod.Pod) { m.theirs = p.UID },
		"an earlier one's":      func(_ *model, p *pod.Pod) { p.Created = now.Add(-2 * time.Hour) },
		"one that has stopped":  func(_ *model, p *pod.Pod) { p.Containers[0].Running = false },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel()
			m.subject.NamespaceName = "default"
			other := podIn("gpu-dev")
			other.UID = "other"
			change(m, &other)
			m.pods["gpu-dev/gpu-dev-deadbeef"] = other
			m.pods["default/gpu-dev-deadbeef"] = podIn("default")
			_, err := m.warn()
			require.NoError(t, err)
			require.Len(t, m.written, 1)
			require.Contains(t, m.written, "default/gpu-dev-deadbeef/gpu-dev")
		})
	}
}

func TestAKeyOfAnotherFormIsRefusedForGood(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"", "deadbeef-1", "deadbeef-1/soon/30", "deadbeef-1/1772366400", "1772366400/30", "other/1772366400/30", "deadbeef-1/1772366400/x"} {
		_, err := warning.NewWarnings(newModel(), newModel(), warning.Options{}).
			Handle(t.Context(), postgres.FollowUp{Key: key, ReservationID: "deadbeef-1"})
		require.True(t, fault.Is(err, fault.Permanent), "key %q", key)
	}
}

func TestTheNoticeTellsOfTheLatestKill(t *testing.T) {
	t.Parallel()
	m := newModel()
	m.kill = &postgres.OOMKill{Container: "gpu-dev", FinishedAt: now.Add(-time.Minute)}
	m.subject.OOMCount = 3
	result, err := m.tell()
	require.NoError(t, err)
	require.Equal(t, followup.Done("sent"), result)
	f := m.written["gpu-dev/gpu-dev-deadbeef/gpu-dev"]
	require.Equal(t, "OOM_DETECTED.txt", f.Name)
	require.Empty(t, f.Replaces, "warnings stay")
	require.Contains(t, f.Content, "2026-03-01 11:59:00 UTC")
	require.Contains(t, f.Content, "3 times")
}

func TestANoticeIsVoidWithoutAKillOrAReservation(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*model){
		"no kill": func(m *model) { m.kill = nil },
		"ended":   func(m *model) { m.subject.Status = reservation.Expired },
		"gone":    func(m *model) { m.gone = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel()
			m.kill = &postgres.OOMKill{Container: "gpu-dev", FinishedAt: now}
			change(m)
			result, err := m.tell()
			require.NoError(t, err)
			require.Equal(t, followup.Done("void"), result)
			require.Empty(t, m.written)
		})
	}
	m := newModel()
	m.kill = &postgres.OOMKill{Container: "gpu-dev", FinishedAt: now}
	m.failure = errors.New("exec hangs")
	_, err := m.tell()
	require.ErrorContains(t, err, "exec hangs")
}
