package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// faulty is an outside whose wires go through proxies that can be made to fail.
type faulty struct {
	*outside
	proxies map[string]*toxiproxy.Proxy // to postgres, kubernetes, aws
	unlock  func()                      // what a test has locked; nil: nothing
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	return newFaultyOn(t, newBase(t), nil)
}

// newFaultyOn is newFaulty on a database to whose server, which may go away itself, no proxy leads.
func newFaultyOn(t *testing.T, b *base, own *ownServer) *faulty {
	t.Helper()
	f := &faulty{proxies: map[string]*toxiproxy.Proxy{}}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	f.outside = newOutsideOn(t, b, func(what, address string) string {
		if own != nil && what == "postgres" {
			return own.address
		}
		proxy := toxiproxy.NewProxy(server, what, "127.0.0.1:0", address)
		require.NoError(t, proxy.Start())
		t.Cleanup(proxy.Stop)
		f.proxies[what] = proxy
		return proxy.Listen
	})
	return f
}

// toxic adds one of toxiproxy's toxics to what a service answers.
func (f *faulty) toxic(service, kind, attributes string) {
	f.base.t.Helper()
	_, err := f.proxies[service].Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"type":%q,"stream":"downstream","attributes":{%s}}`, kind, attributes)))
	require.NoError(f.base.t, err)
}

// stall answers nothing until the process gives up, and keeps how long that took.
func (f *faulty) stall(drip string) spoilt {
	return func(_ string, w http.ResponseWriter, r *http.Request) bool {
		began := time.Now()
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for r.Context().Err() == nil && time.Since(began) < 40*time.Second {
			if drip != "" {
				_, _ = io.WriteString(w, drip)
				_ = http.NewResponseController(w).Flush()
			}
			select {
			case <-r.Context().Done():
			case <-ticker.C:
			}
		}
		f.waited(began)
		return true
	}
}

// mute has PostgreSQL answer so many connections and statements, and no more.
func (f *faulty) mute(after int32) {
	var asked atomic.Int32
	f.hush(func(client net.Conn) bool {
		if asked.Add(1) <= after {
			return false
		}
		began := time.Now()
		_ = client.SetReadDeadline(began.Add(40 * time.Second))
		_, _ = io.Copy(io.Discard, client)
		f.waited(began)
		return true
	})
}

// only spoils the answers of one service.
func only(service string, a spoilt) spoilt {
	return func(call string, w http.ResponseWriter, r *http.Request) bool {
		return strings.HasPrefix(call, service+" ") && a(call, w, r)
	}
}

func saying(status int, contentType, body string) spoilt {
	return func(_ string, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

// kubernetesSays is an error as the API server words it.
func kubernetesSays(status int, reason string) spoilt {
	return saying(status, "application/json", fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, status))
}

// ec2Says is an error as EC2 words it.
func ec2Says(status int, code string) spoilt {
	return saying(status, "text/xml", `<Response><Errors><Error><Code>`+code+`</Code><Message>no</Message></Error></Errors><RequestID>1</RequestID></Response>`)
}

// wireFault is something that goes wrong on the way to one service.
type wireFault struct {
	service string
	begin   func(f *faulty)
	quiet   bool // nobody need notice
	slow    bool // it takes its time
	sample  bool // tried by every run of the tests, others by make crashtest
}

var wireFaults = map[string]wireFault{
	"Kubernetes refuses connections":    {service: "kubernetes", begin: func(f *faulty) { f.proxies["kubernetes"].Stop() }},
	"Kubernetes resets connections":     {service: "kubernetes", begin: func(f *faulty) { f.toxic("kubernetes", "reset_peer", `"timeout":0`) }},
	"Kubernetes breaks off in mid-body": {service: "kubernetes", begin: func(f *faulty) { f.toxic("kubernetes", "limit_data", `"bytes":250`) }},
	"Kubernetes stalls":                 {service: "kubernetes", slow: true, begin: func(f *faulty) { f.spoil(only("kubernetes", f.stall(""))) }},
	"Kubernetes drips":                  {service: "kubernetes", slow: true, begin: func(f *faulty) { f.spoil(only("kubernetes", f.stall(" "))) }},
	"Kubernetes throttles":              {service: "kubernetes", begin: func(f *faulty) { f.spoil(only("kubernetes", kubernetesSays(429, "TooManyRequests"))) }},
	"Kubernetes answers 500":            {service: "kubernetes", begin: func(f *faulty) { f.spoil(only("kubernetes", kubernetesSays(500, "InternalError"))) }},
	"Kubernetes answers 503":            {service: "kubernetes", sample: true, begin: func(f *faulty) { f.spoil(only("kubernetes", kubernetesSays(503, "ServiceUnavailable"))) }},
	"a proxy answers for Kubernetes":    {service: "kubernetes", begin: func(f *faulty) { f.spoil(only("kubernetes", saying(404, "text/html", "<h1>not found</h1>"))) }},
	"Kubernetes lists nothing": {service: "kubernetes", quiet: true, sample: true, begin: func(f *faulty) {
		f.spoil(func(call string, w http.ResponseWriter, r *http.Request) bool {
			return call == "kubernetes GET pods" && !strings.Contains(r.URL.Path, "/pods/") &&
				saying(200, "application/json", `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`)(call, w, r)
		})
	}},
	"AWS refuses connections":             {service: "aws", begin: func(f *faulty) { f.proxies["aws"].Stop() }},
	"AWS resets connections":              {service: "aws", begin: func(f *faulty) { f.toxic("aws", "reset_peer", `"timeout":0`) }},
	"AWS breaks off in mid-body":          {service: "aws", begin: func(f *faulty) { f.toxic("aws", "limit_data", `"bytes":300`) }},
	"AWS stalls":                          {service: "aws", slow: true, begin: func(f *faulty) { f.spoil(only("aws", f.stall(""))) }},
	"AWS drips":                           {service: "aws", slow: true, begin: func(f *faulty) { f.spoil(only("aws", f.stall(" "))) }},
	"EC2 throttles":                       {service: "aws", begin: func(f *faulty) { f.spoil(only("aws", ec2Says(503, "RequestLimitExceeded"))) }},
	"AWS answers 429":                     {service: "aws", begin: func(f *faulty) { f.spoil(only("aws", saying(429, "text/plain", "slow down"))) }},
	"AWS answers 500":                     {service: "aws", begin: func(f *faulty) { f.spoil(only("aws", ec2Says(500, "InternalError"))) }},
	"AWS answers 503":                     {service: "aws", begin: func(f *faulty) { f.spoil(only("aws", ec2Says(503, "Unavailable"))) }},
	"PostgreSQL refuses connections":      {service: "postgres", begin: func(f *faulty) { f.proxies["postgres"].Stop() }},
	"PostgreSQL stalls":                   {service: "postgres", slow: true, begin: func(f *faulty) { f.mute(0) }},
	"PostgreSQL answers no statement":     {service: "postgres", slow: true, begin: func(f *faulty) { f.mute(1) }},
	"PostgreSQL stalls in mid-sweep":      {service: "postgres", slow: true, begin: func(f *faulty) { f.mute(40) }},
	"PostgreSQL is cut off in mid-answer": {service: "postgres", begin: func(f *faulty) { f.toxic("postgres", "limit_data", `"bytes":9000`) }},
	"statements time out": {service: "postgres", begin: func(f *faulty) {
		ctx := context.WithoutCancel(f.base.t.Context())
		conn, err := pgx.Connect(ctx, f.database)
		require.NoError(f.base.t, err)
		tx, err := conn.Begin(ctx)
		require.NoError(f.base.t, err)
		_, err = tx.Exec(ctx, "lock table reservations in access exclusive mode")
		require.NoError(f.base.t, err)
		f.base.t.Cleanup(func() { _ = conn.Close(ctx) })
		f.unlock = func() { require.NoError(f.base.t, tx.Rollback(ctx)) }
	}},
}

// wireFaultsAll, set to anything, has all of them tried.
const wireFaultsAll = "WIRE_FAULTS_ALL"

func TestFaultsOnTheWireEndNothingAndAreMadeGood(t *testing.T) {
	t.Parallel()
	for name, fault := range wireFaults {
		if !fault.sample && os.Getenv(wireFaultsAll) == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t)
			before := f.evidence()
			fault.begin(f)
			ticks := 2
			if fault.slow {
				ticks = 1
			}
			noticed := 0
			for range ticks {
				noticed += f.faultyTick()
				if f.unlock == nil && fault.service != "postgres" {
					f.later()
				}
			}
			require.True(t, fault.quiet || noticed > 0, "somebody must be told")
			f.mend()
			f.held(fault, before)
		})
	}
}

// held asserts that nothing ended or went by mistake while something went wrong, and that it is made good.
func (f *faulty) held(w wireFault, before string) {
	t := f.base.t
	t.Helper()
	after := f.evidence()
	for _, what := range []string{"a bystander", "due for a warning", "out of memory"} {
		require.Contains(t, after, "pod of "+what)
		require.Contains(t, after, "reservation of "+what+" is active")
	}
	for line := range strings.SplitSeq(before, "\n") {
		if w.keeps(line) {
			require.Contains(t, after, line)
		}
	}
	require.True(t, strings.Contains(after, "EC2: 1 volumes") || strings.Contains(after, "work:1"), "the volume is gone, and there is no snapshot")
	if slowest := f.slowest(); slowest > time.Second {
		t.Logf("the longest call took %.1f s", slowest.Seconds())
	}
	require.LessOrEqual(t, f.slowest(), 20*time.Second+time.Second/2, "one call")
	require.Equal(t, settled(t), f.settle())
}

// keeps reports whether something must stay as it is while a service fails: what it, or a look at it, is needed for.
func (w wireFault) keeps(line string) bool {
	switch {
	case w.quiet:
		return false
	case w.service == "kubernetes":
		return strings.HasPrefix(line, "pod of") || strings.HasPrefix(line, "disk") || strings.Contains(line, "its pod is")
	case w.service == "aws":
		return strings.HasPrefix(line, "EC2") || strings.HasPrefix(line, "disk")
	}
	return false
}

// evidence is what must not end or go by mistake.
func (f *faulty) evidence() string {
	f.base.t.Helper()
	var lines []string
	for line := range strings.Lines(f.state()) {
		if strings.HasPrefix(line, "EC2") || strings.HasPrefix(line, "disk, work") || strings.HasPrefix(line, "pod of") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "\n") + "\n" + f.text("select string_agg('reservation of ' || name || ' is ' || status, E'\\n' order by name) from reservations where status = 'active'")
}

// faultyTick is a tick that may fail, and returns how often it says so, each time in one line.
func (f *faulty) faultyTick(more ...string) (noticed int) {
	f.base.t.Helper()
	view, r := f.tick(append([]string{"SWEEP_TIMEOUT=6s"}, more...)...)
	var said []string
	for _, failure := range view.Failures {
		said = append(said, failure.Error)
	}
	for _, one := range view.FollowUps {
		if one.Error != "" {
			said = append(said, one.Error)
		}
	}
	if r.code != 0 {
		said = append(said, complaint(f.base.t, r))
	}
	for _, one := range said {
		require.NotContains(f.base.t, one, "\n")
		require.NotEmpty(f.base.t, one)
	}
	return len(said)
}

// mend ends every fault.
func (f *faulty) mend() {
	f.base.t.Helper()
	f.spoil(nil)
	f.hush(nil)
	f.aws.Fail()
	if f.unlock != nil {
		f.unlock()
	}
	for _, proxy := range f.proxies {
		proxy.Toxics.ResetToxics(f.base.t.Context())
		if !proxy.Enabled {
			require.NoError(f.base.t, proxy.Start())
		}
	}
}

func TestAnAnswerLostAfterASnapshotWasMadeMakesNoSecondOne(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.aws.Fail(stacktest.Fault{Action: "ec2:CreateSnapshot", Times: 1, After: true, Drop: true})
	made := f.aws.Count("ec2:CreateSnapshot")
	for range 5 { // what one tick has no time for is left to the next
		f.faultyTick() // its outcome is no failure: the snapshot is looked for later
		if strings.Contains(f.evidence(), " work:1]") {
			break
		}
	}
	require.Contains(t, f.evidence(), " work:1]", "it was made")
	f.mend()
	require.Equal(t, settled(t), f.settle())
	require.Equal(t, made+1, f.aws.Count("ec2:CreateSnapshot"))
}

func TestAnExecThatHangsHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	pods := f.cluster.Client.CoreV1().Pods(f.cluster.Namespace)
	name := "gpu-dev-" + f.ids["due for a warning"][:8]
	hang := func(value string) {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, stacktest.Exec, value)
		_, err := pods.Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		require.NoError(t, err)
	}
	hang("hang")
	began := time.Now()
	view, r := f.tick()
	require.Less(t, time.Since(began), 40*time.Second)
	require.Zero(t, r.code, r.err)
	for _, one := range view.FollowUps {
		if one.Kind == postgres.Warning {
			require.Equal(t, followup.StateFailed, one.State)
			require.NotContains(t, one.Error, "\n")
		} else {
			require.Empty(t, one.Error)
		}
	}
	hang("")
	require.Equal(t, settled(t), f.settle())
}
