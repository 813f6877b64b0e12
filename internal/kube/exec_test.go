package kube_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/pod"
)

var echo = kube.Command{Namespace: "gpu-dev", Pod: "p", Container: "gpu-dev", Argv: []string{"echo", "$HOME; id"}, Timeout: 5 * time.Second}

func TestACommandIsTriedAsWebSocketThenAsSPDY(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var tried []string
	cluster := answering(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		tried = append(tried, fmt.Sprintf("%s %s %s %v", r.Method, strings.ToLower(r.Header.Get("Upgrade")), r.URL.Path, r.URL.Query()["command"]))
		http.Error(w, "no", http.StatusForbidden)
	})
	_, err := cluster.Exec(t.Context(), echo)
	require.Error(t, err)
	require.Equal(t, []string{
		"GET websocket /api/v1/namespaces/gpu-dev/pods/p/exec [echo $HOME; id]",
		"POST spdy/3.1 /api/v1/namespaces/gpu-dev/pods/p/exec [echo $HOME; id]",
	}, tried)
}

func TestWhatMayBeConcludedFromARefusedCommand(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		code   int
		answer *metav1.Status
		want   fault.Kind
	}{
		"no such pod":                       {404, status(404, metav1.StatusReasonNotFound, "pods", "p"), fault.Gone},
		"no such node":                      {404, status(404, metav1.StatusReasonNotFound, "nodes", "p"), fault.Transient},
		"no such container, says a kubelet": {404, nil, fault.Transient},
		"forbidden by the API server":       {403, status(403, metav1.StatusReasonForbidden, "pods", "p"), fault.Permanent},
		"forbidden by something else":       {403, nil, fault.Transient},
		"not started yet":                   {400, status(400, metav1.StatusReasonBadRequest, "", ""), fault.Transient},
		"a node that does not answer":       {500, status(500, metav1.StatusReasonInternalError, "", ""), fault.Transient},
		"unavailable":                       {503, nil, fault.Transient},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := answering(t, func(w http.ResponseWriter, _ *http.Request) {
				if c.answer == nil {
					http.Error(w, "container not found", c.code)
					return
				}
				write(w, c.code, c.answer)
			})
			_, err := cluster.Exec(t.Context(), echo)
			require.ErrorContains(t, err, "exec in pods gpu-dev/p: ")
			require.Equal(t, c.want.String(), fault.KindOf(err).String(), err)
		})
	}
}

func TestACommandThatHangsEndsInTime(t *testing.T) {
	t.Parallel()
	for name, refuseWebSocket := range map[string]bool{"as a WebSocket": false, "as SPDY": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			release := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if refuseWebSocket && r.Header.Get("Upgrade") == "websocket" {
					http.Error(w, "no", http.StatusForbidden)
					return
				}
				<-release
			}))
			t.Cleanup(server.Close)
			t.Cleanup(func() { close(release) })
			command := echo
			command.Timeout = 100 * time.Millisecond
			began := time.Now()
			_, err := at(server.URL, kube.Options{}).Exec(t.Context(), command)
			require.Error(t, err)
			require.Equal(t, fault.Transient, fault.KindOf(err))
			require.Less(t, time.Since(began), 10*time.Second)
		})
	}
}

func TestACommandEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { cancel(); <-release }))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	_, err := at(server.URL, kube.Options{}).Exec(ctx, echo)
	require.ErrorIs(t, err, context.Canceled)
}

func TestFileNamesThatLeadElsewhereAreRefusedUnsent(t *testing.T) {
	t.Parallel()
	sent := 0
	cluster := answering(t, func(http.ResponseWriter, *http.Request) { sent++ })
	for _, f := range []pod.File{
		{Dir: "/home/dev"},
		{Dir: "/home/dev", Name: "../x"},
		{Dir: "/home/dev", Name: "."},
		{Dir: "/home/dev", Name: "-rf"},
		{Dir: "/home/dev", Name: "a\x00b"},
		{Dir: "/home/dev", Name: "a\nb"},
		{Dir: "/home/dev", Name: strings.Repeat("a", 201)},
		{Dir: "/home/dev", Name: "a", Replaces: "../"},
		{Dir: "/home/dev", Name: "a", Replaces: ".b"},
		{Dir: "home", Name: "a"},
		{Name: "a"},
	} {
		err := cluster.WriteFile(t.Context(), "gpu-dev", "p", "gpu-dev", f)
		require.Equal(t, fault.Permanent.String(), fault.KindOf(err).String(), "%+v: %v", f, err)
	}
	require.Zero(t, sent)
}

// client-go takes a stream that is closed before the exit code has come for a success.
func TestAStreamClosedEarlyIsNoSuccess(t *testing.T) {
	t.Parallel()
	saying := func(stdout string) *kube.Cluster {
		return answering(t, func(w http.ResponseWriter, r *http.Request) {
			upgrader := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
			conn, err := upgrader.Upgrade(w, r, nil)
			if !assert.NoError(t, err) {
				return
			}
			_ = conn.WriteMessage(websocket.BinaryMessage, append([]byte{1}, stdout...))
			_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
			_, _, _ = conn.ReadMessage()
			_ = conn.Close()
		})
	}
	write := func(c *kube.Cluster) error {
		return c.WriteFile(t.Context(), "gpu-dev", "p", "gpu-dev", pod.File{Dir: "/home/dev", Name: "a.txt", Content: "x"})
	}
	err := write(saying(""))
	require.ErrorContains(t, err, "the stream ended early")
	require.Equal(t, fault.Transient, fault.KindOf(err))
	require.NoError(t, write(saying("written\n")))

	for said, want := range map[string]pod.Listing{
		"":                        {},
		"1.2":                     {},
		"1.2G\t.\n":               {Size: "1.2G"},
		".\x00./a\x00":            {},
		".\x00./a\x00./b":         {},
		".\x00./a\x00./b\x00\x00": {Tree: "a\nb\n"},
	} {
		listing, err := saying(said).RunListing(t.Context(), "gpu-dev", "p", "gpu-dev", "/home/dev")
		require.Error(t, err, "at least one half is missing")
		require.Equal(t, want, listing, "%q", said)
		require.Equal(t, fault.Transient, fault.KindOf(err))
	}
}
