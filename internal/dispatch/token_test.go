package dispatch_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/dispatch"
)

func TestTheTokenIsReadAnewForEachEvent(t *testing.T) {
	t.Parallel()
	said := make(chan string, 1)
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said <- r.Header.Get("Authorization")
		w.WriteHeader(http.StatusAccepted)
	}))
	defer sink.Close()
	transport := dispatch.NewTransport()
	defer transport.CloseIdleConnections()
	file := filepath.Join(t.TempDir(), "token")
	sender := dispatch.NewHTTPSender(sink.URL, dispatch.SenderOptions{Transport: transport, Token: dispatch.TokenFile(file), Tries: 1})
	e := anEvent()

	require.NoError(t, sender.Send(t.Context(), e))
	require.Empty(t, <-said, "nothing is bound")
	for _, token := range []string{"first", "second"} {
		require.NoError(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
		require.NoError(t, sender.Send(t.Context(), e))
		require.Equal(t, "Bearer "+token, <-said)
	}
	require.NoError(t, os.Remove(file))
	require.NoError(t, os.Mkdir(file, 0o700))
	require.Error(t, sender.Send(t.Context(), e), "a token that cannot be read")
	require.Empty(t, said)
}
