package aws

import (
	"context"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// Lambda invokes one function.
type Lambda struct {
	client   *lambda.Client
	function string
}

// NewLambda returns a client that has not connected yet.
func NewLambda(cfg awssdk.Config, function string) *Lambda {
	return &Lambda{client: lambda.NewFromConfig(bounded(cfg)), function: function}
}

// Invoke has the function run with the JSON payload and does not wait for it. An unknown function is a permanent
// error. After a lost answer the SDK asks again: the function may run twice.
func (l *Lambda) Invoke(ctx context.Context, payload []byte) error {
	_, err := l.client.Invoke(ctx, &lambda.InvokeInput{
		FunctionName: &l.function, InvocationType: types.InvocationTypeEvent, Payload: payload,
	})
	return failed(err, "invoke %s", l.function)
}
