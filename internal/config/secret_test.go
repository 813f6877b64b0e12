package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNoWayOfPrintingTheConfigurationShowsThePassword(t *testing.T) {
	t.Parallel()
	c, err := Load(enough("POSTGRES_PASSWORD=hunter2", "EVENTS_BEARER_TOKEN=hunter2-hunter2-hunter2"), noFile)
	require.NoError(t, err)
	hidden := struct{ config Config }{c} // fmt cannot call methods on what it reaches through unexported fields
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb+verb+verb+"\n", c, &c, c.Postgres.Password, hidden, c.Postgres.URL())
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("start", "config", c, "password", c.Postgres.Password, "url", c.Postgres.URL(), "hidden", hidden)
	}
	require.NoError(t, json.NewEncoder(&out).Encode(c))
	out.WriteString(c.Postgres.Password.String())
	require.NotContains(t, out.String(), "hunter2")
	require.NotContains(t, out.String(), fmt.Sprintf("%x", "hunter2"))
	require.Contains(t, out.String(), "[redacted]")
	require.Equal(t, "hunter2", c.Postgres.Password.Reveal())
	require.Empty(t, Secret{}.Reveal())
}

func TestMessagesNeverQuoteAValue(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{
		"POSTGRES_PORT", "PORT", "K_SINK", "SELF_URL", "FACTS_SINK", "K_CE_OVERRIDES", "WARNING_MINUTES", "KEEP_VOLUMES",
		"MISSING_CONFIRM", "DRIVER_GRACE", "LOG_FORMAT", "KUBECONFIG", "DISK_CONTENTS_BUCKET", "EVENTS_OIDC_ISSUER", "EVENTS_BEARER_TOKEN",
	} {
		_, err := Load(enough(variable+"=postgres://u:hunter2@h:1/x y"), noFile)
		require.ErrorContains(t, err, variable)
		require.NotContains(t, err.Error(), "hunter2")
	}
}
