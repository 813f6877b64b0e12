package simulation

import (
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	sdkroute53 "github.com/aws/aws-sdk-go-v2/service/route53"
	dns "github.com/aws/aws-sdk-go-v2/service/route53/types"
	sdks3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/simulation/model"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// modelNetwork is the model, reached over the simulation's network as the services reach it.
type modelNetwork struct {
	modelSide
	world *world
	made  int
}

func newModelNetwork(t *testing.T) networkSide {
	t.Helper()
	out := model.New(dawn, rand.New(rand.NewPCG(1, 1)))
	w := &world{rand: rand.New(rand.NewPCG(1, 2)), outside: out}
	w.faults = &faults{w: w, counted: map[string]int{}, perCall: map[string]int{}}
	return &modelNetwork{modelSide{t, out}, w, 0}
}

func (s *modelNetwork) api() networkAPI { return services{s.world, s.w.Network} }

func (s *modelNetwork) astray() networkAPI {
	other := model.New(dawn, rand.New(rand.NewPCG(1, 3)))
	other.Network.Astray = true
	return services{s.world, other.Network}
}

func (s *modelNetwork) publish(host string) {
	s.made++
	s.w.Network.Records[host] = "r-" + string(rune('a'+s.made))
}

func (s *modelNetwork) unpublish(host string) { delete(s.w.Network.Records, host) }

func (s *modelNetwork) records() (records []string) {
	for host := range s.w.Network.Records {
		records = append(records, "A "+host, "TXT _port."+host)
	}
	return records
}

func (s *modelNetwork) between(do func()) {
	s.w.Network.Between = func() {
		s.w.Network.Between = nil
		do()
	}
}

func (s *modelNetwork) makeRule(name string) (rule, group string) {
	rule, group = "arn:rule/"+name, "arn:group/"+name
	s.w.Network.Rules[rule] = name
	s.w.Network.Groups[group] = &model.TargetGroup{Owner: name, Rule: rule}
	return rule, group
}

func (s *modelNetwork) objects() map[string]string { return maps.Clone(s.w.Network.Objects) }
func (s *modelNetwork) invoked() int               { return s.w.Network.Invoked }

// troubles are as many as make it likely that each call fails in each way: before, after, and by throttling.
func (s *modelNetwork) troubles() []trouble {
	return slices.Repeat([]trouble{{fault.Transient, func() { s.world.faults.perCall[network] = 1 }}}, 20)
}

func (s *modelNetwork) well() { s.world.faults.perCall[network] = 0 }

// realNetwork is the emulator, reached through the real adapters.
type realNetwork struct {
	t       *testing.T
	account *stacktest.Account
	dns     *sdkroute53.Client
	s3      *sdks3.Client
	zoneID  string
	bucket  string
	gap     func() // what happens before the next change of records
	made    int
}

const function = "availability-updater"

func newRealNetwork(t *testing.T) networkSide {
	t.Helper()
	account := stacktest.AWS(t)
	s := &realNetwork{t: t, account: account, dns: sdkroute53.NewFromConfig(account.Config), bucket: "listings-" + account.ID,
		s3: sdks3.NewFromConfig(account.Config, func(o *sdks3.Options) { o.UsePathStyle = true })}
	s.zoneID = account.MakeZone(model.Zone)
	_, err := s.s3.CreateBucket(t.Context(), &sdks3.CreateBucketInput{Bucket: &s.bucket})
	require.NoError(t, err)
	account.MakeFunction(function)
	return s
}

type adapters struct {
	*aws.Route53
	*aws.LoadBalancer
	*aws.S3
	*aws.Lambda
	*aws.STS
}

func (s *realNetwork) adapters(zoneID, bucket, function string) networkAPI {
	cfg := s.account.Config
	cfg.HTTPClient = s
	return adapters{aws.NewRoute53(cfg, zoneID, model.Zone), aws.NewLoadBalancer(cfg), aws.NewS3(cfg, bucket), aws.NewLambda(cfg, function), aws.NewSTS(cfg)}
}

func (s *realNetwork) api() networkAPI { return s.adapters(s.zoneID, s.bucket, function) }

func (s *realNetwork) astray() networkAPI {
	return s.adapters("Z0000000000000", "no-such-bucket-"+s.account.ID, "no-such-function")
}

// Do is the adapters' way to the emulator. Others' goes past it.
func (s *realNetwork) Do(r *http.Request) (*http.Response, error) {
	if gap := s.gap; gap != nil && r.Method == http.MethodPost && strings.Contains(r.URL.Path, "/hostedzone/") {
		s.gap = nil
		gap()
	}
	return http.DefaultClient.Do(r)
}

func (s *realNetwork) between(do func()) { s.gap = do }

func (s *realNetwork) publish(host string) {
	s.made++
	s.change(dns.ChangeActionUpsert, host, "10.0.0."+string(rune('0'+s.made)))
}

func (s *realNetwork) unpublish(host string) {
	s.change(dns.ChangeActionDelete, host, "10.0.0."+string(rune('0'+s.made)))
}

// change changes a host's records; the last one that was published has this address.
func (s *realNetwork) change(action dns.ChangeAction, host, address string) {
	record := func(name string, kind dns.RRType, value string) dns.Change {
		return dns.Change{Action: action, ResourceRecordSet: &dns.ResourceRecordSet{
			Name: &name, Type: kind, TTL: awssdk.Int64(60), ResourceRecords: []dns.ResourceRecord{{Value: &value}}}}
	}
	_, err := s.dns.ChangeResourceRecordSets(s.t.Context(), &sdkroute53.ChangeResourceRecordSetsInput{HostedZoneId: &s.zoneID, ChangeBatch: &dns.ChangeBatch{
		Changes: []dns.Change{record(host, dns.RRTypeA, address), record("_port."+host, dns.RRTypeTxt, `"30022"`)},
	}})
	require.NoError(s.t, err)
}

func (s *realNetwork) records() (records []string) {
	out, err := s.dns.ListResourceRecordSets(s.t.Context(), &sdkroute53.ListResourceRecordSetsInput{HostedZoneId: &s.zoneID})
	require.NoError(s.t, err)
	for _, set := range out.ResourceRecordSets {
		if set.Type == dns.RRTypeA || set.Type == dns.RRTypeTxt { // and not the zone's own
			records = append(records, string(set.Type)+" "+strings.TrimSuffix(*set.Name, "."))
		}
	}
	return records
}

func (s *realNetwork) makeRule(name string) (rule, group string) { return s.account.MakeRule(name) }

func (s *realNetwork) objects() map[string]string {
	objects := map[string]string{}
	list, err := s.s3.ListObjectsV2(s.t.Context(), &sdks3.ListObjectsV2Input{Bucket: &s.bucket})
	require.NoError(s.t, err)
	for _, o := range list.Contents {
		got, err := s.s3.GetObject(s.t.Context(), &sdks3.GetObjectInput{Bucket: &s.bucket, Key: o.Key})
		require.NoError(s.t, err)
		text, err := io.ReadAll(got.Body)
		require.NoError(s.t, err)
		objects[*o.Key] = string(text)
	}
	return objects
}

func (s *realNetwork) invoked() (n int) {
	for _, call := range s.account.Calls() {
		if strings.HasSuffix(call.Action, "/functions/"+function+"/invocations") && call.Status < 300 {
			n++
		}
	}
	return n
}

func (s *realNetwork) troubles() (troubles []trouble) {
	add := func(kind fault.Kind, f ...stacktest.Fault) {
		troubles = append(troubles, trouble{kind, func() { s.account.Fail(f...) }})
	}
	add(fault.Transient, stacktest.Fault{Action: ".*", Code: "InternalError"})
	add(fault.Transient, stacktest.Fault{Action: ".*", After: true})
	add(fault.Transient, stacktest.Fault{Action: "route53:POST .*|(elasticloadbalancing|s3|lambda|sts):.*", After: true})
	add(fault.Transient, stacktest.Fault{Action: ".*", Drop: true})
	add(fault.Transient, stacktest.Fault{Action: ".*", Status: http.StatusBadRequest, Code: "Throttling"})
	add(fault.Permanent, stacktest.Fault{Action: ".*", Status: http.StatusForbidden, Code: "AccessDenied"})
	return troubles
}

func (s *realNetwork) well() { s.account.Fail() }

func (s *realNetwork) eventually(condition func() bool) {
	s.t.Helper()
	require.Eventually(s.t, condition, 30*time.Second, 20*time.Millisecond)
}
