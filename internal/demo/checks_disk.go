package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/smithy-go"
)

// errorCode is EC2's word for what went wrong.
func errorCode(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

func tagOf(tags []types.Tag, key string) string {
	for _, t := range tags {
		if *t.Key == key {
			return *t.Value
		}
	}
	return ""
}

// snapshotted expects one completed snapshot of its volume, made by its cleanup, with the platform's tags.
var snapshotted = check{"one completed snapshot of its volume carries the platform's tags", func(ctx context.Context, r *subject) error {
	all, err := r.stage.Snapshots(ctx)
	if err != nil {
		return err
	}
	made := slices.DeleteFunc(all, func(s types.Snapshot) bool { return tagOf(s.Tags, "gpu-dev-reservation-id") != r.ID })
	if len(made) != 1 {
		return fmt.Errorf("there are %d", len(made))
	}
	s := made[0]
	if s.State != types.SnapshotStateCompleted || *s.VolumeId != r.Volume {
		return fmt.Errorf("%s of %s is %s", *s.SnapshotId, *s.VolumeId, s.State)
	}
	if tagOf(s.Tags, "gpu-dev-user") != r.User || tagOf(s.Tags, "disk_name") != r.Disk || tagOf(s.Tags, "created_at") == "" {
		return fmt.Errorf("%s is tagged %v", *s.SnapshotId, s.Tags)
	}
	return nil
}}

var notSnapshotted = check{"no snapshot was made for it", func(ctx context.Context, r *subject) error {
	all, err := r.stage.Snapshots(ctx)
	if err == nil && slices.ContainsFunc(all, func(s types.Snapshot) bool { return tagOf(s.Tags, "gpu-dev-reservation-id") == r.ID }) {
		err = errors.New("there is one")
	}
	return err
}}

var volumeGone = check{"EC2 does not know its volume any more", func(ctx context.Context, r *subject) error {
	_, err := r.stage.EC2.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{VolumeIds: []string{r.Volume}})
	switch {
	case errorCode(err) == "InvalidVolume.NotFound":
		return nil
	case err == nil:
		return errors.New("it does")
	}
	return fmt.Errorf("describe %s: %w", r.Volume, err)
}}

var volumeAttached = check{"its volume is attached as before", func(ctx context.Context, r *subject) error {
	found, err := r.stage.EC2.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{VolumeIds: []string{r.Volume}})
	if err != nil {
		return fmt.Errorf("describe %s: %w", r.Volume, err)
	}
	v := found.Volumes[0]
	if len(v.Attachments) != 1 || *v.Attachments[0].InstanceId != r.Node.Instance {
		return fmt.Errorf("it is %s", v.State)
	}
	return nil
}}

// diskRow expects the row of its disk: whether it is free, its volume, counters and flags.
func diskRow(what, want string) check {
	return check{what, func(ctx context.Context, r *subject) error {
		got, err := r.stage.Text(ctx, `
			select concat_ws(', ', case when in_use then 'in use' else 'free' end, case when reservation_id is not null then 'locked' end,
			       case when ebs_volume_id is null then 'no volume' end, snapshot_count || ' snapshots',
			       case when pending_snapshot_count > 0 or is_backing_up then 'backing up' end)
			from disks where user_id = $1 and disk_name = $2`, r.User, r.Disk)
		if err == nil && got != want {
			err = fmt.Errorf("it is %s, not %s", got, want)
		}
		return err
	}}
}

// diskFree expects a disk that the next reservation can have, with so many snapshots counted.
func diskFree(snapshots int) check {
	return diskRow(fmt.Sprintf("its disk is free; snapshots counted: %d", snapshots), fmt.Sprintf("free, no volume, %d snapshots", snapshots))
}

// listed expects the listing of its disk in the bucket.
func listed(part string) check {
	return check{"the listing of its disk shows " + part, func(ctx context.Context, r *subject) error {
		text, err := r.stage.Object(ctx, r.ID)
		if err != nil {
			return err
		}
		return contains(text, part)
	}}
}

// records expects how many names of it DNS has.
func records(n int) check {
	return check{fmt.Sprintf("records of its name in DNS: %d", n), func(ctx context.Context, r *subject) error {
		found, err := r.stage.Records(ctx, r.Domain)
		if err == nil && len(found) != n {
			err = fmt.Errorf("it has %s", strings.Join(found, ", "))
		}
		return err
	}}
}

var routeGone = check{"its rule and target group are gone, and their row", func(ctx context.Context, r *subject) error {
	_, err := r.stage.ELB.DescribeTargetGroups(ctx, &elb.DescribeTargetGroupsInput{TargetGroupArns: []string{r.Group}})
	if errorCode(err) != "TargetGroupNotFound" {
		return fmt.Errorf("target group: %w", orThere(err))
	}
	_, err = r.stage.ELB.DescribeRules(ctx, &elb.DescribeRulesInput{RuleArns: []string{r.Rule}})
	if errorCode(err) != "RuleNotFound" {
		return fmt.Errorf("rule: %w", orThere(err))
	}
	rows, err := r.stage.Text(ctx, "select count(*) from alb_target_groups where reservation_id = $1", r.ID)
	if err == nil && rows != "0" {
		err = errors.New("its row is there")
	}
	return err
}}

func orThere(err error) error {
	if err == nil {
		return errors.New("it is there")
	}
	return err
}

// keeps expects which of the snapshots made beforehand there still are, "--+++" from the first to the last.
func keeps(what, pattern string) check {
	return check{what, func(ctx context.Context, r *subject) error {
		all, err := r.stage.Snapshots(ctx)
		if err != nil {
			return err
		}
		var got strings.Builder
		for _, id := range r.kept {
			if slices.ContainsFunc(all, func(s types.Snapshot) bool { return *s.SnapshotId == id }) {
				got.WriteByte('+')
			} else {
				got.WriteByte('-')
			}
		}
		if got.String() != pattern {
			return fmt.Errorf("it is %s, not %s", got.String(), pattern)
		}
		return nil
	}}
}

// tagged expects each snapshot made beforehand to have a tag, or ("") not to have it.
func tagged(key, want string) check {
	what := "each of its snapshots has " + key + " " + want
	if want == "" {
		what = "none of its snapshots has " + key
	}
	return check{what, func(ctx context.Context, r *subject) error {
		all, err := r.stage.Snapshots(ctx)
		if err != nil {
			return err
		}
		for _, s := range all {
			if got := tagOf(s.Tags, key); slices.Contains(r.kept, *s.SnapshotId) && got != want {
				return fmt.Errorf("%s has %q", *s.SnapshotId, got)
			}
		}
		return nil
	}}
}
