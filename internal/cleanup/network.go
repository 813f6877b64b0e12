package cleanup

import (
	"context"
	"fmt"
	"strings"
	"time"

	"gpudev.internal/reservation-expiry/internal/fault"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/reservation"
)

// records deletes the DNS records of the domains that the reservation's rows hold, and those rows. Without a zone there
// are none of ours, and the rows go alone.
func (a *Action) records(ctx context.Context, d *delivery) (result, error) {
	id := d.id
	domains, err := a.Store.DomainsOf(ctx, id)
	if err != nil {
		return result{}, err
	}
	zoned, outcome := a.DNS != nil && a.opts.Domain != "", nothing
	var said []string
	if !zoned {
		outcome, said = skipped, append(said, "HOSTED_ZONE_ID or DOMAIN_NAME is not set")
	}
	for _, domain := range domains {
		fqdn, ok := reservation.Reservation{DomainName: domain}.DNSName(a.opts.Domain)
		if zoned && !ok {
			outcome = notOurs
			said = append(said, fmt.Sprintf("%q is no name below %s", domain, a.opts.Domain))
			continue
		}
		var deleted []string
		ours, err := a.Store.RemoveDomain(ctx, id, domain, func(ctx context.Context) (err error) {
			if zoned {
				deleted, err = a.DNS.DeleteRecords(ctx, fqdn)
			}
			return err
		})
		switch {
		case err != nil:
			return result{}, err
		case !ours:
			outcome = notOurs
			said = append(said, domain+" is another's by now")
		case outcome == nothing:
			outcome = done
			fallthrough
		default:
			said = append(said, fmt.Sprintf("%s: %d records", domain, len(deleted)))
			said = append(said, deleted...)
		}
	}
	return finished(outcome, strings.Join(said, "; "))
}

// groupPause lies between two tries to delete a target group.
const groupPause = 2 * time.Second

// loadBalancer deletes the rule and then the target group, which counts as in use for some seconds after the rule is
// gone, and the row that names them.
func (a *Action) loadBalancer(ctx context.Context, d *delivery) (result, error) {
	found, inUse := false, error(nil)
	over, err := a.until(ctx, groupPause, func(ctx context.Context) (bool, error) {
		inUse = nil
		var err error
		found, err = a.Store.RemoveLoadBalancer(ctx, d.id, func(ctx context.Context, lb postgres.LoadBalancer) error {
			if err := gone(lb.RuleARN, a.Router.DeleteRule)(ctx); err != nil {
				return err
			}
			return gone(lb.TargetGroupARN, a.Router.DeleteTargetGroup)(ctx)
		})
		if fault.Is(err, fault.Conflict) {
			inUse = err
			return false, nil
		}
		return true, err
	})
	switch {
	case err != nil:
		return result{}, err
	case !over: // by now it is not the rule just deleted that uses it
		return result{}, inUse
	case !found:
		return finished(nothing, "")
	}
	return finished(done, "")
}

// gone returns what deletes a thing, if there is one, and is content where it is gone already.
func gone(arn string, remove func(context.Context, string) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if arn == "" {
			return nil
		}
		if err := remove(ctx, arn); err != nil && !fault.Is(err, fault.Gone) {
			return err
		}
		return nil
	}
}
