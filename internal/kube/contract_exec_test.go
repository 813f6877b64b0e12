package kube_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/pod"
)

// withoutWebSockets is a way to the real API server that refuses WebSockets, as some proxies do. It counts what it saw
// of each protocol.
func withoutWebSockets(t *testing.T, config *rest.Config) (c *rest.Config, refused, spdy *atomic.Int32) {
	t.Helper()
	server, err := url.Parse(config.Host)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(config.CAData))
	refused, spdy = new(atomic.Int32), new(atomic.Int32)
	over, end := context.WithCancel(context.Background())
	var copying sync.WaitGroup
	between := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			refused.Add(1)
			http.Error(w, "<h1>no WebSockets here</h1>", http.StatusForbidden)
			return
		}
		spdy.Add(1)
		there, err := tls.Dial("tcp", server.Host, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
		if !assert.NoError(t, err) {
			return
		}
		defer there.Close()
		here, _, err := w.(http.Hijacker).Hijack()
		if !assert.NoError(t, err) {
			return
		}
		defer here.Close()
		copying.Add(1)
		defer copying.Done()
		defer context.AfterFunc(over, func() { // a command that was given up keeps its connection
			_, _ = here.Close(), there.Close()
		})()
		_ = r.Write(there)
		copying.Go(func() {
			_, _ = io.Copy(there, here)
			_ = there.CloseWrite()
		})
		// To the server's last byte: httputil.ReverseProxy drops the end where a late byte of the client's finds no reader.
		_, _ = io.Copy(here, there)
	}))
	t.Cleanup(func() {
		end()
		copying.Wait()
		between.Close()
	})
	return &rest.Config{Host: between.URL, BearerToken: config.BearerToken}, refused, spdy
}

// bothProtocols runs a test over a WebSocket and, where those are refused on the way, over SPDY.
func bothProtocols(t *testing.T, test func(t *testing.T, w world)) {
	t.Helper()
	t.Run("WebSocket", func(t *testing.T) {
		t.Parallel()
		test(t, newWorldWithPod(t))
	})
	t.Run("SPDY", func(t *testing.T) {
		t.Parallel()
		w := newWorldWithPod(t)
		config, refused, spdy := withoutWebSockets(t, w.stack.Config)
		w.Cluster = loggedIn(config)
		test(t, w)
		require.Positive(t, refused.Load())
		require.Equal(t, refused.Load(), spdy.Load(), "each command ran once")
	})
}

// newWorldWithPod has pod gpu-dev-1, ready for commands: its node knows that a moment later than the API server.
func newWorldWithPod(t *testing.T) world {
	t.Helper()
	w := newWorld(t)
	w.stack.CreatePod("gpu-dev-1", withHome)
	eventually(t, func(c *assert.CollectT) {
		_, err := w.Exec(t.Context(), w.command("true"))
		require.NoError(c, err)
	})
	return w
}

func withHome(p *corev1.Pod) {
	p.Spec.Volumes = []corev1.Volume{{Name: "home", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "home", MountPath: "/home/dev"}}
}

func (w world) command(argv ...string) kube.Command {
	return kube.Command{Namespace: w.namespace, Pod: "gpu-dev-1", Container: "gpu-dev", Argv: argv, Limit: 1 << 20, Timeout: 15 * time.Second}
}

func TestContractExec(t *testing.T) {
	t.Parallel()
	bothProtocols(t, func(t *testing.T, w world) {
		ctx := t.Context()
		output, err := w.Exec(ctx, w.command("echo", "$HOME; `id`", "two words", ""))
		require.NoError(t, err)
		require.Equal(t, "$HOME; `id` two words \n", string(output.Stdout), "no shell sees the arguments")

		c := w.command("sh", "-c", "cat; echo oops >&2; exit 3")
		c.Stdin = strings.NewReader(strings.Repeat("0123456789\n", 10_000))
		output, err = w.Exec(ctx, c)
		var failed *kube.ExitError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, kube.ExitError{Code: 3, Stderr: "oops"}, *failed)
		require.Equal(t, fault.Transient, fault.KindOf(err))
		require.Len(t, output.Stdout, 110_000, "all of stdin came through, and its end")
		require.False(t, output.Truncated)

		c = w.command("sh", "-c", "yes | head -c 5000000")
		c.Limit = 1000
		output, err = w.Exec(ctx, c)
		require.NoError(t, err)
		require.Len(t, output.Stdout, 1000)
		require.True(t, output.Truncated)

		output, err = w.Exec(ctx, w.command("true"))
		require.NoError(t, err)
		require.Empty(t, output)

		c = w.command("true")
		c.Container = "none"
		_, err = w.Exec(ctx, c)
		require.Error(t, err)
		require.NotEqual(t, fault.Gone, fault.KindOf(err), "the pod is there")
	})
}

func TestContractExecThatHangsEndsInTimeWithWhatItWrote(t *testing.T) {
	t.Parallel()
	bothProtocols(t, func(t *testing.T, w world) {
		c := w.command("sh", "-c", "echo begun; exec sleep infinity")
		c.Timeout = 2 * time.Second
		began := time.Now()
		output, err := w.Exec(t.Context(), c)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, fault.Transient, fault.KindOf(err))
		require.Equal(t, "begun\n", string(output.Stdout))
		require.Less(t, time.Since(began), 10*time.Second)
	})
}

func TestContractExecInAPodThatCannot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pending(t, "gpu-dev-1")
	_, err := w.Exec(t.Context(), w.command("true"))
	requireKind(t, fault.Transient, err)

	node := w.stack.CreateNode()
	w.stack.CreatePod("gpu-dev-2", func(p *corev1.Pod) { p.Spec.NodeName = node.Name })
	w.stack.SetNodeReady(node.Name, corev1.ConditionUnknown)
	c := w.command("true")
	c.Pod, c.Timeout = "gpu-dev-2", 2*time.Second
	_, err = w.Exec(t.Context(), c)
	requireKind(t, fault.Transient, err)
	_, err = w.GetPod(t.Context(), w.namespace, "gpu-dev-2")
	require.NoError(t, err)
}

func TestContractWriteFile(t *testing.T) {
	t.Parallel()
	bothProtocols(t, func(t *testing.T, w world) {
		write := func(f pod.File) error { return w.WriteFile(t.Context(), w.namespace, "gpu-dev-1", "gpu-dev", f) }
		for _, minutes := range []int{30, 15, 15, 5} {
			require.NoError(t, write(pod.File{
				Dir: "/home/dev", Name: fmt.Sprintf("WARN_EXPIRES_IN_%dMIN.txt", minutes), Replaces: "WARN_",
				Content: fmt.Sprintf("in %d minutes: $HOME `id` 日本\n", minutes),
			}))
		}
		require.NoError(t, write(pod.File{Dir: "/home/dev", Name: "OOM_DETECTED.txt", Content: strings.Repeat("0123456789", 20_000)}))
		require.Equal(t, []string{"OOM_DETECTED.txt", "WARN_EXPIRES_IN_5MIN.txt"}, w.stack.Files("gpu-dev-1"))
		require.Equal(t, "in 5 minutes: $HOME `id` 日本\n", w.stack.ReadFile("gpu-dev-1", "WARN_EXPIRES_IN_5MIN.txt"))
		require.Len(t, w.stack.ReadFile("gpu-dev-1", "OOM_DETECTED.txt"), 200_000)
		mode, err := w.stack.Exec("gpu-dev-1", nil, "stat", "-c", "%a", "/home/dev/OOM_DETECTED.txt")
		require.NoError(t, err)
		require.Equal(t, "644\n", mode, "whoever works there can read it")

		_, err = w.stack.Exec("gpu-dev-1", nil, "mkdir", "/home/dev/TAKEN.txt")
		require.NoError(t, err)
		requireKind(t, fault.Permanent, write(pod.File{Dir: "/home/dev", Name: "TAKEN.txt", Content: "x"}))
		requireKind(t, fault.Transient, write(pod.File{Dir: "/home/nobody", Name: "a.txt", Content: "x"}))
	})
}

// The user, who owns the home but is not root, swaps what the writer stands on for links, as fast as they can.
func TestContractWriteFileIsNotLedOutOfTheHome(t *testing.T) {
	t.Parallel()
	w := newWorldWithPod(t)
	const attack = `
mkdir -p /root/private/empty && echo untouched >/root/private/FINAL.txt && echo untouched >/root/private/WARN_x && chown 65534 /home/dev
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'cd /home/dev; while :; do
mv .FINAL.txt.new moved; ln -s /root/private/empty .FINAL.txt.new; ln -s /root/private/FINAL.txt FINAL.txt; rm -f .FINAL.txt.new FINAL.txt
mkdir .FINAL.txt.new; ln -s /root/private/FINAL.txt .FINAL.txt.new/FINAL.txt; ln -s /root/private/empty FINAL.txt; rm -rf .FINAL.txt.new moved FINAL.txt
done 2>/dev/null'`
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c := w.command("sh", "-c", attack)
		c.Timeout = kube.MaxTimeout
		_, _ = w.Exec(ctx, c)
	}()
	eventually(t, func(c *assert.CollectT) {
		owner, err := w.Exec(t.Context(), w.command("stat", "-c", "%u", "/home/dev"))
		require.NoError(c, err)
		require.Equal(c, "65534\n", string(owner.Stdout))
	})
	outcomes := map[string]int{}
	for began := time.Now(); time.Since(began) < 2*time.Second; {
		err := w.WriteFile(t.Context(), w.namespace, "gpu-dev-1", "gpu-dev", pod.File{Dir: "/home/dev", Name: "FINAL.txt", Content: "new\n", Replaces: "WARN_"})
		if err == nil {
			outcomes["written"]++
		} else {
			outcomes[fault.KindOf(err).String()]++
		}
	}
	cancel()
	<-ended
	t.Logf("%v", outcomes)
	private, err := w.stack.Exec("gpu-dev-1", nil, "sh", "-c", "cd /root/private && find . | sort && cat FINAL.txt WARN_x")
	require.NoError(t, err)
	require.Equal(t, ".\n./FINAL.txt\n./WARN_x\n./empty\nuntouched\nuntouched\n", private)
}

func TestContractRunListing(t *testing.T) {
	t.Parallel()
	bothProtocols(t, func(t *testing.T, w world) {
		_, err := w.stack.Exec("gpu-dev-1", nil, "sh", "-c", `cd /home/dev && mkdir -p src/pkg/deep/deeper && echo x >src/main.py && ln -s /etc link && head -c 300000 /dev/zero >data.bin`)
		require.NoError(t, err)
		l, err := w.RunListing(t.Context(), w.namespace, "gpu-dev-1", "gpu-dev", "/home/dev")
		require.NoError(t, err)
		require.Equal(t, "data.bin\nlink\nsrc\n  main.py\n  pkg\n    deep\n", l.Tree)
		require.False(t, l.Truncated)
		require.Regexp(t, `^3\d\dK$`, l.Size)

		_, err = w.stack.Exec("gpu-dev-1", nil, "sh", "-c", `cd /home/dev/src && seq 1 3000 | xargs touch`)
		require.NoError(t, err)
		l, err = w.RunListing(t.Context(), w.namespace, "gpu-dev-1", "gpu-dev", "/home/dev")
		require.NoError(t, err)
		require.True(t, l.Truncated)
		require.Equal(t, pod.MaxListing, strings.Count(l.Tree, "\n"))

		l, err = w.RunListing(t.Context(), w.namespace, "gpu-dev-1", "gpu-dev", "/home/nobody")
		requireKind(t, fault.Transient, err)
		require.Zero(t, l)
	})
}

func TestContractCommandsAndCallsAreTraced(t *testing.T) {
	t.Parallel()
	w := newWorldWithPod(t)
	spans := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(spans))
	cluster := kube.New(func(context.Context) (*rest.Config, error) { return w.stack.Config, nil }, kube.Options{
		WrapTransport: func(next http.RoundTripper) http.RoundTripper {
			return otelhttp.NewTransport(next, otelhttp.WithTracerProvider(provider))
		},
	})
	_, err := cluster.GetPod(t.Context(), w.namespace, "gpu-dev-1")
	require.NoError(t, err)
	output, err := cluster.Exec(t.Context(), w.command("echo", "traced"))
	require.NoError(t, err)
	require.Equal(t, "traced\n", string(output.Stdout))
	require.Len(t, spans.GetSpans(), 2)
}
