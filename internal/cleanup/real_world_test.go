package cleanup_test

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	dnstypes "github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/stacktest"
)

const zone = "dev.example.com"

// reality is a reservation behind which everything stands, on the real components.
type reality struct {
	*stacktest.Cluster
	aws    *stacktest.Account
	db     *postgres.DB
	sql    *pgxpool.Pool
	runner *followup.Runner

	id, podName, node, instance, volume, pv, zoneID, rule, group string
}

// newReality builds it all; one delivery waits as long as patience.
func newReality(t *testing.T, patience time.Duration) *reality {
	t.Helper()
	r := &reality{Cluster: stacktest.Kubernetes(t), aws: stacktest.AWS(t), id: uuid.NewString()}
	r.podName, r.pv = "gpu-dev-"+r.id[:8], "pv-"+r.id[:8]
	url := stacktest.Database(t)
	var err error
	r.db, err = postgres.Open(t.Context(), stacktest.AsService(t, url), postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(r.db.Close)
	r.sql, err = pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(r.sql.Close)

	r.buildAWS(t)
	r.buildKubernetes(t)
	r.buildRows(t)
	r.buildRunner(patience)
	return r
}

func (r *reality) buildAWS(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	compute := ec2.NewFromConfig(r.aws.Config)
	instances, err := compute.RunInstances(ctx, &ec2.RunInstancesInput{
		ImageId: awssdk.String("ami-12345678"), MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1)})
	require.NoError(t, err)
	r.instance = *instances.Instances[0].InstanceId
	volume, err := compute.CreateVolume(ctx, &ec2.CreateVolumeInput{AvailabilityZone: awssdk.String("us-east-1a"), Size: awssdk.Int32(10),
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeVolume,
			Tags: []ec2types.Tag{{Key: awssdk.String("disk_name"), Value: awssdk.String("work")}}}}})
	require.NoError(t, err)
	r.volume = *volume.VolumeId
	_, err = compute.AttachVolume(ctx, &ec2.AttachVolumeInput{VolumeId: &r.volume, InstanceId: &r.instance, Device: awssdk.String("/dev/xvdba")})
	require.NoError(t, err)

	_, err = s3.NewFromConfig(r.aws.Config, pathStyle).CreateBucket(ctx, &s3.CreateBucketInput{Bucket: awssdk.String(r.bucket())})
	require.NoError(t, err)

	dns := route53.NewFromConfig(r.aws.Config)
	r.zoneID = strings.TrimPrefix(r.aws.MakeZone(zone), "/hostedzone/")
	record := func(name string, kind dnstypes.RRType, value string) dnstypes.Change {
		return dnstypes.Change{Action: dnstypes.ChangeActionCreate, ResourceRecordSet: &dnstypes.ResourceRecordSet{
			Name: &name, Type: kind, TTL: awssdk.Int64(60), ResourceRecords: []dnstypes.ResourceRecord{{Value: &value}}}}
	}
	_, err = dns.ChangeResourceRecordSets(ctx, &route53.ChangeResourceRecordSetsInput{HostedZoneId: &r.zoneID, ChangeBatch: &dnstypes.ChangeBatch{
		Changes: []dnstypes.Change{
			record("grumpy-bear."+zone, dnstypes.RRTypeCname, "node.example.com"),
			record("_port.grumpy-bear."+zone, dnstypes.RRTypeTxt, `"30123"`),
			record("happy-bear."+zone, dnstypes.RRTypeA, "10.0.0.1"),
		}}})
	require.NoError(t, err)

	r.rule, r.group = r.aws.MakeRule("grumpy-bear")
}

func (r *reality) buildKubernetes(t *testing.T) {
	t.Helper()
	ctx, core := t.Context(), r.Client.CoreV1()
	r.node = r.CreateNode(func(n *corev1.Node) { n.Spec.ProviderID = "aws:///us-east-1a/" + r.instance }).Name
	r.claim(t, "disk-alice", r.pv, r.volume)
	r.pod(t)
	_, err := r.Exec(r.podName, nil, "sh", "-c", "mkdir -p /home/dev/work && echo hello >/home/dev/work/notes.txt && : >/home/dev/WARN_EXPIRES_IN_5MIN.txt")
	require.NoError(t, err)
	_, err = core.Services(r.Namespace).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: r.podName + "-ssh"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": r.podName},
			Ports: []corev1.ServicePort{{Port: 22}}}}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// claim makes a bound claim, and the object through which it has an EBS volume.
func (r *reality) claim(t *testing.T, name, pv, volume string) {
	t.Helper()
	ctx, core := t.Context(), r.Client.CoreV1()
	none, modes := "", []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}
	claim, err := core.PersistentVolumeClaims(r.Namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes, VolumeName: pv, StorageClassName: &none,
			Resources: corev1.VolumeResourceRequirements{Requests: size}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = core.PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: pv},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef: &corev1.ObjectReference{Namespace: r.Namespace, Name: claim.Name, UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: "ebs.csi.aws.com", VolumeHandle: volume}},
		}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = core.PersistentVolumes().Delete(context.Background(), pv, metav1.DeleteOptions{}) })
}

// pod makes the reservation's pod, and after it went, one of the same name.
func (r *reality) pod(t *testing.T, changes ...func(*corev1.Pod)) {
	t.Helper()
	r.CreatePod(r.podName, append(changes, func(p *corev1.Pod) {
		p.Labels = map[string]string{"app": r.podName, "user-id": "alice"}
		p.Spec.NodeName = r.node
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "home", MountPath: "/home/dev"})
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "home", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "disk-alice"}}})
	})...)
}

func (r *reality) buildRows(t *testing.T) {
	t.Helper()
	system, err := r.Client.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{})
	require.NoError(t, err)
	r.exec(t, "insert into expiry.cluster (uid) values ($1)", string(system.UID))
	// The row knows neither the volume nor the disk: both are to be found.
	r.exec(t, `insert into reservations (reservation_id, user_id, status, namespace, created_at, launched_at, expires_at, reservation_ended)
		values ($1, 'alice', 'expired', $2, now() - interval '1 hour', now() - interval '1 hour', now() - interval '1 minute', now())`, r.id, r.Namespace)
	r.exec(t, "insert into domain_mappings (domain_name, reservation_id) values ('grumpy-bear', $1)", r.id)
	r.exec(t, "insert into alb_target_groups (reservation_id, jupyter_rule_arn, jupyter_target_group_arn) values ($1, $2, $3)", r.id, r.rule, r.group)
	_, err = r.db.EnsureCleanup(t.Context(), r.id)
	require.NoError(t, err)
}

func (r *reality) buildRunner(patience time.Duration) {
	cluster := kube.New(func(context.Context) (*rest.Config, error) { return r.Config, nil }, kube.Options{})
	quiet := slog.New(slog.DiscardHandler)
	action := cleanup.New(cleanup.World{
		Store: r.db, Cluster: cluster, EC2: aws.NewEC2(r.aws.Config), Identity: aws.NewSTS(r.aws.Config), Router: aws.NewLoadBalancer(r.aws.Config),
		DNS: aws.NewRoute53(r.aws.Config, r.zoneID, zone), Bucket: aws.NewS3(r.aws.Config, r.bucket()), Disk: keeper{r.db, r.sql},
	}, cleanup.Options{Domain: zone, Lag: 1, Patience: patience, Interval: 20 * time.Millisecond, Log: quiet})
	r.runner = followup.NewRunner(r.db, map[postgres.FollowUpKind]followup.Action{postgres.Cleanup: action}, followup.Options{Log: quiet})
}

// keeper stands in for the disk's part.
type keeper struct {
	db  *postgres.DB
	sql *pgxpool.Pool
}

func (k keeper) Keep(ctx context.Context, c postgres.CleanupRecord) (followup.Result, error) {
	return followup.Recorded(postgres.OutcomeReleased), release(ctx, k.db, k.sql, c, c.VolumeID+" "+c.DiskName)
}

func pathStyle(o *s3.Options) { o.UsePathStyle = true }

func (r *reality) bucket() string { return "contents-" + r.aws.ID }

func (r *reality) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	_, err := r.sql.Exec(t.Context(), statement, args...)
	require.NoError(t, err)
}

func (r *reality) text(t *testing.T, query string) (s string) {
	t.Helper()
	require.NoError(t, r.sql.QueryRow(t.Context(), query).Scan(&s))
	return s
}

func (r *reality) deliver(t *testing.T) followup.Report {
	t.Helper()
	r.exec(t, "update expiry.follow_ups set due_at = least(due_at, clock_timestamp()) where state = 'due'")
	report, err := r.runner.Run(t.Context(), postgres.Cleanup, r.id)
	require.NoError(t, err)
	return report
}

// records returns the names in the zone that are the platform's.
func (r *reality) records(t *testing.T) (names []string) {
	t.Helper()
	out, err := route53.NewFromConfig(r.aws.Config).ListResourceRecordSets(t.Context(), &route53.ListResourceRecordSetsInput{HostedZoneId: &r.zoneID})
	require.NoError(t, err)
	for _, s := range out.ResourceRecordSets {
		if s.Type != dnstypes.RRTypeNs && s.Type != dnstypes.RRTypeSoa {
			names = append(names, string(s.Type)+" "+strings.TrimSuffix(*s.Name, "."))
		}
	}
	return names
}

func (r *reality) object(t *testing.T, key string) string {
	t.Helper()
	out, err := s3.NewFromConfig(r.aws.Config, pathStyle).GetObject(t.Context(), &s3.GetObjectInput{Bucket: awssdk.String(r.bucket()), Key: &key})
	require.NoError(t, err)
	defer func() { _ = out.Body.Close() }()
	text, err := io.ReadAll(out.Body)
	require.NoError(t, err)
	return string(text)
}
