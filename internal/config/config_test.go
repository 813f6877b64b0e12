package config

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

const password = "s3cr&t/pass word%40"

// enough is the smallest environment that starts the service on a laptop, with changes applied: "NAME=value" sets,
// "NAME" removes.
func enough(changes ...string) []string {
	environ := []string{
		"POSTGRES_HOST=db.internal", "POSTGRES_USER=expiry", "POSTGRES_PASSWORD=" + password, "POSTGRES_DB=gpudev",
		"AWS_REGION=us-east-2", "EKS_CLUSTER_NAME=gpu-dev",
	}
	for _, change := range changes {
		name, _, set := strings.Cut(change, "=")
		kept := environ[:0]
		for _, variable := range environ {
			if !strings.HasPrefix(variable, name+"=") {
				kept = append(kept, variable)
			}
		}
		environ = kept
		if set {
			environ = append(environ, change)
		}
	}
	return environ
}

func noFile(string) bool { return false }

func TestDefaultsAreThoseOfTheReadme(t *testing.T) {
	t.Parallel()
	c, err := Load(enough(), noFile)
	require.NoError(t, err)
	require.Equal(t, Config{
		Postgres: Postgres{Host: "db.internal", Port: 5432, User: "expiry", Password: NewSecret(password), DB: "gpudev"},
		Delivery: Delivery{Port: 8080},
		Rules: Rules{
			WarningMinutes: 30, GracePeriodSeconds: 120, BrakePercent: 20, BrakeMin: 5,
			MissingConfirm: 4 * time.Minute, SweepTimeout: time.Minute, DriverGrace: time.Minute,
		},
		Cloud: Cloud{Region: "us-east-2", EKSClusterName: "gpu-dev", ClusterAccess: EKS},
		Log:   Log{Format: "json"},
	}, c)
	require.Equal(t, 2*time.Minute, c.Rules.Grace())
	require.Equal(t, "http://127.0.0.1:8080/", c.Delivery.Self())
	require.False(t, c.Delivery.SinkMissing())
	require.False(t, c.Rules.Spot("h100"))
}

func TestEveryVariableIsRead(t *testing.T) {
	t.Parallel()
	c, err := Load(enough(
		"POSTGRES_PORT=6432", "PORT=9090", "SELF_URL=http://expiry.gpu-controlplane/", "K_SINK=http://broker-ingress/x/default",
		"FACTS_SINK=https://facts.example.org", "K_SERVICE=reservation-expiry",
		`K_CE_OVERRIDES={"extensions":{"team":"gpu","stage2":"prod"}}`,
		"WARNING_MINUTES=45", "GRACE_PERIOD_SECONDS=0", "BRAKE_PERCENT=100", "BRAKE_MIN=0", "MISSING_CONFIRM=90s", "SWEEP_TIMEOUT=2m", "DRIVER_GRACE=30s",
		"SPOT_GPU_TYPES= H100, a100 ,,t4", "KEEP_VOLUMES=true", "AVAILABILITY_UPDATER_FUNCTION_NAME=updater",
		"DISK_CONTENTS_BUCKET=gpu-dev-disks", "DOMAIN_NAME=Dev.Example.org.", "HOSTED_ZONE_ID=/hostedzone/Z123", "LOG_FORMAT=text",
		"EVENTS_OIDC_ISSUER=https://oidc.eks.us-east-2.amazonaws.com/id/A1", "EVENTS_OIDC_AUDIENCE=reservation-expiry",
		"EVENTS_OIDC_SUBJECTS= system:serviceaccount:a:*, ,ada", "EVENTS_BEARER_TOKEN=0123456789abcdef",
	), noFile)
	require.NoError(t, err)
	require.Equal(t, Entry{
		Issuer: "https://oidc.eks.us-east-2.amazonaws.com/id/A1", Audience: "reservation-expiry",
		Subjects: []string{"system:serviceaccount:a:*", "ada"}, Token: NewSecret("0123456789abcdef"),
	}, c.Entry)
	require.Equal(t, Delivery{
		Port: 9090, SelfURL: "http://expiry.gpu-controlplane/", Sink: "http://broker-ingress/x/default",
		FactsSink: "https://facts.example.org", Service: "reservation-expiry", Overrides: map[string]string{"team": "gpu", "stage2": "prod"},
	}, c.Delivery)
	require.Equal(t, "http://expiry.gpu-controlplane/", c.Delivery.Self())
	require.Equal(t, Rules{
		WarningMinutes: 45, BrakePercent: 100, MissingConfirm: 90 * time.Second, SweepTimeout: 2 * time.Minute, DriverGrace: 30 * time.Second,
		SpotGPUTypes: []string{"h100", "a100", "t4"}, KeepVolumes: true,
	}, c.Rules)
	require.True(t, c.Rules.Spot("T4"))
	require.Equal(t, Cloud{
		Region: "us-east-2", EKSClusterName: "gpu-dev", AvailabilityFunction: "updater", DiskContentsBucket: "gpu-dev-disks",
		DomainName: "dev.example.org", HostedZoneID: "Z123", ClusterAccess: EKS,
	}, c.Cloud)
	require.Equal(t, 6432, c.Postgres.Port)
	require.Equal(t, "text", c.Log.Format)
}

func TestOneMessageNamesEveryWrongVariable(t *testing.T) {
	t.Parallel()
	_, err := Load([]string{
		"POSTGRES_PORT=0", "POSTGRES_PASSWORD=", "PORT=x", "K_SINK=broker", "WARNING_MINUTES=0", "KEEP_VOLUMES=perhaps",
		"MISSING_CONFIRM=4", "K_CE_OVERRIDES=[]", "LOG_FORMAT=xml", "DOMAIN_NAME=dev.example.org",
	}, noFile)
	require.EqualError(t, err, strings.Join([]string{
		"environment: AWS_REGION is missing",
		"EKS_CLUSTER_NAME is missing, and there is neither an in-cluster account nor KUBECONFIG",
		"HOSTED_ZONE_ID is missing while DOMAIN_NAME is set",
		"KEEP_VOLUMES must be true or false",
		`K_CE_OVERRIDES must be JSON such as {"extensions":{"name":"value"}} with lower-case names that are no attributes of their own`,
		"K_SINK must be an http or https URL without user and password",
		"LOG_FORMAT must be json or text",
		"MISSING_CONFIRM must be a duration such as 90s or 4m",
		"PORT must be a whole number",
		"POSTGRES_DB is missing",
		"POSTGRES_HOST is missing",
		"POSTGRES_PASSWORD is missing",
		"POSTGRES_PORT must be from 1 to 65535",
		"POSTGRES_USER is missing",
		"WARNING_MINUTES must be from 1 to 10080",
	}, "; "))
}

func TestBadValuesAreRefusedByName(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"POSTGRES_PORT=65536", "POSTGRES_PORT=-1", "POSTGRES_PORT=54 32", "PORT=0", "PORT=99999999999999999999",
		"SELF_URL=127.0.0.1:8080", "SELF_URL=ftp://host/", "K_SINK=http:///path", "K_SINK=http://user:pass@host/", "FACTS_SINK=http://ho st/",
		`K_CE_OVERRIDES={"extensions":{"Team":"gpu"}}`, `K_CE_OVERRIDES={"extensions":{"":"gpu"}}`, `K_CE_OVERRIDES={"extensions":{"subject":"x"}}`,
		`K_CE_OVERRIDES={"extensions":{"n":1}}`, "K_CE_OVERRIDES={",
		"WARNING_MINUTES=-5", "WARNING_MINUTES=10081", "WARNING_MINUTES=30m", "GRACE_PERIOD_SECONDS=-1", "GRACE_PERIOD_SECONDS=86401", "GRACE_PERIOD_SECONDS=2m",
		"BRAKE_PERCENT=-1", "BRAKE_PERCENT=101", "BRAKE_PERCENT=20%", "BRAKE_MIN=-1",
		"MISSING_CONFIRM=0s", "MISSING_CONFIRM=-4m", "MISSING_CONFIRM=13h", "DRIVER_GRACE=0s", "DRIVER_GRACE=61m", "SWEEP_TIMEOUT=0s", "SWEEP_TIMEOUT=5m1s", "SWEEP_TIMEOUT=60",
		"KEEP_VOLUMES=yes", "LOG_FORMAT=JSON", "DISK_CONTENTS_BUCKET=s3://bucket", "DISK_CONTENTS_BUCKET=bucket/path",
		"JAEGER_QUERY_URL=jaeger:16686", "JAEGER_QUERY_URL=http:///path", "JAEGER_QUERY_URL=ftp://host/", "JAEGER_QUERY_URL=http://ho st/",
		"KUBECONFIG=/nowhere", "AWS_REGION=", "EKS_CLUSTER_NAME",
	} {
		name, _, _ := strings.Cut(bad, "=")
		_, err := Load(enough(bad), noFile)
		require.ErrorContains(t, err, "environment: "+name+" ", bad)
	}
	for _, bad := range []string{"DOMAIN_NAME=localhost", "DOMAIN_NAME=exa mple.org", "DOMAIN_NAME=-x.org", "DOMAIN_NAME=*.example.org", "DOMAIN_NAME=."} {
		_, err := Load(enough(bad, "HOSTED_ZONE_ID=Z1"), noFile)
		require.ErrorContains(t, err, "environment: DOMAIN_NAME ", bad)
	}
}

func TestBoundsThemselvesAreGood(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"POSTGRES_PORT=1", "PORT=65535", "WARNING_MINUTES=1", "WARNING_MINUTES=10080", "GRACE_PERIOD_SECONDS=86400", "BRAKE_PERCENT=0",
		"MISSING_CONFIRM=1s", "MISSING_CONFIRM=12h", "DRIVER_GRACE=1s", "DRIVER_GRACE=1h", "SWEEP_TIMEOUT=1s", "SWEEP_TIMEOUT=5m", "K_CE_OVERRIDES={}", "K_SINK=https://[::1]:8080",
		"JAEGER_QUERY_URL=http://jaeger-query:16686", "JAEGER_QUERY_URL=https://jaeger.example.org/",
	} {
		_, err := Load(enough(good), noFile)
		require.NoError(t, err, good)
	}
}

func TestVariablesSetToNothingCountAsNotSet(t *testing.T) {
	t.Parallel()
	c, err := Load(enough("POSTGRES_PORT=", "K_SINK=", "SPOT_GPU_TYPES=", "DOMAIN_NAME=", "HOSTED_ZONE_ID=", "MISSING_CONFIRM=", "KUBECONFIG="), noFile)
	require.NoError(t, err)
	want, err := Load(enough(), noFile)
	require.NoError(t, err)
	require.Equal(t, want, c)
}

func TestTheClusterIsNamedOnlyWhereNothingElseLeadsToIt(t *testing.T) {
	t.Parallel()
	const token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	inPod := []string{"KUBERNETES_SERVICE_HOST=10.0.0.1", "KUBERNETES_SERVICE_PORT=443"}
	for name, tc := range map[string]struct {
		environ []string
		files   []string
		want    ClusterAccess // empty: EKS_CLUSTER_NAME is asked for
	}{
		"nothing":                           {nil, nil, ""},
		"named":                             {[]string{"EKS_CLUSTER_NAME=gpu-dev"}, nil, EKS},
		"in a pod":                          {inPod, []string{token}, InCluster},
		"in a pod, named as well":           {append([]string{"EKS_CLUSTER_NAME=gpu-dev"}, inPod...), []string{token}, InCluster},
		"in a pod without account":          {inPod, nil, ""},
		"an account but no address":         {nil, []string{token}, ""},
		"an account and half an address":    {inPod[:1], []string{token}, ""},
		"kubeconfig":                        {[]string{"KUBECONFIG=/a"}, []string{"/a"}, Kubeconfig},
		"kubeconfig, the second one exists": {[]string{"KUBECONFIG=/a:/b"}, []string{"/b"}, Kubeconfig},
		"kubeconfig beats the pod":          {append([]string{"KUBECONFIG=/a"}, inPod...), []string{"/a", token}, Kubeconfig},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exists := func(path string) bool { return strings.Contains(" "+strings.Join(tc.files, " ")+" ", " "+path+" ") }
			c, err := Load(append(enough("EKS_CLUSTER_NAME"), tc.environ...), exists)
			if tc.want == "" {
				require.ErrorContains(t, err, "EKS_CLUSTER_NAME is missing")
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, c.Cloud.ClusterAccess)
		})
	}
	require.True(t, FileExists("."))
	require.False(t, FileExists("./no-such-file"))
}

func TestSomeCommandsNeedLess(t *testing.T) {
	t.Parallel()
	only := enough("AWS_REGION", "EKS_CLUSTER_NAME")
	p, err := LoadPostgres(append(only, "WARNING_MINUTES=nonsense"))
	require.NoError(t, err)
	require.Equal(t, "db.internal", p.Host)
	_, err = LoadPostgres(nil)
	require.EqualError(t, err, "environment: POSTGRES_DB is missing; POSTGRES_HOST is missing; POSTGRES_PASSWORD is missing; POSTGRES_USER is missing")

	r, err := LoadReplay(append(only, "K_SINK=http://broker/"))
	require.NoError(t, err)
	require.Equal(t, "http://broker/", r.Delivery.Sink)
	_, err = LoadReplay(append(only[1:], "K_SINK=broker"))
	require.EqualError(t, err, "environment: K_SINK must be an http or https URL without user and password; POSTGRES_HOST is missing")
}

func TestKnativeWithoutASinkIsNoticed(t *testing.T) {
	t.Parallel()
	require.True(t, Delivery{Service: "reservation-expiry"}.SinkMissing())
	require.False(t, Delivery{Service: "reservation-expiry", Sink: "http://broker/"}.SinkMissing())
}

func TestConnectionURLCarriesEveryPartUnharmed(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"db.internal", "::1", "/var/run/postgresql"} {
		p := Postgres{Host: host, Port: 6432, User: "ex:pi@ry", Password: NewSecret(password), DB: "gpu dev/1"}
		c, err := pgconn.ParseConfig(p.URL().Reveal())
		require.NoError(t, err)
		require.Equal(t, []any{host, uint16(6432), "ex:pi@ry", password, "gpu dev/1"}, []any{c.Host, c.Port, c.User, c.Password, c.Database})
	}
}
