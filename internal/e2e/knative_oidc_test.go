//go:build e2e

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
	"gpudev.internal/reservation-expiry/internal/event"
)

const (
	operator   = "reservation-expiry-operator"
	audience   = "reservation-expiry" // of what the Triggers send
	ourAccount = "system:serviceaccount:" + namespace + ":"
)

// tokensAreAsked goes the same ways with OIDC on: every sender has a token that the API server has issued, and the
// Broker and the service verify it by the keys that the API server publishes.
func tokensAreAsked(t *testing.T, w *world, f *function) {
	forBroker := turnOnOIDC(t, w, f)
	sendersShowWhoTheyAre(t, w, f)
	strangersAreTurnedAway(t, w, f, forBroker)
	deadLettersNeedATokenToo(t, w, f, forBroker)
}

// turnOnOIDC does as docs/deploying.md says, and returns for whom the Broker wants tokens to be.
func turnOnOIDC(t *testing.T, w *world, f *function) (forBroker string) {
	t.Helper()
	policy := manifests(t, filepath.Join(root, "knative", "oidc"))[0]
	require.ErrorContains(t, dryRun(t, w, policy), "feature not enabled", "Knative refuses an EventPolicy where OIDC is not on")
	w.deleteAll(t, "Trigger", "Broker")
	features, err := w.get(t, "v1", "ConfigMap", system, "config-features")
	require.NoError(t, err)
	w.patch(t, features, map[string]any{"data": map[string]any{"authentication-oidc": "enabled"}})
	eventually(t, time.Minute, "Knative takes an EventPolicy", func() error { return dryRun(t, w, policy) })

	say(t, "authentication-oidc is enabled; applying knative/overlays/dev with the component knative/oidc")
	overlay := withOIDC(t, w.issuer(t))
	w.apply(t, overlay, metav1.FieldValidationStrict)
	forBroker = w.awaitField(t, "eventing.knative.dev/v1", "Broker", "reservation-expiry", "address", "audience")
	for _, o := range overlay {
		for _, field := range map[string][][]string{
			"Trigger":     {{"auth", "serviceAccountName"}, {"subscriberAudience"}, {"deadLetterSinkAudience"}},
			"PingSource":  {{"auth", "serviceAccountName"}, {"sinkAudience"}},
			"SinkBinding": {{"auth", "serviceAccountName"}, {"oidcTokenSecretName"}},
			"EventPolicy": {{}},
		}[o.GetKind()] {
			if len(field) > 0 {
				w.awaitField(t, o.GetAPIVersion(), o.GetKind(), o.GetName(), field...)
			}
			w.awaitReady(t, o.GetAPIVersion(), o.GetKind(), namespace, o.GetName())
		}
	}
	w.awaitReady(t, "eventing.knative.dev/v1", "Broker", namespace, "reservation-expiry")
	admitted, err := w.get(t, "eventing.knative.dev/v1alpha1", "EventPolicy", namespace, "reservation-expiry")
	require.NoError(t, err)
	from, _, _ := unstructured.NestedStringSlice(admitted.Object, "status", "from")
	require.ElementsMatch(t, []string{w.sender(t, "PingSource"), w.sender(t, "SinkBinding"), ourAccount + operator}, from)
	say(t, "all is ready; the EventPolicy admits %s", strings.Join(from, ", "))
	f.down()
	f.up()
	return forBroker
}

// withOIDC makes an overlay of dev and the component, with the cluster's own issuer.
func withOIDC(t *testing.T, issuer string) []*unstructured.Unstructured {
	t.Helper()
	dir := t.TempDir()
	knative, err := filepath.Abs(filepath.Join(root, "knative"))
	require.NoError(t, err)
	knative, err = filepath.Rel(dir, knative)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), fmt.Appendf(nil, `
resources: [%s/overlays/dev]
components: [%[1]s/oidc]
`, knative), 0o600))
	all := kustomize(t, dir)
	for _, o := range all {
		if o.GetKind() == "ConfigMap" {
			data, _, _ := unstructured.NestedMap(o.Object, "data")
			require.Contains(t, data, "EVENTS_OIDC_ISSUER")
			require.NoError(t, unstructured.SetNestedField(o.Object, issuer, "data", "EVENTS_OIDC_ISSUER"))
		}
	}
	return all
}

// sendersShowWhoTheyAre: ticks, the service's own events and what the Triggers send carry tokens, and get through.
func sendersShowWhoTheyAre(t *testing.T, w *world, f *function) {
	began := time.Now()
	tickAt(t, w, schedule)
	warned := server(t, w, platform.Reservation{User: "dora", EndsIn: 25 * time.Minute})
	w.is(t, time.Minute, warned, warnings, `{"30min_warning_sent": true}`)
	first := f.boundToken()
	rotate(t, w, f)
	second := f.boundToken()
	require.NotEqual(t, first, second)
	ended := server(t, w, platform.Reservation{User: "emil", Disk: "home", EndsIn: -3 * time.Minute})
	w.is(t, time.Minute, ended, status, "expired")
	w.is(t, 2*time.Minute, ended, outcome, "released")

	accepted := func(service, eventType string) (found []hop) {
		eventually(t, 10*time.Second, eventType+" is taken by "+service, func() error {
			found = w.network.seen(service, func(h hop) bool { return h.Type == eventType && h.At.After(began) && h.Status == http.StatusAccepted })
			if len(found) == 0 {
				return fmt.Errorf("it is not")
			}
			return nil
		})
		return found
	}
	for _, h := range accepted(ingress, event.Ping) {
		require.Equal(t, w.sender(t, "PingSource"), claimsOf(t, h.Token).Subject)
	}
	for eventType, token := range map[string]string{event.WarningRequested: first, event.CleanupRequested: second, event.ReservationCleanedUp: second} {
		for _, h := range accepted(ingress, eventType) {
			require.Equal(t, token, h.Token, "%s carries the token that was mounted when it was sent", eventType)
			require.Equal(t, w.sender(t, "SinkBinding"), claimsOf(t, h.Token).Subject)
		}
	}
	for eventType, trigger := range map[string]string{event.Ping: "tick", event.WarningRequested: "warning", event.CleanupRequested: "cleanup"} {
		for _, h := range accepted(serviceName, eventType) {
			sent := claimsOf(t, h.Token)
			require.Equal(t, ourAccount+trigger+"-oidc-eventing.knative.dev-trigger", sent.Subject)
			require.Equal(t, []string{audience}, sent.Audience)
		}
	}
	for _, service := range []string{ingress, "broker-filter." + system, serviceName} {
		require.Empty(t, w.network.seen(service, func(h hop) bool {
			return h.At.After(began) && (h.Status == http.StatusUnauthorized || h.Status == http.StatusForbidden)
		}))
	}
	say(t, "dora is warned and emil's reservation cleaned up: ticks came with the PingSource's token, follow-ups with the SinkBinding's, "+
		"the new one once it was renewed, deliveries with the Triggers'; none was refused")
}

// rotate has the SinkBinding's token renewed, which its controller does half an hour before the end of one.
func rotate(t *testing.T, w *world, f *function) {
	t.Helper()
	binding, err := w.get(t, "sources.knative.dev/v1", "SinkBinding", namespace, "reservation-expiry")
	require.NoError(t, err)
	name, _, _ := unstructured.NestedString(binding.Object, "status", "oidcTokenSecretName")
	secret, err := w.get(t, "v1", "Secret", namespace, name)
	require.NoError(t, err)
	_, account, _ := strings.Cut(w.sender(t, "SinkBinding"), ourAccount)
	ending := w.token(t, namespace, account, 10*time.Minute, claimsOf(t, f.boundToken()).Audience...)
	w.patch(t, secret, map[string]any{"stringData": map[string]any{"token": ending}})
	eventually(t, time.Minute, "the SinkBinding's token is renewed", func() error {
		w.patch(t, binding, map[string]any{"metadata": map[string]any{"annotations": map[string]any{"e2e/looked-at": time.Now().String()}}})
		f.mount()
		if f.boundToken() == ending {
			return fmt.Errorf("it is the one that ends soon")
		}
		return nil
	})
	say(t, "the SinkBinding's controller has renewed its token, and the container has the new one")
}

// strangersAreTurnedAway, by the Broker and by the service, and the operator is let in.
func strangersAreTurnedAway(t *testing.T, w *world, f *function, forBroker string) {
	anHour := time.Hour
	byHand := w.token(t, namespace, operator, anHour, forBroker)
	for _, stranger := range []struct {
		who, to, token string
		status         int
	}{
		{"nobody, to the Broker", broker, "", http.StatusUnauthorized},
		{"the operator for another audience, to the Broker", broker, w.token(t, namespace, operator, anHour, audience), http.StatusUnauthorized},
		{"an account that the EventPolicy does not list, to the Broker", broker, w.token(t, namespace, account, anHour, forBroker), http.StatusForbidden},
		{"nobody, to the service", service, "", http.StatusUnauthorized},
		{"nobody, to the dead-letter sink", service + "/dead-letter", "", http.StatusUnauthorized},
		{"the operator for the Broker, to the service", service, byHand, http.StatusUnauthorized},
		{"an account of another namespace, to the service", service, w.token(t, system, "mt-broker-ingress", anHour, audience), http.StatusForbidden},
	} {
		require.Equal(t, stranger.status, f.post(stranger.to, "stranger", "{}", stranger.token), stranger.who)
		say(t, "%s: %d", stranger.who, stranger.status)
	}
	swept := "select count(*) from expiry.sweeps where outcome = 'completed' and trigger = '" + event.SweepRequested + "'"
	before, err := w.Text(t.Context(), swept)
	require.NoError(t, err)
	eventually(t, time.Minute, "the operator's sweep has run", func() error {
		// Again and again: one that finds a tick's under way is skipped.
		require.Equal(t, http.StatusAccepted, f.post(broker, "by-operator", "{}", byHand))
		now, err := w.Text(t.Context(), swept)
		if err == nil && now == before {
			err = fmt.Errorf("it has not")
		}
		return err
	})
	say(t, "the operator, to the Broker: 202, and the sweep has run")
}

// deadLettersNeedATokenToo: what the service refuses comes to its dead-letter sink with the Trigger's token, and a replay
// goes to the Broker with the service's.
func deadLettersNeedATokenToo(t *testing.T, w *world, f *function, forBroker string) {
	const id = "nonsense"
	require.Equal(t, http.StatusAccepted, f.post(broker, id, `{"dryRun": "perhaps"}`, w.token(t, namespace, operator, time.Hour, forBroker)))
	letter := "select dead_letter_id from expiry.dead_letters where event_id = '" + id + "' limit 1"
	var number string
	eventually(t, time.Minute, "the event is a dead letter", func() (err error) {
		if number, err = w.Text(t.Context(), letter); err == nil && number == "" {
			err = fmt.Errorf("there is none")
		}
		return err
	})
	said := f.run("dead-letters", "replay", number)
	say(t, "a sweep asked for in a way that makes no sense is a dead letter; replay %s: %s", number, strings.TrimSpace(said))
}

// boundToken is the one in the container.
func (f *function) boundToken() string {
	f.t.Helper()
	token, err := os.ReadFile(filepath.Join(f.root, "oidc", "token"))
	require.NoError(f.t, err)
	return string(token)
}

// dryRun asks whether the server would take an object.
func dryRun(t *testing.T, w *world, o *unstructured.Unstructured) error {
	t.Helper()
	resource, err := w.resource(o)
	require.NoError(t, err)
	text, err := json.Marshal(o)
	require.NoError(t, err)
	_, err = resource.Patch(t.Context(), o.GetName(), types.ApplyPatchType, text, metav1.PatchOptions{FieldManager: "kubectl", DryRun: []string{metav1.DryRunAll}})
	return err
}

// issuer is what the API server names itself in tokens: kubectl get --raw /.well-known/openid-configuration.
func (c *cluster) issuer(t *testing.T) string {
	t.Helper()
	text, err := c.CoreV1().RESTClient().Get().AbsPath("/.well-known/openid-configuration").DoRaw(t.Context())
	require.NoError(t, err)
	var found struct{ Issuer string }
	require.NoError(t, json.Unmarshal(text, &found))
	return found.Issuer
}

// sender is as whom a source sends.
func (c *cluster) sender(t *testing.T, kind string) string {
	t.Helper()
	return ourAccount + c.awaitField(t, "sources.knative.dev/v1", kind, "reservation-expiry", "auth", "serviceAccountName")
}

// awaitField waits until an object's status says something, and returns what.
func (c *cluster) awaitField(t *testing.T, apiVersion, kind, name string, field ...string) (value string) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("%s %s has %s", kind, name, strings.Join(field, ".")), func() error {
		o, err := c.get(t, apiVersion, kind, namespace, name)
		if err != nil {
			return err
		}
		if value, _, err = unstructured.NestedString(o.Object, append([]string{"status"}, field...)...); err == nil && value == "" {
			err = fmt.Errorf("it has none")
		}
		return err
	})
	return value
}

// claims are what a token says.
type claims struct {
	Subject  string   `json:"sub"`
	Audience []string `json:"aud"`
}

func claimsOf(t *testing.T, token string) (c claims) {
	t.Helper()
	parts := strings.Split(token, ".")
	require.Len(t, parts, 3, "a token")
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &c))
	return c
}
