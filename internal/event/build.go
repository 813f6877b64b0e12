package event

import (
	"encoding/json"
	"fmt"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
)

// DefaultSource is the source of the events that this service sends.
const DefaultSource = "//gpudev.internal/reservation-expiry"

// FollowUp is a row of a follow-up, as far as the event that asks for it tells of it.
type FollowUp struct {
	Kind          string
	Key           string
	ReservationID string
	Subject       string
	Dispatch      int    // how often an event was sent for it, this one included
	Traceparent   string // of who asked; may be empty
}

// Fact is a row of the outbox.
type Fact struct {
	ID          string
	Type        string
	Subject     string
	Sequence    int64
	Data        json.RawMessage
	OccurredAt  time.Time
	Traceparent string
}

// Builder makes the events that this service sends.
type Builder struct {
	Source     string            // empty: DefaultSource
	Extensions map[string]string // set on every event: a SinkBinding's overrides
	Now        func() time.Time  // nil: time.Now
}

// FollowUp returns the event that asks for a follow-up. Its id is the same for the same row and dispatch number.
func (b Builder) FollowUp(f FollowUp) (ce.Event, error) {
	data, expires, err := dataOf(f)
	if err != nil {
		return ce.Event{}, err
	}
	now := b.Now
	if now == nil {
		now = time.Now
	}
	e := ce.New()
	e.SetID(fmt.Sprintf("%s/%s/%d", f.Kind, f.Key, f.Dispatch))
	e.SetType(TypeOf(f.Kind))
	e.SetSubject(f.Subject)
	e.SetTime(now().UTC())
	partition := f.ReservationID
	if partition == "" {
		partition = f.Subject
	}
	if !expires.IsZero() {
		e.SetExtension("expirytime", expires)
	}
	body, err := json.Marshal(data)
	if err != nil {
		return ce.Event{}, fmt.Errorf("encode the data of %s: %w", e.Type(), err)
	}
	return b.finish(e, partition, f.Traceparent, body)
}

// SweepRequested returns the event that asks for a whole sweep. The caller makes its id.
func (b Builder) SweepRequested(id string) (ce.Event, error) {
	e := ce.New()
	e.SetID(id)
	e.SetType(SweepRequested)
	return b.finish(e, SweepRequested, "", json.RawMessage("{}"))
}

// Fact returns the event that announces a fact. Its id is the fact's: a consumer that sees it twice can tell.
func (b Builder) Fact(f Fact) (ce.Event, error) {
	e := ce.New()
	e.SetID(f.ID)
	e.SetType(f.Type)
	e.SetSubject(f.Subject)
	e.SetTime(f.OccurredAt.UTC())
	// The sequence extension is ordered as text.
	e.SetExtension("sequence", fmt.Sprintf("%010d", f.Sequence))
	return b.finish(e, f.Subject, f.Traceparent, f.Data)
}

func (b Builder) finish(e ce.Event, partition, traceparent string, data []byte) (ce.Event, error) {
	e.SetSource(DefaultSource)
	if b.Source != "" {
		e.SetSource(b.Source)
	}
	e.SetDataSchema(DataSchema(e.Type()))
	e.SetExtension("partitionkey", partition)
	if traceparent != "" {
		e.SetExtension("traceparent", traceparent)
	}
	for name, value := range b.Extensions {
		e.SetExtension(name, value)
	}
	if err := e.SetData(ce.ApplicationJSON, json.RawMessage(data)); err != nil {
		return ce.Event{}, fmt.Errorf("set the data of %s %s: %w", e.Type(), e.ID(), err)
	}
	if err := e.Validate(); err != nil {
		return ce.Event{}, fmt.Errorf("build %s %s: %w", e.Type(), e.ID(), err)
	}
	return e, nil
}
