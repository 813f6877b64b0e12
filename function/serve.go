package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/telemetry"
)

const (
	// A process that is told to end has 25 s: this for what is sent to it by those who have not heard of it yet (a Service
	// begins to forget an instance at the moment it is told to end, and each node takes its time), then finishWithin for
	// what is under way, then handBackWithin, then telemetry.
	comeWithin     = 5 * time.Second
	finishWithin   = 9 * time.Second
	handBackWithin = 5 * time.Second
	// cutOffAfter is for sends to other instances of the service, which have no reason to hurry.
	cutOffAfter = 17 * time.Second

	// sinkBudget bounds the sending of what a delivery made due. What does not fit is sent by a later one.
	sinkBudget = 20 * time.Second
)

// errNoSink is for Knative, where the service must not be its own sink: it would be scaled away under its work.
var errNoSink = &unavailable{reason: "K_SERVICE is set and K_SINK is not: bind the service to a sink (SinkBinding)"}

// server takes deliveries, and where there is no sink makes them too.
type server struct {
	entry      *entry
	handler    *handler
	dispatcher *dispatch.Dispatcher // nil behind a sink
	sweeps     *selfSweeper         // nil where others send the ticks
	transport  *http.Transport
	log        *slog.Logger

	comeWithin, finishWithin, handBackWithin time.Duration
}

// parts is what a server is made of.
type parts struct {
	delivery  config.Delivery
	entry     config.Entry
	db        *postgres.DB
	sweeper   sweeper
	actions   map[postgres.FollowUpKind]followup.Action
	telemetry *telemetry.Telemetry
	lives     lives
	log       *slog.Logger

	comeWithin time.Duration
}

func newServer(p parts) *server {
	out := newOutgoing(p.delivery, p.entry, p.telemetry)
	s := &server{entry: newEntry(p.entry, p.telemetry.Metrics, p.log), transport: out.transport, log: p.log, comeWithin: p.comeWithin, finishWithin: finishWithin, handBackWithin: handBackWithin}
	dispatcher := dispatch.New(p.db, out.build, out.followUps, dispatch.Options{Grace: cutOffAfter, Log: p.log})
	var sendDue func(context.Context) error
	switch {
	case p.delivery.SinkMissing():
		sendDue = func(context.Context) error { return errNoSink }
	case p.delivery.Sink != "":
		sendDue = func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, sinkBudget)
			defer cancel()
			_, err := dispatcher.SendDue(ctx)
			return err
		}
	default:
		s.dispatcher = dispatcher
		if p.delivery.SelfSweep {
			s.sweeps = newSelfSweeper(p.db.SweepDue, out.build, out.loopback, p.log)
		}
		sendDue = func(context.Context) error {
			dispatcher.Wake()
			return nil
		}
	}
	s.handler = &handler{
		sweeper:   p.sweeper,
		followUps: followup.NewRunner(p.db, p.actions, followup.Options{Log: p.log}),
		store:     p.db,
		announcer: dispatch.NewAnnouncer(p.db, out.build, out.facts, dispatch.AnnouncerOptions{Log: p.log}),
		sendDue:   sendDue,
		ready: func(ctx context.Context) error {
			if p.delivery.SinkMissing() {
				return errNoSink
			}
			return p.db.CheckSchema(ctx)
		},
		telemetry: p.telemetry, lives: p.lives,
		log:   p.log,
		slots: newSlots(), readWithin: bodyWithin,
	}
	return s
}

// serve takes deliveries from listener until ctx ends. Then it takes those that are on their way and no more, lets all
// finish or hand back what they hold, and returns when nothing runs any more. It closes the listener.
func (s *server) serve(ctx context.Context, listener net.Listener) error {
	work, interrupt := context.WithCancel(context.WithoutCancel(ctx))
	defer interrupt()
	web := s.entry.server(s.handler.routes())
	web.BaseContext = func(net.Listener) context.Context { return work }
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(listener) }()

	var background sync.WaitGroup
	dispatching, stop := context.WithCancel(ctx)
	defer stop()
	if s.dispatcher != nil {
		background.Go(func() { s.dispatcher.Run(dispatching) })
	}
	if s.sweeps != nil {
		background.Go(func() { s.sweeps.run(dispatching) })
	}
	s.log.InfoContext(ctx, "serving", "address", listener.Addr().String(), "own_sink", s.dispatcher != nil)

	select {
	case err := <-ended:
		stop()
		interrupt()
		background.Wait()
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	s.log.InfoContext(ctx, "shutting down: what is on its way is taken, and no more")
	s.handler.door.announce()
	<-time.After(s.comeWithin)
	s.leave(s.handler.door.close(), interrupt)
	background.Wait()
	s.transport.CloseIdleConnections()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
	defer cancel()
	if err := web.Shutdown(closing); err != nil {
		_ = web.Close() // connections on which nobody waits for an answer
	}
	<-ended //nolint:errcheck // it says that the server was shut down
	return nil
}

// leave waits until nothing is under way any more; what takes too long is interrupted, and hands back what it holds.
func (s *server) leave(empty <-chan struct{}, interrupt func()) {
	select {
	case <-empty:
		return
	case <-time.After(s.finishWithin):
	}
	s.log.Warn("interrupting what is still under way")
	interrupt()
	select {
	case <-empty:
	case <-time.After(s.handBackWithin):
		s.log.Error("something did not heed its interruption; its lease will lapse")
	}
}
