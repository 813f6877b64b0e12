package authn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/time/rate"
)

const (
	// askWithin bounds one question to the issuer.
	askWithin = 5 * time.Second
	// askAgain is how long an issuer that could not be asked is left alone.
	askAgain = 2 * time.Second
	// keysEvery is how often the keys may be fetched anew, after keysAtOnce times in a row: whoever sends a token of an
	// unknown key makes us ask.
	keysEvery  = 10 * time.Second
	keysAtOnce = 5
)

// algorithms are those that public keys verify.
var algorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
}

// issuer verifies tokens by the keys that it publishes. They are fetched when the first token comes, kept, and fetched
// again for a token of a key that is not among them.
type issuer struct {
	url    string
	config oidc.Config
	client *http.Client
	now    func() time.Time

	mu       sync.Mutex // held while the issuer is asked where its keys are
	verifier *oidc.IDTokenVerifier
	failure  error // of the last such question
	failed   time.Time
}

func newIssuer(opts Options) *issuer {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Transport == nil {
		opts.Transport = TransportFor(opts.Issuer)
	}
	return &issuer{
		url: opts.Issuer, now: opts.Now,
		config: oidc.Config{ClientID: opts.Audience, SupportedSigningAlgs: algorithms, Now: opts.Now},
		client: &http.Client{Transport: opts.Transport, Timeout: askWithin},
	}
}

// subject returns whose token it is.
func (i *issuer) subject(ctx context.Context, token string) (string, error) {
	verifier, err := i.ready()
	if err != nil {
		return "", fmt.Errorf("ask the issuer of tokens: %w", err)
	}
	var unfetched error
	verified, err := verifier.Verify(context.WithValue(ctx, unfetchedKey{}, &unfetched), token)
	switch {
	case unfetched != nil:
		return "", fmt.Errorf("fetch the keys of the issuer of tokens: %w", unfetched)
	case err != nil:
		return "", fmt.Errorf("the token is %w: %s", ErrUnknown, strings.TrimPrefix(err.Error(), "oidc: "))
	case verified.Subject == "":
		return "", fmt.Errorf("the token is %w: it has no subject", ErrUnknown)
	}
	return verified.Subject, nil
}

// ready returns what verifies tokens, after asking the issuer where its keys are if nobody has.
func (i *issuer) ready() (*oidc.IDTokenVerifier, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.verifier != nil {
		return i.verifier, nil
	}
	if i.failure != nil && i.now().Sub(i.failed) < askAgain {
		return nil, i.failure
	}
	// Not the request's context: whoever waits as well is not to fail because the first one went away.
	ctx := oidc.ClientContext(context.Background(), i.client)
	var found struct {
		Keys string `json:"jwks_uri"`
	}
	provider, err := oidc.NewProvider(ctx, i.url)
	if err == nil {
		err = provider.Claims(&found)
	}
	if err == nil && found.Keys == "" {
		err = errors.New("it does not say where its keys are")
	}
	if err != nil {
		i.failure, i.failed = err, i.now()
		return nil, err
	}
	limited := *i.client
	limited.Transport = &seldom{next: i.client.Transport, limit: rate.NewLimiter(rate.Every(keysEvery), keysAtOnce)}
	remote := oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), &limited), found.Keys)
	i.verifier = oidc.NewVerifier(i.url, keys{remote}, &i.config)
	return i.verifier, nil
}

// unfetchedKey is for where keys says, through the verifier, that they could not be fetched.
type unfetchedKey struct{}

// keys tells keys that could not be fetched from tokens that they did not sign: the verifier's errors do not.
type keys struct{ remote *oidc.RemoteKeySet }

// VerifySignature implements oidc.KeySet.
func (k keys) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	payload, err := k.remote.VerifySignature(ctx, jwt)
	if errors.Is(err, errTooOften) {
		return nil, errTooOften // and not where the keys are
	}
	if err != nil && strings.HasPrefix(err.Error(), "fetching keys") {
		if unfetched, ok := ctx.Value(unfetchedKey{}).(*error); ok {
			*unfetched = err
		}
	}
	return payload, err //nolint:wrapcheck // for the verifier, which asks
}

var errTooOften = errors.New("none of the keys that were fetched a moment ago")

// seldom lets requests through at a limited rate.
type seldom struct {
	next  http.RoundTripper
	limit *rate.Limiter
}

// RoundTrip implements http.RoundTripper.
func (s *seldom) RoundTrip(r *http.Request) (*http.Response, error) {
	if !s.limit.Allow() {
		return nil, errTooOften
	}
	return s.next.RoundTrip(r) //nolint:wrapcheck // a transport's errors are its own
}
