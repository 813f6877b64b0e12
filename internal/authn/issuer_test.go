package authn_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/authn"
)

const (
	audience = "reservation-expiry"
	trigger  = "system:serviceaccount:reservation-expiry:tick-oidc-eventing.knative.dev-trigger"
)

// issuer issues tokens as Kubernetes does: discovery, keys, and JWTs signed by them.
type issuer struct {
	*httptest.Server
	asked, fetched atomic.Int32 // for discovery, for keys
	down           atomic.Bool
	broken         atomic.Value // string: what is answered instead of the keys

	mu   sync.Mutex
	keys []jose.JSONWebKey // private; the last one signs
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{}
	i.broken.Store("")
	i.rotate(t, "one")
	i.Server = httptest.NewServer(i)
	t.Cleanup(i.Close)
	return i
}

// rotate makes tokens be signed by a new key, which is published beside the old ones.
func (i *issuer) rotate(t *testing.T, name string) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append(i.keys, jose.JSONWebKey{Key: newKey(t), KeyID: name, Algorithm: string(jose.ES256), Use: "sig"})
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// ServeHTTP implements http.Handler.
func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if i.down.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		i.asked.Add(1)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"HS256", "none", "ES256"},
		})
	case "/keys":
		i.fetched.Add(1)
		if broken := i.broken.Load().(string); broken != "" {
			_, _ = w.Write([]byte(broken))
			return
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		set := jose.JSONWebKeySet{}
		for _, key := range i.keys {
			set.Keys = append(set.Keys, key.Public())
		}
		_ = json.NewEncoder(w).Encode(set)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// token is one for a subject that is good for an hour, with changes; a nil value removes a claim.
func (i *issuer) token(t *testing.T, subject string, changes map[string]any) string {
	t.Helper()
	i.mu.Lock()
	key := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	return sign(t, jose.ES256, key, i.claims(subject, changes))
}

func (i *issuer) claims(subject string, changes map[string]any) map[string]any {
	now := time.Now()
	claims := map[string]any{
		"iss": i.URL, "sub": subject, "aud": []string{audience}, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for name, value := range changes {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
	return claims
}

func sign(t *testing.T, algorithm jose.SignatureAlgorithm, key any, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, nil)
	require.NoError(t, err)
	text, err := json.Marshal(claims)
	require.NoError(t, err)
	signed, err := signer.Sign(text)
	require.NoError(t, err)
	token, err := signed.CompactSerialize()
	require.NoError(t, err)
	return token
}

func guardOf(i *issuer, change func(*authn.Options)) *authn.Guard {
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
	i := newIssuer(t)
	guard := guardOf(i, nil)
	require.Zero(t, i.asked.Load(), "nothing is asked before the first token comes")
	for range 20 {
		sender, err := admit(t, guard, i.token(t, trigger, nil))
		require.NoError(t, err)
		require.Equal(t, trigger, sender)
	}
	_, err := admit(t, guard, i.token(t, "x", map[string]any{"aud": audience}))
	require.NoError(t, err, "an audience need not be a list")
	_, err = admit(t, guard, i.token(t, "x", map[string]any{"aud": []string{"another", audience}}))
	require.NoError(t, err)
	require.EqualValues(t, []int32{1, 1}, []int32{i.asked.Load(), i.fetched.Load()}, "keys are kept")
}

func TestTokensThatProveNothing(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	guard := guardOf(i, func(o *authn.Options) { o.Secret = authn.FixedSecret(secret) })
	mine := i.keys[0]
	public, err := mine.Public().MarshalJSON()
	require.NoError(t, err)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	good := i.token(t, trigger, nil)
	parts := strings.Split(good, ".")
	for name, token := range map[string]string{
		"another audience":      i.token(t, trigger, map[string]any{"aud": "https://kubernetes.default.svc"}),
		"no audience":           i.token(t, trigger, map[string]any{"aud": nil}),
		"another issuer":        i.token(t, trigger, map[string]any{"iss": "https://elsewhere.example.org"}),
		"no issuer":             i.token(t, trigger, map[string]any{"iss": nil}),
		"over":                  i.token(t, trigger, map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}),
		"without an end":        i.token(t, trigger, map[string]any{"exp": nil}),
		"yet to begin":          i.token(t, trigger, map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}),
		"without a subject":     i.token(t, trigger, map[string]any{"sub": nil}),
		"a subject that is odd": i.token(t, trigger, map[string]any{"sub": 7}),
		"a stranger's key":      sign(t, jose.RS256, stranger, i.claims(trigger, nil)),
		"a stranger's, under the name of ours": sign(t, jose.ES256, jose.JSONWebKey{Key: newKey(t), KeyID: mine.KeyID},
			i.claims(trigger, nil)),
		"the public key as a secret": sign(t, jose.HS256, jose.JSONWebKey{Key: public, KeyID: mine.KeyID}, i.claims(trigger, nil)),
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
		require.Equal(t, 1, len(strings.Split(err.Error(), "\n")), name)
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
	i := newIssuer(t)
	guard := guardOf(i, func(o *authn.Options) {
		o.Subjects = []string{"system:serviceaccount:ops:ada", "system:serviceaccount:reservation-expiry:*"}
	})
	for subject, admitted := range map[string]bool{
		trigger: true, "system:serviceaccount:ops:ada": true, "system:serviceaccount:reservation-expiry:": true,
		"system:serviceaccount:ops:ada2": false, "system:serviceaccount:ops:ad": false, "system:serviceaccount:reservation-expiry-2:x": false, "*": false,
	} {
		sender, err := admit(t, guard, i.token(t, subject, nil))
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
	i := newIssuer(t)
	guard := guardOf(i, nil)
	old := i.token(t, trigger, nil)
	for _, name := range []string{"two", "three"} {
		_, err := admit(t, guard, old)
		require.NoError(t, err)
		i.rotate(t, name)
		_, err = admit(t, guard, i.token(t, trigger, nil))
		require.NoError(t, err)
	}
	require.EqualValues(t, 3, i.fetched.Load())
}

func TestStrangersDoNotMakeUsAskTheIssuerAgainAndAgain(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	guard := guardOf(i, nil)
	good := i.token(t, trigger, nil)
	_, err := admit(t, guard, good)
	require.NoError(t, err)
	forged := sign(t, jose.ES256, jose.JSONWebKey{Key: newKey(t), KeyID: "two"}, i.claims(trigger, nil))
	for range 200 {
		_, err := admit(t, guard, forged)
		require.ErrorIs(t, err, authn.ErrUnknown)
	}
	require.LessOrEqual(t, i.fetched.Load(), int32(8))
	_, err = admit(t, guard, good)
	require.NoError(t, err)
}

func TestAnIssuerThatCannotBeAskedMayComeBack(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	guard := guardOf(i, func(o *authn.Options) {
		o.Secret = authn.FixedSecret(secret)
		o.Now = func() time.Time { return time.Unix(0, now.Load()) }
	})
	good := i.token(t, trigger, nil)
	i.down.Store(true)
	_, err := admit(t, guard, good)
	requireMayPass(t, err)
	_, err = admit(t, guard, secret)
	require.NoError(t, err, "the secret needs no issuer")

	i.down.Store(false)
	_, err = admit(t, guard, good)
	requireMayPass(t, err)
	require.Zero(t, i.asked.Load(), "it is left alone for a moment")
	now.Add(int64(3 * time.Second))
	i.broken.Store("oops")
	_, err = admit(t, guard, good)
	requireMayPass(t, err)
	i.broken.Store("")
	_, err = admit(t, guard, good)
	require.NoError(t, err)

	i.down.Store(true)
	_, err = admit(t, guard, good)
	require.NoError(t, err, "keys are kept")
	i.rotate(t, "two")
	_, err = admit(t, guard, i.token(t, trigger, nil))
	requireMayPass(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = guard.Admit(ctx, "Bearer "+i.token(t, trigger, nil))
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
	i := &issuer{}
	i.broken.Store("")
	i.rotate(t, "one")
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer of-the-account" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		i.ServeHTTP(w, r)
	}))
	t.Cleanup(i.Close)
	directory := t.TempDir()
	guard := func() *authn.Guard {
		return guardOf(i, func(o *authn.Options) { o.Transport = authn.InCluster(directory) })
	}
	good := i.token(t, trigger, nil)
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

