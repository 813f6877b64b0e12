package telemetry

import (
	"context"
	"crypto/sha256"
	"encoding/binary"

	"github.com/google/uuid"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// TraceID returns the id of the one trace that tells a reservation's life: its UUID without dashes, so that the
// id can be pasted into a trace viewer. An id that is no UUID, or the nil UUID (which is no valid trace id), is
// hashed: the first 16 bytes of its SHA-256.
func TraceID(reservationID string) trace.TraceID {
	if len(reservationID) == 36 || len(reservationID) == 32 { // the other spellings of a UUID are not what people paste
		if id, err := uuid.Parse(reservationID); err == nil && id != uuid.Nil {
			return trace.TraceID(id)
		}
	}
	sum := sha256.Sum256([]byte(reservationID))
	return trace.TraceID(sum[:16])
}

// SpanID derives the id of a span that is written from the database rather than as work happens, so that work
// done hours earlier, in another process, can already name it as its parent. The same words give the same id.
func SpanID(reservationID string, words ...string) trace.SpanID {
	id := TraceID(reservationID)
	h := sha256.New()
	h.Write(id[:])
	for _, word := range words {
		h.Write([]byte{0})
		h.Write([]byte(word))
	}
	sum := h.Sum(nil)
	sum[0] |= 1 // never the invalid zero id
	return trace.SpanID(sum[:8])
}

// RootSpanID returns the id of the span `reservation`, which covers the whole life and is written last.
func RootSpanID(reservationID string) trace.SpanID { return SpanID(reservationID, "reservation") }

// PhaseSpanID returns the id of the span of one phase of a reservation's life.
func PhaseSpanID(reservationID string, phase Phase) trace.SpanID {
	return SpanID(reservationID, "phase", string(phase))
}

// parentOf is the remote parent under which work for a reservation is filed. It is sampled: a life is always kept.
func parentOf(r Reservation) trace.SpanContext {
	parent := RootSpanID(r.ID)
	if r.Phase != "" {
		parent = PhaseSpanID(r.ID, r.Phase)
	}
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: TraceID(r.ID), SpanID: parent, TraceFlags: trace.FlagsSampled, Remote: true,
	})
}

// idGenerator draws ids from a source of random numbers, except where the context gives the span id.
type idGenerator struct{ random func() uint64 }

type givenSpanID struct{}

func withSpanID(ctx context.Context, id trace.SpanID) context.Context {
	return context.WithValue(ctx, givenSpanID{}, id)
}

var _ sdktrace.IDGenerator = idGenerator{}

func (g idGenerator) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	var id trace.TraceID
	for !id.IsValid() {
		binary.BigEndian.PutUint64(id[:8], g.random())
		binary.BigEndian.PutUint64(id[8:], g.random())
	}
	return id, g.NewSpanID(ctx, id)
}

func (g idGenerator) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	if id, ok := ctx.Value(givenSpanID{}).(trace.SpanID); ok && id.IsValid() {
		return id
	}
	var id trace.SpanID
	for !id.IsValid() {
		binary.BigEndian.PutUint64(id[:], g.random())
	}
	return id
}
