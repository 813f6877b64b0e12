package kube_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/kube"
)

func TestAListIsReadPageByPage(t *testing.T) {
	t.Parallel()
	pages := map[string]*corev1.PodList{"": podPage("a", "p1", "p2"), "a": podPage("b", "p3"), "b": podPage("", "p4")}
	cluster := answering(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/api/v1/namespaces/gpu-dev/pods" || q.Get("limit") != "500" || q.Has("resourceVersion") {
			http.Error(w, r.URL.String(), http.StatusTeapot)
			return
		}
		write(w, 200, pages[q.Get("continue")])
	})
	pods, err := cluster.ListPods(t.Context(), "gpu-dev")
	require.NoError(t, err)
	require.Len(t, pods, 4)
	for i, p := range pods {
		require.Equal(t, fmt.Sprintf("p%d", i+1), p.Name)
	}
}

func TestAnEmptyListIsJustReturned(t *testing.T) {
	t.Parallel()
	pods, err := answering(t, func(w http.ResponseWriter, _ *http.Request) { write(w, 200, podPage("")) }).ListPods(t.Context(), "gpu-dev")
	require.NoError(t, err)
	require.Empty(t, pods)
}

func TestAListIsWholeOrAnError(t *testing.T) {
	t.Parallel()
	expired := status(410, metav1.StatusReasonExpired, "", "")
	for name, c := range map[string]struct {
		// second answers for the second page, the count being of its requests.
		second func(w http.ResponseWriter, count int)
		want   []string
	}{
		"the snapshot expires once: it begins anew": {func(w http.ResponseWriter, count int) {
			if count == 1 {
				write(w, 410, expired)
				return
			}
			write(w, 200, podPage("", "p2"))
		}, []string{"p1", "p2"}},
		"the snapshot expires each time": {func(w http.ResponseWriter, _ int) { write(w, 410, expired) }, nil},
		"the second page fails": {func(w http.ResponseWriter, _ int) {
			write(w, 500, status(500, metav1.StatusReasonInternalError, "", ""))
		}, nil},
		"the second page is none":       {func(w http.ResponseWriter, _ int) { write(w, 200, map[string]string{}) }, nil},
		"the second page comes forever": {func(w http.ResponseWriter, _ int) { write(w, 200, podPage("more", "p2")) }, nil},
		"the second page is of services": {func(w http.ResponseWriter, _ int) {
			write(w, 200, corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			count := 0
			cluster := answering(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("continue") == "" {
					write(w, 200, podPage("more", "p1"))
					return
				}
				count++
				c.second(w, count)
			})
			pods, err := cluster.ListPods(t.Context(), "gpu-dev")
			if c.want == nil {
				require.Error(t, err)
				require.Equal(t, fault.Transient, fault.KindOf(err))
				require.Nil(t, pods)
				return
			}
			require.NoError(t, err)
			var names []string
			for _, p := range pods {
				names = append(names, p.Name)
			}
			require.Equal(t, c.want, names)
		})
	}
}

func TestProtobufIsAskedForAndTheTransportCanBeWrapped(t *testing.T) {
	t.Parallel()
	var seen []string
	cluster := answeringWrapped(t, &seen)
	_, err := cluster.GetPod(t.Context(), "gpu-dev", "p")
	require.NoError(t, err)
	require.Equal(t, []string{"GET /api/v1/namespaces/gpu-dev/pods/p application/vnd.kubernetes.protobuf,application/json reservation-expiry"}, seen)
}

func TestADeletionNamesTheUIDAndTheGracePeriod(t *testing.T) {
	t.Parallel()
	var bodies []string
	cluster := answering(t, func(w http.ResponseWriter, r *http.Request) {
		o, err := deleteOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		grace := "none"
		if o.GracePeriodSeconds != nil {
			grace = fmt.Sprint(*o.GracePeriodSeconds)
		}
		bodies = append(bodies, fmt.Sprintf("%s %s uid=%s grace=%s", r.Method, r.URL.Path, *o.Preconditions.UID, grace))
		write(w, 200, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Success"})
	})
	ctx := t.Context()
	require.NoError(t, cluster.DeletePod(ctx, "gpu-dev", "p", "u", 30*time.Second))
	require.NoError(t, cluster.ForceDeletePod(ctx, "gpu-dev", "p", "u"))
	require.NoError(t, cluster.DeleteService(ctx, "gpu-dev", "s", "u"))
	require.NoError(t, cluster.DeleteClaim(ctx, "gpu-dev", "c", "u"))
	require.NoError(t, cluster.DeleteVolume(ctx, "v", "u"))
	require.Equal(t, []string{
		"DELETE /api/v1/namespaces/gpu-dev/pods/p uid=u grace=30",
		"DELETE /api/v1/namespaces/gpu-dev/pods/p uid=u grace=0",
		"DELETE /api/v1/namespaces/gpu-dev/services/s uid=u grace=none",
		"DELETE /api/v1/namespaces/gpu-dev/persistentvolumeclaims/c uid=u grace=none",
		"DELETE /api/v1/persistentvolumes/v uid=u grace=none",
	}, bodies)
}

func TestWhatCouldReachSomethingElseIsRefusedUnsent(t *testing.T) {
	t.Parallel()
	sent := 0
	cluster := answering(t, func(http.ResponseWriter, *http.Request) { sent++ })
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"delete without a UID":          func() error { return cluster.DeletePod(ctx, "gpu-dev", "p", "", time.Minute) },
		"delete without a name":         func() error { return cluster.DeletePod(ctx, "gpu-dev", "", "u", time.Minute) },
		"delete without a namespace":    func() error { return cluster.DeletePod(ctx, "", "p", "u", time.Minute) },
		"delete without a grace period": func() error { return cluster.DeletePod(ctx, "gpu-dev", "p", "u", 999*time.Millisecond) },
		"a volume without a name":       func() error { return cluster.DeleteVolume(ctx, "", "u") },
		"a name with a slash":           func() error { _, err := cluster.GetPod(ctx, "gpu-dev", "a/b"); return err },
		"a name that leads up":          func() error { _, err := cluster.GetPod(ctx, "gpu-dev", ".."); return err },
		"a namespace that leads up":     func() error { _, err := cluster.GetPod(ctx, "..", "p"); return err },
		"a list of every namespace":     func() error { _, err := cluster.ListPods(ctx, ""); return err },
		"a command in no pod": func() error {
			_, err := cluster.Exec(ctx, kube.Command{Namespace: "gpu-dev", Argv: []string{"true"}})
			return err
		},
		"a command in a name with a slash": func() error {
			_, err := cluster.Exec(ctx, kube.Command{Namespace: "gpu-dev", Pod: "a/b", Argv: []string{"true"}})
			return err
		},
	} {
		require.Equal(t, fault.Permanent.String(), fault.KindOf(call()).String(), name)
	}
	require.Zero(t, sent)
}
