package platform

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// setTimes has things take as long as it takes to see them happen.
func (p *Platform) setTimes(ctx context.Context) error {
	return p.control(ctx, http.MethodPut, "settings", map[string]float64{
		"snapshot_seconds": 5, "detach_seconds": 1.5, "volume_delete_seconds": 1.5,
	}, nil)
}

// alter sets what no API call can, such as the age of a snapshot.
func (p *Platform) alter(ctx context.Context, id string, values map[string]any) error {
	return p.control(ctx, http.MethodPut, "resources/"+id, values, nil)
}

// Call is an API call that the account has received, "ec2:DeleteVolume".
type Call struct {
	Action string            `json:"action"`
	Params map[string]string `json:"params"`
}

// Calls returns all that were made so far.
func (p *Platform) Calls(ctx context.Context) ([]Call, error) {
	var calls []Call
	return calls, p.control(ctx, http.MethodGet, "calls", nil, &calls)
}

// control talks to the emulator's control API; tools/aws/emulator.py describes it.
func (p *Platform) control(ctx context.Context, method, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, method, p.Endpoint+"/_control/"+p.Account+"/"+path, bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("AWS emulator: %w", err)
	}
	return p.do(request, answer)
}

func (p *Platform) do(request *http.Request, answer any) error {
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("AWS emulator: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	said, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("AWS emulator: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("AWS emulator at %s (the demo needs that of tools/aws): %s %.200s", p.Endpoint, response.Status, said)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(said, answer); err != nil {
		return fmt.Errorf("AWS emulator: %w", err)
	}
	return nil
}

func (p *Platform) foundBucket(ctx context.Context) error {
	if _, err := p.S3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &p.Bucket}); err != nil {
		return fmt.Errorf("make bucket %s: %w", p.Bucket, err)
	}
	return nil
}

// Object returns what the bucket has under the first key that holds part.
func (p *Platform) Object(ctx context.Context, part string) (string, error) {
	listed, err := p.S3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &p.Bucket})
	if err != nil {
		return "", fmt.Errorf("list bucket %s: %w", p.Bucket, err)
	}
	for _, o := range listed.Contents {
		if !strings.Contains(*o.Key, part) {
			continue
		}
		out, err := p.S3.GetObject(ctx, &s3.GetObjectInput{Bucket: &p.Bucket, Key: o.Key})
		if err != nil {
			return "", fmt.Errorf("get %s: %w", *o.Key, err)
		}
		defer func() { _ = out.Body.Close() }()
		text, err := io.ReadAll(out.Body)
		return string(text), err
	}
	return "", fmt.Errorf("bucket %s has nothing of %s", p.Bucket, part)
}

// foundFunction makes the platform's function that computes which GPUs are free, and the role that it needs, by the
// one IAM call here, which is not worth IAM's SDK.
func (p *Platform) foundFunction(ctx context.Context) error {
	form := url.Values{"Action": {"CreateRole"}, "Version": {"2010-05-08"}, "RoleName": {p.Function}, "AssumeRolePolicyDocument": {
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}`}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return fmt.Errorf("make a role: %w", err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+p.Account+"/20260101/us-east-1/iam/aws4_request")
	if err := p.do(request, nil); err != nil {
		return fmt.Errorf("make a role: %w", err)
	}
	var code bytes.Buffer
	archive := zip.NewWriter(&code)
	if _, err := archive.Create("index.py"); err != nil {
		return fmt.Errorf("zip a function: %w", err)
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("zip a function: %w", err)
	}
	_, err = p.Lambda.CreateFunction(ctx, &lambda.CreateFunctionInput{
		FunctionName: &p.Function, Runtime: types.RuntimePython312, Handler: awssdk.String("index.handler"),
		Role: awssdk.String("arn:aws:iam::" + p.Account + ":role/" + p.Function), Code: &types.FunctionCode{ZipFile: code.Bytes()},
	})
	if err != nil {
		return fmt.Errorf("make function %s: %w", p.Function, err)
	}
	return nil
}
