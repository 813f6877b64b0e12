package stacktest

import (
	"archive/zip"
	"bytes"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	lambdatypes "github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	"github.com/stretchr/testify/require"
)

// MakeZone makes a hosted zone and returns its id, with the prefix /hostedzone/.
func (a *Account) MakeZone(domain string) string {
	a.t.Helper()
	zone, err := route53.NewFromConfig(a.Config).CreateHostedZone(a.t.Context(), &route53.CreateHostedZoneInput{Name: &domain, CallerReference: &a.ID})
	require.NoError(a.t, err)
	return *zone.HostedZone.Id
}

// MakeRule makes a load balancer of this name with a rule that leads to a target group, and returns the ARNs of both.
func (a *Account) MakeRule(name string) (rule, group string) {
	a.t.Helper()
	ctx, client := a.t.Context(), elb.NewFromConfig(a.Config)
	subnets, err := ec2.NewFromConfig(a.Config).DescribeSubnets(ctx, &ec2.DescribeSubnetsInput{})
	require.NoError(a.t, err)
	balancer, err := client.CreateLoadBalancer(ctx, &elb.CreateLoadBalancerInput{
		Name: &name, Subnets: []string{*subnets.Subnets[0].SubnetId, *subnets.Subnets[1].SubnetId},
	})
	require.NoError(a.t, err)
	made, err := client.CreateTargetGroup(ctx, &elb.CreateTargetGroupInput{
		Name: &name, Protocol: elbtypes.ProtocolEnumHttp, Port: aws.Int32(80), VpcId: subnets.Subnets[0].VpcId,
	})
	require.NoError(a.t, err)
	group = *made.TargetGroups[0].TargetGroupArn
	listener, err := client.CreateListener(ctx, &elb.CreateListenerInput{
		LoadBalancerArn: balancer.LoadBalancers[0].LoadBalancerArn, Protocol: elbtypes.ProtocolEnumHttp, Port: aws.Int32(80),
		DefaultActions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumFixedResponse, FixedResponseConfig: &elbtypes.FixedResponseActionConfig{
			StatusCode: aws.String("404"),
		}}},
	})
	require.NoError(a.t, err)
	rules, err := client.CreateRule(ctx, &elb.CreateRuleInput{
		ListenerArn: listener.Listeners[0].ListenerArn, Priority: aws.Int32(1),
		Conditions: []elbtypes.RuleCondition{{Field: aws.String("host-header"), Values: []string{name + ".example.com"}}},
		Actions:    []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, TargetGroupArn: &group}},
	})
	require.NoError(a.t, err)
	return *rules.Rules[0].RuleArn, group
}

// MakeFunction makes a function that does nothing, and the role that it needs.
func (a *Account) MakeFunction(name string) {
	a.t.Helper()
	var code bytes.Buffer
	archive := zip.NewWriter(&code)
	_, err := archive.Create("index.py")
	require.NoError(a.t, err)
	require.NoError(a.t, archive.Close())
	_, err = lambda.NewFromConfig(a.Config).CreateFunction(a.t.Context(), &lambda.CreateFunctionInput{
		FunctionName: &name, Runtime: lambdatypes.RuntimePython312, Handler: aws.String("index.handler"),
		Role: aws.String(a.makeRole()), Code: &lambdatypes.FunctionCode{ZipFile: code.Bytes()},
	})
	require.NoError(a.t, err)
}

// makeRole makes the role that a function needs. It is the one IAM call here, not worth IAM's SDK: the emulator wants
// no more of a signature than whose it is.
func (a *Account) makeRole() string {
	a.t.Helper()
	form := url.Values{"Action": {"CreateRole"}, "Version": {"2010-05-08"}, "RoleName": {"lambda"}, "AssumeRolePolicyDocument": {`{
		"Version": "2012-10-17",
		"Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}]
	}`}}
	request, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, a.endpoint, strings.NewReader(form.Encode()))
	require.NoError(a.t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+a.ID+"/20260101/us-east-1/iam/aws4_request")
	response, err := http.DefaultClient.Do(request)
	require.NoError(a.t, err)
	require.NoError(a.t, response.Body.Close())
	require.Equal(a.t, http.StatusOK, response.StatusCode)
	return "arn:aws:iam::" + a.ID + ":role/lambda"
}
