package event_test

import (
	"strings"
	"testing"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/event"
)

func TestTheBrokersAttributesComeOffAndTheRestStays(t *testing.T) {
	t.Parallel()
	e, err := builder.FollowUp(followUps[event.CleanupRequested])
	require.NoError(t, err)
	dead := e.Clone()
	dead.SetExtension("knativeerrorcode", "503")
	dead.SetExtension("knativeerrordata", "eyJlcnJvciI6ImZ1bGwifQ==")
	dead.SetExtension("knativeerrordest", "http://expiry.default.svc/")

	alive, failure := event.SplitBrokerError(dead)
	require.Equal(t, event.BrokerError{Code: "503", Data: `{"error":"full"}`, Dest: "http://expiry.default.svc/"}, failure)
	require.Equal(t, e.Extensions(), alive.Extensions())
	require.Len(t, dead.Extensions(), len(e.Extensions())+3, "the event that came is left alone")

	same, failure := event.SplitBrokerError(e)
	require.Equal(t, e.Extensions(), same.Extensions())
	require.Zero(t, failure)
}

func TestErrorDataThatIsNotEncodedIsKept(t *testing.T) {
	t.Parallel()
	e, err := builder.FollowUp(followUps[event.CleanupRequested])
	require.NoError(t, err)
	e.SetExtension("knativeerrordata", "no route to host!")
	_, failure := event.SplitBrokerError(e)
	require.Equal(t, "no route to host!", failure.Data)
}

func TestAnyEventSurvivesStorage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		contentType string
		data        []byte
		asBase64    bool // and so not legible
	}{
		"JSON":                  {"application/json", []byte(`{"a":1}`), false},
		"JSON that is none":     {"application/json; charset=utf-8", []byte(`{"a":`), true},
		"JSON by suffix":        {"application/vnd.x+json", []byte(`nope`), true},
		"no content type":       {"", []byte(`nope`), true},
		"text":                  {"text/plain", []byte("ünïcode \x00"), false},
		"bytes":                 {"application/octet-stream", []byte{0, 0xff, 0xfe}, true},
		"nothing":               {"application/json", nil, false},
		"an escape for a NUL":   {"application/json", []byte(`"\u0000"`), false},
		"text that is no UTF-8": {"text/plain", []byte("\xff"), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := ce.New()
			e.SetID("1")
			e.SetType("dev.example.thing")
			e.SetSource("//x")
			if c.contentType != "" {
				e.SetDataContentType(c.contentType)
			}
			e.DataEncoded = c.data
			text, err := event.Encode(e)
			require.NoError(t, err)
			require.NotContains(t, text, "\x00")
			require.Equal(t, c.asBase64, strings.Contains(text, `"data_base64"`))
			back, err := event.Decode(text)
			require.NoError(t, err)
			require.Equal(t, string(c.data), string(back.Data()))
			require.Equal(t, e.DataContentType(), back.DataContentType())
			require.Equal(t, "dev.example.thing", back.Type())
		})
	}
}
