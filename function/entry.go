package main

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"gpudev.internal/reservation-expiry/internal/authn"
	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

// entry is where requests come in: it lets through to the handler what may be posted, and gives no client long.
type entry struct {
	guard   *authn.Guard // nil: everybody may post
	metrics *telemetry.Metrics
	log     *slog.Logger
	// within bounds the reading of a body, also of one that nobody reads: the server does so before it answers the next
	// request on the connection. Who reads one in full lifts it. Answers have to be taken as fast, once they begin.
	within time.Duration
}

// secretOf returns the shared secret that is configured, nil where there is none.
func secretOf(c config.Entry) authn.Secret {
	switch {
	case c.TokenFile != "":
		return authn.SecretFile(c.TokenFile)
	case c.Token.Reveal() != "":
		return authn.FixedSecret(c.Token.Reveal())
	}
	return nil
}

func newEntry(c config.Entry, metrics *telemetry.Metrics, log *slog.Logger) *entry {
	return &entry{
		guard:   authn.New(authn.Options{Issuer: c.Issuer, Audience: c.Audience, Subjects: c.Subjects, Secret: secretOf(c)}),
		metrics: metrics, log: log, within: bodyWithin,
	}
}

// announce says who may post.
func (e *entry) announce(c config.Entry) {
	if e.guard == nil {
		e.log.Warn("open: whoever reaches this service may post events; EVENTS_OIDC_ISSUER or EVENTS_BEARER_TOKEN restrict that")
		return
	}
	e.log.Info("events need a token", "issuer", c.Issuer, "audience", c.Audience, "subjects", c.Subjects, "secret", secretOf(c) != nil)
}

// server takes connections for the handler.
func (e *entry) server(to http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           e.lead(to),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    32 << 10,
		Protocols:         protocols,
		// A stream's deadline is of no use where its connection takes nothing at all.
		HTTP2:    &http.HTTP2Config{WriteByteTimeout: e.within},
		ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelWarn),
	}
}

func (e *entry) lead(to http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Now().Add(e.within))
		_ = control.SetWriteDeadline(time.Time{}) // of the connection's former request
		timed := &timedAnswer{ResponseWriter: w, within: e.within}
		defer timed.begin()
		w = timed
		if r.Method != http.MethodPost {
			to.ServeHTTP(w, r) // probes, and what is refused anyway
			return
		}
		_, err := e.guard.Admit(r.Context(), r.Header.Get("Authorization"))
		switch {
		case err == nil:
			to.ServeHTTP(w, r)
			return
		case errors.Is(err, authn.ErrNotAdmitted):
			err = refuse(http.StatusForbidden, "%s", oneLine(err))
		case errors.Is(err, authn.ErrUnknown):
			w.Header().Set("WWW-Authenticate", "Bearer")
			err = refuse(http.StatusUnauthorized, "%s", oneLine(err))
		}
		status, _ := statusOf(r, err)
		e.log.WarnContext(r.Context(), "not let in", "path", r.URL.Path, "from", r.RemoteAddr, "status", status, "error", err)
		e.metrics.EventAnswered(r.Context(), telemetry.Unknown, status) // pushed with the next delivery: nobody not let in costs a flush
		w.Header().Set("Connection", "close")                           // its body is not worth reading
		answer(w, r, nil, err)
	})
}

// timedAnswer gives the client so long to take an answer, from when it begins.
type timedAnswer struct {
	http.ResponseWriter
	within time.Duration
	begun  bool
}

func (a *timedAnswer) begin() {
	if !a.begun {
		a.begun = true
		_ = http.NewResponseController(a.ResponseWriter).SetWriteDeadline(time.Now().Add(a.within))
	}
}

func (a *timedAnswer) WriteHeader(status int) {
	a.begin()
	a.ResponseWriter.WriteHeader(status)
}

func (a *timedAnswer) Write(b []byte) (int, error) {
	a.begin()
	return a.ResponseWriter.Write(b) //nolint:wrapcheck // it is the one that it wraps
}

// Unwrap is for http.ResponseController.
func (a *timedAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
