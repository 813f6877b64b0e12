//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const (
	namespace = "reservation-expiry"
	account   = "reservation-expiry"
)

// world is a platform with its database, its cluster and its AWS account, and who stands behind the Services.
type world struct {
	*cluster
	*platform.Platform
	network  *network
	aws      *recorder
	database *url.URL // as the service logs in: with the rights that are granted to it, and no more
	began    time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	database := stacktest.Database(t)
	login, err := url.Parse(stacktest.AsService(t, database))
	require.NoError(t, err)
	c := newCluster(t)
	p, err := platform.Connect(t.Context(), database, stacktest.Env(t, "KUBECONFIG"), stacktest.Env(t, "AWS_ENDPOINT_URL"), stacktest.Env(t, "AWS_REGION"))
	require.NoError(t, err)
	t.Cleanup(p.SQL.Close)
	say(t, "the platform: nodes, a DNS zone, a load balancer, a bucket, a Lambda function")
	require.NoError(t, p.Found(t.Context()))
	t.Cleanup(func() { require.NoError(t, p.Clear(context.Background())) })
	go p.RunVolumeDriver(t.Context())
	return &world{cluster: c, Platform: p, network: newNetwork(t, c), aws: record(t, p.Endpoint), database: login, began: time.Now()}
}

// environ is where the service finds what it works with; all else is for the manifests to say.
func (w *world) environ(t *testing.T) []string {
	t.Helper()
	password, _ := w.database.User.Password()
	return []string{
		"POSTGRES_HOST=" + w.database.Hostname(), "POSTGRES_PORT=" + w.database.Port(), "POSTGRES_DB=" + w.database.Path[1:],
		"POSTGRES_USER=" + w.database.User.Username(), "POSTGRES_PASSWORD=" + password, "PGSSLMODE=disable",
		"AWS_ENDPOINT_URL=" + w.aws.url, "AWS_ACCESS_KEY_ID=" + w.Account, "AWS_SECRET_ACCESS_KEY=e2e", "AWS_EC2_METADATA_DISABLED=true",
		"DISK_CONTENTS_BUCKET=" + w.Bucket, "DOMAIN_NAME=" + platform.Domain, "HOSTED_ZONE_ID=" + w.ZoneID,
		"AVAILABILITY_UPDATER_FUNCTION_NAME=" + w.Function,
	}
}

// is waits until a query about a reservation has one answer.
func (w *world) is(t *testing.T, within time.Duration, s platform.Server, query, want string) {
	t.Helper()
	eventually(t, within, fmt.Sprintf("%s of %s is %q", query, s.User, want), func() error {
		got, err := w.Text(t.Context(), query, s.ID)
		if err == nil && got != want {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

const (
	status   = "select status from reservations where reservation_id = $1"
	warnings = "select warnings_sent from reservations where reservation_id = $1"
	outcome  = "select outcome from expiry.cleanups where reservation_id = $1"
	inUse    = "select in_use from disks join reservations using (user_id, disk_name) where reservations.reservation_id = $1"
)

// audited returns what the service's account did in this world by the API server's own account ("get pods/exec"), in logs of
// that name, and what it was refused.
func (w *world) audited(t *testing.T, log string) (used map[string]int, forbidden []string) {
	t.Helper()
	used = map[string]int{}
	const user = "system:serviceaccount:" + namespace + ":" + account
	logs, err := filepath.Glob(filepath.Join(stacktest.Env(t, "STACK_DIR"), "logs", log))
	require.NoError(t, err)
	require.NotEmpty(t, logs)
	for _, path := range logs {
		file, err := os.Open(path)
		require.NoError(t, err)
		defer func() { _ = file.Close() }()
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if !strings.Contains(lines.Text(), user) {
				continue
			}
			var e struct {
				Verb           string
				User           struct{ Username string }
				ObjectRef      struct{ Namespace, Resource, Subresource, Name string }
				ResponseStatus struct{ Code int }
				Received       time.Time `json:"requestReceivedTimestamp"`
			}
			require.NoError(t, json.Unmarshal(lines.Bytes(), &e))
			if e.User.Username != user || e.ObjectRef.Resource == "" || e.Received.Before(w.began) {
				continue
			}
			what := e.Verb + " " + strings.TrimSuffix(e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource, "/")
			used[what]++
			if e.ResponseStatus.Code == 401 || e.ResponseStatus.Code == 403 {
				forbidden = append(forbidden, fmt.Sprintf("%s %s/%s", what, e.ObjectRef.Namespace, e.ObjectRef.Name))
			}
		}
		require.NoError(t, lines.Err())
	}
	return used, forbidden
}
