package aws

import (
	"context"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"gpudev.internal/reservation-expiry/internal/disk"
	"gpudev.internal/reservation-expiry/internal/fault"
)

// DescribeInstance returns the instance. EC2 forgets a terminated one after about an hour: then the error is gone.
func (e *EC2) DescribeInstance(ctx context.Context, id string) (disk.Instance, error) {
	out, err := e.client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
	if err != nil {
		return disk.Instance{}, failed(err, "describe instance %s", id)
	}
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			return instanceOf(i), nil
		}
	}
	return disk.Instance{}, fault.Errorf(fault.Transient, "describe instance %s: none in the answer", id)
}

func instanceOf(i types.Instance) disk.Instance {
	instance := disk.Instance{
		ID:   awssdk.ToString(i.InstanceId),
		Spot: i.InstanceLifecycle == types.InstanceLifecycleTypeSpot,
	}
	if i.State != nil {
		instance.State = disk.InstanceState(i.State.Name)
	}
	if i.StateReason != nil {
		instance.StateReason = awssdk.ToString(i.StateReason.Code)
	}
	return instance
}
