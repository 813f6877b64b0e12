package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/dispatch"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/report"
)

func deadLettersCommand(sh shell) *cobra.Command {
	c := &cobra.Command{
		Use:   "dead-letters",
		Short: "Show the events that the broker gave up on, and send them again",
		Long: `Show the events that the broker gave up on, the newest first, and send them
again.

Needs only the POSTGRES_ variables; replay also looks at K_SINK, else SELF_URL
and PORT, for where to send, and at EVENTS_BEARER_TOKEN for what to bring along.`,
		Example: `  reservation-expiry dead-letters
  reservation-expiry dead-letters replay 7`,
		Args: arguments(cobra.NoArgs),
	}
	limit := c.PersistentFlags().Int("limit", rowsRead, "how many to list")
	output := asTable
	c.PersistentFlags().VarP(&output, "output", "o", "how to print the answer")
	list := &cobra.Command{
		Use: "list", Short: "List the newest (the default)", Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return listDeadLetters(c.Context(), sh, *limit, output) },
	}
	c.RunE = list.RunE
	c.AddCommand(list, &cobra.Command{
		Use: "replay ID", Short: "Send one again, as it was before the broker gave up on it, and print the answer",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return replay(c.Context(), sh, args[0]) },
	})
	return c
}

func listDeadLetters(ctx context.Context, sh shell, limit int, output outputFormat) error {
	if limit < 1 {
		return usageError{fmt.Errorf("--limit must be 1 or more")}
	}
	return withDatabase(ctx, sh, func(db *postgres.DB, _ config.Rules) error {
		letters, err := db.DeadLetters(ctx, limit)
		if err != nil {
			return err
		}
		now, err := db.Now(ctx)
		if err != nil {
			return err
		}
		return sh.show(output, report.ListDeadLetters(letters, now))
	})
}

func replay(ctx context.Context, sh shell, argument string) error {
	id, err := strconv.ParseInt(argument, 10, 64)
	if err != nil || id < 1 {
		return usageError{fmt.Errorf("%q is no dead letter's id: dead-letters lists them", argument)}
	}
	cfg, err := config.LoadReplay(sh.environ)
	if err != nil {
		return usageError{err}
	}
	db, err := openDatabase(ctx, cfg.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()
	target, where, token := cfg.Delivery.Self(), "the service itself", tokenForSelf(cfg.Entry)
	if cfg.Delivery.Sink != "" {
		target, where, token = cfg.Delivery.Sink, "K_SINK", dispatch.TokenFile(boundToken)
	}
	if u, err := url.Parse(target); err == nil {
		where += " at " + u.Host
	}
	heard := &listener{next: dispatch.NewTransport()}
	defer heard.next.CloseIdleConnections()
	sender := dispatch.NewHTTPSender(target, dispatch.SenderOptions{Transport: heard, Timeout: selfTimeout, Tries: 1, Token: token})
	if err := dispatch.Replay(ctx, db, sender, id); err != nil && !heard.asked {
		return err
	} else if err != nil {
		return fmt.Errorf("%w: %s%s", err, where, heard.said())
	}
	return sh.say("Dead letter %d was taken by %s%s", id, where, heard.said())
}

// listener keeps the answer to a request, and asks for one that says something.
type listener struct {
	next   *http.Transport
	asked  bool
	status string
	body   string
}

// RoundTrip implements http.RoundTripper.
func (l *listener) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("Accept", "application/json")
	l.asked = true
	response, err := l.next.RoundTrip(r)
	if err != nil {
		return nil, err //nolint:wrapcheck // a transport's errors are its own
	}
	const enough = 4 << 10
	body, _ := io.ReadAll(io.LimitReader(response.Body, enough))
	l.status, l.body = response.Status, strings.TrimSpace(string(body))
	return response, nil
}

func (l *listener) said() string {
	if l.status == "" {
		return " did not answer"
	}
	return strings.TrimSuffix(": "+l.status+"\n"+l.body, "\n")
}
