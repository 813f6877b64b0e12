package dispatch

import (
	"context"
	"fmt"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// DeadLetters keeps what a broker gave up on; *postgres.DB is one.
type DeadLetters interface {
	DeadLetter(ctx context.Context, id int64) (postgres.DeadLetter, error)
	DeadLetterReplayed(ctx context.Context, id int64) error
}

// Replay sends a dead letter again as it was before the broker gave up on it, and records that. Its id stays, so that
// where it comes back it is the same dead letter.
func Replay(ctx context.Context, letters DeadLetters, sender Sender, id int64) error {
	letter, err := letters.DeadLetter(ctx, id)
	if err != nil {
		return err
	}
	e, err := event.Decode(letter.Event)
	if err != nil {
		return fmt.Errorf("replay dead letter %d: %w", id, err)
	}
	if err := sender.Send(ctx, e); err != nil {
		return fmt.Errorf("replay dead letter %d: %w", id, err)
	}
	return letters.DeadLetterReplayed(ctx, id)
}
