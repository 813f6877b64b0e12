package jaeger

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"
)

// Trace is one trace as far as Jaeger has it.
type Trace struct {
	ID    string // hex
	Spans []Span // by start; a span that was exported twice is in it twice
}

// Span is one span. Times are precise to the microsecond.
type Span struct {
	ID         string // hex
	ParentID   string // hex; empty for a root
	Name       string
	Service    string
	Start      time.Time
	Duration   time.Duration
	Attributes map[string]string
	Links      []Link
	Warnings   []string // Jaeger's own
}

// Link names a span that belongs together with the one that has it.
type Link struct{ TraceID, SpanID string }

// End returns when the span ended.
func (s Span) End() time.Time { return s.Start.Add(s.Duration) }

// Error returns what went wrong, or "" where nothing did.
func (s Span) Error() string {
	if s.Attributes["otel.status_code"] != "ERROR" {
		return ""
	}
	return cmp.Or(s.Attributes["otel.status_description"], "error")
}

// The rest is the wire format. Jaeger does not promise it, and has not changed it in years.

type answer struct {
	Data   []wireTrace `json:"data"`
	Errors []struct {
		Msg string `json:"msg"`
	} `json:"errors"`
}

type wireTrace struct {
	TraceID   string     `json:"traceID"`
	Spans     []wireSpan `json:"spans"`
	Processes map[string]struct {
		ServiceName string `json:"serviceName"`
	} `json:"processes"`
}

type wireSpan struct {
	SpanID        string `json:"spanID"`
	OperationName string `json:"operationName"`
	References    []struct {
		RefType string `json:"refType"`
		TraceID string `json:"traceID"`
		SpanID  string `json:"spanID"`
	} `json:"references"`
	StartTime int64 `json:"startTime"` // microseconds since 1970
	Duration  int64 `json:"duration"`  // microseconds
	Tags      []struct {
		Key   string `json:"key"`
		Value any    `json:"value"`
	} `json:"tags"`
	ProcessID string   `json:"processID"`
	Warnings  []string `json:"warnings"`
}

func decode(r io.Reader) (answer, error) {
	d := json.NewDecoder(r)
	d.UseNumber() // an attribute is shown as it was sent, not as a float
	var a answer
	if err := d.Decode(&a); err != nil {
		return answer{}, fmt.Errorf("decode traces: %w", err)
	}
	return a, nil
}

func (a answer) traces() []Trace {
	traces := make([]Trace, len(a.Data))
	for i, t := range a.Data {
		traces[i] = t.trace()
	}
	return traces
}

func (w wireTrace) trace() Trace {
	t := Trace{ID: w.TraceID, Spans: make([]Span, len(w.Spans))}
	for i, s := range w.Spans {
		span := Span{
			ID:         s.SpanID,
			Name:       s.OperationName,
			Service:    w.Processes[s.ProcessID].ServiceName,
			Start:      time.UnixMicro(s.StartTime).UTC(),
			Duration:   time.Duration(s.Duration) * time.Microsecond,
			Attributes: make(map[string]string, len(s.Tags)),
			Warnings:   s.Warnings,
		}
		for _, tag := range s.Tags {
			span.Attributes[tag.Key] = fmt.Sprint(tag.Value)
		}
		for _, ref := range s.References {
			if ref.RefType == "CHILD_OF" && ref.TraceID == w.TraceID && span.ParentID == "" {
				span.ParentID = ref.SpanID
				continue
			}
			span.Links = append(span.Links, Link{TraceID: ref.TraceID, SpanID: ref.SpanID})
		}
		t.Spans[i] = span
	}
	slices.SortStableFunc(t.Spans, func(a, b Span) int {
		return cmp.Or(a.Start.Compare(b.Start), b.End().Compare(a.End()), cmp.Compare(a.ID, b.ID))
	})
	return t
}
