package event

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
)

// BrokerError is what a Knative broker adds to an event that it gives up on.
type BrokerError struct {
	Code string // the HTTP status of the last try
	Data string // the beginning of its body
	Dest string // where it was sent
}

const (
	errorCode = "knativeerrorcode"
	errorData = "knativeerrordata"
	errorDest = "knativeerrordest"
)

// SplitBrokerError takes the broker's attributes off an event, so that it can be sent again as it was.
func SplitBrokerError(e ce.Event) (ce.Event, BrokerError) {
	e = e.Clone()
	take := func(name string) string {
		value, err := types.Format(e.Extensions()[name])
		if err != nil {
			return ""
		}
		e.SetExtension(name, nil)
		return value
	}
	failure := BrokerError{Code: take(errorCode), Data: take(errorData), Dest: take(errorDest)}
	// The broker encodes the body; what another sender wrote plainly stays as it is.
	if plain, err := base64.StdEncoding.DecodeString(failure.Data); err == nil && utf8.Valid(plain) {
		failure.Data = string(plain)
	}
	return e, failure
}

// Encode returns an event in structured mode, as text. Unlike the SDK's it takes data that is not what its content
// type says: that may be why the event was given up on.
func Encode(e ce.Event) (string, error) {
	if media := strings.ToLower(e.DataMediaType()); !utf8.Valid(e.Data()) ||
		((media == "" || strings.HasSuffix(media, "json")) && !json.Valid(e.Data())) {
		e = e.Clone()
		e.DataBase64 = true
	}
	encoded, err := e.MarshalJSON()
	if err != nil {
		return "", fmt.Errorf("encode event %s: %w", e.ID(), err)
	}
	return strings.ToValidUTF8(string(encoded), "\uFFFD"), nil // a header may have held any bytes
}

// Decode reads what Encode wrote.
func Decode(text string) (ce.Event, error) {
	var e ce.Event
	if err := e.UnmarshalJSON([]byte(text)); err != nil {
		return ce.Event{}, fmt.Errorf("decode a stored event: %w", err)
	}
	return e, nil
}
