package telemetry_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

var reservation = telemetry.Reservation{ID: reservationID, UserID: "ada", Status: "active", GPUType: "h100", Deadline: noon.Add(30 * time.Minute)}

func TestAnActionBelongsToTheReservationsTraceAndIsLinkedBothWaysWithTheSweep(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)

	ctx, sweep := tel.StartDelivery(t.Context(), "sweep")
	_, action := tel.StartAction(ctx, "expire", reservation, telemetry.KeyPodName.String("gpu-dev-0b8f3a52"))
	action.End("expired", nil)
	sweep.End("completed", nil)

	got := flushed(t, tel, spans)
	require.Equal(t, telemetry.TraceID(reservationID), got["expire"].SpanContext.TraceID())
	require.Equal(t, telemetry.RootSpanID(reservationID), got["expire"].Parent.SpanID())
	require.NotEqual(t, got["sweep"].SpanContext.TraceID(), got["expire"].SpanContext.TraceID())
	require.False(t, got["sweep"].Parent.IsValid(), "a sweep is a trace of its own")

	require.Len(t, got["expire"].Links, 1)
	require.Equal(t, got["sweep"].SpanContext.SpanID(), got["expire"].Links[0].SpanContext.SpanID())
	require.Len(t, got["sweep"].Links, 1)
	require.Equal(t, got["expire"].SpanContext.SpanID(), got["sweep"].Links[0].SpanContext.SpanID())

	require.Equal(t, map[string]string{
		"reservation.id": reservationID, "user.id": "ada", "reservation.status": "active", "gpu.type": "h100",
		"reservation.deadline": "2026-03-01T12:30:00Z", "reservation.outcome": "expired", "k8s.pod.name": "gpu-dev-0b8f3a52",
	}, attributes(got["expire"]))
	require.Equal(t, "completed", attributes(got["sweep"])["delivery.outcome"])
	require.Equal(t, noon, got["expire"].StartTime)
	require.True(t, got["expire"].EndTime.After(noon), "a viewer takes a span without a duration for a broken one")
}

func TestAFollowUpInAnotherProcessLinksBackToTheSweepThatAskedForIt(t *testing.T) {
	t.Parallel()
	sender, sent := inMemory(t, nil)
	receiver, received := inMemory(t, nil)

	ctx, sweep := sender.StartDelivery(t.Context(), "sweep")
	sweep.LinkReservation(reservationID)
	e := event.New()
	e.SetID("1")
	e.SetSource("/test")
	e.SetType("dev.gpudev.expiry.warning.requested.v1")
	e.SetExtension("traceparent", telemetry.TraceParent(ctx))
	sweep.End("completed", nil)

	_, action := receiver.StartAction(telemetry.Extract(t.Context(), e), "warn", reservation, telemetry.Delivery(e, true)...)
	action.End("warned", nil)

	asked := flushed(t, sender, sent)["sweep"]
	got := flushed(t, receiver, received)["warn"]
	require.Equal(t, telemetry.TraceID(reservationID), got.SpanContext.TraceID())
	require.Equal(t, telemetry.RootSpanID(reservationID), got.Parent.SpanID())
	require.Len(t, got.Links, 1)
	require.Equal(t, asked.SpanContext.SpanID(), got.Links[0].SpanContext.SpanID())
	require.Equal(t, telemetry.RootSpanID(reservationID), asked.Links[0].SpanContext.SpanID())
	a := attributes(got)
	require.Equal(t, "dev.gpudev.expiry.warning.requested.v1", a["cloudevents.event_type"])
	require.Equal(t, "pubsub", a["faas.trigger"])
	require.Equal(t, "true", a["faas.coldstart"])
}

func TestStepsOfAnActionAreItsChildrenAndAsSearchable(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	r := reservation
	r.Phase = telemetry.PhaseCleanup
	ctx, action := tel.StartAction(t.Context(), "cleanup", r)
	ctx, step := tel.StartStep(ctx, "pod")
	_, inner := tel.StartStep(ctx, "delete")
	inner.End("gone", nil)
	step.End("done", nil)
	action.End("waiting", nil)

	got := flushed(t, tel, spans)
	require.Equal(t, telemetry.PhaseSpanID(reservationID, telemetry.PhaseCleanup), got["cleanup"].Parent.SpanID())
	require.Equal(t, got["cleanup"].SpanContext.SpanID(), got["pod"].Parent.SpanID())
	require.Equal(t, got["pod"].SpanContext.SpanID(), got["delete"].Parent.SpanID())
	require.Equal(t, reservationID, attributes(got["delete"])["reservation.id"])
	require.Equal(t, "gone", attributes(got["delete"])["reservation.outcome"])
	require.Empty(t, got["pod"].Links)
}

func TestAnAttemptAtAStepIsFiledUnderTheStepWhichOutlastsTheDelivery(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	r := reservation
	r.Phase = telemetry.PhaseCleanup
	ctx, action := tel.StartAction(t.Context(), "cleanup", r)
	r.Phase = telemetry.StepPhase("pod")
	ctx, attempt := tel.StartAction(ctx, "attempt", r)
	_, call := tel.StartStep(ctx, "call")
	call.End("gone", nil)
	attempt.End("done", nil)
	require.Contains(t, flushed(t, tel, spans), "attempt", "it is exported although the delivery may yet be killed")

	action.End("waiting", nil)
	require.NoError(t, tel.Flush(t.Context()))
	got := map[string]trace.SpanContext{}
	for _, s := range spans.GetSpans() {
		got[s.Name] = s.SpanContext
		switch s.Name {
		case "attempt":
			require.Equal(t, telemetry.PhaseSpanID(reservationID, telemetry.StepPhase("pod")), s.Parent.SpanID())
		case "cleanup":
			require.Equal(t, got["attempt"].SpanID(), s.Links[0].SpanContext.SpanID())
		}
	}
	require.Len(t, got, 3)
}

func TestARowRemembersWhoAsked(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	ctx, sweep := tel.StartDelivery(t.Context(), "sweep")
	row := telemetry.TraceParent(ctx)
	sweep.End("completed", nil)
	_, action := tel.StartAction(telemetry.WithTraceParent(t.Context(), row), "warning", reservation)
	action.End("sent", nil)
	got := flushed(t, tel, spans)
	require.Equal(t, got["sweep"].SpanContext.SpanID(), got["warning"].Links[0].SpanContext.SpanID())
	require.Empty(t, telemetry.TraceParent(telemetry.WithTraceParent(t.Context(), "")))
}

func TestASpanOfAnotherProcessInTheSameTraceIsLinkedToAndNotTakenAsParent(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	elsewhere := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: telemetry.TraceID(reservationID), SpanID: trace.SpanID{7}, TraceFlags: trace.FlagsSampled, Remote: true,
	})
	_, action := tel.StartAction(trace.ContextWithRemoteSpanContext(t.Context(), elsewhere), "sync", reservation)
	action.End("done", nil)
	got := flushed(t, tel, spans)["sync"]
	require.Equal(t, telemetry.RootSpanID(reservationID), got.Parent.SpanID(), "its process may have been killed before it was exported")
	require.Equal(t, elsewhere.SpanID(), got.Links[0].SpanContext.SpanID())
}

func TestWorkOnOneReservationInsideAnothersIsItsOwnTrace(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	ctx, first := tel.StartAction(t.Context(), "first", reservation)
	_, second := tel.StartAction(ctx, "second", telemetry.Reservation{ID: otherID})
	second.End("done", nil)
	first.End("done", nil)
	got := flushed(t, tel, spans)
	require.Equal(t, telemetry.TraceID(otherID), got["second"].SpanContext.TraceID())
	require.Equal(t, got["first"].SpanContext.SpanID(), got["second"].Links[0].SpanContext.SpanID())
	require.Equal(t, got["second"].SpanContext.SpanID(), got["first"].Links[0].SpanContext.SpanID())
}

func TestAnErrorIsAWordToSearchBy(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	_, a := tel.StartAction(t.Context(), "a", reservation)
	a.End("", fault.Errorf(fault.Conflict, "detach vol-1: in use"))
	_, b := tel.StartAction(t.Context(), "b", reservation)
	b.End("superseded", errors.New("taken"))
	_, c := tel.StartAction(t.Context(), "c", reservation)
	c.EndOr("", "waiting", fault.Errorf(fault.Transient, "interrupted: %w", context.Canceled))
	got := flushed(t, tel, spans)
	require.Equal(t, "interrupted", attributes(got["c"])["reservation.outcome"])
	require.Equal(t, codes.Unset, got["c"].Status.Code, "what was called off has not failed")
	require.NotContains(t, attributes(got["c"]), "error.type")
	require.Equal(t, "error", attributes(got["a"])["reservation.outcome"])
	require.Equal(t, "conflict", attributes(got["a"])["error.type"])
	require.Equal(t, codes.Error, got["a"].Status.Code)
	require.Equal(t, "detach vol-1: in use", got["a"].Status.Description)
	require.Equal(t, "superseded", attributes(got["b"])["reservation.outcome"])
	require.Equal(t, "transient", attributes(got["b"])["error.type"])
}

func TestALifeIsAlwaysKeptAndTheRestFollowsTheRatio(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, env{"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"})
	ctx, sweep := tel.StartDelivery(t.Context(), "sweep")
	ctx, action := tel.StartAction(ctx, "expire", reservation)
	_, call := tel.TracerProvider().Tracer("client").Start(ctx, "update", trace.WithSpanKind(trace.SpanKindClient))
	call.End()
	action.End("expired", nil)
	sweep.End("completed", nil)
	got := flushed(t, tel, spans)
	require.NotContains(t, got, "sweep")
	require.Contains(t, got, "expire")
	require.Contains(t, got, "update", "calls below a kept action are kept with it")
	require.Empty(t, got["expire"].Links, "a link to a span that nobody can look up helps nobody")
}

func TestACallThatBelongsToNothingIsDropped(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	_, call := tel.TracerProvider().Tracer("client").Start(t.Context(), "GET /livez", trace.WithSpanKind(trace.SpanKindClient))
	require.False(t, call.IsRecording())
	call.End()
	require.Empty(t, flushed(t, tel, spans))
}

func TestASweepLinksToMoreReservationsThanTheSDKsLimit(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	_, sweep := tel.StartDelivery(t.Context(), "sweep")
	for range 1000 {
		sweep.LinkReservation(reservationID)
	}
	sweep.End("completed", nil)
	require.Len(t, flushed(t, tel, spans)["sweep"].Links, 1000)
}

func TestAMalformedTraceparentIsNoReasonToRefuseAnEvent(t *testing.T) {
	t.Parallel()
	for _, parent := range []string{"", "garbage", "00-00000000000000000000000000000000-0000000000000000-01"} {
		e := event.New()
		e.SetExtension("traceparent", parent)
		ctx := telemetry.Extract(t.Context(), e)
		require.False(t, trace.SpanContextFromContext(ctx).IsValid(), parent)
	}
}

func TestAPingIsATimer(t *testing.T) {
	t.Parallel()
	e := event.New()
	e.SetType("dev.knative.sources.ping")
	e.SetSubject("x")
	got := map[string]string{}
	for _, a := range telemetry.Delivery(e, false) {
		got[string(a.Key)] = a.Value.String()
	}
	require.Equal(t, "timer", got["faas.trigger"])
	require.Equal(t, "x", got["cloudevents.event_subject"])
	require.NotContains(t, got, "faas.coldstart")
}

func TestALongTextIsCut(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, env{})
	_, span := tel.StartDelivery(t.Context(), "sweep", attribute.String("db.query.text", strings.Repeat("x", 5000)))
	span.End("completed", nil)
	require.Len(t, attributes(flushed(t, tel, spans)["sweep"])["db.query.text"], 1024)
}

func TestWhatNobodyKnowsOfAReservationIsSaidToBeUnknown(t *testing.T) {
	t.Parallel()
	tel, spans := inMemory(t, nil)
	_, action := tel.StartAction(t.Context(), "warning", telemetry.Reservation{ID: reservationID})
	action.End("void", nil)
	require.Equal(t, map[string]string{
		"reservation.id": reservationID, "user.id": "unknown", "reservation.status": "unknown", "gpu.type": "unknown",
		"reservation.outcome": "void",
	}, attributes(flushed(t, tel, spans)["warning"]))
}

func TestWhatIsNotKnownOfAPodIsNotSaid(t *testing.T) {
	t.Parallel()
	require.Empty(t, telemetry.Pod("gpu-dev", "", ""))
	require.Equal(t, []attribute.KeyValue{telemetry.KeyPodName.String("gpu-dev-1")}, telemetry.Pod("", "gpu-dev-1", ""))
	require.Len(t, telemetry.Pod("gpu-dev", "gpu-dev-1", "u"), 3)
}
