package report_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/report"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// now is the database's clock in all of these tests: 12:31:00 UTC.
var now = time.Date(2026, 3, 14, 12, 31, 0, 0, time.UTC)

func ago(d time.Duration) time.Time   { return now.Add(-d) }
func ahead(d time.Duration) time.Time { return now.Add(d) }

var rules = config.Rules{WarningMinutes: 30, GracePeriodSeconds: 120, MissingConfirm: 4 * time.Minute, BrakePercent: 20, BrakeMin: 5}

// looksLike compares a view, as text for an unlimited screen, for 80 columns, in colour, and as JSON, with golden files.
func looksLike(t *testing.T, name string, view report.Texter) {
	t.Helper()
	var encoded bytes.Buffer
	require.NoError(t, report.JSON(&encoded, view))
	require.True(t, json.Valid(encoded.Bytes()))
	narrow := view.Text(report.Screen{Width: 80})
	for kind, got := range map[string]string{
		"golden": view.Text(report.Screen{}), "80.golden": narrow, "json": encoded.String(),
		"color.golden": view.Text(report.Screen{Width: 120, Color: true}),
	} {
		golden := filepath.Join("testdata", name+"."+kind)
		if *update {
			require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), got, golden)
	}
	for line := range strings.Lines(narrow) {
		require.LessOrEqual(t, text.StringWidth(strings.TrimRight(line, "\n")), 80, line)
	}
	require.Equal(t, trimmed(view.Text(report.Screen{Width: 120})), trimmed(text.StripEscape(view.Text(report.Screen{Width: 120, Color: true}))),
		"colours change nothing else")
}

// trimmed drops the blanks at the ends of lines.
func trimmed(words string) string {
	var out strings.Builder
	for line := range strings.Lines(words) {
		out.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return out.String()
}
