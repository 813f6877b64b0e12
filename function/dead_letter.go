package main

import (
	"net/http"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// deadLetter stores what the broker gave up on, whatever is wrong with it.
func (h *handler) deadLetter(w http.ResponseWriter, r *http.Request, t *taken) error {
	var err error
	t.result, err = within(h.slots.deadLetters, func() (any, error) {
		e, err := receive(w, r, maxDeadLetter, h.readWithin)
		if err != nil {
			return nil, err
		}
		t.event = e
		alive, failure := event.SplitBrokerError(e)
		text, err := event.Encode(alive)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "malformed event: %s", oneLine(err))
		}
		id, err := h.store.StoreDeadLetter(r.Context(), postgres.DeadLetter{
			EventID: e.ID(), EventType: e.Type(), EventSource: e.Source(), EventSubject: e.Subject(), Event: text,
			ErrorCode: failure.Code, ErrorData: failure.Data, ErrorDest: failure.Dest,
		})
		return map[string]int64{"deadLetter": id}, err
	})
	return err
}
