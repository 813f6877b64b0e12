package authn_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/authn"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const (
	audience = "reservation-expiry"
	trigger  = "system:serviceaccount:reservation-expiry:tick-oidc-eventing.knative.dev-trigger"
)

func guardOf(i *stacktest.Issuer, change func(*authn.Options)) *authn.Guard {
	opts := authn.Options{Issuer: i.URL, Audience: audience, Transport: i.Client().Transport}
	if change != nil {
		change(&opts)
	}
	return authn.New(opts)
}

func admit(t *testing.T, guard *authn.Guard, token string) (string, error) {
	t.Helper()
	return guard.Admit(t.Context(), "Bearer "+token)
}

func requireMayPass(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	require.False(t, errors.Is(err, authn.ErrUnknown) || errors.Is(err, authn.ErrNotAdmitted), err)
}

func TestATokenOfTheIssuerForUsIsAdmitted(t *testing.T) {
	t.Parallel()
	i := stacktest.NewIssuer(t, audience)
	guard := guardOf(i, nil)
	require.Zero(t, i.Asked.Load(), "nothing is asked before the first token comes")
	for range 20 {
		sender, err := admit(t, guard, i.Token(t, trigger, nil))
		require.NoError(t, err)
		require.Equal(t, trigger, sender)
	}
	_, err := admit(t, guard, i.Token(t, "x", map[string]any{"aud": audience}))
	require.NoError(t, err, "an audience need not be a list")
	_, err = admit(t, guard, i.Token(t, "x", map[string]any{"aud": []string{"another", audience}}))
	require.NoError(t, err)
	require.Equal(t, []int32{1, 1}, []int32{i.Asked.Load(), i.Fetched.Load()}, "keys are kept")
}

func TestTokensThatProveNothing(t *testing.T) {
	t.Parallel()
	i := stacktest.NewIssuer(t, audience)
	guard := guardOf(i, func(o *authn.Options) { o.Secret = authn.FixedSecret(secret) })
	mine := i.Key()
	public, err := mine.Public().MarshalJSON()
	require.NoError(t, err)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	good := i.Token(t, trigger, nil)
	parts := strings.Split(good, ".")
	for name, token := range map[string]string{
		"another audience":      i.Token(t, trigger, map[string]any{"aud": "https://kubernetes.default.svc"}),
		"no audience":           i.Token(t, trigger, map[string]any{"aud": nil}),
		"another issuer":        i.Token(t, trigger, map[string]any{"iss": "https://elsewhere.example.org"}),
		"no issuer":             i.Token(t, trigger, map[string]any{"iss": nil}),
		"over":                  i.Token(t, trigger, map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}),
		"without an end":        i.Token(t, trigger, map[string]any{"exp": nil}),
		"yet to begin":          i.Token(t, trigger, map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}),
		"without a subject":     i.Token(t, trigger, map[string]any{"sub": nil}),
		"a subject that is odd": i.Token(t, trigger, map[string]any{"sub": 7}),
		"a stranger's key":      stacktest.Sign(t, jose.RS256, stranger, i.Claims(trigger, nil)),
		"a stranger's, under the name of ours": stacktest.Sign(t, jose.ES256, jose.JSONWebKey{Key: stacktest.NewKey(t), KeyID: mine.KeyID},
			i.Claims(trigger, nil)),
		"the public key as a secret": stacktest.Sign(t, jose.HS256, jose.JSONWebKey{Key: public, KeyID: mine.KeyID}, i.Claims(trigger, nil)),
		"unsigned":                   "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"another signature":          parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"other claims":               parts[0] + "." + strings.ToUpper(parts[1][:8]) + parts[1][8:] + "." + parts[2],
		"cut off":                    good[:len(good)-10],
		"no JWT at all":              "hunter2-hunter2-hunter2",
		"dots":                       "..",
		"large":                      strings.Repeat("A", 30_000),
	} {
		_, err := admit(t, guard, token)
		require.ErrorIs(t, err, authn.ErrUnknown, name)
		require.NotContains(t, err.Error(), token, name)
		require.NotContains(t, err.Error(), "hunter2")
		require.NotContains(t, err.Error(), "\n", name)
	}
	for name, header := range map[string]string{"nothing": "", "the token alone": good, "another scheme": "Basic " + good} {
		_, err := guard.Admit(t.Context(), header)
		require.ErrorIs(t, err, authn.ErrUnknown, name)
	}
	for _, token := range []string{good, secret} {
		_, err = admit(t, guard, token)
		require.NoError(t, err)
	}
}

func TestSubjectsAreNamedOneByOneOrByTheirBeginning(t *testing.T) {
	t.Parallel()
	i := stacktest.NewIssuer(t, audience)
	guard := guardOf(i, func(o *authn.Options) {
		o.Subjects = []string{"system:serviceaccount:ops:ada", "system:serviceaccount:reservation-expiry:*"}
	})
	for subject, admitted := range map[string]bool{
		trigger: true, "system:serviceaccount:ops:ada": true, "system:serviceaccount:reservation-expiry:": true,
		"system:serviceaccount:ops:ada2": false, "system:serviceaccount:ops:ad": false, "system:serviceaccount:reservation-expiry-2:x": false, "*": false,
	} {
		sender, err := admit(t, guard, i.Token(t, subject, nil))
		if admitted {
			require.NoError(t, err, subject)
			require.Equal(t, subject, sender)
			continue
		}
		require.ErrorIs(t, err, authn.ErrNotAdmitted, subject)
		require.ErrorContains(t, err, subject)
	}
}

func TestANewKeyOfTheIssuerIsFetched(t *testing.T) {
	t.Parallel()
	i := stacktest.NewIssuer(t, audience)
	guard := guardOf(i, nil)
	old := i.Token(t, trigger, nil)
	for _, name := range []string{"two", "three"} {
		_, err := admit(t, guard, old)
		require.NoError(t, err)
		i.Rotate(t, name)
		_, err = admit(t, guard, i.Token(t, trigger, nil))
		require.NoError(t, err)
	}
	require.EqualValues(t, 3, i.Fetched.Load())
}

func TestStrangersDoNotMakeUsAskTheIssuerAgainAndAgain(t *testing.T) {
	t.Parallel()
	i := stacktest.NewIssuer(t, audience)
	guard := guardOf(i, nil)
	good := i.Token(t, trigger, nil)
	_, err := admit(t, guard, good)
	require.NoError(t, err)
	forged := stacktest.Sign(t, jose.ES256, jose.JSONWebKey{Key: stacktest.NewKey(t), KeyID: "two"}, i.Claims(trigger, nil))
	for range 200 {
		_, err := admit(t, guard, forged)
		require.ErrorIs(t, err, authn.ErrUnknown)
		require.NotContains(t, err.Error(), i.URL, "they are not told where the keys are")
	}
	require.LessOrEqual(t, i.Fetched.Load(), int32(8))
	_, err = admit(t, guard, good)
	require.NoError(t, err)
}

func TestAnIssuerThatCannotBeAskedMayComeBack(t *testing.T) {
	t.Parallel()
	i := stacktest.NewIssuer(t, audience)
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	guard := guardOf(i, func(o *authn.Options) {
		o.Secret = authn.FixedSecret(secret)
		o.Now = func() time.Time { return time.Unix(0, now.Load()) }
	})
	good := i.Token(t, trigger, nil)
	i.Down.Store(true)
	_, err := admit(t, guard, good)
	requireMayPass(t, err)
	_, err = admit(t, guard, secret)
	require.NoError(t, err, "the secret needs no issuer")

	i.Down.Store(false)
	_, err = admit(t, guard, good)
	requireMayPass(t, err)
	require.Zero(t, i.Asked.Load(), "it is left alone for a moment")
	now.Add(int64(3 * time.Second))
	i.Broken.Store(true)
	_, err = admit(t, guard, good)
	requireMayPass(t, err)
	i.Broken.Store(false)
	_, err = admit(t, guard, good)
	require.NoError(t, err)

	i.Down.Store(true)
	_, err = admit(t, guard, good)
	require.NoError(t, err, "keys are kept")
	i.Rotate(t, "two")
	_, err = admit(t, guard, i.Token(t, trigger, nil))
	requireMayPass(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = guard.Admit(ctx, "Bearer "+i.Token(t, trigger, nil))
	requireMayPass(t, err)
}

func TestAnIssuerThatSaysSomethingElseIsNone(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"another issuer": `{"issuer":"https://elsewhere.example.org","jwks_uri":"https://elsewhere.example.org/keys"}`,
		"no keys":        `{"issuer":"ISSUER"}`,
		"no JSON":        `<html>`,
	} {
		var server *httptest.Server
		server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(strings.ReplaceAll(body, "ISSUER", server.URL)))
		}))
		t.Cleanup(server.Close)
		guard := authn.New(authn.Options{Issuer: server.URL, Audience: audience, Transport: server.Client().Transport})
		_, err := admit(t, guard, "a.b.c")
		requireMayPass(t, err)
		require.NotEmpty(t, name)
	}
}

func TestTheClustersOwnIssuerIsAskedByTheServiceAccount(t *testing.T) {
	t.Parallel()
	i := stacktest.NewTLSIssuer(t, audience, "of-the-account")
	directory := t.TempDir()
	guard := func() *authn.Guard {
		return guardOf(i, func(o *authn.Options) { o.Transport = authn.InCluster(directory) })
	}
	good := i.Token(t, trigger, nil)
	_, err := admit(t, guard(), good)
	requireMayPass(t, err)
	require.ErrorIs(t, err, os.ErrNotExist)

	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw})
	require.NoError(t, os.WriteFile(filepath.Join(directory, "ca.crt"), authority, 0o600))
	_, err = admit(t, guard(), good)
	require.ErrorIs(t, err, os.ErrNotExist, "the token")
	require.NoError(t, os.WriteFile(filepath.Join(directory, "token"), []byte("of-the-account\n"), 0o600))
	sender, err := admit(t, guard(), good)
	require.NoError(t, err)
	require.Equal(t, trigger, sender)

	require.NoError(t, os.WriteFile(filepath.Join(directory, "ca.crt"), []byte("none"), 0o600))
	_, err = admit(t, guard(), good)
	requireMayPass(t, err)
}

func TestOnlyTheClusterItselfIsAskedByTheServiceAccount(t *testing.T) {
	t.Parallel()
	for issuer, inside := range map[string]bool{
		"https://kubernetes.default.svc": true, "https://kubernetes.default.svc.cluster.local": true,
		"https://issuer.example.org": false, "https://kubernetes.default.svcs": false, "https://kubernetes.default.svc\x00": false,
	} {
		_, outside := authn.TransportFor(issuer).(*http.Transport)
		require.Equal(t, inside, !outside, issuer)
	}
}
