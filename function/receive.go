package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
)

const (
	maxEvent = 64 << 10
	// maxDeadLetter is larger: an event that was refused for its size ends up there.
	maxDeadLetter = 1 << 20
	// bodyWithin bounds the reading of a body, so that a slow client holds nothing.
	bodyWithin = 10 * time.Second
)

// receive reads the CloudEvent of a request in binary or structured mode. The error is a refusal: that no event was
// received is always the sender's doing.
func receive(w http.ResponseWriter, r *http.Request, limit int64, within time.Duration) (ce.Event, error) {
	body, err := readBody(w, r, limit, within)
	if err != nil {
		return ce.Event{}, err
	}
	message := cehttp.NewMessage(r.Header, io.NopCloser(bytes.NewReader(body)))
	switch message.ReadEncoding() {
	case binding.EncodingBinary, binding.EncodingStructured:
	case binding.EncodingBatch:
		return ce.Event{}, refuse(http.StatusBadRequest, "batches are not taken: send one event")
	default:
		if version := r.Header.Get("Ce-Specversion"); version != "" {
			return ce.Event{}, refuse(http.StatusBadRequest, "specversion %q is not known: send 1.0", version)
		}
		if format.IsFormat(strings.ToLower(r.Header.Get("Content-Type"))) {
			return ce.Event{}, refuse(http.StatusUnsupportedMediaType, "of the event formats only JSON is taken")
		}
		return ce.Event{}, refuse(http.StatusUnsupportedMediaType, "not a CloudEvent: neither a ce-specversion header nor content type application/cloudevents+json")
	}
	return parse(r, message)
}

// parse turns a message into an event. The SDK's parser panics at some malformed input, such as a header "Ce-".
func parse(r *http.Request, message *cehttp.Message) (e ce.Event, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = refuse(http.StatusBadRequest, "malformed event")
		}
	}()
	parsed, err := binding.ToEvent(r.Context(), message)
	if err != nil {
		return ce.Event{}, refuse(http.StatusBadRequest, "malformed event: %s", oneLine(err))
	}
	return *parsed, nil
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64, within time.Duration) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(within)) // not supported by a test's recorder
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, tooLarge(limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, refuse(http.StatusRequestTimeout, "the body took longer than %s", within)
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "the body could not be read")
	}
	// Lifted again: the server goes on reading to learn whether the client is still there.
	_ = control.SetReadDeadline(time.Time{})
	return body, nil
}

func tooLarge(limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, "the event is larger than %d KiB", limit>>10)
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// refusal is what was wrong with a request, and so will be when it is sent again.
type refusal struct {
	status int
	reason string
}

func (r *refusal) Error() string { return r.reason }

func refuse(status int, reason string, args ...any) error {
	return &refusal{status: status, reason: fmt.Sprintf(reason, args...)}
}
