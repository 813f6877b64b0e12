package telemetry_test

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"gpudev.internal/reservation-expiry/internal/telemetry"
)

func TestTraceIDOfReservation(t *testing.T) {
	t.Parallel()
	hashed := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return hex.EncodeToString(sum[:16])
	}
	for name, c := range map[string]struct{ id, want string }{
		"a UUID loses its dashes":            {"0b8f3a52-6c1d-4e7f-9a20-b4c5d6e7f801", "0b8f3a526c1d4e7f9a20b4c5d6e7f801"},
		"a UUID is lower-cased":              {"0B8F3A52-6C1D-4E7F-9A20-B4C5D6E7F801", "0b8f3a526c1d4e7f9a20b4c5d6e7f801"},
		"a trace id pasted back is itself":   {"0b8f3a526c1d4e7f9a20b4c5d6e7f801", "0b8f3a526c1d4e7f9a20b4c5d6e7f801"},
		"the nil UUID is no trace id":        {uuid.Nil.String(), hashed(uuid.Nil.String())},
		"anything else is hashed":            {"res-42", hashed("res-42")},
		"a UUID in braces is something else": {"{0b8f3a52-6c1d-4e7f-9a20-b4c5d6e7f801}", hashed("{0b8f3a52-6c1d-4e7f-9a20-b4c5d6e7f801}")},
		"nothing at all is hashed":           {"", hashed("")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, telemetry.TraceID(c.id).String())
		})
	}
}

func TestDerivedIDsAreValidAndTheSameEverywhere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.OneOf(
			rapid.String(),
			rapid.Map(rapid.SliceOfN(rapid.Byte(), 16, 16), func(b []byte) string { return uuid.UUID(b).String() }),
		).Draw(t, "id")
		require.True(t, telemetry.TraceID(id).IsValid())
		seen := map[string]bool{}
		for _, phase := range []telemetry.Phase{"", telemetry.PhaseQueued, telemetry.PhaseActive, telemetry.PhaseSnapshot} {
			span := telemetry.PhaseSpanID(id, phase)
			require.True(t, span.IsValid())
			require.Equal(t, span, telemetry.PhaseSpanID(id, phase))
			seen[span.String()] = true
		}
		seen[telemetry.RootSpanID(id).String()] = true
		require.Len(t, seen, 5, "no two spans of one trace share an id")
		if _, err := uuid.Parse(id); err == nil && len(id) == 36 {
			require.Equal(t, telemetry.RootSpanID(id), telemetry.RootSpanID(strings.ToUpper(id)), "spelling does not matter")
		}
	})
}

func TestWordsOfADerivedIDDoNotRunTogether(t *testing.T) {
	t.Parallel()
	require.NotEqual(t, telemetry.SpanID("r", "ab", "c"), telemetry.SpanID("r", "a", "bc"))
}
