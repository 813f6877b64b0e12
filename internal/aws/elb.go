package aws

import (
	"context"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
)

// LoadBalancer takes down what routes to a reservation.
type LoadBalancer struct {
	client *elb.Client
}

// NewLoadBalancer returns a client that has not connected yet.
func NewLoadBalancer(cfg awssdk.Config) *LoadBalancer {
	return &LoadBalancer{client: elb.NewFromConfig(bounded(cfg))}
}

// DeleteRule deletes a listener's rule. The error is gone where there is none.
func (l *LoadBalancer) DeleteRule(ctx context.Context, arn string) error {
	_, err := l.client.DeleteRule(ctx, &elb.DeleteRuleInput{RuleArn: &arn})
	return failed(err, "delete rule %s", arn)
}

// DeleteTargetGroup deletes a target group. It is a conflict while a rule or listener uses it, which may last for
// some seconds after the rule is deleted. AWS also calls it done where there is none.
func (l *LoadBalancer) DeleteTargetGroup(ctx context.Context, arn string) error {
	_, err := l.client.DeleteTargetGroup(ctx, &elb.DeleteTargetGroupInput{TargetGroupArn: &arn})
	return failed(err, "delete target group %s", arn)
}
