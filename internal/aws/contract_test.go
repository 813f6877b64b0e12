package aws_test

import (
	"archive/zip"
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	sdkec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	sdkeks "github.com/aws/aws-sdk-go-v2/service/eks"
	ekstypes "github.com/aws/aws-sdk-go-v2/service/eks/types"
	sdkelb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	sdklambda "github.com/aws/aws-sdk-go-v2/service/lambda"
	lambdatypes "github.com/aws/aws-sdk-go-v2/service/lambda/types"
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
	zone, err := client.CreateHostedZone(t.Context(), &sdkroute53.CreateHostedZoneInput{Name: &domain, CallerReference: &account.ID})
	require.NoError(t, err)
	zoneID := *zone.HostedZone.Id // with its prefix, /hostedzone/
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
	client, network := sdkelb.NewFromConfig(account.Config), sdkec2.NewFromConfig(account.Config)
	subnets, err := network.DescribeSubnets(t.Context(), &sdkec2.DescribeSubnetsInput{})
	require.NoError(t, err)
	lb, err := client.CreateLoadBalancer(t.Context(), &sdkelb.CreateLoadBalancerInput{
		Name: awssdk.String("lb"), Subnets: []string{*subnets.Subnets[0].SubnetId, *subnets.Subnets[1].SubnetId},
	})
	require.NoError(t, err)
	group, err := client.CreateTargetGroup(t.Context(), &sdkelb.CreateTargetGroupInput{
		Name: awssdk.String("group"), Protocol: elbtypes.ProtocolEnumHttp, Port: awssdk.Int32(80), VpcId: subnets.Subnets[0].VpcId,
	})
	require.NoError(t, err)
	listener, err := client.CreateListener(t.Context(), &sdkelb.CreateListenerInput{
		LoadBalancerArn: lb.LoadBalancers[0].LoadBalancerArn, Protocol: elbtypes.ProtocolEnumHttp, Port: awssdk.Int32(80),
		DefaultActions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumFixedResponse, FixedResponseConfig: &elbtypes.FixedResponseActionConfig{
			StatusCode: awssdk.String("404"),
		}}},
	})
	require.NoError(t, err)
	groupARN := *group.TargetGroups[0].TargetGroupArn
	rule, err := client.CreateRule(t.Context(), &sdkelb.CreateRuleInput{
		ListenerArn: listener.Listeners[0].ListenerArn, Priority: awssdk.Int32(1),
		Conditions: []elbtypes.RuleCondition{{Field: awssdk.String("host-header"), Values: []string{"dev.example.com"}}},
		Actions:    []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, TargetGroupArn: &groupARN}},
	})
	require.NoError(t, err)
	ruleARN := *rule.Rules[0].RuleArn

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
	client := sdklambda.NewFromConfig(account.Config)
	var code bytes.Buffer
	archive := zip.NewWriter(&code)
	_, err := archive.Create("index.py")
	require.NoError(t, err)
	require.NoError(t, archive.Close())
	_, err = client.CreateFunction(t.Context(), &sdklambda.CreateFunctionInput{
		FunctionName: awssdk.String("availability-updater"), Runtime: lambdatypes.RuntimePython312, Handler: awssdk.String("index.handler"),
		Role: awssdk.String(createRole(t, account)), Code: &lambdatypes.FunctionCode{ZipFile: code.Bytes()},
	})
	require.NoError(t, err)
	require.NoError(t, aws.NewLambda(account.Config, "availability-updater").Invoke(t.Context(), []byte(`{"source":"expiry"}`)))
	require.NoError(t, aws.NewLambda(account.Config, "availability-updater").Invoke(t.Context(), nil))
	require.True(t, fault.Is(aws.NewLambda(account.Config, "none").Invoke(t.Context(), nil), fault.Permanent))
}

// createRole makes the role that a function needs. It is the one IAM call here, not worth IAM's SDK: the emulator wants
// no more of a signature than whose it is.
func createRole(t *testing.T, account *stacktest.Account) string {
	t.Helper()
	form := url.Values{"Action": {"CreateRole"}, "Version": {"2010-05-08"}, "RoleName": {"lambda"}, "AssumeRolePolicyDocument": {`{
		"Version": "2012-10-17",
		"Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}]
	}`}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, *account.Config.BaseEndpoint, strings.NewReader(form.Encode()))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+account.ID+"/20260101/us-east-1/iam/aws4_request")
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
	return "arn:aws:iam::" + account.ID + ":role/lambda"
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
