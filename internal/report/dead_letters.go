package report

import (
	"strconv"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/postgres"
)

// DeadLetter is an event that the broker gave up on.
type DeadLetter struct {
	ID         int64      `json:"id"`
	ReceivedAt time.Time  `json:"receivedAt"`
	Arrivals   int        `json:"arrivals"`
	Open       bool       `json:"open"` // not sent again since it came
	Type       string     `json:"type"`
	Subject    string     `json:"subject,omitempty"`
	EventID    string     `json:"eventId"`
	Source     string     `json:"source"`
	ErrorCode  string     `json:"errorCode,omitempty"`
	Error      string     `json:"error,omitempty"`
	ErrorDest  string     `json:"errorDest,omitempty"`
	Replays    int        `json:"replays"`
	ReplayedAt *time.Time `json:"replayedAt,omitempty"`
}

// DeadLetters are the newest of them.
type DeadLetters struct {
	At     time.Time    `json:"at"` // the database's clock
	Newest []DeadLetter `json:"newest"`
}

// ListDeadLetters makes a view of them.
func ListDeadLetters(letters []postgres.DeadLetter, now time.Time) DeadLetters {
	view := DeadLetters{At: now, Newest: []DeadLetter{}}
	for _, d := range letters {
		view.Newest = append(view.Newest, letter(d))
	}
	return view
}

func letter(d postgres.DeadLetter) DeadLetter {
	return DeadLetter{
		ID: d.ID, ReceivedAt: d.ReceivedAt.UTC(), Arrivals: d.Arrivals, Open: d.Open(), Type: d.EventType, Subject: d.EventSubject,
		EventID: d.EventID, Source: d.EventSource, ErrorCode: d.ErrorCode, Error: d.ErrorData, ErrorDest: d.ErrorDest,
		Replays: d.Replays, ReplayedAt: known(d.ReplayedAt),
	}
}

// Text implements Texter.
func (l DeadLetters) Text(s Screen) string {
	if len(l.Newest) == 0 {
		return "There are no dead letters.\n"
	}
	return letterTable(s, l.Newest, l.At)
}

func letterTable(s Screen, letters []DeadLetter, now time.Time) string {
	table := grid{columns: []string{"id", "received", "times", "type", "subject", "replayed", "error"}}
	for _, d := range letters {
		replayed := s.paint(bad, "no")
		if d.ReplayedAt != nil {
			replayed = s.paint(faint, relative(*d.ReplayedAt, now))
			if d.Open {
				replayed = s.paint(bad, relative(*d.ReplayedAt, now)+", came back")
			}
		}
		table.add(strconv.FormatInt(d.ID, 10), when(d.ReceivedAt, now), strconv.Itoa(d.Arrivals),
			clean(strings.TrimPrefix(d.Type, "dev.gpudev.")), s.id(d.Subject), replayed, clean(sentence(d.ErrorCode, d.Error)))
	}
	return table.text(s)
}
