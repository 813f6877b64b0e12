package main

import (
	"bytes"
	bigendian "encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// wires lead from a process to PostgreSQL, Kubernetes and AWS. They count its calls, a call being a request over HTTP, an
// exec or a statement of SQL, and at one of them cut all: before it goes out, or after it took effect and before its
// answer comes back.
type wires struct {
	t *testing.T

	mu    sync.Mutex
	calls []call // in the order in which they came
	at    int    // the call, from 1, at which the process dies; 0: it lives
	after bool
	die   func()
	dead  bool

	answer spoilt  // nil: the servers answer
	silent silence // nil: the database answers

	longest time.Duration // that a process waited for an answer, from the database or one that did not come
}

// spoilt stands in for a server's; false: the server is asked.
type spoilt func(call string, w http.ResponseWriter, r *http.Request) (answered bool)

// spoil has calls over HTTP answered so, or nil: by the servers.
func (w *wires) spoil(a spoilt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = a
}

// silence has a client of the database wait until it goes away, or false: it does not.
type silence func(client net.Conn) (waited bool)

// hush has clients of the database wait so, or nil: not.
func (w *wires) hush(s silence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = s
}

func (w *wires) hushed(client net.Conn) bool {
	w.mu.Lock()
	silent := w.silent
	w.mu.Unlock()
	return silent != nil && silent(client)
}

// waited notes how long a process waited.
func (w *wires) waited(since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest = max(w.longest, time.Since(since))
}

// slowest is the longest that a process has waited.
func (w *wires) slowest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.longest
}

// call is one call that went out.
type call struct {
	name string
	acts bool // it may have changed something outside by itself; all others only look, or belong to a transaction
}

// cutAt makes the process that makes a call die at it, the next one being call 1.
func (w *wires) cutAt(k int, after bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at, w.after, w.calls = k, after, nil
}

// connect lets a process use the wires; die kills it. Who used them before cannot any more.
func (w *wires) connect(die func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.die, w.dead = die, false
}

// made returns the calls since cutAt, and whether the process died of one.
func (w *wires) made() (calls []call, died bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.calls), w.dead
}

// begin counts a call and reports whether it goes out.
func (w *wires) begin(name string, acts bool) (k int, goes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return 0, false
	}
	w.calls = append(w.calls, call{name, acts})
	k = len(w.calls)
	if k == w.at && !w.after {
		w.cut()
	}
	return k, !w.dead
}

// end reports whether the answer to a call comes back.
func (w *wires) end(k int, acts bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k <= len(w.calls) {
		w.calls[k-1].acts = acts
	}
	if k == w.at && w.after {
		w.cut()
	}
	return !w.dead
}

func (w *wires) cut() {
	w.dead = true
	w.die()
}

// listen takes connections until the test ends.
func (w *wires) listen(serve func(net.Conn)) (address string) {
	w.t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(w.t, err)
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			all.Go(func() {
				serve(conn)
				_ = conn.Close()
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
			})
		}
	})
	w.t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return listener.Addr().String()
}

// http leads to a server that speaks HTTP.
func (w *wires) http(target string, transport http.RoundTripper, name func(r *http.Request, body []byte) string) (address string) {
	w.t.Helper()
	to, err := url.Parse(target)
	require.NoError(w.t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host }, Transport: transport, ErrorLog: nil,
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		what := name(r, body)
		w.mu.Lock()
		instead := w.answer
		w.mu.Unlock()
		if instead != nil && instead(what, out, r) {
			return
		}
		acts := r.Method != http.MethodGet && !strings.Contains(what, ":Describe") || r.Header.Get("Upgrade") != ""
		k, goes := w.begin(what, acts)
		if !goes {
			panic(http.ErrAbortHandler)
		}
		if r.Header.Get("Upgrade") != "" { // an exec: its answer cannot be held back
			proxy.ServeHTTP(out, r)
			w.end(k, acts)
			return
		}
		answer := httptest.NewRecorder()
		proxy.ServeHTTP(answer, r)
		if !w.end(k, acts) {
			panic(http.ErrAbortHandler)
		}
		maps.Copy(out.Header(), answer.Header())
		out.WriteHeader(answer.Code)
		_, _ = answer.Body.WriteTo(out)
	}))
	server.Config.ErrorLog = nil
	w.t.Cleanup(server.Close)
	return server.URL
}

// aws leads to the emulator; a call is called by its action ("aws ec2:DeleteVolume").
func (w *wires) aws(endpoint string) string {
	return w.http(endpoint, http.DefaultTransport, func(r *http.Request, body []byte) string { return "aws " + stacktest.ActionOf(r, body) })
}

// kubernetes leads to the API server and returns a kubeconfig.
func (w *wires) kubernetes(config *rest.Config) clientcmdapi.Config {
	w.t.Helper()
	transport, err := rest.TransportFor(config)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { utilnet.CloseIdleConnectionsFor(transport) })
	address := w.http(config.Host, transport, func(r *http.Request, _ []byte) string {
		parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		what := parts[2]
		if len(parts) > 4 && what == "namespaces" {
			what = strings.Join(append([]string{parts[4]}, parts[min(6, len(parts)):]...), "/")
		}
		return "kubernetes " + r.Method + " " + what
	})
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["wire"] = &clientcmdapi.Cluster{Server: address}
	kubeconfig.AuthInfos["wire"] = &clientcmdapi.AuthInfo{}
	kubeconfig.Contexts["wire"] = &clientcmdapi.Context{Cluster: "wire", AuthInfo: "wire"}
	kubeconfig.CurrentContext = "wire"
	return *kubeconfig
}

func writeKubeconfig(t *testing.T, c clientcmdapi.Config) (path string) {
	t.Helper()
	path = t.TempDir() + "/kubeconfig"
	require.NoError(t, clientcmd.WriteToFile(c, path))
	return path
}

// postgres leads to a database server. A call is what a client sends up to its next Sync, or one simple Query: both are
// answered by one ReadyForQuery (PostgreSQL's documentation, "Message Flow").
func (w *wires) postgres(server string) (address string) {
	return w.listen(func(client net.Conn) {
		if w.hushed(client) {
			return
		}
		upstream, err := (&net.Dialer{}).Dial("tcp", server)
		if err != nil {
			return
		}
		defer func() { _ = upstream.Close() }()
		if !greet(client, upstream) {
			return
		}
		for {
			text, request, err := statement(client)
			if err != nil || len(request) == 0 || w.hushed(client) {
				return
			}
			began := time.Now()
			k, goes := w.begin("sql "+text, false)
			if !goes {
				return
			}
			if _, err := upstream.Write(request); err != nil {
				return
			}
			answer, err := untilReady(upstream)
			w.waited(began)
			idle := len(answer) > 0 && answer[len(answer)-1] == 'I' // the connection is in no transaction now
			acts := idle && !strings.HasPrefix(text, "select") && text != "rollback"
			if !w.end(k, acts) || err != nil {
				return
			}
			if _, err := client.Write(answer); err != nil {
				return
			}
		}
	})
}

const (
	sslRequest    = 80877103
	cancelRequest = 80877102
)

// greet leads a connection through its start: encryption (refused by the server), log-in, ready.
func greet(client, upstream net.Conn) bool {
	for {
		head := make([]byte, 8)
		if _, err := io.ReadFull(client, head); err != nil {
			return false
		}
		rest := make([]byte, bigendian.BigEndian.Uint32(head)-8)
		if _, err := io.ReadFull(client, rest); err != nil {
			return false
		}
		if _, err := upstream.Write(append(head, rest...)); err != nil {
			return false
		}
		switch bigendian.BigEndian.Uint32(head[4:]) {
		case cancelRequest:
			return false
		case sslRequest:
			if _, err := io.CopyN(client, upstream, 1); err != nil {
				return false
			}
			continue
		}
		break
	}
	for {
		kind, message, err := readMessage(upstream)
		if err != nil {
			return false
		}
		if _, err := client.Write(message); err != nil {
			return false
		}
		switch {
		case kind == 'Z':
			return true
		case kind == 'R' && wantsAnswer(bigendian.BigEndian.Uint32(message[5:])):
			_, message, err := readMessage(client)
			if err != nil {
				return false
			}
			if _, err := upstream.Write(message); err != nil {
				return false
			}
		}
	}
}

// wantsAnswer is of the kinds of authentication request: clear text, MD5, SASL and its continuation.
func wantsAnswer(kind uint32) bool { return kind == 3 || kind == 5 || kind == 10 || kind == 11 }

func readMessage(from io.Reader) (kind byte, whole []byte, err error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(from, head); err != nil {
		return 0, nil, fmt.Errorf("read a message: %w", err)
	}
	rest := make([]byte, bigendian.BigEndian.Uint32(head[1:])-4)
	if _, err := io.ReadFull(from, rest); err != nil {
		return 0, nil, fmt.Errorf("read a message: %w", err)
	}
	return head[0], append(head, rest...), nil
}

// statement reads what a client sends until it waits for an answer; nothing where it says good-bye.
func statement(client io.Reader) (text string, request []byte, err error) {
	for {
		kind, message, err := readMessage(client)
		if err != nil {
			return "", nil, err
		}
		request = append(request, message...)
		switch kind {
		case 'P': // Parse: a name, then the text
			_, parsed, _ := bytes.Cut(message[5:], []byte{0})
			text = summary(parsed)
		case 'Q':
			return summary(message[5:]), request, nil
		case 'S':
			return text, request, nil
		case 'X':
			return "", nil, nil
		}
	}
}

// summary is the beginning of a statement, without comments.
func summary(text []byte) string {
	text, _, _ = bytes.Cut(text, []byte{0})
	var words []string
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "--")
		words = append(words, strings.Fields(line)...)
	}
	return strings.Join(words[:min(len(words), 8)], " ")
}

func untilReady(server io.Reader) (answer []byte, err error) {
	for {
		kind, message, err := readMessage(server)
		if err != nil {
			return nil, err
		}
		answer = append(answer, message...)
		if kind == 'Z' {
			return answer, nil
		}
	}
}
