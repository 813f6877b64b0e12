package authn

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"os"
	"strings"
)

// ShortestSecret is the least length of a shared secret, in bytes.
const ShortestSecret = 16

// Secret returns the shared secrets that are good at the moment, the one to be sent first.
type Secret func() ([]string, error)

// FixedSecret is one that does not change while the process runs.
func FixedSecret(value string) Secret {
	return func() ([]string, error) { return []string{value}, nil }
}

// SecretFile is the secret in a file, read anew for each request, so that it can be changed without a restart: while
// senders change over, the file holds the new and the old one, each on a line of its own.
func SecretFile(path string) Secret {
	return func() ([]string, error) {
		text, err := os.ReadFile(path) //nolint:gosec // named by whoever runs the service
		if err != nil {
			return nil, fmt.Errorf("read the shared secret: %w", err)
		}
		secrets := strings.Fields(string(text))
		for _, one := range secrets {
			if len(one) < ShortestSecret {
				return nil, fmt.Errorf("the shared secret in %s is shorter than %d bytes", path, ShortestSecret)
			}
		}
		if len(secrets) == 0 {
			return nil, fmt.Errorf("there is no shared secret in %s", path)
		}
		return secrets, nil
	}
}

// Send returns the secret to be sent.
func (s Secret) Send() (string, error) {
	secrets, err := s()
	if err != nil {
		return "", err
	}
	return secrets[0], nil
}

// is reports whether a token is one of the secrets, in a time that tells nothing of them.
func (s Secret) is(token string) (bool, error) {
	secrets, err := s()
	if err != nil {
		return false, err
	}
	brought, same := sha256.Sum256([]byte(token)), 0
	for _, one := range secrets {
		expected := sha256.Sum256([]byte(one))
		same |= subtle.ConstantTimeCompare(brought[:], expected[:])
	}
	return same == 1, nil
}
