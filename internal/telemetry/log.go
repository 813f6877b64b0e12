package telemetry

import (
	"context"
	"io"
	"log/slog"
	"slices"

	"go.opentelemetry.io/otel/trace"
)

// NewLogger writes one line per record: JSON, or with format "text" (LOG_FORMAT) for people. Each line carries
// trace_id, span_id and reservation_id of its context, unless the caller has set them.
func NewLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration { // JSON would have bare nanoseconds
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}}
	var h slog.Handler = slog.NewJSONHandler(w, options)
	if format == "text" {
		h = slog.NewTextHandler(w, options)
	}
	return slog.New(&handler{base: h, current: h})
}

// handler adds the ids at the top level of the line, wherever groups have been opened meanwhile.
type handler struct {
	base    slog.Handler // attributes set before the first group
	current slog.Handler
	replay  []func(slog.Handler) slog.Handler // what leads from base to current, once a group is open
	set     map[string]bool                   // top-level keys that With has set
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.current.Enabled(ctx, l) }

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	ids := h.ids(ctx, r)
	if len(h.replay) == 0 {
		r.AddAttrs(ids...)
		return h.current.Handle(ctx, r) //nolint:wrapcheck // the handler is not told apart from the one it wraps
	}
	target := h.base.WithAttrs(ids)
	for _, step := range h.replay {
		target = step(target)
	}
	return target.Handle(ctx, r) //nolint:wrapcheck // see above
}

func (h *handler) ids(ctx context.Context, r slog.Record) []slog.Attr {
	var ids []slog.Attr
	add := func(key, value string) {
		taken := h.set[key]
		if len(h.replay) == 0 {
			r.Attrs(func(a slog.Attr) bool {
				taken = taken || a.Key == key
				return !taken
			})
		}
		if !taken {
			ids = append(ids, slog.String(key, value))
		}
	}
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		add("trace_id", sc.TraceID().String())
		add("span_id", sc.SpanID().String())
	}
	if res, ok := ctx.Value(reservationKey{}).(Reservation); ok && res.ID != "" {
		add("reservation_id", res.ID)
	}
	return ids
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	next := *h
	next.current = h.current.WithAttrs(attrs)
	if len(h.replay) > 0 {
		next.replay = append(slices.Clone(h.replay), func(s slog.Handler) slog.Handler { return s.WithAttrs(attrs) })
		return &next
	}
	next.base = next.current
	next.set = make(map[string]bool, len(h.set)+len(attrs))
	for key := range h.set {
		next.set[key] = true
	}
	for _, a := range attrs {
		next.set[a.Key] = true
	}
	return &next
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.current = h.current.WithGroup(name)
	next.replay = append(slices.Clone(h.replay), func(s slog.Handler) slog.Handler { return s.WithGroup(name) })
	return &next
}
