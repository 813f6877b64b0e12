package postgres_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		ctx := t.Context()
		letter := postgres.DeadLetter{
			EventID: "1", EventType: "t", EventSource: "//s", EventSubject: "r1", Event: `{"id":"1"}`,
			ErrorCode: "503", ErrorData: "full", ErrorDest: "http://x/",
		}
		id, err := db.StoreDeadLetter(ctx, letter)
		require.NoError(t, err)
		stored, err := db.DeadLetter(ctx, id)
		require.NoError(t, err)
		require.True(t, stored.Open())
		require.Equal(t, 1, stored.Arrivals)
		letter.ID, letter.Arrivals, letter.ReceivedAt = id, 1, stored.ReceivedAt
		require.Equal(t, letter, stored)

		require.NoError(t, db.DeadLetterReplayed(ctx, id))
		stored, err = db.DeadLetter(ctx, id)
		require.NoError(t, err)
		require.False(t, stored.Open())
		require.Equal(t, 1, stored.Replays)

		letter.ErrorCode = "400"
		again, err := db.StoreDeadLetter(ctx, letter)
		require.NoError(t, err)
		require.Equal(t, id, again, "the same event is the same dead letter")
		stored, err = db.DeadLetter(ctx, id)
		require.NoError(t, err)
		require.True(t, stored.Open(), "it came back")
		require.Equal(t, 2, stored.Arrivals)
		require.Equal(t, "400", stored.ErrorCode)

		other, err := db.StoreDeadLetter(ctx, postgres.DeadLetter{EventID: "1", EventSource: "//another", EventType: "t"})
		require.NoError(t, err)
		letter.Event = `{"id":"1","data":1}`
		different, err := db.StoreDeadLetter(ctx, letter)
		require.NoError(t, err)
		all, err := db.DeadLetters(ctx, 10)
		require.NoError(t, err)
		require.Equal(t, []int64{different, other, id}, []int64{all[0].ID, all[1].ID, all[2].ID}, "the newest first")

		_, err = db.DeadLetter(ctx, 4711)
		require.True(t, fault.Is(err, fault.Gone))
	})
}

func TestWhateverASenderWritesIsStored(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, db *postgres.DB) {
		for name, text := range map[string]string{
			"nothing":      "",
			"very long":    strings.Repeat("ü", 100_000),
			"NUL":          "a\x00b",
			"no UTF-8":     "\xff\xfe",
			"escaped NUL":  `{"a":"\u0000"}`,
			"deep nesting": strings.Repeat("[", 50_000),
		} {
			id, err := db.StoreDeadLetter(t.Context(), postgres.DeadLetter{
				EventID: text, EventType: text, EventSource: text, EventSubject: text, Event: text, ErrorCode: text, ErrorData: text, ErrorDest: text,
			})
			require.NoError(t, err, name)
			_, err = db.DeadLetter(t.Context(), id)
			require.NoError(t, err, name)
		}
	})
}
