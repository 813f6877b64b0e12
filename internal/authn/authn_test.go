package authn_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpudev.internal/reservation-expiry/internal/authn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "a secret that nobody guesses"

func TestWithoutAnIssuerAndASecretEverybodyIsAdmitted(t *testing.T) {
	t.Parallel()
	guard := authn.New(authn.Options{})
	require.Nil(t, guard)
	sender, err := guard.Admit(t.Context(), "")
	require.NoError(t, err)
	require.Empty(t, sender)
}

func TestWhoBringsTheSecretIsAdmitted(t *testing.T) {
	t.Parallel()
	guard := authn.New(authn.Options{Secret: authn.FixedSecret(secret)})
	for _, header := range []string{"Bearer " + secret, "bearer " + secret, "  BEARER   " + secret + " "} {
		sender, err := guard.Admit(t.Context(), header)
		require.NoError(t, err, header)
		require.Equal(t, authn.BySecret, sender)
	}
	for name, header := range map[string]string{
		"nothing": "", "no token": "Bearer", "an empty one": "Bearer  ", "another": "Bearer " + strings.ToUpper(secret), "its beginning": "Bearer " + secret[:20],
		"more than it": "Bearer " + secret + "!", "the bare secret": secret, "another scheme": "Basic " + secret, "a JWT": "Bearer a.b.c",
	} {
		_, err := guard.Admit(t.Context(), header)
		require.ErrorIs(t, err, authn.ErrUnknown, name)
		require.NotContains(t, err.Error(), secret)
		require.NotContains(t, err.Error(), secret[:20])
	}
}

func TestTheSecretInAFileMayChangeAtAnyTime(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	guard := authn.New(authn.Options{Secret: authn.SecretFile(file)})
	admit := func(token string) error {
		_, err := guard.Admit(t.Context(), "Bearer "+token)
		return err
	}
	first, second := strings.Repeat("first", 5), strings.Repeat("second", 5)
	for _, c := range []struct {
		text string
		good []string
	}{
		{first, []string{first}}, {first + "\n", []string{first}}, {second + "\n" + first + "\n", []string{second, first}}, {second, []string{second}},
	} {
		require.NoError(t, os.WriteFile(file, []byte(c.text), 0o600))
		sent, err := authn.SecretFile(file).Send()
		require.NoError(t, err)
		require.Equal(t, c.good[0], sent, "the newest comes first")
		for _, token := range []string{first, second} {
			if strings.Contains(c.text, token) {
				require.NoError(t, admit(token))
			} else {
				require.ErrorIs(t, admit(token), authn.ErrUnknown)
			}
		}
	}
	for name, text := range map[string]string{"empty": "", "blank": " \n", "too short to be one": "hunter2", "one too short": first + "\nhunter2"} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		for _, token := range []string{first, "hunter2"} {
			err := admit(token)
			require.Error(t, err, name)
			require.False(t, errors.Is(err, authn.ErrUnknown) || errors.Is(err, authn.ErrNotAdmitted), "it may pass: %v", err)
			require.NotContains(t, err.Error(), "hunter2")
		}
	}
	require.NoError(t, os.WriteFile(file, []byte("sixteen-letters."), 0o600))
	require.NoError(t, admit("sixteen-letters."), "the shortest there may be")
	require.NoError(t, os.Remove(file))
	require.ErrorIs(t, admit(first), os.ErrNotExist)
	_, err := authn.SecretFile(file).Send()
	require.ErrorIs(t, err, os.ErrNotExist)
}
