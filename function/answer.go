package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// unavailable is an error that may pass and says when to come back. Every other error that is no refusal may pass too.
type unavailable struct {
	reason string
	after  time.Duration
}

func (u *unavailable) Error() string { return u.reason }

// retryAfter is for what may pass but does not say when.
const retryAfter = 10 * time.Second

// statusOf is the one place that says what an error means to the sender: a refusal is for good and its own fault; all
// else may pass, whoever's fault it is, so that a broker tries again.
func statusOf(r *http.Request, err error) (status int, after time.Duration) {
	var refused *refusal
	var away *unavailable
	switch {
	case err == nil && wantsJSON(r):
		return http.StatusOK, 0
	case err == nil:
		return http.StatusAccepted, 0
	case errors.As(err, &refused):
		return refused.status, 0
	case errors.As(err, &away):
		return http.StatusServiceUnavailable, away.after
	}
	return http.StatusServiceUnavailable, retryAfter
}

// answer writes what became of a request. Without an error the body stays empty, since a broker
// takes a 2xx whose body is no CloudEvent for a failure; a person who asks for JSON gets the result.
func answer(w http.ResponseWriter, r *http.Request, result any, err error) {
	status, after := statusOf(r, err)
	switch {
	case err != nil:
		if status == http.StatusRequestEntityTooLarge {
			w.Header().Set("Connection", "close") // else the rest of its body is read before it is answered
		}
		if after > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
		}
		writeJSON(w, r, status, map[string]string{"error": publicReason(err)})
	case status == http.StatusOK:
		writeJSON(w, r, status, result)
	default:
		w.WriteHeader(status)
	}
}

// publicReason is what a sender may read. An error from within may name hosts and tables: it is in the log.
func publicReason(err error) string {
	var refused *refusal
	var away *unavailable
	if errors.As(err, &refused) || errors.As(err, &away) {
		return oneLine(err)
	}
	return "it did not work this time; the log says why"
}

func writeJSON(w http.ResponseWriter, r *http.Request, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		slog.ErrorContext(r.Context(), "cannot encode an answer", "error", err)
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client may be gone
}

// wantsJSON reports whether the client names JSON; that it takes anything is not enough.
func wantsJSON(r *http.Request) bool {
	for _, accepted := range r.Header.Values("Accept") {
		for one := range strings.SplitSeq(accepted, ",") {
			if media, _, err := mime.ParseMediaType(one); err == nil && media == "application/json" {
				return true
			}
		}
	}
	return false
}
