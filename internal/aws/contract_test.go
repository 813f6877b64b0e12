package aws_test

import (
	"io"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	sdkeks "github.com/aws/aws-sdk-go-v2/service/eks"
	ekstypes "github.com/aws/aws-sdk-go-v2/service/eks/types"
	sdkroute53 "github.com/aws/aws-sdk-go-v2/service/route53"
	dns "github.com/aws/aws-sdk-go-v2/service/route53/types"
	sdks3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

func TestContractOfTheOwnAccount(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	own, err := aws.NewSTS(account.Config).Account(t.Context())
	require.NoError(t, err)
	require.Equal(t, disk.Account{ID: account.ID, Region: account.Config.Region}, own)
}

func TestContractOfListings(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	client, bucket := sdks3.NewFromConfig(account.Config, func(o *sdks3.Options) { o.UsePathStyle = true }), "listings-"+account.ID
	_, err := client.CreateBucket(t.Context(), &sdks3.CreateBucketInput{Bucket: &bucket})
	require.NoError(t, err)
	s3 := aws.NewS3(account.Config, bucket)
	for _, key := range []disk.Key{
		{User: "ada@example.com", Name: "work"}, {User: "..", Name: "."}, {User: "", Name: "é /\\?#%&+\n\x00"},
		{User: strings.Repeat("ü", 3000), Name: "x"},
	} {
		object := disk.ListingKey(key, "r-1.txt")
		for _, text := range []string{"first", "1.2G\t/home/dev\n"} {
			url, err := s3.PutListing(t.Context(), object, []byte(text))
			require.NoError(t, err)
			require.Equal(t, "s3://"+bucket+"/"+object, url)
			got, err := client.GetObject(t.Context(), &sdks3.GetObjectInput{Bucket: &bucket, Key: &object})
			require.NoError(t, err)
			body, err := io.ReadAll(got.Body)
			require.NoError(t, err)
			require.Equal(t, text, string(body))
			require.Equal(t, "text/plain; charset=utf-8", *got.ContentType)
		}
	}
	list, err := client.ListObjectsV2(t.Context(), &sdks3.ListObjectsV2Input{Bucket: &bucket})
	require.NoError(t, err)
	require.Len(t, list.Contents, 4)

	_, err = aws.NewS3(account.Config, "no-such-bucket-"+account.ID).PutListing(t.Context(), "k", nil)
	require.True(t, fault.Is(err, fault.Permanent), err)
}

func TestContractOfRecords(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	client := sdkroute53.NewFromConfig(account.Config)
	domain := "z" + account.ID + ".example.com"
	zoneID := account.MakeZone(domain) // with its prefix, /hostedzone/
	add := func(name string, kind dns.RRType, values ...string) {
		set := &dns.ResourceRecordSet{Name: &name, Type: kind, TTL: awssdk.Int64(60)}
		for _, v := range values {
			set.ResourceRecords = append(set.ResourceRecords, dns.ResourceRecord{Value: &v})
		}
		_, err := client.ChangeResourceRecordSets(t.Context(), &sdkroute53.ChangeResourceRecordSetsInput{
			HostedZoneId: &zoneID, ChangeBatch: &dns.ChangeBatch{Changes: []dns.Change{{Action: dns.ChangeActionCreate, ResourceRecordSet: set}}},
		})
		require.NoError(t, err)
	}
	left := func() (records []string) {
		out, err := client.ListResourceRecordSets(t.Context(), &sdkroute53.ListResourceRecordSetsInput{HostedZoneId: &zoneID})
		require.NoError(t, err)
		for _, set := range out.ResourceRecordSets {
			records = append(records, string(set.Type)+" "+*set.Name)
		}
		return records
	}
	for _, name := range []string{"other.", "dev2.", "x.dev.", "*."} {
		add(name+domain, dns.RRTypeA, "10.0.0.9")
	}
	for _, name := range []string{"_port.other.", "dev-2.", "_port.x.dev."} {
		add(name+domain, dns.RRTypeTxt, `"22"`)
	}
	before := left()
	require.Len(t, before, 2+7, "the zone's own, and those of others")

	route53 := aws.NewRoute53(account.Config, zoneID, domain)
	add("dev."+domain, dns.RRTypeA, "10.0.0.1", "10.0.0.2")
	add("_port.dev."+domain, dns.RRTypeTxt, `"30022"`)
	deleted, err := route53.DeleteRecords(t.Context(), "dev."+domain)
	require.NoError(t, err)
	require.Equal(t, []string{"A dev." + domain, "TXT _port.dev." + domain}, deleted)
	require.ElementsMatch(t, before, left(), "and nothing else")

	add("grumpy_bear."+domain, dns.RRTypeCname, "lb.example.com")
	deleted, err = route53.DeleteRecords(t.Context(), "Grumpy_Bear."+domain+".")
	require.NoError(t, err)
	require.Equal(t, []string{"CNAME grumpy_bear." + domain}, deleted)
	require.ElementsMatch(t, before, left())

	deleted, err = route53.DeleteRecords(t.Context(), "dev."+domain)
	require.NoError(t, err)
	require.Empty(t, deleted, "absent is done")
	require.ElementsMatch(t, before, left())

	_, err = aws.NewRoute53(account.Config, "Z0000000000000", domain).DeleteRecords(t.Context(), "dev."+domain)
	require.True(t, fault.Is(err, fault.Permanent), err)
}

func TestContractOfRulesAndTargetGroups(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	ruleARN, groupARN := account.MakeRule("dev")
	balancer := aws.NewLoadBalancer(account.Config)
	require.True(t, fault.Is(balancer.DeleteTargetGroup(t.Context(), groupARN), fault.Conflict), "the rule uses it")
	require.NoError(t, balancer.DeleteRule(t.Context(), ruleARN))
	require.True(t, fault.Is(balancer.DeleteRule(t.Context(), ruleARN), fault.Gone))
	require.NoError(t, balancer.DeleteTargetGroup(t.Context(), groupARN))
	if err := balancer.DeleteTargetGroup(t.Context(), groupARN); err != nil { // AWS calls it done
		require.True(t, fault.Is(err, fault.Gone), err)
	}
}

func TestContractOfInvoking(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	account.MakeFunction("availability-updater")
	require.NoError(t, aws.NewLambda(account.Config, "availability-updater").Invoke(t.Context(), []byte(`{"source":"expiry"}`)))
	require.NoError(t, aws.NewLambda(account.Config, "availability-updater").Invoke(t.Context(), nil))
	require.True(t, fault.Is(aws.NewLambda(account.Config, "none").Invoke(t.Context(), nil), fault.Permanent))
}

func TestContractOfClusters(t *testing.T) {
	t.Parallel()
	account := stacktest.AWS(t)
	client := sdkeks.NewFromConfig(account.Config)
	_, err := client.CreateCluster(t.Context(), &sdkeks.CreateClusterInput{
		Name: awssdk.String("gpu-dev"), RoleArn: awssdk.String("arn:aws:iam::" + account.ID + ":role/eks"),
		ResourcesVpcConfig: &ekstypes.VpcConfigRequest{SubnetIds: []string{"subnet-1"}},
	})
	require.NoError(t, err)
	config, err := aws.NewEKS(account.Config, "gpu-dev", time.Now).RESTConfig(t.Context())
	require.NoError(t, err)
	require.Contains(t, config.Host, "https://")
	require.NotEmpty(t, config.CAData)
	_, err = aws.NewEKS(account.Config, "none", time.Now).RESTConfig(t.Context())
	require.True(t, fault.Is(err, fault.Permanent), err)
}
