package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// FileExists reports whether a path leads to something.
func FileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Load reads everything from environ (os.Environ) and looks for files with exists (FileExists).
func Load(environ []string, exists func(path string) bool) (Config, error) {
	var c Config
	p := parse(environ, &c.Postgres, &c.Delivery, &c.Entry, &c.Rules, &c.Cloud, &c.Log, &c.Traces)
	c.Postgres.check(p)
	c.Delivery.check(p)
	c.Entry.check(p, c.Delivery)
	c.Rules.check(p)
	c.Cloud.check(p, env.ToMap(environ), exists)
	c.Log.check(p)
	c.Traces.check(p)
	return c, p.err()
}

// LoadTraces reads where traces can be looked at.
func LoadTraces(environ []string) (Traces, error) {
	var c Traces
	p := parse(environ, &c)
	c.check(p)
	return c, p.err()
}

// LoadPostgres reads only where the database is.
func LoadPostgres(environ []string) (Postgres, error) {
	var c Postgres
	p := parse(environ, &c)
	c.check(p)
	return c, p.err()
}

// LoadOutlook reads where the database is and the rules by which reservations are judged.
func LoadOutlook(environ []string) (Outlook, error) {
	var c Outlook
	p := parse(environ, &c.Postgres, &c.Rules)
	c.Postgres.check(p)
	c.Rules.check(p)
	return c, p.err()
}

// LoadReplay reads where the database is and where events go.
func LoadReplay(environ []string) (Replay, error) {
	var c Replay
	p := parse(environ, &c.Postgres, &c.Delivery, &c.Entry)
	c.Postgres.check(p)
	c.Delivery.check(p)
	c.Entry.check(p, c.Delivery)
	return c, p.err()
}

// problems collects what is wrong, one sentence for each variable. Values are never quoted: a password ends up in the
// wrong variable sooner or later.
type problems map[string]string

func (p problems) bad(variable, what string) {
	if _, known := p[variable]; !known {
		p[variable] = what
	}
}

func (p problems) between(variable string, value, low, high int) {
	if value < low || value > high {
		p.bad(variable, fmt.Sprintf("must be from %d to %d", low, high))
	}
}

func (p problems) span(variable string, value, low, high time.Duration) {
	if value < low || value > high {
		p.bad(variable, fmt.Sprintf("must be from %s to %s", low, high))
	}
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	lines := make([]string, 0, len(p))
	for _, variable := range slices.Sorted(maps.Keys(p)) {
		lines = append(lines, variable+" "+p[variable])
	}
	return errors.New("environment: " + strings.Join(lines, "; "))
}

var formats = map[reflect.Type]string{
	reflect.TypeFor[int]():               "must be a whole number",
	reflect.TypeFor[bool]():              "must be true or false",
	reflect.TypeFor[time.Duration]():     "must be a duration such as 90s or 4m",
	reflect.TypeFor[map[string]string](): `must be JSON such as {"extensions":{"name":"value"}} with lower-case names that are no attributes of their own`,
}

// parse fills parts, pointers to structs, and returns what could not be read. A variable that is set to nothing counts
// as not set, as templates like to leave them.
func parse(environ []string, parts ...any) problems {
	variables := env.ToMap(environ)
	maps.DeleteFunc(variables, func(_, value string) bool { return value == "" })
	options := env.Options{
		Environment: variables,
		FuncMap: map[reflect.Type]env.ParserFunc{
			reflect.TypeFor[Secret]():            func(value string) (any, error) { return NewSecret(value), nil },
			reflect.TypeFor[map[string]string](): parseOverrides,
		},
	}
	p := problems{}
	for _, part := range parts { // one by one: the library's errors name fields, which are unique within a part only
		if err := env.ParseWithOptions(part, options); err != nil {
			p.read(reflect.TypeOf(part).Elem(), err)
		}
	}
	return p
}

// read turns the library's errors about fields of part into sentences about variables.
func (p problems) read(part reflect.Type, err error) {
	var all env.AggregateError
	var unset env.VarIsNotSetError
	var malformed env.ParseError
	switch {
	case errors.As(err, &all):
		for _, one := range all.Errors {
			p.read(part, one)
		}
	case errors.As(err, &unset):
		p.bad(unset.Key, "is missing")
	case errors.As(err, &malformed):
		field, _ := part.FieldByName(malformed.Name)
		variable, _, _ := strings.Cut(field.Tag.Get("env"), ",")
		p.bad(variable, formats[malformed.Type])
	default:
		p.bad(part.Name(), "cannot be read")
	}
}

func (c *Postgres) check(p problems) { p.between("POSTGRES_PORT", c.Port, 1, 65535) }

func (c *Delivery) check(p problems) {
	p.between("PORT", c.Port, 1, 65535)
	for variable, value := range map[string]string{"SELF_URL": c.SelfURL, "K_SINK": c.Sink, "FACTS_SINK": c.FactsSink} {
		if u, err := url.Parse(value); value != "" && (err != nil || u.Host == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https")) {
			p.bad(variable, "must be an http or https URL without user and password")
		}
	}
}

// attributes of CloudEvents 1.0, which no extension may be called.
var attributes = []string{"id", "source", "specversion", "type", "datacontenttype", "dataschema", "subject", "time", "data"}

var extensionName = regexp.MustCompile(`^[a-z0-9]+$`)

func parseOverrides(value string) (any, error) {
	var overrides struct {
		Extensions map[string]string `json:"extensions"`
	}
	if err := json.Unmarshal([]byte(value), &overrides); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	for name := range overrides.Extensions {
		if !extensionName.MatchString(name) || slices.Contains(attributes, name) {
			return nil, errors.New("no name for an extension")
		}
	}
	return overrides.Extensions, nil
}

func (c *Rules) check(p problems) {
	p.between("WARNING_MINUTES", c.WarningMinutes, 1, 7*24*60)
	p.between("GRACE_PERIOD_SECONDS", c.GracePeriodSeconds, 0, 24*60*60)
	p.between("BRAKE_PERCENT", c.BrakePercent, 0, 100)
	p.between("BRAKE_MIN", c.BrakeMin, 0, 1_000_000)
	p.span("MISSING_CONFIRM", c.MissingConfirm, time.Second, 12*time.Hour)
	p.span("DRIVER_GRACE", c.DriverGrace, time.Second, time.Hour)
	p.span("SWEEP_TIMEOUT", c.SweepTimeout, time.Second, 5*time.Minute) // a tick is five minutes from the next
	types := c.SpotGPUTypes[:0]
	for _, gpuType := range c.SpotGPUTypes {
		if gpuType = strings.ToLower(strings.TrimSpace(gpuType)); gpuType != "" {
			types = append(types, gpuType)
		}
	}
	c.SpotGPUTypes = types
}

func (c *Log) check(p problems) {
	if c.Format != "json" && c.Format != "text" {
		p.bad("LOG_FORMAT", "must be json or text")
	}
}

// serviceAccountToken is where a pod finds the account it runs under.
const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

var (
	domain     = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)+[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`)
	bucketName = regexp.MustCompile(`^[a-zA-Z0-9][-_.a-zA-Z0-9]{1,253}[a-zA-Z0-9]$`)
)

func (c *Cloud) check(p problems, variables map[string]string, exists func(path string) bool) {
	switch {
	case c.Kubeconfig != "":
		c.ClusterAccess = Kubeconfig
		if !slices.ContainsFunc(filepath.SplitList(c.Kubeconfig), exists) {
			p.bad("KUBECONFIG", "names no file that exists")
		}
	case variables["KUBERNETES_SERVICE_HOST"] != "" && variables["KUBERNETES_SERVICE_PORT"] != "" && exists(serviceAccountToken):
		c.ClusterAccess = InCluster
	default:
		c.ClusterAccess = EKS
		if c.EKSClusterName == "" {
			p.bad("EKS_CLUSTER_NAME", "is missing, and there is neither an in-cluster account nor KUBECONFIG")
		}
	}
	c.DomainName = strings.TrimSuffix(strings.ToLower(c.DomainName), ".")
	c.HostedZoneID = strings.TrimPrefix(c.HostedZoneID, "/hostedzone/")
	switch {
	case c.DomainName != "" && !domain.MatchString(c.DomainName):
		p.bad("DOMAIN_NAME", "must be a domain name such as dev.example.org")
	case c.DomainName != "" && c.HostedZoneID == "":
		p.bad("HOSTED_ZONE_ID", "is missing while DOMAIN_NAME is set")
	case c.DomainName == "" && c.HostedZoneID != "":
		p.bad("DOMAIN_NAME", "is missing while HOSTED_ZONE_ID is set")
	}
	if c.DiskContentsBucket != "" && !bucketName.MatchString(c.DiskContentsBucket) {
		p.bad("DISK_CONTENTS_BUCKET", "must be the name of a bucket, without s3:// or a path")
	}
}
