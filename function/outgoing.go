package main

import (
	"net/http"
	"time"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/event"
	"gpudev.internal/reservation-expiry/internal/instrument"
)

// selfTimeout outlasts a follow-up, which answers when it is done.
const selfTimeout = 110 * time.Second

// boundToken is where a SinkBinding mounts the token for K_SINK, where the Broker asks who sends. It is for no one else.
const boundToken = "/oidc/token"

// outgoing is where events go.
type outgoing struct {
	build event.Builder
	// followUps brings them to the sink, or back to this service where there is none.
	followUps dispatch.Sender
	// facts brings them to others; nil where they stay recorded, for the service never receives its own.
	facts dispatch.Sender
	// loopback brings them to this very process, ready or not.
	loopback  dispatch.Sender
	transport *http.Transport
}

func newOutgoing(d config.Delivery, e config.Entry, providers instrument.Providers) outgoing {
	transport := dispatch.NewTransport()
	to := func(target string, options dispatch.SenderOptions) dispatch.Sender {
		options.Transport = instrument.HTTP(providers, transport)
		return dispatch.NewHTTPSender(target, options)
	}
	self := dispatch.SenderOptions{Timeout: selfTimeout, Tries: 1, Token: tokenForSelf(e)}
	out := outgoing{build: event.Builder{Extensions: d.Overrides}, transport: transport, loopback: to(d.Loopback(), self)}
	if d.Sink != "" {
		out.followUps = to(d.Sink, dispatch.SenderOptions{Token: dispatch.TokenFile(boundToken)})
		out.facts = out.followUps
	} else {
		out.followUps = to(d.Self(), self)
	}
	if d.FactsSink != "" {
		out.facts = to(d.FactsSink, dispatch.SenderOptions{})
	}
	return out
}

// tokenForSelf returns what this service wants of itself: the shared secret, where there is one.
func tokenForSelf(e config.Entry) func() (string, error) {
	if secret := secretOf(e); secret != nil {
		return secret.Send
	}
	return nil
}
