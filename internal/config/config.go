// Package config reads the environment. Every variable is checked before anything starts, and one error names all
// that are missing or bad. What the AWS and OpenTelemetry SDKs read is left to them.
package config

import (
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Postgres says where the database is: all that `migrate`, `explain`, `status` and the like need.
type Postgres struct {
	Host     string `env:"POSTGRES_HOST,required"`
	Port     int    `env:"POSTGRES_PORT" envDefault:"5432"`
	User     string `env:"POSTGRES_USER,required"`
	Password Secret `env:"POSTGRES_PASSWORD,required"`
	DB       string `env:"POSTGRES_DB,required"`
}

// URL returns the connection URL. A Host that is a path means the Unix socket in that directory.
func (p Postgres) URL() Secret {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(p.User, p.Password.Reveal()), Path: "/" + p.DB}
	if strings.HasPrefix(p.Host, "/") {
		u.RawQuery = url.Values{"host": {p.Host}, "port": {strconv.Itoa(p.Port)}}.Encode()
	} else {
		u.Host = net.JoinHostPort(p.Host, strconv.Itoa(p.Port))
	}
	return NewSecret(u.String())
}

// Delivery says how events come in and where they go.
type Delivery struct {
	Port      int               `env:"PORT" envDefault:"8080"`
	SelfURL   string            `env:"SELF_URL"`       // this container's own address; see Self
	Sink      string            `env:"K_SINK"`         // where follow-ups go; empty: the container is its own sink
	FactsSink string            `env:"FACTS_SINK"`     // where facts go; empty: Sink
	Service   string            `env:"K_SERVICE"`      // set by Knative Serving
	SelfSweep bool              `env:"SELF_SWEEP"`     // without a sink: also ask itself for the sweeps that are due
	Overrides map[string]string `env:"K_CE_OVERRIDES"` // extensions that a SinkBinding adds to every event sent
}

// Self returns the address at which the container reaches itself: SELF_URL, else the loopback.
func (d Delivery) Self() string {
	if d.SelfURL != "" {
		return d.SelfURL
	}
	return d.Loopback()
}

// Loopback returns the address of this very process.
func (d Delivery) Loopback() string {
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(d.Port)) + "/"
}

// SinkMissing reports that Knative runs the container and no sink is bound: it must not become ready.
func (d Delivery) SinkMissing() bool { return d.Service != "" && d.Sink == "" }

// Entry says who may post events. Without an issuer and a token everybody may who reaches the service.
type Entry struct {
	Issuer    string   `env:"EVENTS_OIDC_ISSUER"`
	Audience  string   `env:"EVENTS_OIDC_AUDIENCE"`
	Subjects  []string `env:"EVENTS_OIDC_SUBJECTS"` // none: all that have a token for Audience
	Token     Secret   `env:"EVENTS_BEARER_TOKEN"`
	TokenFile string   `env:"EVENTS_BEARER_TOKEN_FILE"` // instead of Token; read anew for each request
}

// Rules are the figures by which reservations are judged.
type Rules struct {
	WarningMinutes     int           `env:"WARNING_MINUTES" envDefault:"30"`
	GracePeriodSeconds int           `env:"GRACE_PERIOD_SECONDS" envDefault:"120"`
	BrakePercent       int           `env:"BRAKE_PERCENT" envDefault:"20"`
	BrakeMin           int           `env:"BRAKE_MIN" envDefault:"5"`
	MissingConfirm     time.Duration `env:"MISSING_CONFIRM" envDefault:"4m"`
	SweepTimeout       time.Duration `env:"SWEEP_TIMEOUT" envDefault:"60s"`
	DriverGrace        time.Duration `env:"DRIVER_GRACE" envDefault:"1m"` // for the volume driver to detach by itself
	SpotGPUTypes       []string      `env:"SPOT_GPU_TYPES"`               // lower-case
	KeepVolumes        bool          `env:"KEEP_VOLUMES" envDefault:"false"`
}

// Grace returns how long past its deadline a reservation is left alone.
func (r Rules) Grace() time.Duration { return time.Duration(r.GracePeriodSeconds) * time.Second }

// Spot reports whether instances of this GPU type may be reclaimed by EC2.
func (r Rules) Spot(gpuType string) bool {
	return slices.Contains(r.SpotGPUTypes, strings.ToLower(gpuType))
}

// Cloud names what stands behind reservations. An empty field means that the step which needs it is left out.
type Cloud struct {
	Region               string `env:"AWS_REGION,required"`
	EKSClusterName       string `env:"EKS_CLUSTER_NAME"`
	Kubeconfig           string `env:"KUBECONFIG"`
	AvailabilityFunction string `env:"AVAILABILITY_UPDATER_FUNCTION_NAME"`
	DiskContentsBucket   string `env:"DISK_CONTENTS_BUCKET"`
	DomainName           string `env:"DOMAIN_NAME"`    // lower-case, no trailing dot
	HostedZoneID         string `env:"HOSTED_ZONE_ID"` // without "/hostedzone/"
	ClusterAccess        ClusterAccess
}

// ClusterAccess is the way to the Kubernetes API.
type ClusterAccess string

// The ways to the Kubernetes API, the most explicit first.
const (
	Kubeconfig ClusterAccess = "kubeconfig" // KUBECONFIG is set
	InCluster  ClusterAccess = "in-cluster" // a service account is mounted
	EKS        ClusterAccess = "eks"        // DescribeCluster and a presigned STS token
)

// Config is the whole environment: what `serve` and `sweep` need.
type Config struct {
	Postgres Postgres
	Delivery Delivery
	Entry    Entry
	Rules    Rules
	Cloud    Cloud
	Log      Log
	Traces   Traces
}

// Log says how the log is written.
type Log struct {
	Format string `env:"LOG_FORMAT" envDefault:"json"` // json or text
}

// Traces says where traces can be looked at.
type Traces struct {
	JaegerQueryURL string `env:"JAEGER_QUERY_URL"` // empty: nowhere
}

// Outlook is what looking at the state and ahead needs: only the database's variables are required.
type Outlook struct {
	Postgres Postgres
	Rules    Rules
}

// Replay is what sending a dead letter again needs.
type Replay struct {
	Postgres Postgres
	Delivery Delivery
	Entry    Entry
}
