package platform

import (
	"context"
	"fmt"
	"strings"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	dnstypes "github.com/aws/aws-sdk-go-v2/service/route53/types"
)

func fqdn(domain string) string {
	if domain == "" {
		return ""
	}
	return domain + "." + Domain
}

// foundNetwork makes the zone and the load balancer.
func (p *Platform) foundNetwork(ctx context.Context) error {
	hosted, err := p.DNS.CreateHostedZone(ctx, &route53.CreateHostedZoneInput{Name: awssdk.String(Domain), CallerReference: &p.Account})
	if err != nil {
		return fmt.Errorf("make zone %s: %w", Domain, err)
	}
	p.ZoneID = strings.TrimPrefix(*hosted.HostedZone.Id, "/hostedzone/")
	vpc, err := p.EC2.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: awssdk.String("10.0.0.0/16")})
	if err != nil {
		return fmt.Errorf("make a VPC: %w", err)
	}
	p.vpcID = *vpc.Vpc.VpcId
	var subnets []string
	for block, zone := range map[string]string{"10.0.1.0/24": "us-east-1a", "10.0.2.0/24": "us-east-1b"} {
		subnet, err := p.EC2.CreateSubnet(ctx, &ec2.CreateSubnetInput{VpcId: &p.vpcID, CidrBlock: &block, AvailabilityZone: &zone})
		if err != nil {
			return fmt.Errorf("make a subnet: %w", err)
		}
		subnets = append(subnets, *subnet.Subnet.SubnetId)
	}
	balancer, err := p.ELB.CreateLoadBalancer(ctx, &elb.CreateLoadBalancerInput{Name: awssdk.String("jupyter"), Subnets: subnets})
	if err != nil {
		return fmt.Errorf("make the load balancer: %w", err)
	}
	listener, err := p.ELB.CreateListener(ctx, &elb.CreateListenerInput{LoadBalancerArn: balancer.LoadBalancers[0].LoadBalancerArn,
		Protocol: elbtypes.ProtocolEnumHttp, Port: awssdk.Int32(80), DefaultActions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumFixedResponse,
			FixedResponseConfig: &elbtypes.FixedResponseActionConfig{StatusCode: awssdk.String("404")}}}})
	if err != nil {
		return fmt.Errorf("make the listener: %w", err)
	}
	p.listenerARN = *listener.Listeners[0].ListenerArn
	return nil
}

// Publish gives a server its name: the records, and the row that says whose they are.
func (p *Platform) Publish(ctx context.Context, s Server) error {
	record := func(name string, kind dnstypes.RRType, value string) dnstypes.Change {
		return dnstypes.Change{Action: dnstypes.ChangeActionUpsert, ResourceRecordSet: &dnstypes.ResourceRecordSet{
			Name: &name, Type: kind, TTL: awssdk.Int64(60), ResourceRecords: []dnstypes.ResourceRecord{{Value: &value}}}}
	}
	_, err := p.DNS.ChangeResourceRecordSets(ctx, &route53.ChangeResourceRecordSetsInput{HostedZoneId: &p.ZoneID, ChangeBatch: &dnstypes.ChangeBatch{
		Changes: []dnstypes.Change{record(fqdn(s.Domain), dnstypes.RRTypeA, "10.1.2.3"), record("_port."+fqdn(s.Domain), dnstypes.RRTypeTxt, quoted("30022"))}}})
	if err != nil {
		return fmt.Errorf("publish %s: %w", s.Domain, err)
	}
	return p.Exec(ctx, `
		insert into domain_mappings (domain_name, node_ip, node_port, reservation_id) values ($1, '10.1.2.3', 30022, $2)
		on conflict (domain_name) do update set reservation_id = $2`, s.Domain, s.ID)
}

// Route gives a server its place behind the load balancer.
func (p *Platform) Route(ctx context.Context, s *Server) error {
	group, err := p.ELB.CreateTargetGroup(ctx, &elb.CreateTargetGroupInput{Name: awssdk.String("jupyter-" + s.ID[:8]),
		Protocol: elbtypes.ProtocolEnumHttp, Port: awssdk.Int32(8888), VpcId: &p.vpcID})
	if err != nil {
		return fmt.Errorf("make a target group: %w", err)
	}
	s.Group = *group.TargetGroups[0].TargetGroupArn
	p.mu.Lock()
	p.rules++
	priority := p.rules
	p.mu.Unlock()
	rule, err := p.ELB.CreateRule(ctx, &elb.CreateRuleInput{ListenerArn: &p.listenerARN, Priority: &priority,
		Conditions: []elbtypes.RuleCondition{{Field: awssdk.String("host-header"), Values: []string{fqdn(s.Domain)}}},
		Actions:    []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, TargetGroupArn: &s.Group}}})
	if err != nil {
		return fmt.Errorf("make a rule: %w", err)
	}
	s.Rule = *rule.Rules[0].RuleArn
	return p.Exec(ctx, `
		insert into alb_target_groups (reservation_id, domain_name, jupyter_target_group_arn, jupyter_rule_arn) values ($1, $2, $3, $4)`,
		s.ID, s.Domain, s.Group, s.Rule)
}

// Records returns the names of a server that DNS knows, "A happy-bear.dev.example.com".
func (p *Platform) Records(ctx context.Context, domain string) ([]string, error) {
	out, err := p.DNS.ListResourceRecordSets(ctx, &route53.ListResourceRecordSetsInput{HostedZoneId: &p.ZoneID})
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var names []string
	for _, set := range out.ResourceRecordSets {
		name := strings.TrimSuffix(*set.Name, ".")
		if name == fqdn(domain) || name == "_port."+fqdn(domain) {
			names = append(names, string(set.Type)+" "+name)
		}
	}
	return names, nil
}
