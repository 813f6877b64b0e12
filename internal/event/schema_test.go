package event_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
)

func TestEverySchemaIsNamedForItsTypeAndUsed(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(os.DirFS("schemas"), "*.json")
	require.NoError(t, err)
	require.Len(t, files, len(followUps)+len(facts)+1, "each event type has a schema, and each schema an event type")
	for _, file := range files {
		eventType := strings.TrimSuffix(file, ".json")
		body, err := os.ReadFile(filepath.Join("schemas", file))
		require.NoError(t, err)
		var schema struct {
			ID string `json:"$id"`
		}
		require.NoError(t, json.Unmarshal(body, &schema))
		require.Equal(t, event.DataSchema(eventType), schema.ID)
		_, isFollowUp := followUps[eventType]
		_, isFact := facts[eventType]
		require.True(t, isFollowUp || isFact || eventType == event.SweepRequested, eventType)
	}
}

func TestValidateData(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		eventType, data, wrong string
	}{
		"a whole sweep":                      {event.SweepRequested, `{}`, ""},
		"a dry run of two":                   {event.SweepRequested, `{"dryRun":true,"reservationIds":["a","b"]}`, ""},
		"a misspelt dry run is no real one":  {event.SweepRequested, `{"dryrun":true}`, "dryrun"},
		"a dry run in words":                 {event.SweepRequested, `{"dryRun":"yes"}`, "/dryRun"},
		"no reservation at all":              {event.SweepRequested, `{"reservationIds":[]}`, "/reservationIds"},
		"an empty reservation id":            {event.SweepRequested, `{"reservationIds":[""]}`, "/reservationIds/0"},
		"an array":                           {event.SweepRequested, `[]`, "object"},
		"no JSON":                            {event.SweepRequested, `{`, "not JSON"},
		"JSON and more":                      {event.SweepRequested, `{} {}`, "not JSON"},
		"a cleanup":                          {event.CleanupRequested, `{"reservationId":"r"}`, ""},
		"a cleanup of a later version":       {event.CleanupRequested, `{"reservationId":"r","more":1}`, ""},
		"a cleanup of nothing":               {event.CleanupRequested, `{}`, "reservationId"},
		"what no column can hold":            {event.CleanupRequested, `{"reservationId":"a\u0000b"}`, "/reservationId"},
		"a deadline that is no time":         {event.WarningRequested, `{"reservationId":"r","deadline":"soon","levelMinutes":5}`, "/deadline"},
		"an intent that is no uuid":          {event.SnapshotSyncRequested, `{"intentId":"x"}`, "/intentId"},
		"an unknown type is nobody's schema": {"dev.example.unknown", `{}`, "no schema"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := event.ValidateData(c.eventType, []byte(c.data))
			if c.wrong == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.wrong)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestKindAndTypeNameEachOther(t *testing.T) {
	t.Parallel()
	for eventType, f := range followUps {
		kind, ok := event.KindOf(eventType)
		require.True(t, ok)
		require.Equal(t, f.Kind, kind)
		require.Equal(t, eventType, event.TypeOf(kind))
		require.False(t, event.IsFact(eventType))
	}
	for _, other := range []string{event.Ping, event.SweepRequested, event.SweepCompleted, "dev.gpudev.expiry.tea.requested.v1"} {
		_, ok := event.KindOf(other)
		require.False(t, ok, other)
	}
}

func FuzzKeyOf(f *testing.F) {
	for eventType := range followUps {
		f.Add(eventType, []byte(`{"reservationId":"r","deadline":"2026-03-01T12:30:00Z","levelMinutes":5}`))
	}
	f.Fuzz(func(t *testing.T, eventType string, data []byte) {
		if event.ValidateData(eventType, data) != nil {
			return
		}
		if _, ok := event.KindOf(eventType); !ok {
			return
		}
		_, key, err := event.KeyOf(eventType, data)
		if err == nil {
			require.NotEmpty(t, key)
		}
	})
}
