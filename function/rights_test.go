package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	dnstypes "github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/stacktest"
)

// restricted is an outside in which everything that the service may do is to be done, and in which it may do no more than
// the manifests allow: the API server knows it as the ServiceAccount, and each call to AWS is held to the IAM policy.
type restricted struct {
	*outside
	platform platform
	policy   policy
	spdy     bool   // something on the way to the API server takes no WebSockets
	cluster  string // where the API server is

	mu     sync.Mutex
	used   map[string]bool // grants of the policy
	denied []string
}

const serviceAccount = "reservation-expiry"

func newRestricted(t *testing.T, spdy, eks bool) *restricted {
	t.Helper()
	g := &restricted{outside: newOutside(t, nil), spdy: spdy, used: map[string]bool{}}
	names := policyNames(g.aws.ID)
	g.environ = append(g.environ, "DRIVER_GRACE=1s", "DISK_CONTENTS_BUCKET="+names["BUCKET"], "DOMAIN_NAME="+names["DOMAIN"],
		"AVAILABILITY_UPDATER_FUNCTION_NAME="+names["FUNCTION"])
	kubeconfig := g.kubernetes(g.account())
	g.cluster = kubeconfig.Clusters["wire"].Server
	if eks {
		g.environ = slices.DeleteFunc(g.environ, func(v string) bool { return strings.HasPrefix(v, "KUBECONFIG=") })
		g.environ = append(g.environ, "EKS_CLUSTER_NAME="+names["CLUSTER"])
	} else {
		g.environ = append(g.environ, "KUBECONFIG="+writeKubeconfig(t, kubeconfig))
	}
	g.everything(names)
	g.environ = append(g.environ, "HOSTED_ZONE_ID="+names["ZONE"])
	g.policy = shippedPolicy(t, names)
	g.platform = platform{region: names["REGION"], account: g.aws.ID, tags: g.tags}
	g.spoil(g.guard)
	return g
}

// account logs in as a ServiceAccount with the rights of the manifests, in the test's namespace as in those that they name.
func (g *restricted) account() *rest.Config {
	t, c := g.base.t, g.outside.cluster
	t.Helper()
	ctx, core, rbac := t.Context(), c.Client.CoreV1(), c.Client.RbacV1()
	_, err := core.ServiceAccounts(c.Namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: serviceAccount}}, metav1.CreateOptions{})
	require.NoError(t, err)
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Name: serviceAccount, Namespace: c.Namespace}}
	for _, role := range shippedRoles(t) {
		meta := metav1.ObjectMeta{Name: c.Namespace + "-" + role.Name}
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name}
		_, err := rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: role.Rules}, metav1.CreateOptions{})
		require.NoError(t, err)
		t.Cleanup(func() { _ = rbac.ClusterRoles().Delete(context.Background(), meta.Name, metav1.DeleteOptions{}) })
		if len(role.namespaces) == 0 {
			_, err = rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects}, metav1.CreateOptions{})
			require.NoError(t, err)
			t.Cleanup(func() { _ = rbac.ClusterRoleBindings().Delete(context.Background(), meta.Name, metav1.DeleteOptions{}) })
			continue
		}
		for _, namespace := range append(role.namespaces, c.Namespace) {
			_, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
			require.True(t, err == nil || apierrors.IsAlreadyExists(err), err)
			_, err = rbac.RoleBindings(namespace).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects}, metav1.CreateOptions{})
			require.NoError(t, err)
			t.Cleanup(func() {
				_ = rbac.RoleBindings(namespace).Delete(context.Background(), meta.Name, metav1.DeleteOptions{})
			})
		}
	}
	token, err := core.ServiceAccounts(c.Namespace).CreateToken(ctx, serviceAccount, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)
	config := rest.AnonymousClientConfig(c.Config)
	config.BearerToken = token.Status.Token
	config.NextProtos = []string{"http/1.1"} // or SPDY's upgrade would be asked for over HTTP/2
	return config
}

// role is a ClusterRole of the manifests.
type role struct {
	rbacv1.ClusterRole

	namespaces []string // in which it is bound; none: in the whole cluster
}

func shippedRoles(t *testing.T) (roles []role) {
	t.Helper()
	text, err := os.ReadFile("../knative/account/rbac.yaml")
	require.NoError(t, err)
	for documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		var one struct {
			rbacv1.ClusterRole

			RoleRef rbacv1.RoleRef `json:"roleRef"`
		}
		err := documents.Decode(&one)
		if errors.Is(err, io.EOF) {
			return roles
		}
		require.NoError(t, err)
		switch one.Kind {
		case "ClusterRole":
			roles = append(roles, role{ClusterRole: one.ClusterRole})
		case "RoleBinding":
			i := slices.IndexFunc(roles, func(r role) bool { return r.Name == one.RoleRef.Name })
			roles[i].namespaces = append(roles[i].namespaces, one.Namespace)
		}
	}
}

// everything adds what the service has yet to have a hand in: a reservation behind which all stands that can, an attached
// disk that nobody lets go, a deleted disk whose snapshots do not say so, and one that was restored and whose still do.
func (g *restricted) everything(names map[string]string) {
	t, ctx := g.base.t, g.base.t.Context()
	t.Helper()
	const what = "all that can stand behind one"
	podName := g.reserve(what, "active", "expires_at = now() - interval '10 minutes', disk_name = 'home'", false)
	_, err := s3.NewFromConfig(g.aws.Config, func(o *s3.Options) { o.UsePathStyle = true }).
		CreateBucket(ctx, &s3.CreateBucketInput{Bucket: awssdk.String(names["BUCKET"])})
	require.NoError(t, err)
	g.aws.MakeFunction(names["FUNCTION"])
	rule, group := g.aws.MakeRule(names["LOAD_BALANCER"])
	g.exec("insert into alb_target_groups (reservation_id, jupyter_rule_arn, jupyter_target_group_arn) values ($1, $2, $3)", g.ids[what], rule, group)

	names["ZONE"] = strings.TrimPrefix(g.aws.MakeZone(names["DOMAIN"]), "/hostedzone/")
	record := func(name string, kind dnstypes.RRType, value string) dnstypes.Change {
		return dnstypes.Change{Action: dnstypes.ChangeActionCreate, ResourceRecordSet: &dnstypes.ResourceRecordSet{
			Name: awssdk.String(name + names["DOMAIN"]), Type: kind, TTL: awssdk.Int64(60), ResourceRecords: []dnstypes.ResourceRecord{{Value: &value}}}}
	}
	_, err = route53.NewFromConfig(g.aws.Config).ChangeResourceRecordSets(ctx, &route53.ChangeResourceRecordSetsInput{
		HostedZoneId: awssdk.String(names["ZONE"]), ChangeBatch: &dnstypes.ChangeBatch{Changes: []dnstypes.Change{
			record("bear.", dnstypes.RRTypeCname, "node.example.com"), record("_port.bear.", dnstypes.RRTypeTxt, `"30123"`),
		}}})
	require.NoError(t, err)
	g.exec("insert into domain_mappings (domain_name, reservation_id) values ('bear', $1)", g.ids[what])

	instances, err := g.compute.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: awssdk.String("ami-12345678"), MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1),
		TagSpecifications: tagged(ec2types.ResourceTypeInstance, map[string]string{"kubernetes.io/cluster/" + names["CLUSTER"]: "owned"})})
	require.NoError(t, err)
	instance := *instances.Instances[0].InstanceId
	volume := g.madeVolume(map[string]string{"gpu-dev-user": "ada", "disk_name": "home"})
	_, err = g.compute.AttachVolume(ctx, &ec2.AttachVolumeInput{VolumeId: &volume, InstanceId: &instance, Device: awssdk.String("/dev/xvdba")})
	require.NoError(t, err)
	g.exec("update reservations set ebs_volume_id = $1 where pod_name = $2", volume, podName)
	g.exec("insert into disks (disk_name, user_id, in_use, reservation_id, ebs_volume_id) values ('home', 'ada', true, $1, $2)", g.ids[what], volume)
	g.pod(podName, volume, instance)

	g.exec("insert into disks (disk_name, user_id, snapshot_count, is_deleted, delete_date, marked_deleted_at) values ('leaving', 'ada', 1, true, '2199-12-31', now())")
	g.exec("insert into disks (disk_name, user_id, snapshot_count) values ('restored', 'ada', 1)")
	once := g.madeVolume(map[string]string{"Name": "once"})
	g.snapshot(once, "leaving", 3, nil)
	g.snapshot(once, "restored", 3, map[string]string{"delete-date": "2020-01-01", "marked-deleted-at": "1577836800"})
	_, err = g.compute.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &once})
	require.NoError(t, err)
}

func (g *restricted) madeVolume(tags map[string]string) string {
	g.base.t.Helper()
	made, err := g.compute.CreateVolume(g.base.t.Context(), &ec2.CreateVolumeInput{AvailabilityZone: awssdk.String("us-east-1a"), Size: awssdk.Int32(10),
		TagSpecifications: tagged(ec2types.ResourceTypeVolume, tags)})
	require.NoError(g.base.t, err)
	return *made.VolumeId
}

// pod makes one with a claim, whose volume would go along with it, on a node that is an instance, and its service.
func (g *restricted) pod(name, volume, instance string) {
	t, c := g.base.t, g.outside.cluster
	t.Helper()
	ctx, core := t.Context(), c.Client.CoreV1()
	none, modes := "", []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}
	claim, err := core.PersistentVolumeClaims(c.Namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes, VolumeName: name, StorageClassName: &none,
			Resources: corev1.VolumeResourceRequirements{Requests: size}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = core.PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:               &corev1.ObjectReference{Namespace: c.Namespace, Name: claim.Name, UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "ebs.csi.aws.com", VolumeHandle: volume}},
		}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = core.PersistentVolumes().Delete(context.Background(), name, metav1.DeleteOptions{}) })
	node := c.CreateNode(func(n *corev1.Node) { n.Spec.ProviderID = "aws:///us-east-1a/" + instance }).Name
	c.CreatePod(name, func(p *corev1.Pod) {
		p.Labels = map[string]string{"user-id": "ada", "app": name}
		p.Spec.NodeName = node
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "home", MountPath: "/home/dev"}}
		p.Spec.Volumes = []corev1.Volume{{Name: "home", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
	})
	_, err = core.Services(c.Namespace).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name + "-ssh"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 22}}}}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// tags are those of something in EC2.
func (g *restricted) tags(id string) map[string]string {
	found, err := g.compute.DescribeTags(context.WithoutCancel(g.base.t.Context()), &ec2.DescribeTagsInput{
		Filters: []ec2types.Filter{{Name: awssdk.String("resource-id"), Values: []string{id}}}})
	if err != nil {
		return nil // which allows nothing
	}
	tags := map[string]string{}
	for _, tag := range found.Tags {
		tags[awssdk.ToString(tag.Key)] = awssdk.ToString(tag.Value)
	}
	return tags
}

// guard is what stands between the service and the servers.
func (g *restricted) guard(call string, w http.ResponseWriter, r *http.Request) bool {
	service, action, _ := strings.Cut(call, " ")
	if service == "kubernetes" {
		if g.spdy && r.Header.Get("Upgrade") == "websocket" {
			return saying(http.StatusForbidden, "text/plain", "no WebSockets here")(call, w, r)
		}
		r.Header.Del("Authorization") // EKS knows from it who that is; the wire has a token that this server believes
		return false
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	for _, a := range g.platform.asks(action, r, body) {
		by := g.policy.allows(a)
		g.mu.Lock()
		if len(by) == 0 {
			g.denied = append(g.denied, fmt.Sprintf("%s on %s with %v", a.action, a.resource, a.keys))
		}
		for _, one := range by {
			g.used[one] = true
		}
		g.mu.Unlock()
		if len(by) == 0 {
			return ec2Says(http.StatusForbidden, "UnauthorizedOperation")(call, w, r)
		}
	}
	if action == "eks:DescribeCluster" { // the emulator's cluster leads nowhere
		return saying(http.StatusOK, "application/json", fmt.Sprintf(`{"cluster":{"endpoint":%q,"certificateAuthority":{}}}`, g.cluster))(call, w, r)
	}
	return false
}

// audited returns what the account did by the API server's own account ("get pods/exec"), and what was refused.
func (g *restricted) audited() (used map[string]bool, forbidden []string) {
	t := g.base.t
	t.Helper()
	user := "system:serviceaccount:" + g.outside.cluster.Namespace + ":" + serviceAccount
	used = map[string]bool{}
	logs, err := filepath.Glob(filepath.Join(stacktest.Env(t, "STACK_DIR"), "logs", "kubernetes-audit*.log"))
	require.NoError(t, err)
	require.NotEmpty(t, logs)
	for _, path := range logs {
		file, err := os.Open(path)
		require.NoError(t, err)
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if !strings.Contains(lines.Text(), user) {
				continue
			}
			var e struct {
				Verb      string
				User      struct{ Username string }
				ObjectRef struct{ Resource, Subresource string }
				Status    struct{ Code int } `json:"responseStatus"`
			}
			if json.Unmarshal(lines.Bytes(), &e) != nil || e.User.Username != user {
				continue // the last line may be half written
			}
			what := strings.TrimSuffix(e.Verb+" "+e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource, "/")
			used[what] = true
			if e.Status.Code == http.StatusForbidden {
				forbidden = append(forbidden, what)
			}
		}
		require.NoError(t, lines.Err())
		require.NoError(t, file.Close())
	}
	return used, forbidden
}

// TestTheRightsThatAreShippedAreAllThatTheWholeWorldNeeds ends a world in which everything is to be done, as who the
// manifests make the service: nothing is refused, and nothing was granted that nobody used.
func TestTheRightsThatAreShippedAreAllThatTheWholeWorldNeeds(t *testing.T) {
	t.Parallel()
	var granted []string
	for _, role := range shippedRoles(t) {
		for _, rule := range role.Rules {
			for _, kind := range rule.Resources {
				for _, verb := range rule.Verbs {
					granted = append(granted, verb+" "+kind)
				}
			}
		}
	}
	const describeCluster = "eks:DescribeCluster by FindTheCluster"
	for name, way := range map[string]struct {
		spdy, eks   bool
		otherWay    string // the right that only the other stream needs
		unnecessary []string
	}{
		"by WebSocket": {otherWay: "create pods/exec", unnecessary: []string{describeCluster}},
		"by SPDY, to a cluster that EKS knows of": {spdy: true, eks: true, otherWay: "get pods/exec"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newRestricted(t, way.spdy, way.eks)
			state := g.settle()
			require.Contains(t, state, "cleanup of, all that can stand behind one, released")
			require.Contains(t, state, "warning, due for a warning, 30, done, sent")
			require.Empty(t, g.denied)
			require.ElementsMatch(t, g.policy.grants(), append(slices.Collect(maps.Keys(g.used)), way.unnecessary...))
			require.EventuallyWithT(t, func(ct *assert.CollectT) {
				used, forbidden := g.audited()
				require.Empty(ct, forbidden)
				require.ElementsMatch(ct, granted, append(slices.Collect(maps.Keys(used)), way.otherWay))
			}, 20*time.Second, 200*time.Millisecond)
		})
	}
}
