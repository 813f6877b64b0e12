package waterfall_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/jaeger"
	"gpudev.internal/reservation-expiry/internal/telemetry"
	"gpudev.internal/reservation-expiry/internal/waterfall"
)

var update = flag.Bool("update", false, "write the golden files")

// saved reads a trace as a real Jaeger answered it.
func saved(t *testing.T, name string) jaeger.Trace {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	traces, err := jaeger.Decode(f)
	require.NoError(t, err)
	require.Len(t, traces, 1)
	return traces[0]
}

func TestWaterfallLooksLikeThis(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		trace   string
		options waterfall.Options
	}{
		"life":             {"life.json", waterfall.Options{}},
		"wide":             {"life.json", waterfall.Options{Width: 160}},
		"narrow":           {"life.json", waterfall.Options{Width: 72}},
		"no-bars":          {"life.json", waterfall.Options{Width: 48}},
		"calls":            {"life.json", waterfall.Options{Width: 120, Calls: true}},
		"color":            {"life.json", waterfall.Options{Color: true}},
		"without-root":     {"life-without-root.json", waterfall.Options{}},
		"while-it-happens": {"life-under-way.json", waterfall.Options{}},
		"demo":             {"demo.json", waterfall.Options{}},
		"demo-under-way":   {"demo-under-way.json", waterfall.Options{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			require.NoError(t, waterfall.Draw(&out, saved(t, c.trace), c.options))
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				require.NoError(t, os.WriteFile(golden, out.Bytes(), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), out.String())
		})
	}
}

func TestTheManualShowsTheseDrawings(t *testing.T) {
	t.Parallel()
	manual, err := os.ReadFile("../../docs/tracing.md")
	require.NoError(t, err)
	for _, name := range []string{"demo", "demo-under-way"} {
		golden, err := os.ReadFile(filepath.Join("testdata", name+".golden"))
		require.NoError(t, err)
		require.Contains(t, string(manual), "```text\n"+string(golden)+"```\n")
	}
}

// traces draws traces of any shape: parents that are there or not, times in any order, over milliseconds or months.
func traces() *rapid.Generator[jaeger.Trace] {
	return rapid.Custom(func(t *rapid.T) jaeger.Trace {
		trace := jaeger.Trace{ID: "0b8f3a526c1d4e7f9a20b4c5d6e7f811"}
		n := rapid.IntRange(1, 30).Draw(t, "spans")
		begin := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
		for i := range n {
			s := jaeger.Span{
				ID:       fmt.Sprintf("%016x", i+1),
				Name:     rapid.SampledFrom([]string{"reservation", "active", "cleanup", "pod", "a name that does not end where it should have", "\x1b[2Jx\n"}).Draw(t, "name"),
				Start:    begin.Add(time.Duration(rapid.Int64Range(0, int64(90*24*time.Hour)).Draw(t, "start"))),
				Duration: time.Duration(rapid.Int64Range(0, int64(48*time.Hour)).Draw(t, "took")),
				Attributes: map[string]string{
					"reservation.outcome": rapid.SampledFrom([]string{"", "done", "an outcome that is rather long"}).Draw(t, "outcome"),
				},
			}
			if parent := rapid.IntRange(-2, i).Draw(t, "parent"); parent != 0 {
				s.ParentID = fmt.Sprintf("%016x", max(parent, 0))
			}
			if rapid.Bool().Draw(t, "failed") {
				s.Attributes["otel.status_code"] = "ERROR"
			}
			if rapid.Bool().Draw(t, "deadline") {
				s.Attributes["reservation.deadline"] = s.End().Format(time.RFC3339)
			}
			trace.Spans = append(trace.Spans, s)
		}
		return trace
	})
}

// table returns the lines between the head and the notes, without the columns' names.
func table(t require.TestingT, trace jaeger.Trace, width int) []string {
	var out bytes.Buffer
	require.NoError(t, waterfall.Draw(&out, trace, waterfall.Options{Width: width}))
	require.NotContains(t, out.String(), "\x1b", "names cannot move the cursor")
	_, rest, _ := strings.Cut(out.String(), "\n\n")
	rows, _, _ := strings.Cut(strings.TrimSuffix(rest, "\n"), "\n\n")
	return strings.Split(rows, "\n")[1:]
}

func TestAnyTraceFitsTheTerminal(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		width := rapid.IntRange(50, 240).Draw(t, "width")
		for _, line := range table(t, traces().Draw(t, "trace"), width) {
			require.LessOrEqual(t, utf8.RuneCountInString(line), width, line)
		}
	})
}

func TestNoSpanOfATraceIsLost(t *testing.T) {
	t.Parallel()
	attempts := regexp.MustCompile(` ×(\d+) `)
	rapid.Check(t, func(t *rapid.T) {
		trace := traces().Draw(t, "trace")
		drawn := 0
		for _, line := range table(t, trace, 500) {
			switch m := attempts.FindStringSubmatch(line); {
			case m != nil:
				n, err := strconv.Atoi(m[1])
				require.NoError(t, err)
				drawn += n
			case !strings.Contains(line, "goes on "): // stands for a span that has not come
				drawn++
			}
		}
		require.Equal(t, len(trace.Spans), drawn)
	})
}

func TestATraceWithoutADeadlineCountsFromItsFirstSpan(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	at := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	require.NoError(t, waterfall.Draw(&out, jaeger.Trace{ID: "ab", Spans: []jaeger.Span{
		{ID: "1", Name: "sweep", Start: at, Duration: time.Second},
		{ID: "2", ParentID: "1", Name: "read", Start: at.Add(250 * time.Millisecond), Duration: time.Millisecond},
	}}, waterfall.Options{}))
	require.Contains(t, out.String(), "T is the first that is known of it, 2026-03-01 09:00:00 UTC")
	require.Contains(t, out.String(), "T+250ms")
}

func TestTheHeadSaysWhyItEnded(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	at := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	require.NoError(t, waterfall.Draw(&out, jaeger.Trace{ID: "ab", Spans: []jaeger.Span{
		{ID: "1", Name: "reservation", Start: at, Duration: time.Hour, Attributes: map[string]string{
			"reservation.id": "ab", "reservation.reason": "Evicted: low on memory\x1b", "reservation.outcome": "nothing_to_keep"}},
		{ID: "2", ParentID: "1", Name: "cleanup", Start: at.Add(time.Minute), Duration: time.Minute},
	}}, waterfall.Options{}))
	require.Contains(t, out.String(), "reservation ab\nEvicted: low on memory \nT is ")
	require.Contains(t, out.String(), "reservation  nothing_to_keep  ")
}

func TestAWarningBeforeAnExtensionSaysWhichDeadlineItWasFor(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	at := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	warning := func(id string, after time.Duration, deadline string) jaeger.Span {
		return jaeger.Span{ID: id, Name: "warning", Start: at.Add(after), Duration: time.Second, Attributes: map[string]string{
			"reservation.id": "ab", "warning.level": "15", "reservation.deadline": deadline}}
	}
	require.NoError(t, waterfall.Draw(&out, jaeger.Trace{ID: "ab", Spans: []jaeger.Span{
		warning("1", 0, "2026-03-01T09:15:00Z"), warning("2", time.Hour, "2026-03-01T10:15:00Z"), warning("3", time.Hour+time.Minute, "2026-03-01T10:15:00Z"),
	}}, waterfall.Options{}))
	require.Contains(t, out.String(), "\nwarning 15 min, T was 09:15  ")
	require.Regexp(t, `\nwarning 15 min ×2 `, out.String())
}

func TestNothingToDrawIsSaid(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, waterfall.Draw(&bytes.Buffer{}, jaeger.Trace{ID: "ab"}, waterfall.Options{}), "ab")
}

func TestWhatWaitsForItsPhaseIsFiledUnderThePhasesName(t *testing.T) {
	t.Parallel()
	const id = "0b8f3a52-6c1d-4e7f-9a20-b4c5d6e7f801"
	var out bytes.Buffer
	require.NoError(t, waterfall.Draw(&out, jaeger.Trace{Spans: []jaeger.Span{{
		ID: "1", ParentID: telemetry.PhaseSpanID(id, telemetry.PhaseActive).String(), Name: "warn",
		Start: time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC), Duration: time.Second,
		Attributes: map[string]string{"reservation.id": id, "warning.level": "30"},
	}}}, waterfall.Options{}))
	require.Regexp(t, `(?m)^active +T +goes on`, out.String())
	require.Contains(t, out.String(), "└─ warn 30 min")
}

func TestAStepAndTheAttemptsAtItAreOneLine(t *testing.T) {
	t.Parallel()
	const id = "0b8f3a52-6c1d-4e7f-9a20-b4c5d6e7f801"
	begin := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	attempt := func(spanID, step string, after time.Duration) jaeger.Span {
		return jaeger.Span{
			ID: spanID, ParentID: telemetry.PhaseSpanID(id, telemetry.StepPhase(step)).String(), Name: step,
			Start: begin.Add(after), Duration: time.Second,
			Attributes: map[string]string{"reservation.id": id, "cleanup.step": step,
				"otel.status_code": "ERROR", "otel.status_description": step + " failed"},
		}
	}
	var out bytes.Buffer
	require.NoError(t, waterfall.Draw(&out, jaeger.Trace{Spans: []jaeger.Span{
		attempt("2", "pod", time.Minute), attempt("1", "pod", 0), attempt("3", "dns", 2*time.Minute),
		{
			ID: telemetry.PhaseSpanID(id, telemetry.StepPhase("pod")).String(), ParentID: telemetry.PhaseSpanID(id, telemetry.PhaseCleanup).String(),
			Name: "step pod", Start: begin, Duration: 90 * time.Second, Attributes: map[string]string{"reservation.outcome": "done", "cleanup.step": "pod"},
		},
	}}, waterfall.Options{}))
	_, rows, _ := strings.Cut(out.String(), "TOOK\n")
	lines := strings.Split(rows, "\n")
	for i, want := range []string{"cleanup ", "├─ pod ×2 ", "└─ dns "} {
		require.True(t, strings.HasPrefix(lines[i], want), "%q in\n%s", want, rows)
	}
	require.Contains(t, lines[1], "1m 30s", "what is over lasted as long as the step")
	require.Contains(t, lines[2], "goes on")
	require.Contains(t, out.String(), "pod: pod failed (2 times)")
	require.Contains(t, out.String(), "dns: dns failed")
}
