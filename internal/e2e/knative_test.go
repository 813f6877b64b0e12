//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	ec2 "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
	"gpudev.internal/reservation-expiry/internal/event"
)

const (
	ingress  = "broker-ingress.knative-eventing"
	broker   = "http://" + ingress + ".svc.cluster.local/" + namespace + "/reservation-expiry"
	schedule = "*/10 * * * * *" // of ticks, in place of every five minutes
)

// TestKnative follows reservations through Knative's own components, under the manifests of overlay dev as they are, and
// then with the component knative/oidc. Knative Serving alone is played: the function is a process that is started with
// what the Knative Service says.
func TestKnative(t *testing.T) {
	w := newWorld(t)
	k := installEventing(t, w.cluster, w.network)
	f := deploy(t, w, k)
	f.up()

	ticksEndAReservation(t, w)
	killedInMidDelivery(t, w, f)
	tokensAreAsked(t, w, f)
	nothingIsForbidden(t, w)
}

// deploy applies overlay dev and waits until Knative says that all of it is ready.
func deploy(t *testing.T, w *world, k *eventing) *function {
	t.Helper()
	say(t, "applying knative/overlays/dev, strictly and through Knative's webhooks")
	w.apply(t, kustomize(t, "knative/overlays/dev"), metav1.FieldValidationStrict)
	f := playServing(t, w)
	k.runPingSources(t)
	b := w.awaitReady(t, "eventing.knative.dev/v1", "Broker", namespace, "reservation-expiry")
	address, _, _ := unstructured.NestedString(b.Object, "status", "address", "url")
	require.Equal(t, broker, address)
	for _, o := range kustomize(t, "knative/overlays/dev") {
		switch o.GetKind() {
		case "Trigger", "PingSource", "SinkBinding":
			w.awaitReady(t, o.GetAPIVersion(), o.GetKind(), namespace, o.GetName())
		}
	}
	template, _, _ := unstructured.NestedMap(w.knativeService(t).Object, "spec", "template")
	require.Equal(t, address, w.containerEnviron(t, template)["K_SINK"], "the SinkBinding has told the service where its Broker is")
	say(t, "Broker, eight Triggers, PingSource and SinkBinding are ready; K_SINK is %s", address)
	return f
}

// ticksEndAReservation: a PingSource's own ticks reach the function, and what it sends itself comes back.
func ticksEndAReservation(t *testing.T, w *world) {
	warned := server(t, w, platform.Reservation{User: "bob", EndsIn: 25 * time.Minute})
	ended := server(t, w, platform.Reservation{User: "ada", Disk: "home", Domain: "happy-bear", EndsIn: -3 * time.Minute})
	tickAt(t, w, schedule)
	say(t, "two reservations are set up, one near its end and one past it; the PingSource ticks every ten seconds")

	w.is(t, time.Minute, ended, status, "expired")
	firstDecision(t, w, ended)
	w.is(t, time.Minute, warned, warnings, `{"30min_warning_sent": true}`)
	note, err := w.ExecInPod(t.Context(), warned.Pod, "cat", "/home/dev/WARN_EXPIRES_IN_30MIN.txt")
	require.NoError(t, err)
	require.Contains(t, note, "gpu-dev edit")
	say(t, "bob is warned: %q lies in his pod", "WARN_EXPIRES_IN_30MIN.txt")

	w.is(t, 2*time.Minute, ended, outcome, "released")
	w.is(t, time.Second, ended, inUse, "false")
	w.is(t, time.Second, ended, "select count(*) from expiry.snapshots where reservation_id = $1 and state = 'completed'", "1")
	records, err := w.Records(t.Context(), ended.Domain)
	require.NoError(t, err)
	require.Empty(t, records)
	volumes, err := w.Volumes(t.Context())
	require.NoError(t, err)
	require.False(t, slices.ContainsFunc(volumes, func(v ec2.Volume) bool { return *v.VolumeId == ended.Volume }))
	say(t, "ada's reservation is expired and cleaned up: one snapshot, no volume, no names; her disk is free")

	path := w.network.seen(ingress, func(h hop) bool { return h.Type == event.CleanupRequested && h.Status == http.StatusAccepted })
	require.NotEmpty(t, path, "the follow-up went to the Broker")
	delivered := w.network.seen(serviceName, func(h hop) bool { return h.ID == path[0].ID && h.Status == http.StatusAccepted })
	require.NotEmpty(t, delivered, "and came back from it")
	say(t, "cleanup %s went to the Broker and came back after %d ms", path[0].ID, delivered[0].At.Sub(path[0].At).Milliseconds())
	require.Empty(t, w.network.seen(serviceName, func(h hop) bool { return event.IsFact(h.Type) }), "no Trigger brings the service its own facts")
	require.NotEmpty(t, w.network.seen(ingress, func(h hop) bool { return h.Type == event.ReservationCleanedUp }), "though others could have them")
}

// server sets up a reservation with all that stands behind it.
func server(t *testing.T, w *world, r platform.Reservation) platform.Server {
	t.Helper()
	s, err := w.Reserve(t.Context(), r)
	require.NoError(t, err)
	if r.Disk != "" {
		require.NoError(t, w.AttachDisk(t.Context(), &s))
	}
	require.NoError(t, w.Start(t.Context(), &s))
	if r.Domain != "" {
		require.NoError(t, w.Publish(t.Context(), s))
		require.NoError(t, w.Route(t.Context(), &s))
	}
	return s
}

// firstDecision prints how long the tick took that ended a reservation.
func firstDecision(t *testing.T, w *world, s platform.Server) {
	t.Helper()
	var decided time.Time
	require.NoError(t, w.SQL.QueryRow(t.Context(),
		"select occurred_at from expiry.facts where subject = $1 and type = $2", s.ID, event.ReservationExpired).Scan(&decided))
	eventually(t, 10*time.Second, "the tick is answered", func() error {
		brought := w.network.seen(serviceName, func(h hop) bool { return h.Type == event.Ping && h.At.Before(decided) && h.Done.After(decided) })
		if len(brought) == 0 {
			return fmt.Errorf("no tick was under way at %s", decided)
		}
		sent := w.network.seen(ingress, func(h hop) bool { return h.ID == brought[0].ID })
		require.NotEmpty(t, sent)
		say(t, "tick → first decision: %d ms (tick → function %d ms, function → ada's row %d ms)", decided.Sub(sent[0].At).Milliseconds(),
			brought[0].At.Sub(sent[0].At).Milliseconds(), decided.Sub(brought[0].At).Milliseconds())
		return nil
	})
}

// killedInMidDelivery: the Broker brings again what nobody has answered, and gives up on what it cannot bring for long,
// which comes to lie in the dead-letter sink and is replayed.
func killedInMidDelivery(t *testing.T, w *world, f *function) {
	ended := server(t, w, platform.Reservation{User: "cleo", Disk: "work", EndsIn: -3 * time.Minute})
	slow := []byte(`{"metadata":{"annotations":{"devcluster/stop-after":"20s"}}}`) // so that its cleanup is at work for a while
	_, err := w.CoreV1().Pods(platform.Namespace).Patch(t.Context(), ended.Pod, types.MergePatchType, slow, metav1.PatchOptions{})
	require.NoError(t, err)
	var key string
	eventually(t, time.Minute, "cleo's cleanup is being delivered", func() (err error) {
		key, err = w.Text(t.Context(), `
			select f.key from expiry.follow_ups f join expiry.cleanups c using (reservation_id)
			where f.reservation_id = $1 and f.kind = 'cleanup' and f.lease_expires_at > clock_timestamp() and c.pod_uid is not null`, ended.ID)
		if err == nil && key == "" {
			err = fmt.Errorf("nobody holds it")
		}
		return err
	})
	f.kill()
	killed := time.Now()
	say(t, "kill -9 while cleo's cleanup is under way; nobody is there to answer now")

	cut := w.network.seen(serviceName, func(h hop) bool {
		return h.Type == event.CleanupRequested && h.At.After(killed.Add(-time.Minute)) && h.Status == 0
	})
	require.NotEmpty(t, cut, "the delivery was cut off")
	byHand := askForSweep(t, f)
	trigger, err := w.get(t, "eventing.knative.dev/v1", "Trigger", namespace, "sweep")
	require.NoError(t, err)
	retries, _, err := unstructured.NestedInt64(trigger.Object, "spec", "delivery", "retry")
	require.NoError(t, err)
	eventually(t, time.Minute, "the Broker has given up on a sweep asked for by hand", func() error {
		tries := w.network.seen(serviceName, func(h hop) bool { return h.ID == byHand && h.Path != "/dead-letter" })
		if len(tries) <= int(retries) {
			return fmt.Errorf("it was tried %d times", len(tries))
		}
		return nil
	})
	say(t, "the Broker has tried to bring a sweep asked for by hand 1 + %d times in %d s, as its Trigger says", retries, int(time.Since(killed).Seconds()))
	f.up()

	eventually(t, time.Minute, "the Broker brings cleo's cleanup again", func() error {
		again := w.network.seen(serviceName, func(h hop) bool { return h.ID == cut[0].ID && h.At.After(killed) && h.Status == http.StatusAccepted })
		if len(again) == 0 {
			return fmt.Errorf("it has not")
		}
		say(t, "the Broker has brought cleo's cleanup again, %d s after the kill", int(again[0].At.Sub(killed).Seconds()))
		return nil
	})
	replayed(t, w, f, byHand)

	say(t, "cleo's cleanup is finished once the dead instance's lease has lapsed (2 min) and a tick has asked for it anew (4 min)")
	w.is(t, 7*time.Minute, ended, outcome, "released")
	w.is(t, time.Second, ended, inUse, "false")
	say(t, "cleo's disk is free, %d s after the kill", int(time.Since(killed).Seconds()))
}

// askForSweep posts to the Broker as a person would, and returns the event's id.
func askForSweep(t *testing.T, f *function) (id string) {
	t.Helper()
	id = "by-hand-" + strings.ToLower(t.Name())
	require.Equal(t, http.StatusAccepted, f.post(broker, id, "{}", ""))
	return id
}

// replayed: what the Broker gave up on lies in the dead-letter sink, and a person sends it again.
func replayed(t *testing.T, w *world, f *function, id string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	letter := "select dead_letter_id from expiry.dead_letters where event_id = '" + id + "'"
	var number string
	eventually(t, time.Minute, "the event is a dead letter", func() (err error) {
		if number, err = w.Text(ctx, letter); err == nil && number == "" {
			err = fmt.Errorf("there is none")
		}
		return err
	})
	listed := f.run("dead-letters", "list")
	require.Contains(t, listed, strings.TrimPrefix(event.SweepRequested, "dev.gpudev."))
	say(t, "reservation-expiry dead-letters list:\n%s", strings.TrimRight(listed, "\n"))
	said := f.run("dead-letters", "replay", number)
	say(t, "reservation-expiry dead-letters replay %s: %s", number, strings.TrimSpace(said))
	eventually(t, time.Minute, "the sweep that was asked for by hand has run", func() error {
		runs, err := w.Text(ctx, "select count(*) from expiry.sweeps where trigger = '"+event.SweepRequested+"' and outcome = 'completed'")
		if err == nil && runs == "0" {
			err = fmt.Errorf("it has not")
		}
		return err
	})
	say(t, "replayed, it came through the Broker to the function and was swept")
}

// nothingIsForbidden: all of this was done with the rights that are shipped.
func nothingIsForbidden(t *testing.T, w *world) {
	t.Helper()
	used, forbidden := w.audited(t, "kubernetes-audit*.log")
	require.Empty(t, forbidden)
	require.NotEmpty(t, used)
	say(t, "the ServiceAccount was refused nothing by the Kubernetes API; it did: %s", strings.Join(slices.Sorted(maps.Keys(used)), ", "))
	may := allowed(t)
	for action := range w.aws.called {
		require.True(t, may[action], "the IAM policy does not allow %s", action)
	}
	say(t, "the IAM policy allows all it called of AWS: %s", strings.Join(slices.Sorted(maps.Keys(w.aws.called)), ", "))
}
