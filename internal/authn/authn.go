// Package authn says who may post events: whoever brings a shared secret, or an OpenID Connect token of one issuer for
// one audience, such as Knative's Brokers and Triggers send with each event.
package authn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

var (
	// ErrUnknown is of a request without a token, or with one that proves nothing: it had better bring another.
	ErrUnknown = errors.New("not known")
	// ErrNotAdmitted is of a sender who has shown who it is, and may not post.
	ErrNotAdmitted = errors.New("not admitted")
)

// Options say who is admitted. Where both an issuer and a secret are given, either will do.
type Options struct {
	Issuer   string // of the tokens, as in their claim iss; "": no token is taken
	Audience string // that tokens must be for
	// Subjects are the senders that are admitted; none: all whom the issuer gives a token for Audience. One that ends
	// with * stands for all that begin so, as in Knative's EventPolicy.
	Subjects []string
	Secret   Secret           // nil: none
	Now      func() time.Time // this machine's clock, by which tokens end; nil: time.Now
	// Transport is the way to the issuer; nil: TransportFor.
	Transport http.RoundTripper
}

// Guard admits requests. A nil one admits all. Nothing is dialled before the first token comes.
type Guard struct {
	secret   Secret
	issuer   *issuer // nil: none
	subjects []string
}

// New returns a guard, nil where neither an issuer nor a secret is given.
func New(opts Options) *Guard {
	if opts.Issuer == "" && opts.Secret == nil {
		return nil
	}
	g := &Guard{secret: opts.Secret, subjects: opts.Subjects}
	if opts.Issuer != "" {
		g.issuer = newIssuer(opts)
	}
	return g
}

// BySecret is the name of senders who bring the shared secret.
const BySecret = "secret"

// Admit returns who sends a request with this Authorization header: a token's subject, BySecret, or "" where all are
// admitted. Errors that are neither ErrUnknown nor ErrNotAdmitted may pass: the issuer or the secret's file was not to
// be had. No error quotes a token.
func (g *Guard) Admit(ctx context.Context, authorization string) (string, error) {
	if g == nil {
		return "", nil
	}
	token, err := bearer(authorization)
	if err != nil {
		return "", err
	}
	var failure error
	if g.secret != nil {
		same, err := g.secret.is(token)
		if same {
			return BySecret, nil
		}
		failure = err
	}
	if g.issuer == nil {
		if failure == nil {
			failure = fmt.Errorf("the token is %w", ErrUnknown)
		}
		return "", failure
	}
	subject, err := g.issuer.subject(ctx, token)
	if err != nil {
		return "", errors.Join(err, failure)
	}
	if !g.admits(subject) {
		return "", fmt.Errorf("%q is %w", subject, ErrNotAdmitted)
	}
	return subject, nil
}

func bearer(authorization string) (string, error) {
	scheme, token, _ := strings.Cut(strings.TrimSpace(authorization), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", fmt.Errorf("the sender is %w: there is no bearer token", ErrUnknown)
	}
	return token, nil
}

func (g *Guard) admits(subject string) bool {
	for _, admitted := range g.subjects {
		beginning, some := strings.CutSuffix(admitted, "*")
		if subject == admitted || some && strings.HasPrefix(subject, beginning) {
			return true
		}
	}
	return len(g.subjects) == 0
}
