package model

import (
	"context"
	"fmt"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

// Zone is the domain of the world's hosted zone.
const Zone = "dev.example.com"

// Network is what leads to servers and is told of them: Route 53, a load balancer, S3, Lambda and STS.
type Network struct {
	w       *World
	Records map[string]string // DNS name → the reservation that has it
	Rules   map[string]string // ARN → reservation
	Groups  map[string]*TargetGroup
	Objects map[string]string // of S3
	Invoked int               // how often the availability function was asked to run
	// Astray is set where the zone, the bucket and the function that the settings name are not there.
	Astray bool
	// Between happens between the look at records and their deletion; nil: nothing does.
	Between func()
}

// TargetGroup is one of the load balancer's.
type TargetGroup struct {
	Owner string
	Rule  string    // that uses it
	Until time.Time // how long it counts as in use after the rule is gone
}

// DeleteRecords is as aws.Route53's.
func (n *Network) DeleteRecords(_ context.Context, fqdn string) ([]string, error) {
	name := strings.TrimSuffix(strings.ToLower(fqdn), ".")
	if host, below := strings.CutSuffix(name, "."+Zone); !below || host == "" || strings.ContainsAny(host, "* ") {
		return nil, fault.Errorf(fault.Permanent, "delete records of %q: not a host below %q", fqdn, Zone)
	}
	if n.Astray {
		return nil, fault.Errorf(fault.Permanent, "list records of %s: NoSuchHostedZone", name)
	}
	seen, ok := n.Records[name]
	if !ok {
		return nil, nil
	}
	if n.Between != nil {
		n.Between()
	}
	owner, ok := n.Records[name]
	if !ok || owner != seen {
		return nil, fault.Errorf(fault.Conflict, "delete records A %s: InvalidChangeBatch", name)
	}
	n.w.watch(Effect{What: "delete records", Name: name, Owner: owner})
	delete(n.Records, name)
	return []string{"A " + name, "TXT _port." + name}, nil
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
	if n.Astray {
		return "", fault.Errorf(fault.Permanent, "put %s: NoSuchBucket", key)
	}
	n.Objects[key] = string(text)
	return fmt.Sprintf("s3://%s/%s", "listings", key), nil
}

// Invoke is as aws.Lambda's.
func (n *Network) Invoke(context.Context, []byte) error {
	if n.Astray {
		return fault.Errorf(fault.Permanent, "invoke: ResourceNotFoundException")
	}
	n.Invoked++
	return nil
}

// Account is as aws.STS's.
func (n *Network) Account(context.Context) (disk.Account, error) {
	return disk.Account{ID: Account, Region: "us-east-1"}, nil
}
