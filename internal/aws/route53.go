package aws

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	"github.com/aws/aws-sdk-go-v2/service/route53/types"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// portLabel is the name under a reservation's, whose TXT record holds its SSH port.
const portLabel = "_port."

// Route53 knows the records of one hosted zone.
type Route53 struct {
	client *route53.Client
	zoneID string
	domain string
}

// NewRoute53 returns a client that has not connected yet. Only names below domain are ever touched.
func NewRoute53(cfg awssdk.Config, zoneID, domain string) *Route53 {
	return &Route53{client: route53.NewFromConfig(bounded(cfg)), zoneID: zoneID, domain: domain}
}

// DeleteRecords deletes a reservation's records as they really are: A or CNAME of the name, TXT of its _port. It
// returns what it deleted, such as "A dev.example.com", which is nothing where none is there. It is a conflict where
// somebody changed a record meanwhile; then none is deleted.
func (r *Route53) DeleteRecords(ctx context.Context, fqdn string) ([]string, error) {
	name, domain := canonicalName(fqdn), canonicalName(r.domain)
	if domain == "" || !strings.HasSuffix(name, "."+domain) || !plainName.MatchString(name) {
		return nil, fault.Errorf(fault.Permanent, "delete records of %q: not a host below %q", fqdn, r.domain)
	}
	own, err := r.recordsOf(ctx, name, types.RRTypeA, types.RRTypeCname)
	if err != nil {
		return nil, failed(err, "list records of %s", name)
	}
	port, err := r.recordsOf(ctx, portLabel+name, types.RRTypeTxt)
	if err != nil {
		return nil, failed(err, "list records of %s", portLabel+name)
	}
	var changes []types.Change
	var deleted []string
	for _, record := range append(own, port...) {
		changes = append(changes, types.Change{Action: types.ChangeActionDelete, ResourceRecordSet: &record})
		deleted = append(deleted, fmt.Sprintf("%s %s", record.Type, canonicalName(awssdk.ToString(record.Name))))
	}
	if len(changes) == 0 {
		return nil, nil
	}
	_, err = r.client.ChangeResourceRecordSets(ctx, &route53.ChangeResourceRecordSetsInput{
		HostedZoneId: &r.zoneID, ChangeBatch: &types.ChangeBatch{Changes: changes},
	})
	if err != nil {
		return nil, failed(err, "delete records %s", strings.Join(deleted, ", "))
	}
	return deleted, nil
}

// recordsOf lists from the name on, for as long as the list, which is in the order of names, stays at it.
func (r *Route53) recordsOf(ctx context.Context, name string, wanted ...types.RRType) ([]types.ResourceRecordSet, error) {
	in := &route53.ListResourceRecordSetsInput{HostedZoneId: &r.zoneID, StartRecordName: &name}
	var found []types.ResourceRecordSet
	err := allPages(func(token string) (string, error) {
		out, err := r.client.ListResourceRecordSets(ctx, in)
		if err != nil {
			return "", err //nolint:wrapcheck // by the caller, once
		}
		for _, record := range out.ResourceRecordSets {
			if canonicalName(awssdk.ToString(record.Name)) == name && slices.Contains(wanted, record.Type) {
				found = append(found, record)
			}
		}
		if !out.IsTruncated || canonicalName(awssdk.ToString(out.NextRecordName)) != name {
			return "", nil
		}
		in.StartRecordName, in.StartRecordType, in.StartRecordIdentifier = out.NextRecordName, out.NextRecordType, out.NextRecordIdentifier
		return string(out.NextRecordType) + " " + awssdk.ToString(out.NextRecordIdentifier), nil
	})
	return found, err
}

// plainName matches names that Route 53 writes as they are. Others it escapes ("*" is \052), and no reservation has one.
var plainName = regexp.MustCompile(`^[a-z0-9_-]+(\.[a-z0-9_-]+)+$`)

// canonicalName is the name in lower case and without the last dot.
func canonicalName(name string) string {
	return strings.TrimSuffix(strings.ToLower(name), ".")
}
