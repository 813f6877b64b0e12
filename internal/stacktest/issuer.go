package stacktest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"
)

// Issuer issues OpenID Connect tokens as Kubernetes does: discovery, keys, and JWTs that they sign.
type Issuer struct {
	*httptest.Server
	Asked, Fetched atomic.Int32 // how often: for where the keys are, for the keys
	Down           atomic.Bool  // it answers 503
	Broken         atomic.Bool  // its keys are none

	audience string
	token    string // that it asks for itself; "": none

	mu   sync.Mutex
	keys []jose.JSONWebKey // private; the last one signs
}

// NewIssuer starts an issuer of tokens for an audience. It ends with the test.
func NewIssuer(t testing.TB, audience string) *Issuer {
	t.Helper()
	i := &Issuer{audience: audience}
	i.Rotate(t, "one")
	i.Server = httptest.NewServer(i)
	t.Cleanup(i.Close)
	return i
}

// NewTLSIssuer is NewIssuer behind TLS, for those only who show a token.
func NewTLSIssuer(t testing.TB, audience, token string) *Issuer {
	t.Helper()
	i := &Issuer{audience: audience, token: token}
	i.Rotate(t, "one")
	i.Server = httptest.NewTLSServer(i)
	t.Cleanup(i.Close)
	return i
}

// Rotate makes tokens be signed by a new key, which is published beside the old ones.
func (i *Issuer) Rotate(t testing.TB, name string) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append(i.keys, jose.JSONWebKey{Key: NewKey(t), KeyID: name, Algorithm: string(jose.ES256), Use: "sig"})
}

// NewKey returns a key that nobody knows.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// Key returns the private key that signs.
func (i *Issuer) Key() jose.JSONWebKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[len(i.keys)-1]
}

// ServeHTTP implements http.Handler.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case i.Down.Load():
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case i.token != "" && r.Header.Get("Authorization") != "Bearer "+i.token:
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		i.Asked.Add(1)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"HS256", "none", "ES256"},
		})
	case "/keys":
		i.Fetched.Add(1)
		if i.Broken.Load() {
			_, _ = w.Write([]byte("oops"))
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

// Token is one for a subject that is good for an hour, with changes; a nil value removes a claim.
func (i *Issuer) Token(t testing.TB, subject string, changes map[string]any) string {
	t.Helper()
	return Sign(t, jose.ES256, i.Key(), i.Claims(subject, changes))
}

// Claims are those of a Token.
func (i *Issuer) Claims(subject string, changes map[string]any) map[string]any {
	now := time.Now()
	claims := map[string]any{
		"iss": i.URL, "sub": subject, "aud": []string{i.audience}, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for name, value := range changes {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
	return claims
}

// Sign makes a JWT of claims.
func Sign(t testing.TB, algorithm jose.SignatureAlgorithm, key any, claims map[string]any) string {
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
