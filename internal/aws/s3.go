package aws

import (
	"bytes"
	"context"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// S3 keeps listings in one bucket.
type S3 struct {
	client *s3.Client
	bucket string
}

// NewS3 returns a client that has not connected yet.
func NewS3(cfg awssdk.Config, bucket string) *S3 {
	client := s3.NewFromConfig(bounded(cfg), func(o *s3.Options) {
		o.UsePathStyle = o.BaseEndpoint != nil // no bucket.127.0.0.1
	})
	return &S3{client: client, bucket: bucket}
}

// PutListing stores the text under the key, over whatever was there, and returns its address, "s3://bucket/key".
func (s *S3) PutListing(ctx context.Context, key string, text []byte) (url string, err error) {
	url = "s3://" + s.bucket + "/" + key
	_, err = s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.bucket, Key: &key, Body: bytes.NewReader(text), ContentType: awssdk.String("text/plain; charset=utf-8"),
	})
	if err != nil {
		return "", failed(err, "put %s", url)
	}
	return url, nil
}
