//go:build e2e

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// What a test shortens of the manifest, which has 15 s and 60 s; all else is as shipped.
const (
	polling  = 2
	cooldown = 10
)

// TestKEDA follows reservations through KEDA's own operator, under the manifests of keda/scaled. What no kubelet and no
// Deployment controller does here, the test does: it keeps as many processes as the Deployment says.
func TestKEDA(t *testing.T) {
	w := newWorld(t)
	installKEDA(t, w.cluster)
	d := deployScaled(t, w)

	dueWorkWakesIt(t, w, d)
	fullAtTheMaximum(t, w, d)
	nothingIsForbidden(t, w)
}

// installKEDA starts the operator as its own manifests have it, but for certificates that others would ask it for.
func installKEDA(t *testing.T, c *cluster) {
	t.Helper()
	config := filepath.Join(module(t, "keda", "github.com/kedacore/keda/v2"), "config")
	say(t, "KEDA v2.21.0: applying its own definitions and roles, starting its operator")
	for _, dir := range []string{"general", "crd/bases", "service_account", "rbac"} {
		for _, o := range manifests(t, filepath.Join(config, filepath.FromSlash(dir))) {
			if o.GetKind() != "Kustomization" {
				c.apply(t, []*unstructured.Unstructured{o}, metav1.FieldValidationStrict)
			}
		}
	}
	start(t, "keda-operator", []string{
		"KUBECONFIG=" + c.login(t, "keda", "keda-operator"), "WATCH_NAMESPACE=", "POD_NAMESPACE=keda", "POD_NAME=keda-operator",
		"KEDA_CLUSTER_OBJECT_NAMESPACE=keda",
	}, filepath.Join(stacktest.Env(t, "STACK_KEDA_BIN"), "operator"), "--zap-log-level=info", "--zap-encoder=console",
		"--metrics-bind-address="+local(freePort(t)), "--health-probe-bind-address="+local(freePort(t)),
		"--metrics-service-bind-address="+local(freePort(t)), "--cert-dir="+certificate(t))
}

// certificate makes a folder with a certificate that has signed itself, for a server that nobody asks anything here.
func certificate(t *testing.T) string {
	t.Helper()
	dir, of := t.TempDir(), &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	signed, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{
		"ca.crt": {Type: "CERTIFICATE", Bytes: signed}, "tls.crt": {Type: "CERTIFICATE", Bytes: signed}, "tls.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
	return dir
}

// deployScaled applies keda/scaled while the service is paused, as one does, and waits until it is at zero.
func deployScaled(t *testing.T, w *world) *deployment {
	t.Helper()
	_, err := w.SQL.Exec(t.Context(), "insert into expiry.pause (paused_at, why) values (clock_timestamp(), 'moving over')")
	require.NoError(t, err)
	all := kustomize(t, "keda/scaled")
	say(t, "applying keda/scaled, strictly; only polling (%d s) and cooldown (%d s) are shorter, and the database is another", polling, cooldown)
	for _, o := range all {
		if o.GetKind() == "ScaledObject" {
			shorten(o)
		}
	}
	w.apply(t, all[:1], metav1.FieldValidationStrict) // the namespace
	w.secret(t, "reservation-expiry-postgres-keda", map[string]string{"connection": counting(t, w)})
	password, _ := w.database.User.Password()
	w.secret(t, "reservation-expiry-postgres", map[string]string{"username": w.database.User.Username(), "password": password})
	w.apply(t, all, metav1.FieldValidationStrict)
	t.Cleanup(func() { w.withdraw(t, all) }) // the operator, which has to let go of the ScaledObject, still runs then

	d := playDeployment(t, w)
	w.awaitReady(t, "keda.sh/v1alpha1", "ScaledObject", namespace, "reservation-expiry")
	d.await(0, time.Minute)
	say(t, "paused and with nothing begun, KEDA has it at zero")
	return d
}

// withdraw deletes what would be in another test's way.
func (w *world) withdraw(t *testing.T, all []*unstructured.Unstructured) {
	t.Helper()
	for _, o := range all {
		switch o.GetKind() {
		case "ScaledObject", "TriggerAuthentication", "Deployment", "Service", "NetworkPolicy":
			resource, err := w.resource(o)
			require.NoError(t, err)
			require.NoError(t, resource.Delete(context.Background(), o.GetName(), metav1.DeleteOptions{}), "%s %s", o.GetKind(), o.GetName())
		}
	}
}

// shorten changes the ScaledObject as an overlay would.
func shorten(o *unstructured.Unstructured) {
	spec := o.Object["spec"].(map[string]any)
	spec["pollingInterval"], spec["cooldownPeriod"] = int64(polling), int64(cooldown)
}

// counting makes the role that sees one number, by the SQL that docs/deploying.md has for it, and returns how it connects.
func counting(t *testing.T, w *world) string {
	t.Helper()
	super, err := pgx.Connect(t.Context(), stacktest.Env(t, "STACK_POSTGRES_URL"))
	require.NoError(t, err)
	defer func() { _ = super.Close(t.Context()) }()
	login := url.UserPassword("reservation_expiry_keda", "e2e")
	_, err = super.Exec(t.Context(), "create role "+login.Username()+" login password 'e2e'")
	if duplicate := (*pgconn.PgError)(nil); !errors.As(err, &duplicate) || duplicate.Code != "42710" { // left by a run that failed
		require.NoError(t, err)
	}
	_, err = w.SQL.Exec(t.Context(), "grant usage on schema expiry to "+login.Username())
	require.NoError(t, err)
	_, err = w.SQL.Exec(t.Context(), "grant select on expiry.due_work to "+login.Username())
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = w.SQL.Exec(context.Background(), "drop owned by "+login.Username()) })
	direct, err := url.Parse(stacktest.Env(t, "STACK_POSTGRES_URL"))
	require.NoError(t, err)
	direct.User, direct.Path, direct.RawQuery = login, w.database.Path, "sslmode=disable&default_query_exec_mode=exec"
	return direct.String()
}

func (c *cluster) secret(t *testing.T, name string, data map[string]string) {
	t.Helper()
	_, err := c.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data,
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.CoreV1().Secrets(namespace).Delete(context.Background(), name, metav1.DeleteOptions{}) })
}

// dueWorkWakesIt: 0 → 1 → 0, and in between a reservation ends.
func dueWorkWakesIt(t *testing.T, w *world, d *deployment) {
	warned := server(t, w, platform.Reservation{User: "bob", EndsIn: 25 * time.Minute})
	ended := server(t, w, platform.Reservation{User: "ada", Disk: "home", Domain: "happy-bear", EndsIn: -3 * time.Minute})
	say(t, "two reservations are set up, one near its end and one past it, and the service is resumed")
	due := time.Now()
	_, err := w.SQL.Exec(t.Context(), "delete from expiry.pause")
	require.NoError(t, err)

	d.await(1, time.Minute)
	say(t, "due → replicas 1: %d ms", time.Since(due).Milliseconds())
	w.is(t, time.Minute, ended, status, "expired")
	var decided time.Time
	require.NoError(t, w.SQL.QueryRow(t.Context(),
		"select occurred_at from expiry.facts where subject = $1 and type = $2", ended.ID, event.ReservationExpired).Scan(&decided))
	say(t, "due → first decision: %d ms (start → ready %d ms)", decided.Sub(due).Milliseconds(), d.startToReady().Milliseconds())
	w.is(t, time.Minute, warned, warnings, `{"30min_warning_sent": true}`)
	w.is(t, 3*time.Minute, ended, outcome, "released")
	w.is(t, time.Second, ended, inUse, "false")
	settled := time.Now()
	for _, kind := range []string{event.WarningRequested, event.CleanupRequested} {
		require.NotEmpty(t, w.network.seen(serviceName, func(h hop) bool { return h.Type == kind && h.Status == http.StatusAccepted }),
			"%s went through the Service", kind)
	}
	require.Empty(t, w.network.seen(serviceName, func(h hop) bool { return event.IsFact(h.Type) }))
	say(t, "bob is warned, ada's disk is free: %d ms after they were due; all follow-ups went through the Service", settled.Sub(due).Milliseconds())

	d.await(0, 2*time.Minute)
	say(t, "settled → replicas 0: %d ms, at a cooldown of %d s", time.Since(settled).Milliseconds(), cooldown)
	d.gone()
}

// fullAtTheMaximum: more to do than all instances together do at once, with two of them lost in mid-work, one by scale-in
// and one by kill -9. The horizontal autoscaler is played by its formula, within the bounds of the one that KEDA made.
func fullAtTheMaximum(t *testing.T, w *world, d *deployment) {
	const reservations, withDisk = 48, 6
	hpa, err := w.AutoscalingV2().HorizontalPodAutoscalers(namespace).Get(t.Context(), "keda-hpa-reservation-expiry", metav1.GetOptions{})
	require.NoError(t, err)
	each := hpa.Spec.Metrics[0].External.Target.AverageValue.Value()
	require.EqualValues(t, 4, hpa.Spec.MaxReplicas)
	require.EqualValues(t, 8, each)
	require.Greater(t, int64(reservations), int64(hpa.Spec.MaxReplicas)*each, "there is more to do than fits")

	var ended []platform.Server
	for n := range reservations {
		r := platform.Reservation{User: fmt.Sprintf("user-%d", n), EndsIn: -3 * time.Minute}
		if n < withDisk {
			r.Disk = "home"
		}
		ended = append(ended, server(t, w, r))
	}
	slow := []byte(`{"metadata":{"annotations":{"devcluster/stop-after":"5s"}}}`) // so that a cleanup is at work for a while
	for _, s := range ended {
		_, err := w.CoreV1().Pods(platform.Namespace).Patch(t.Context(), s.Pod, types.MergePatchType, slow, metav1.PatchOptions{})
		require.NoError(t, err)
	}
	_, err = w.SQL.Exec(t.Context(), "update expiry.sweeps set started_at = started_at - interval '5 minutes'")
	require.NoError(t, err)
	due := time.Now()
	say(t, "%d reservations are past their end, and the next sweep is due", reservations)

	most, scaled := 0, make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		defer close(scaled)
		most = d.autoscale(ctx, hpa.Spec.MaxReplicas, each)
	}()
	eventually(t, 2*time.Minute, "all instances are full of work", func() error {
		if live, leased := len(d.live()), w.counted(t, leasedCleanups); live < int(hpa.Spec.MaxReplicas) || leased < 2*int(each) {
			return fmt.Errorf("%d instances hold %d cleanups", live, leased)
		}
		return nil
	})
	say(t, "%d instances hold %d cleanups; kill -9 one of them, and SIGTERM another", len(d.live()), w.counted(t, leasedCleanups))
	live := d.live()
	d.crash(live[0])
	d.evict(live[1])

	const unsettled = "expiry.cleanups where settled_at is null"
	eventually(t, 6*time.Minute, "all is cleaned up", func() error {
		if n, all := w.counted(t, unsettled), w.counted(t, "expiry.cleanups where reason is not null"); n > 0 || all < reservations+1 {
			return fmt.Errorf("%d of %d are not", n, all)
		}
		return nil
	})
	say(t, "all are cleaned up %.1f s after they were due, by up to %d instances", time.Since(due).Seconds(), hpa.Spec.MaxReplicas)
	stop()
	<-scaled
	require.EqualValues(t, hpa.Spec.MaxReplicas, most)
	doneOnce(t, w, ended, withDisk)

	settled := time.Now()
	d.await(0, 3*time.Minute)
	say(t, "settled → replicas 0: %d ms", time.Since(settled).Milliseconds())
	d.gone()
}

// leasedCleanups are at work at the moment.
const leasedCleanups = "expiry.follow_ups where kind = 'cleanup' and state = 'due' and lease_expires_at > clock_timestamp()"

// doneOnce looks for what may be done once only: what was announced, and what data are made and destroyed by.
func doneOnce(t *testing.T, w *world, ended []platform.Server, withDisk int) {
	t.Helper()
	for n, s := range ended {
		w.is(t, time.Second, s, status, "expired")
		for _, fact := range []string{event.ReservationExpired, event.ReservationCleanedUp} {
			require.Equal(t, 1, w.counted(t, "expiry.facts where subject = $1 and type = $2", s.ID, fact), "%s of %s", fact, s.User)
		}
		if n >= withDisk {
			w.is(t, time.Second, s, outcome, "nothing_to_keep")
			continue
		}
		w.is(t, time.Second, s, outcome, "released")
		w.is(t, time.Second, s, inUse, "false")
		require.Equal(t, 1, w.counted(t, "expiry.snapshots where reservation_id = $1 and state = 'completed'", s.ID))
		require.Equal(t, 1, w.counted(t, "disks where user_id = $1 and snapshot_count = 1", s.User), "counted once")
	}
	calls, err := w.Calls(t.Context())
	require.NoError(t, err)
	made := map[string]int{}
	for _, call := range calls {
		if call.Action == "ec2:CreateSnapshot" {
			made[call.Params["VolumeId"]]++
		}
	}
	require.Len(t, made, withDisk+1)
	for volume, n := range made {
		require.Equal(t, 1, n, "snapshots asked for of %s", volume)
	}
	volumes, err := w.Volumes(t.Context())
	require.NoError(t, err)
	for _, volume := range volumes {
		require.Empty(t, volume.Tags, "only instances' own volumes are left")
	}
	say(t, "each was expired, cleaned up and announced once; of each disk one snapshot was asked for, completed and counted")
}

// counted returns how many rows a query counts.
func (w *world) counted(t *testing.T, query string, args ...any) (n int) {
	t.Helper()
	require.NoError(t, w.SQL.QueryRow(t.Context(), "select count(*) from "+query, args...).Scan(&n))
	return n
}
