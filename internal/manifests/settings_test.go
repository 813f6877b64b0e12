package manifests

import (
	"database/sql"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // which KEDA uses, too
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// withoutOIDC returns overlay production as docs/deploying.md has it where OIDC is not on: without the component.
func withoutOIDC(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(root, "knative"))))
	overlay := filepath.Join(dir, "overlays", "production")
	file := filepath.Join(overlay, "kustomization.yaml")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	without := regexp.MustCompile(`(?m)^components:\n  - \.\./\.\./oidc.*\n`).ReplaceAll(text, nil)
	require.NotEqual(t, string(text), string(without))
	require.NoError(t, os.WriteFile(file, without, 0o600))
	return overlay
}

// environ is what a way to deploy gives the container; the ConfigMap is one.
func environ(t *testing.T, all []*unstructured.Unstructured, more ...string) []string {
	t.Helper()
	settings := ofKind(all, "ConfigMap")
	require.Len(t, settings, 1)
	data, _, err := unstructured.NestedStringMap(settings[0].Object, "data")
	require.NoError(t, err)
	for name, value := range data {
		more = append(more, name+"="+value)
	}
	return append(more, "POSTGRES_USER=reservation_expiry", "POSTGRES_PASSWORD=test", "KUBERNETES_SERVICE_HOST=192.0.2.1", "KUBERNETES_SERVICE_PORT=443")
}

func TestTheServiceStartsWithWhatEachWayToDeploySets(t *testing.T) {
	const bound, knative = "K_SINK=http://broker.example.org/", "K_SERVICE=reservation-expiry"
	for kustomization, more := range map[string][]string{
		"knative/overlays/dev": {bound, knative}, "knative/overlays/production": {bound, knative}, withoutOIDC(t): {bound, knative},
		"keda/scaled": nil, "keda/cronjob": nil,
	} {
		t.Run(filepath.Base(kustomization), func(t *testing.T) {
			all := objects(t, build(t, kustomization))
			environ := environ(t, all, more...)
			mounted := func(string) bool { return true } // the ServiceAccount
			c, err := config.Load(environ, mounted)
			require.NoError(t, err)
			if strings.HasSuffix(kustomization, "/dev") {
				return
			}
			for _, variable := range environ {
				if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
					t.Setenv(name, value)
				}
			}
			connection, err := pgx.ParseConfig(c.Postgres.URL().Reveal())
			require.NoError(t, err)
			require.NotNil(t, connection.TLSConfig)
			for _, other := range connection.Fallbacks {
				require.NotNil(t, other.TLSConfig, "the password would go to a server without TLS")
			}
			for _, account := range ofKind(all, "ServiceAccount") {
				require.NotContains(t, account.GetAnnotations()["eks.amazonaws.com/role-arn"], ":000000000000:", "nobody's account")
			}
		})
	}
}

func TestAnApplyEndsARollBack(t *testing.T) {
	t.Parallel()
	for _, overlay := range brokers {
		traffic, _, _ := unstructured.NestedSlice(serving(t, objects(t, build(t, overlay))).Object, "spec", "traffic")
		require.Equal(t, []any{map[string]any{"latestRevision": true, "percent": int64(100)}}, traffic)
	}
}

// KEDA's operator asks as this does: with pgx by way of database/sql, and after a restart of its own anew on connections
// that PgBouncer has kept.
func TestKEDAMayAskThroughPgBouncer(t *testing.T) {
	t.Parallel()
	all := objects(t, build(t, "keda/scaled"))
	login := ofKind(all, "TriggerAuthentication")[0]
	given, _, _ := unstructured.NestedSlice(login.Object, "spec", "secretTargetRef")
	require.Len(t, given, 1)
	require.Equal(t, "connection", given[0].(map[string]any)["parameter"])
	triggers, _, _ := unstructured.NestedSlice(ofKind(all, "ScaledObject")[0].Object, "spec", "triggers")
	question := triggers[0].(map[string]any)["metadata"].(map[string]any)["query"].(string)

	page, err := os.ReadFile(filepath.Join(root, "docs", "deploying.md"))
	require.NoError(t, err)
	documented := regexp.MustCompile(`postgres://reservation_expiry_keda:.*\?(sslmode=require.*)'`).FindSubmatch(page)
	require.NotNil(t, documented)
	to, err := url.Parse(stacktest.AsService(t, stacktest.Database(t)))
	require.NoError(t, err)
	to.RawQuery = strings.ReplaceAll(string(documented[1]), "sslmode=require", "sslmode=disable")
	for range 3 {
		operator, err := sql.Open("pgx", to.String())
		require.NoError(t, err)
		var work int
		require.NoError(t, operator.QueryRowContext(t.Context(), question).Scan(&work))
		require.Equal(t, 1, work, "the first sweep is due")
		require.NoError(t, operator.Close())
	}
}
