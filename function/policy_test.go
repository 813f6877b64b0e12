package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// policy is the IAM policy that is shipped, with a platform's names in place.
type policy []policyStatement

// policyStatement is one of an IAM policy. IAM takes a text for a list of one.
type policyStatement struct {
	Sid, Effect      string
	Action, Resource oneOrMore
	Condition        map[string]map[string]oneOrMore
}

type oneOrMore []string

func (o *oneOrMore) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*o = oneOrMore{one}
		return nil
	}
	var more []string
	if err := json.Unmarshal(text, &more); err != nil {
		return fmt.Errorf("neither a text nor a list of texts: %w", err)
	}
	*o = more
	return nil
}

func shippedPolicy(t *testing.T, names map[string]string) policy {
	t.Helper()
	text, err := os.ReadFile("../knative/account/iam-policy.json")
	require.NoError(t, err)
	filled := os.Expand(string(text), func(name string) string {
		require.Contains(t, names, name)
		return names[name]
	})
	var p struct {
		Version   string
		Statement policy
	}
	decoder := json.NewDecoder(strings.NewReader(filled))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&p))
	require.Equal(t, "2012-10-17", p.Version)
	for _, s := range p.Statement {
		require.Equal(t, "Allow", s.Effect, s.Sid)
		for operator := range s.Condition { // holds knows no others
			require.Contains(t, []string{"Null", "StringEquals", "ForAllValues:StringEquals", "ForAllValues:StringLike"}, operator, s.Sid)
		}
	}
	return p.Statement
}

// grants are all that it allows: "ec2:DeleteVolume by DeleteVolumesAndSnapshotsOfThePlatform".
func (p policy) grants() (all []string) {
	for _, s := range p {
		for _, action := range s.Action {
			all = append(all, action+" by "+s.Sid)
		}
	}
	return all
}

// access is what IAM decides about: an action on one resource, and the keys that conditions may ask for.
type access struct {
	action, resource string
	keys             map[string][]string
}

// allows returns the grants by which an access is allowed; none: it is denied.
func (p policy) allows(a access) (by []string) {
	for _, s := range p {
		if slices.Contains(s.Action, a.action) && like(s.Resource, a.resource) && s.met(a.keys) {
			by = append(by, a.action+" by "+s.Sid)
		}
	}
	return by
}

func (s policyStatement) met(keys map[string][]string) bool {
	for operator, conditions := range s.Condition {
		for key, wanted := range conditions {
			if !holds(operator, wanted, keys[key]) {
				return false
			}
		}
	}
	return true
}

// holds is as IAM's documentation has it ("Condition operators", "Set operators for multivalued context keys"): of no
// values at all, all are as they should be.
func holds(operator string, wanted, has []string) bool {
	switch operator {
	case "Null":
		return slices.Contains(wanted, strconv.FormatBool(len(has) == 0))
	case "StringEquals":
		return len(has) == 1 && slices.Contains(wanted, has[0])
	case "ForAllValues:StringEquals":
		return !slices.ContainsFunc(has, func(v string) bool { return !slices.Contains(wanted, v) })
	case "ForAllValues:StringLike":
		return !slices.ContainsFunc(has, func(v string) bool { return !like(wanted, v) })
	}
	return false
}

// like reports whether a text is as one of IAM's patterns, in which a star is anything.
func like(patterns []string, text string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		return regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*") + "$").MatchString(text)
	})
}

// platform is what IAM knows of an account beside its policies.
type platform struct {
	region, account string
	tags            func(id string) map[string]string
}

// asks returns what IAM decides about before a call is carried out, as the Service Authorization Reference has it.
func (p platform) asks(action string, r *http.Request, body []byte) []access {
	form, _ := url.ParseQuery(string(body))
	on := func(resource string, more map[string][]string) access {
		keys := map[string][]string{"aws:RequestedRegion": {p.region}}
		maps.Copy(keys, more)
		return access{action, resource, keys}
	}
	part := strings.Split(r.URL.Path, "/")
	switch action {
	case "sts:GetCallerIdentity": // whoever has credentials may ask whose they are
		return nil
	case "ec2:DescribeVolumes", "ec2:DescribeSnapshots", "ec2:DescribeInstances":
		return []access{on("*", nil)}
	case "ec2:DetachVolume":
		return []access{p.existing(on, form.Get("VolumeId")), p.existing(on, form.Get("InstanceId"))}
	case "ec2:DeleteVolume", "ec2:DeleteSnapshot":
		return []access{p.existing(on, form.Get("VolumeId")+form.Get("SnapshotId"))}
	case "ec2:CreateSnapshot":
		made := on("arn:aws:ec2:"+p.region+"::snapshot/*", requested(form, "TagSpecification.1.Tag."))
		tagged := access{"ec2:CreateTags", made.resource, maps.Clone(made.keys)}
		tagged.keys["ec2:CreateAction"] = []string{"CreateSnapshot"}
		return []access{p.existing(on, form.Get("VolumeId")), made, tagged}
	case "ec2:CreateTags", "ec2:DeleteTags":
		var all []access
		for i := 1; form.Has("ResourceId." + strconv.Itoa(i)); i++ {
			one := p.existing(on, form.Get("ResourceId."+strconv.Itoa(i)))
			maps.Copy(one.keys, requested(form, "Tag."))
			all = append(all, one)
		}
		return all
	case "s3:PutObject":
		return []access{on("arn:aws:s3:::"+strings.TrimPrefix(r.URL.Path, "/"), nil)}
	case "route53:ListResourceRecordSets", "route53:ChangeResourceRecordSets":
		return []access{on("arn:aws:route53:::hostedzone/"+part[3], changes(body))}
	case "elasticloadbalancing:DeleteRule", "elasticloadbalancing:DeleteTargetGroup":
		return []access{on(form.Get("RuleArn")+form.Get("TargetGroupArn"), nil)}
	case "lambda:InvokeFunction":
		return []access{on("arn:aws:lambda:"+p.region+":"+p.account+":function:"+part[3], nil)}
	case "eks:DescribeCluster":
		return []access{on("arn:aws:eks:"+p.region+":"+p.account+":cluster/"+part[2], nil)}
	}
	return []access{on(r.URL.Path, nil)}
}

// existing is the access to a resource of EC2 that is there, with its tags.
func (p platform) existing(on func(string, map[string][]string) access, id string) access {
	keys := map[string][]string{}
	for key, value := range p.tags(id) {
		keys["aws:ResourceTag/"+key] = []string{value}
	}
	kinds := map[string]string{"vol": p.account + ":volume/", "snap": ":snapshot/", "i": p.account + ":instance/"}
	prefix, _, _ := strings.Cut(id, "-")
	return on("arn:aws:ec2:"+p.region+":"+kinds[prefix]+id, keys)
}

// requested are the keys of the tags that a call names.
func requested(form url.Values, prefix string) map[string][]string {
	keys := map[string][]string{}
	for i := 1; form.Has(prefix + strconv.Itoa(i) + ".Key"); i++ {
		key := form.Get(prefix + strconv.Itoa(i) + ".Key")
		keys["aws:TagKeys"] = append(keys["aws:TagKeys"], key)
		keys["aws:RequestTag/"+key] = []string{form.Get(prefix + strconv.Itoa(i) + ".Value")}
	}
	return keys
}

// changes are the keys of a change of DNS records; of any other call there are none.
func changes(body []byte) map[string][]string {
	var batch struct {
		Changes []struct {
			Action string
			Record struct{ Name, Type string } `xml:"ResourceRecordSet"`
		} `xml:"ChangeBatch>Changes>Change"`
	}
	_ = xml.NewDecoder(bytes.NewReader(body)).Decode(&batch)
	const prefix = "route53:ChangeResourceRecordSets"
	keys := map[string][]string{}
	for _, c := range batch.Changes {
		keys[prefix+"Actions"] = append(keys[prefix+"Actions"], c.Action)
		keys[prefix+"RecordTypes"] = append(keys[prefix+"RecordTypes"], c.Record.Type)
		keys[prefix+"NormalizedRecordNames"] = append(keys[prefix+"NormalizedRecordNames"], strings.TrimSuffix(strings.ToLower(c.Record.Name), "."))
	}
	return keys
}

// policyNames are those of the world that a policy is tried in.
func policyNames(account string) map[string]string {
	return map[string]string{
		"REGION": "us-east-1", "ACCOUNT": account, "CLUSTER": "gpu", "BUCKET": "contents-" + account, "ZONE": "Z1", "DOMAIN": "dev.example.com",
		"LOAD_BALANCER": "servers", "TARGET_GROUPS": "servers", "FUNCTION": "availability",
	}
}

func TestThePolicyKeepsWhatIsNotThePlatforms(t *testing.T) {
	t.Parallel()
	p := shippedPolicy(t, policyNames("000000000001"))
	const (
		volume   = "arn:aws:ec2:us-east-1:000000000001:volume/vol-1"
		snapshot = "arn:aws:ec2:us-east-1::snapshot/snap-1"
		instance = "arn:aws:ec2:us-east-1:000000000001:instance/i-1"
		zone     = "arn:aws:route53:::hostedzone/Z1"
		changed  = "route53:ChangeResourceRecordSets"
	)
	type keys = map[string][]string
	ours := keys{"aws:ResourceTag/gpu-dev-user": {"ada"}}
	with := func(more keys) keys {
		all := maps.Clone(ours)
		maps.Copy(all, more)
		return all
	}
	record := func(action, kind string, names ...string) keys {
		return keys{changed + "Actions": {action}, changed + "RecordTypes": {kind}, changed + "NormalizedRecordNames": names}
	}
	for name, c := range map[string]struct {
		allowed bool
		access
	}{
		"delete our volume":               {true, access{"ec2:DeleteVolume", volume, ours}},
		"delete another's volume":         {false, access{"ec2:DeleteVolume", volume, keys{"aws:ResourceTag/Name": {"theirs"}}}},
		"delete our snapshot":             {true, access{"ec2:DeleteSnapshot", snapshot, ours}},
		"delete another's snapshot":       {false, access{"ec2:DeleteSnapshot", snapshot, nil}},
		"detach our volume":               {true, access{"ec2:DetachVolume", volume, ours}},
		"detach another's volume":         {false, access{"ec2:DetachVolume", volume, nil}},
		"from our node":                   {true, access{"ec2:DetachVolume", instance, keys{"aws:ResourceTag/kubernetes.io/cluster/gpu": {"owned"}}}},
		"from another cluster's node":     {false, access{"ec2:DetachVolume", instance, keys{"aws:ResourceTag/kubernetes.io/cluster/other": {"owned"}}}},
		"from an instance that is ours":   {false, access{"ec2:DetachVolume", instance, ours}},
		"make a snapshot with a user":     {true, access{"ec2:CreateSnapshot", snapshot, keys{"aws:RequestTag/gpu-dev-user": {"ada"}}}},
		"make a snapshot without one":     {false, access{"ec2:CreateSnapshot", snapshot, nil}},
		"tag what is being made":          {true, access{"ec2:CreateTags", snapshot, keys{"ec2:CreateAction": {"CreateSnapshot"}, "aws:TagKeys": {"gpu-dev-user"}}}},
		"tag a volume that is being made": {false, access{"ec2:CreateTags", volume, keys{"ec2:CreateAction": {"CreateVolume"}}}},
		"mark our snapshot deleted":       {true, access{"ec2:CreateTags", snapshot, with(keys{"aws:TagKeys": {"delete-date", "marked-deleted-at"}})}},
		"say whose volume is given up":    {true, access{"ec2:CreateTags", snapshot, with(keys{"aws:TagKeys": {"gpu-dev-volume-given-up-at"}})}},
		"say so of another's":             {false, access{"ec2:CreateTags", snapshot, keys{"aws:TagKeys": {"gpu-dev-volume-given-up-at"}}}},
		"unsay it":                        {false, access{"ec2:DeleteTags", snapshot, with(keys{"aws:TagKeys": {"gpu-dev-volume-given-up-at"}})}},
		"mark another's":                  {false, access{"ec2:CreateTags", snapshot, keys{"aws:TagKeys": {"delete-date"}}}},
		"make another's ours":             {false, access{"ec2:CreateTags", snapshot, keys{"aws:TagKeys": {"gpu-dev-user"}}}},
		"tag ours with more":              {false, access{"ec2:CreateTags", snapshot, with(keys{"aws:TagKeys": {"delete-date", "disk_name"}})}},
		"tag our volume":                  {false, access{"ec2:CreateTags", volume, with(keys{"aws:TagKeys": {"delete-date"}})}},
		"restore ours":                    {true, access{"ec2:DeleteTags", snapshot, with(keys{"aws:TagKeys": {"delete-date"}})}},
		"take its user's name away":       {false, access{"ec2:DeleteTags", snapshot, with(keys{"aws:TagKeys": {"gpu-dev-user"}})}},
		"take all tags away":              {false, access{"ec2:DeleteTags", snapshot, ours}}, // DeleteTags without a key
		"look elsewhere":                  {false, access{"ec2:DescribeVolumes", "*", keys{"aws:RequestedRegion": {"eu-west-1"}}}},
		"delete a server's name":          {true, access{changed, zone, record("DELETE", "A", "bear.dev.example.com")}},
		"delete its port's":               {true, access{changed, zone, record("DELETE", "TXT", "_port.bear.dev.example.com")}},
		"delete the domain itself":        {false, access{changed, zone, record("DELETE", "A", "dev.example.com")}},
		"delete one ours and one not":     {false, access{changed, zone, record("DELETE", "A", "bear.dev.example.com", "www.example.com")}},
		"delete a mail server":            {false, access{changed, zone, record("DELETE", "MX", "bear.dev.example.com")}},
		"make a name":                     {false, access{changed, zone, record("UPSERT", "A", "bear.dev.example.com")}},
		"in another zone":                 {false, access{changed, zone + "2", record("DELETE", "A", "bear.dev.example.com")}},
		"write into another bucket":       {false, access{"s3:PutObject", "arn:aws:s3:::other/ada/work", nil}},
		"delete another's rule":           {false, access{"elasticloadbalancing:DeleteRule", "arn:aws:elasticloadbalancing:us-east-1:000000000001:listener-rule/app/other/1/2/3", nil}},
		"delete another's group":          {false, access{"elasticloadbalancing:DeleteTargetGroup", "arn:aws:elasticloadbalancing:us-east-1:000000000001:targetgroup/other/1", nil}},
		"invoke another function":         {false, access{"lambda:InvokeFunction", "arn:aws:lambda:us-east-1:000000000001:function:other", nil}},
		"terminate a node":                {false, access{"ec2:TerminateInstances", instance, keys{"aws:ResourceTag/kubernetes.io/cluster/gpu": {"owned"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.allowed, len(p.allows(c.access)) > 0)
		})
	}
}

func TestThePolicyNamesEveryCallThatTheCodeHas(t *testing.T) {
	t.Parallel()
	named := map[string]bool{"sts:GetCallerIdentity": true} // for which nobody needs a right
	for _, s := range shippedPolicy(t, policyNames("000000000001")) {
		for _, action := range s.Action {
			named[action] = true
		}
	}
	files, err := filepath.Glob("../internal/aws/*.go")
	require.NoError(t, err)
	files = slices.DeleteFunc(files, func(file string) bool { return strings.HasSuffix(file, "_test.go") })
	iam, input := strings.NewReplacer("elb:", "elasticloadbalancing:", "lambda:Invoke", "lambda:InvokeFunction"), regexp.MustCompile(`&(\w+)\.(\w+)Input\{`)
	called := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, call := range input.FindAllSubmatch(text, -1) {
			called[iam.Replace(string(call[1])+":"+string(call[2]))] = true
		}
	}
	require.Equal(t, named, called)
}
