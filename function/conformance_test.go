package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/yaml"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

// conformance runs the CloudEvents project's own tool, which fails if an event it sends is not taken.
func conformance(t *testing.T, args ...string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "-modfile=tools/conformance/go.mod", "cloudevents"}, args...)...)
	cmd.Dir = ".."
	said, err := cmd.CombinedOutput()
	if err != nil {
		return errors.Join(err, errors.New(string(said)))
	}
	return nil
}

// suite returns a file of the tool's events, and these: by source and id.
func suite(t *testing.T, file string) (path string, events map[string]conformanceEvent) {
	t.Helper()
	said, err := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "-modfile=../tools/conformance/go.mod", "github.com/cloudevents/conformance").Output()
	require.NoError(t, err)
	var module struct{ Dir string }
	require.NoError(t, json.Unmarshal(said, &module))
	path = filepath.Join(module.Dir, "yaml", filepath.FromSlash(file))
	text, err := os.Open(path)
	require.NoError(t, err)
	defer func() { _ = text.Close() }()
	events = map[string]conformanceEvent{}
	for documents := yaml.NewYAMLOrJSONDecoder(text, 4096); ; {
		var e conformanceEvent
		err := documents.Decode(&e)
		if errors.Is(err, io.EOF) {
			return path, events
		}
		require.NoError(t, err)
		events[e.Attributes.Source+" "+e.Attributes.ID] = e
	}
}

type conformanceEvent struct {
	Attributes struct {
		Type, ID, Source, DataContentType, Time string
		Extensions                              map[string]string
	} `json:"ContextAttributes"`
	Data string
}

func TestEventsOfTheConformanceToolAreTakenAsTheyWereSent(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	taken := map[string][]ce.Event{}
	d.mu.Lock()                                                  // what another process asks for does not come after this, as far as the race detector knows
	d.letter = func(letter postgres.DeadLetter) (int64, error) { // the one address that takes events of every type
		var e ce.Event
		if err := json.Unmarshal([]byte(letter.Event), &e); err != nil {
			return 0, err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		key := letter.EventSource + " " + letter.EventID
		taken[key] = append(taken[key], e)
		return 1, nil
	}
	d.mu.Unlock()
	minimum, sent := suite(t, "v1.0/v1_minimum.yaml")
	more, alsoSent := suite(t, "v1.yaml") // one event in binary mode and again in structured mode
	require.NoError(t, conformance(t, "invoke", d.url+"/dead-letter", "-f", minimum))
	require.NoError(t, conformance(t, "invoke", d.url+"/dead-letter", "-f", more))
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, e := range alsoSent {
		require.Len(t, taken[key], 2)
		sent[key] = e
	}
	require.Len(t, taken, len(sent))
	for key, want := range sent {
		for _, got := range taken[key] {
			require.Equal(t, want.Attributes.Type, got.Type(), key)
			require.Equal(t, want.Attributes.DataContentType, got.DataContentType(), key)
			require.Equal(t, strings.TrimSpace(want.Data), strings.TrimSpace(string(got.Data())), key)
			for name, value := range want.Attributes.Extensions {
				require.Equal(t, strings.TrimSpace(value), strings.TrimSpace(got.Extensions()[name].(string)), key)
			}
		}
	}
}

func TestTheConformanceToolsTicksAreSweptAndItsOtherEventsRefused(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	require.NoError(t, conformance(t, "send", d.url, "--id", "1", "--source", "//conformance", "--type", event.Ping))
	d.mu.Lock()
	require.Equal(t, []string{"sweep " + event.Ping}, d.calls[:1])
	d.mu.Unlock()
	foreign, _ := suite(t, "v1.yaml")
	old, _ := suite(t, "v0.3/v03_minimum.yaml")
	for _, file := range []string{foreign, old} {
		require.ErrorContains(t, conformance(t, "invoke", d.url, "-f", file), "400 Bad Request")
	}
}
