package model

import (
	"context"
	"fmt"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

// Network is what leads to servers and is told of them: Route 53, a load balancer, S3, Lambda and STS.
type Network struct {
	w       *World
	Records map[string]string // DNS name → the reservation that has it
	Rules   map[string]string // ARN → reservation
	Groups  map[string]*TargetGroup
	Objects map[string]string // of S3
	Invoked int               // how often the availability function was asked to run
}

// TargetGroup is one of the load balancer's.
type TargetGroup struct {
	Owner string
	Rule  string    // that uses it
	Until time.Time // how long it counts as in use after the rule is gone
}

// DeleteRecords is as aws.Route53's.
func (n *Network) DeleteRecords(_ context.Context, fqdn string) ([]string, error) {
	owner, ok := n.Records[fqdn]
	if !ok {
		return nil, nil
	}
	n.w.watch(Effect{What: "delete records", Name: fqdn, Owner: owner})
	delete(n.Records, fqdn)
	return []string{"A " + fqdn, "TXT _port." + fqdn}, nil
}

// DeleteRule is as aws.LoadBalancer's.
func (n *Network) DeleteRule(_ context.Context, arn string) error {
	owner, ok := n.Rules[arn]
	if !ok {
		return fault.Errorf(fault.Gone, "delete rule %s: RuleNotFound", arn)
	}
	n.w.watch(Effect{What: "delete rule", Name: arn, Owner: owner})
	delete(n.Rules, arn)
	for _, g := range n.Groups {
		if g.Rule == arn {
			g.Until = n.w.now.Add(n.w.between(0, 5*time.Second))
		}
	}
	return nil
}

// DeleteTargetGroup is as aws.LoadBalancer's.
func (n *Network) DeleteTargetGroup(_ context.Context, arn string) error {
	g, ok := n.Groups[arn]
	if !ok {
		return nil
	}
	if _, used := n.Rules[g.Rule]; used || n.w.now.Before(g.Until) {
		return fault.Errorf(fault.Conflict, "delete target group %s: ResourceInUse", arn)
	}
	n.w.watch(Effect{What: "delete target group", Name: arn, Owner: g.Owner})
	delete(n.Groups, arn)
	return nil
}

// PutListing is as aws.S3's.
func (n *Network) PutListing(_ context.Context, key string, text []byte) (string, error) {
	n.Objects[key] = string(text)
	return fmt.Sprintf("s3://%s/%s", "listings", key), nil
}

// Invoke is as aws.Lambda's.
func (n *Network) Invoke(context.Context, []byte) error {
	n.Invoked++
	return nil
}

// Account is as aws.STS's.
func (n *Network) Account(context.Context) (disk.Account, error) {
	return disk.Account{ID: Account, Region: "us-east-1"}, nil
}
