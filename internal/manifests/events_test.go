package manifests

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
)

var brokers = []string{"knative/overlays/dev", "knative/overlays/production"}

func TestEachTypeThatTheServiceTakesHasATriggerAndNoFactHas(t *testing.T) {
	t.Parallel()
	taken := []string{
		event.Ping, event.SweepRequested, event.WarningRequested, event.NoticeRequested, event.CleanupRequested,
		event.SnapshotSyncRequested, event.SnapshotPurgeRequested, event.AvailabilityUpdateRequested,
	}
	for _, overlay := range brokers {
		t.Run(overlay, func(t *testing.T) {
			t.Parallel()
			var brought []string
			for _, trigger := range ofKind(objects(t, build(t, overlay)), "Trigger") {
				eventType := typeOf(t, trigger)
				require.False(t, event.IsFact(eventType))
				brought = append(brought, eventType)
			}
			require.ElementsMatch(t, taken, brought)
		})
	}
}

// typeOf returns what a Trigger brings.
func typeOf(t *testing.T, trigger *unstructured.Unstructured) string {
	t.Helper()
	require.NotContains(t, trigger.Object["spec"], "filters", "a RabbitMQ Broker knows but filter")
	exact, _, _ := unstructured.NestedStringMap(trigger.Object, "spec", "filter", "attributes")
	require.Len(t, exact, 1)
	return exact["type"]
}

// takes is how long the service may take with an event: a follow-up its limit and 5 s to record how it ended, a sweep its
// SWEEP_TIMEOUT and 20 s to send what it asks for.
func takes(eventType string) time.Duration {
	if kind, ok := event.KindOf(eventType); ok {
		return followup.Limit(postgres.FollowUpKind(kind)) + 5*time.Second
	}
	return 80 * time.Second
}

func TestRetriesFitIntoTheTimeUntilTheSenderAsksAgain(t *testing.T) {
	t.Parallel()
	const asksAgain = 4 * time.Minute // of follow-ups; the next tick comes after five
	for _, overlay := range brokers {
		t.Run(overlay, func(t *testing.T) {
			t.Parallel()
			all := objects(t, build(t, overlay))
			service := serving(t, all)
			limit, _, _ := unstructured.NestedInt64(service.Object, "spec", "template", "spec", "timeoutSeconds")
			require.Greater(t, time.Duration(limit)*time.Second, takes(event.CleanupRequested))
			for _, trigger := range ofKind(all, "Trigger") {
				delivery, _, _ := unstructured.NestedMap(trigger.Object, "spec", "delivery")
				require.Equal(t, "exponential", delivery["backoffPolicy"], trigger.GetName())
				waiting := time.Duration(0)
				for n := range delivery["retry"].(int64) {
					waiting += seconds(t, delivery["backoffDelay"].(string)) << n
				}
				require.Greater(t, waiting, 10*time.Second, "%s: a restart of the database outlasts it", trigger.GetName())
				require.Less(t, waiting, asksAgain, trigger.GetName())
				timeout := seconds(t, delivery["timeout"].(string))
				require.Greater(t, timeout, takes(typeOf(t, trigger)), "%s: the Broker would retry, and give up, what goes well", trigger.GetName())
				require.LessOrEqual(t, timeout, time.Duration(limit)*time.Second, trigger.GetName())
				uri, _, _ := unstructured.NestedString(delivery, "deadLetterSink", "uri")
				require.Equal(t, "/dead-letter", uri, trigger.GetName())
			}
		})
	}
}

func TestTheTriggersTokensAreForTheService(t *testing.T) {
	t.Parallel()
	all := objects(t, build(t, "knative/overlays/production"))
	settings := ofKind(all, "ConfigMap")
	require.Len(t, settings, 1)
	audience, _, _ := unstructured.NestedString(settings[0].Object, "data", "EVENTS_OIDC_AUDIENCE")
	require.NotEmpty(t, audience)
	for _, trigger := range ofKind(all, "Trigger") {
		for _, to := range [][]string{{"spec", "subscriber", "audience"}, {"spec", "delivery", "deadLetterSink", "audience"}} {
			named, _, _ := unstructured.NestedString(trigger.Object, to...)
			require.Equal(t, audience, named, "%s %v", trigger.GetName(), to)
		}
	}
}

// seconds reads an ISO 8601 duration of seconds, which is all that the manifests use.
func seconds(t *testing.T, text string) time.Duration {
	t.Helper()
	number, ok := strings.CutPrefix(text, "PT")
	require.True(t, ok, text)
	number, ok = strings.CutSuffix(number, "S")
	require.True(t, ok, text)
	s, err := strconv.ParseFloat(number, 64)
	require.NoError(t, err)
	return time.Duration(s * float64(time.Second))
}

func serving(t *testing.T, all []*unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	for _, o := range ofKind(all, "Service") {
		if o.GroupVersionKind().Group == "serving.knative.dev" {
			return o
		}
	}
	t.Fatal("no Knative Service")
	return nil
}

func TestASinkBindingCanChangeTheService(t *testing.T) {
	t.Parallel()
	for _, overlay := range brokers {
		all := objects(t, build(t, overlay))
		service := serving(t, all)
		name, _, _ := unstructured.NestedString(service.Object, "spec", "template", "metadata", "name")
		require.Empty(t, name, "a revision with a fixed name cannot be changed")
		bindings := ofKind(all, "SinkBinding")
		require.Len(t, bindings, 1)
		subject, _, _ := unstructured.NestedStringMap(bindings[0].Object, "spec", "subject")
		require.Equal(t, map[string]string{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": service.GetName()}, subject)
	}
}
