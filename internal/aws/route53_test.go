package aws_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/fault"
)

const zoneNS = ` xmlns="https://route53.amazonaws.com/doc/2013-04-01/"`

func records(sets, more string) answer {
	truncated := "false"
	if more != "" {
		truncated = "true"
	}
	return xmlAnswer(`<ListResourceRecordSetsResponse` + zoneNS + `><ResourceRecordSets>` + sets + `</ResourceRecordSets><IsTruncated>` +
		truncated + `</IsTruncated>` + more + `</ListResourceRecordSetsResponse>`)
}

func set(name, kind, value string) string {
	return `<ResourceRecordSet><Name>` + name + `</Name><Type>` + kind + `</Type><TTL>60</TTL><ResourceRecords><ResourceRecord><Value>` +
		value + `</Value></ResourceRecord></ResourceRecords></ResourceRecordSet>`
}

var changed = xmlAnswer(`<ChangeResourceRecordSetsResponse` + zoneNS + `><ChangeInfo><Id>1</Id><Status>PENDING</Status></ChangeInfo></ChangeResourceRecordSetsResponse>`)

func TestRecordsAreReadPageByPageForAsLongAsTheNameLasts(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t,
		records(set("dev.example.com.", "A", "10.0.0.1"), `<NextRecordName>dev.example.com.</NextRecordName><NextRecordType>CNAME</NextRecordType>`),
		records(set("Dev.example.com.", "CNAME", "lb.example.com"), `<NextRecordName>\052.dev.example.com.</NextRecordName><NextRecordType>A</NextRecordType>`),
		records(set("_port.dev.example.com.", "TXT", `"22"`), `<NextRecordName>zzz.example.com.</NextRecordName><NextRecordType>A</NextRecordType>`),
		changed)
	deleted, err := aws.NewRoute53(cfg, "Z", "example.com").DeleteRecords(t.Context(), "dev.example.com")
	require.NoError(t, err)
	require.Equal(t, []string{"A dev.example.com", "CNAME dev.example.com", "TXT _port.dev.example.com"}, deleted)
	requests := fake.seen()
	require.Len(t, requests, 4)
	require.Equal(t, "dev.example.com", requests[0].Form.Get("name"))
	require.Equal(t, "CNAME", requests[1].Form.Get("type"))
	require.Equal(t, "_port.dev.example.com", requests[2].Form.Get("name"))
}

func TestOtherRecordsAreLeftAlone(t *testing.T) {
	t.Parallel()
	others := set("dev.example.com.", "NS", "ns") + set("dev.example.com.", "TXT", `"x"`) + set("dev.example.com.", "MX", "1 x") +
		set(`\052.dev.example.com.`, "A", "1.2.3.4") + set("x.dev.example.com.", "A", "1.2.3.4") + set("dev2.example.com.", "CNAME", "x")
	fake, cfg := newFake(t, records(others, ""), records(set("_port.dev.example.com.", "A", "1.2.3.4")+others, ""))
	deleted, err := aws.NewRoute53(cfg, "Z", "example.com").DeleteRecords(t.Context(), "dev.example.com")
	require.NoError(t, err)
	require.Empty(t, deleted)
	fake.calls(t, 2)
}

func TestRecordsChangedMeanwhileAreAConflict(t *testing.T) {
	t.Parallel()
	_, cfg := newFake(t, records(set("dev.example.com.", "A", "10.0.0.1"), ""), records("", ""), queryError(400, "InvalidChangeBatch"))
	deleted, err := aws.NewRoute53(cfg, "Z", "example.com").DeleteRecords(t.Context(), "dev.example.com")
	require.True(t, fault.Is(err, fault.Conflict), err)
	require.ErrorContains(t, err, "delete records A dev.example.com: ")
	require.Empty(t, deleted)
}

func TestNothingIsDeletedWhileTheListIsNotWhole(t *testing.T) {
	t.Parallel()
	again := `<NextRecordName>dev.example.com.</NextRecordName><NextRecordType>A</NextRecordType>`
	for name, answers := range map[string][]answer{
		"second name fails": {records(set("dev.example.com.", "A", "10.0.0.1"), ""), queryError(500, "InternalError")},
		"second page fails": {records(set("dev.example.com.", "A", "10.0.0.1"), again), queryError(500, "InternalError")},
		"goes in circles":   {records(set("dev.example.com.", "A", "10.0.0.1"), again)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake, cfg := newFake(t, answers...)
			_, err := aws.NewRoute53(cfg, "Z", "example.com").DeleteRecords(t.Context(), "dev.example.com")
			require.Equal(t, fault.Transient, fault.KindOf(err))
			require.ErrorContains(t, err, "list records of ")
			for _, r := range fake.seen() {
				require.Equal(t, http.MethodGet, r.Method)
			}
		})
	}
}

func TestOnlyHostsBelowTheDomainAreTouched(t *testing.T) {
	t.Parallel()
	fake, cfg := newFake(t, records("", ""))
	zone := aws.NewRoute53(cfg, "Z", "Example.com.")
	for _, name := range []string{
		"", ".", "example.com", "example.com.", ".example.com", "..example.com", "com", "badexample.com", "dev.example.org",
		"*.example.com", `\052.example.com`, "a b.example.com", "é.example.com", "a..example.com", "x/../example.com",
		strings.Repeat("x", 3000),
	} {
		_, err := zone.DeleteRecords(t.Context(), name)
		require.True(t, fault.Is(err, fault.Permanent), name)
	}
	_, err := aws.NewRoute53(cfg, "Z", "").DeleteRecords(t.Context(), "dev.example.com")
	require.True(t, fault.Is(err, fault.Permanent))
	fake.calls(t, 0)

	for _, name := range []string{"dev.example.com", "DEV.Example.COM.", "grumpy_bear-2.example.com", "a.b.example.com"} {
		_, err := zone.DeleteRecords(t.Context(), name)
		require.NoError(t, err, name)
	}
}

func TestAnAliasIsDeletedAsTheAliasThatItIs(t *testing.T) {
	t.Parallel()
	alias := `<ResourceRecordSet><Name>dev.example.com.</Name><Type>A</Type><AliasTarget><HostedZoneId>Z2</HostedZoneId>` +
		`<DNSName>lb.example.com.</DNSName><EvaluateTargetHealth>true</EvaluateTargetHealth></AliasTarget></ResourceRecordSet>`
	fake, cfg := newFake(t, records(alias, ""), records("", ""), changed)
	_, err := aws.NewRoute53(cfg, "Z", "example.com").DeleteRecords(t.Context(), "dev.example.com")
	require.NoError(t, err)
	body := fake.seen()[2].Body
	require.Contains(t, body, "<AliasTarget>")
	require.Contains(t, body, "<EvaluateTargetHealth>true</EvaluateTargetHealth>")
	require.NotContains(t, body, "<TTL>")
}
