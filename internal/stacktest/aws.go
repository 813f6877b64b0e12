package stacktest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/stretchr/testify/require"
)

// Account is an AWS account of a test's own in the emulator; tools/aws/emulator.py tells what it can be made to do.
type Account struct {
	Config aws.Config
	ID     string // also the access key id

	endpoint string
	t        testing.TB
}

// Settings are how long things take in the account; zero is at once.
type Settings struct {
	Snapshot     time.Duration // until a snapshot is completed; negative: never
	VolumeCreate time.Duration // until a volume is available
	VolumeDelete time.Duration // how long a deleted volume is still seen, as deleting
	Detach       time.Duration // how long a detached volume is still seen attached, as detaching
}

// Fault makes calls go wrong.
type Fault struct {
	// Action is a pattern for "ec2:CreateSnapshot" (ec2, elasticloadbalancing, sts) or "route53:POST /path" (the others).
	Action string
	Skip   int // so many calls go well first
	Times  int // so many calls go wrong then; 0: all
	Status int // of the answer, 0: 503
	Code   string
	After  bool // the call takes effect, and only its answer is lost
	Drop   bool // the connection is closed without an answer
	Delay  time.Duration
}

// Call is a call that the account has received.
type Call struct {
	Action string            // as in Fault
	Params map[string]string // of the query protocol: "VolumeId", "Filter.1.Name"
	Status int               // of the answer, 0 while there is none
}

// AWS makes an account in which snapshots complete at once; nothing else is in it.
func AWS(t testing.TB) *Account {
	t.Helper()
	number, err := rand.Int(rand.Reader, big.NewInt(1e12))
	require.NoError(t, err)
	a := &Account{ID: fmt.Sprintf("%012d", number), endpoint: Env(t, "AWS_ENDPOINT_URL"), t: t}
	a.Config = aws.Config{
		Region:       Env(t, "AWS_REGION"),
		BaseEndpoint: aws.String(a.endpoint),
		Credentials:  credentials.NewStaticCredentialsProvider(a.ID, "stack", ""),
		Retryer: func() aws.Retryer { // the SDK's own patience, without its waiting
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxBackoff = time.Millisecond })
		},
	}
	a.Set(Settings{})
	return a
}

// Environ is what makes a child process work in this account.
func (a *Account) Environ() []string {
	return []string{
		"AWS_ENDPOINT_URL=" + a.endpoint, "AWS_REGION=" + a.Config.Region, "AWS_ACCESS_KEY_ID=" + a.ID, "AWS_SECRET_ACCESS_KEY=stack",
	}
}

// Set changes how long things take, also for what is under way.
func (a *Account) Set(s Settings) {
	a.t.Helper()
	a.control(http.MethodPut, "settings", map[string]float64{
		"snapshot_seconds":      s.Snapshot.Seconds(),
		"volume_create_seconds": s.VolumeCreate.Seconds(),
		"volume_delete_seconds": s.VolumeDelete.Seconds(),
		"detach_seconds":        s.Detach.Seconds(),
	}, nil)
}

// Fail replaces the account's faults; without any all goes well again.
func (a *Account) Fail(faults ...Fault) {
	a.t.Helper()
	rules := []map[string]any{}
	for _, f := range faults {
		if f.Status == 0 {
			f.Status = http.StatusServiceUnavailable
		}
		rules = append(rules, map[string]any{
			"action": f.Action, "skip": f.Skip, "times": f.Times, "status": f.Status, "code": f.Code,
			"after": f.After, "drop": f.Drop, "delay_seconds": f.Delay.Seconds(),
		})
	}
	a.control(http.MethodPut, "faults", rules, nil)
}

// Alter sets what no API call can on a snapshot, volume or instance, by the names that emulator.py lists:
// {"state": "error"}, {"attachment_state": "detaching"}, {"start_time": "2026-01-02T03:04:05"}.
func (a *Account) Alter(id string, values map[string]any) {
	a.t.Helper()
	a.control(http.MethodPut, "resources/"+id, values, nil)
}

// Calls returns, in order, the calls that the account has received.
func (a *Account) Calls() []Call {
	a.t.Helper()
	var calls []Call
	a.control(http.MethodGet, "calls", nil, &calls)
	return calls
}

// Count says how many calls of an action the account has received.
func (a *Account) Count(action string) int {
	a.t.Helper()
	n := 0
	for _, call := range a.Calls() {
		if call.Action == action {
			n++
		}
	}
	return n
}

func (a *Account) control(method, path string, body, answer any) {
	a.t.Helper()
	text, err := json.Marshal(body)
	require.NoError(a.t, err)
	// Not the test's context: a cleanup may still want to look.
	request, err := http.NewRequestWithContext(context.Background(), method, a.endpoint+"/_control/"+a.ID+"/"+path, bytes.NewReader(text))
	require.NoError(a.t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(a.t, err, notUp)
	defer func() { _ = response.Body.Close() }()
	said, err := io.ReadAll(response.Body)
	require.NoError(a.t, err)
	require.Equal(a.t, http.StatusOK, response.StatusCode, "%s", said)
	if answer != nil {
		require.NoError(a.t, json.Unmarshal(said, answer))
	}
}
