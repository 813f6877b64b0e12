// Package platform plays the GPU platform for the demo: it writes the rows, starts the servers, makes the volumes, DNS
// records and load-balancer rules that stand behind reservations, as the platform's own services would, and its volume
// driver. It knows nothing of the service that ends them.
package platform

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5/pgxpool"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Namespace is where the platform's servers are.
const Namespace = "gpu-dev"

// Domain is the zone in which servers have their names.
const Domain = "dev.example.com"

// Platform is one platform in one AWS account, one cluster and one database.
type Platform struct {
	SQL     *pgxpool.Pool
	Cluster kubernetes.Interface
	EC2     *ec2.Client
	ELB     *elb.Client
	DNS     *route53.Client
	S3      *s3.Client
	Lambda  *lambda.Client

	Account  string // of AWS; its number is also the access key id
	Endpoint string // of AWS
	ZoneID   string
	Bucket   string // for listings of disks
	Function string // computes which GPUs are free

	config      *rest.Config
	nodes       []Node
	listenerARN string
	vpcID       string
	mu          sync.Mutex
	mounts      []mount // of which the volume driver takes care
	rules       int32
	devices     int
}

// Connect opens the clients. Nothing is made yet.
func Connect(ctx context.Context, postgresURL, kubeconfig, endpoint, region string) (*Platform, error) {
	number, err := rand.Int(rand.Reader, big.NewInt(9e11))
	if err != nil {
		return nil, fmt.Errorf("draw an account number: %w", err)
	}
	p := &Platform{Account: fmt.Sprintf("%012d", number.Int64()+1e11), Endpoint: endpoint, Function: "availability-updater"}
	p.Bucket = "disk-contents-" + p.Account
	if p.SQL, err = pgxpool.New(ctx, postgresURL); err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	if p.config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	p.config.QPS = -1
	if p.Cluster, err = kubernetes.NewForConfig(p.config); err != nil {
		return nil, fmt.Errorf("make a Kubernetes client: %w", err)
	}
	cfg := awssdk.Config{
		Region: region, BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider(p.Account, "demo", ""),
		HTTPClient: &inTurn{client: awshttp.NewBuildableClient()},
	}
	p.EC2, p.ELB, p.DNS, p.Lambda = ec2.NewFromConfig(cfg), elb.NewFromConfig(cfg), route53.NewFromConfig(cfg), lambda.NewFromConfig(cfg)
	p.S3 = s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true })
	return p, nil
}

// inTurn sends one request at a time: the emulator gets confused by several at once, and what an answer was lost to is
// made twice by the SDK's retry.
type inTurn struct {
	mu     sync.Mutex
	client awssdk.HTTPClient
}

func (c *inTurn) Do(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client.Do(r)
}

// Found makes what is there before the first reservation: nodes with their instances, the zone, the load balancer, the
// bucket, the function.
func (p *Platform) Found(ctx context.Context) error {
	steps := []func(context.Context) error{p.setTimes, p.foundCluster, p.foundNetwork, p.foundBucket, p.foundFunction}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Server is what the platform knows of one reservation and what stands behind it.
type Server struct {
	ID     string // of the reservation
	User   string
	Disk   string // name, empty: none
	Volume string // EBS, empty: none
	Pod    string
	PodUID string // empty: it has never had a pod
	Claim  string // PersistentVolumeClaim; its volume object is called like it
	Node   Node
	Domain string
	Rule   string // ARN
	Group  string // ARN
}

// podName is the platform's rule.
func podName(reservationID string) string { return "gpu-dev-" + reservationID[:8] }

func quoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, ``) + `"` }
