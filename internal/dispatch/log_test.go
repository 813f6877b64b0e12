package dispatch_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

var errAway = errors.New("away")

// nobody takes no event.
type nobody struct{}

func (nobody) Send(context.Context, ce.Event) error { return errAway }

// books have one follow-up due, and one fact that was tried twice; failure is how what became of them is not recorded.
type books struct {
	*queue
	facts   []postgres.Fact
	failure error
}

func newBooks(t *testing.T, failure error) *books {
	t.Helper()
	data := []byte(`{"reservationId":"r1","reason":"over","endedAt":"2026-03-01T12:00:00Z"}`)
	return &books{queue: &queue{t: t, due: 1, next: -1}, failure: failure, facts: []postgres.Fact{{
		ID: uuid.New(), Type: event.ReservationExpired, Subject: "r1", Sequence: 1, Data: data, OccurredAt: time.Unix(1_772_000_000, 0), Attempts: 2,
	}}}
}

func (b *books) UndoDispatch(context.Context, postgres.FollowUp, time.Duration) error {
	return b.failure
}

func (b *books) ClaimFacts(context.Context, string, int, uuid.UUID, time.Duration) ([]postgres.Fact, error) {
	defer func() { b.facts = nil }()
	return b.facts, nil
}

func (b *books) FactPublished(context.Context, postgres.Fact) error {
	return errors.New("nobody took it")
}

func (b *books) FactFailed(context.Context, postgres.Fact, error, time.Duration) error {
	return b.failure
}

func TestWhatFindsNoTakerIsInTheLogAndWhetherThatCouldBeRecorded(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]error{"the database answers": nil, "and is away": errAway} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			b, log := newBooks(t, failure), slog.New(slog.NewTextHandler(&out, nil))
			_, err := dispatch.New(b, event.Builder{}, nobody{}, dispatch.Options{Log: log}).SendDue(t.Context())
			require.ErrorIs(t, err, errAway)
			require.Contains(t, out.String(), "follow-up found no taker and stays due")
			require.Equal(t, failure != nil, strings.Contains(out.String(), "cannot record that a follow-up was not sent"), out.String())

			out.Reset()
			_, err = dispatch.NewAnnouncer(b, event.Builder{}, nobody{}, dispatch.AnnouncerOptions{Log: log}).Drain(t.Context())
			require.ErrorIs(t, err, errAway)
			require.Contains(t, out.String(), `msg="fact not announced" type=`+event.ReservationExpired+" subject=r1 attempt=3 ")
			require.Equal(t, failure != nil, strings.Contains(out.String(), "cannot record that a fact was not announced"), out.String())
		})
	}
}

// blind cannot tell what is due.
type blind struct{ *queue }

func (blind) DispatchDue(context.Context, int, time.Duration) ([]postgres.FollowUp, error) {
	return nil, errAway
}

func TestEachLookThatFailsIsInTheLogUnlessRunWasToEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
		defer cancel()
		d := dispatch.New(blind{}, event.Builder{}, nobody{}, dispatch.Options{Log: slog.New(slog.NewTextHandler(&out, nil))})
		d.Run(ctx)
		const line = "cannot look for due follow-ups"
		require.Equal(t, 2, strings.Count(out.String(), line), "at once, and half a minute later")
		d.Run(ctx)
		require.Equal(t, 2, strings.Count(out.String(), line), "it was to end")
	})
}

func TestAFollowUpIsOfTheTraceOfWhoAskedForItElseOfWhoSendsIt(t *testing.T) {
	t.Parallel()
	const asked, sent = "00-11111111111111111111111111111111-2222222222222222-01", "00-33333333333333333333333333333333-4444444444444444-01"
	for parent, want := range map[string]string{asked: asked, "": sent} {
		q := &queue{t: t, due: 1, next: -1, parent: parent}
		var got any
		d := dispatch.New(q, event.Builder{}, taker(func(e ce.Event) { got = e.Extensions()["traceparent"] }), dispatch.Options{Log: quiet})
		_, err := d.SendDue(telemetry.WithTraceParent(t.Context(), sent))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// taker takes every event.
type taker func(ce.Event)

func (take taker) Send(_ context.Context, e ce.Event) error { take(e); return nil }
