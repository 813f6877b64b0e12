package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// equals expects what a query says of a reservation, whose id is $1.
func equals(what, query, want string) check {
	return check{what, func(ctx context.Context, r *subject) error {
		got, err := r.stage.Text(ctx, query, r.ID)
		if err == nil && got != want {
			err = fmt.Errorf("it is %q, not %q", got, want)
		}
		return err
	}}
}

func contains(text string, parts ...string) error {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return fmt.Errorf("%q is not in %q", part, text)
		}
	}
	return nil
}

func is(status string) check {
	return equals("it is "+status, "select status from reservations where reservation_id = $1", status)
}

// because expects the reason that the user is told.
func because(parts ...string) check {
	return check{"its reason says: " + list(parts), func(ctx context.Context, r *subject) error {
		said, err := r.stage.Text(ctx, "select coalesce(failure_reason, current_detailed_status) from reservations where reservation_id = $1", r.ID)
		if err != nil {
			return err
		}
		return contains(said, parts...)
	}}
}

func list(parts []string) string { return strings.Join(parts, "; ") }

// warned expects the levels at which it was warned, in order.
func warned(levels string) check {
	return equals("it was warned at "+levels+" minutes", `
		select string_agg(split_part(key, '/', 3), ', ' order by finished_at) from expiry.follow_ups
		where kind = 'warning' and reservation_id = $1 and outcome = 'sent'`, levels)
}

// passedOver expects the levels that came too late to be sent.
func passedOver(levels string) check {
	return equals("passed over, and recorded so: "+levels, `
		select string_agg(split_part(key, '/', 3), ', ' order by split_part(key, '/', 3)::int desc) from expiry.follow_ups
		where kind = 'warning' and reservation_id = $1 and outcome = 'passed_over'`, levels)
}

// flagged expects the platform's own columns.
func flagged(flags string) check {
	return equals("the platform's columns say so", `
		select warnings_sent || jsonb_build_object('time', last_warning_time > extract(epoch from clock_timestamp()) - 600)
		from reservations where reservation_id = $1`, flags)
}

var neverWarned = equals("nobody warned it", "select count(*) from expiry.follow_ups where kind = 'warning' and reservation_id = $1", "0")

// file expects a file in the home directory of its server to say something.
func file(name string, parts ...string) check {
	return check{name + " in its home says: " + list(parts), func(ctx context.Context, r *subject) error {
		text, err := r.stage.ExecInPod(ctx, r.Pod, "cat", "/home/dev/"+name)
		if err != nil {
			return err
		}
		return contains(text, parts...)
	}}
}

// tellsWhen expects a warning to name the deadline, of which the minutes that are left depend on when it was written.
func tellsWhen(name string) check {
	return check{name + " in its home says when", func(ctx context.Context, r *subject) error {
		when, err := r.stage.Text(ctx, `
			select to_char(expires_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC, in "') from reservations where reservation_id = $1`, r.ID)
		if err != nil {
			return err
		}
		return file(name, when).holds(ctx, r)
	}}
}

// onlyWarning expects exactly one warning's file.
func onlyWarning(name string) check {
	return check{"and is the only warning there", func(ctx context.Context, r *subject) error {
		found, err := r.stage.ExecInPod(ctx, r.Pod, "sh", "-c", "cd /home/dev && ls -d WARN_*")
		if found = strings.TrimSpace(found); err == nil && found != name {
			err = fmt.Errorf("there are %q", found)
		}
		return err
	}}
}

var podGone = check{"its pod is gone", func(ctx context.Context, r *subject) error {
	_, err := r.stage.Cluster.CoreV1().Pods(platform.Namespace).Get(ctx, r.Pod, metav1.GetOptions{})
	return goneOr(err, "it is there")
}}

var serviceGone = check{"its service is gone", func(ctx context.Context, r *subject) error {
	_, err := r.stage.Cluster.CoreV1().Services(platform.Namespace).Get(ctx, r.Pod+"-ssh", metav1.GetOptions{})
	return goneOr(err, "it is there")
}}

var claimGone = check{"its claim and volume object are gone from the cluster", func(ctx context.Context, r *subject) error {
	_, err := r.stage.Cluster.CoreV1().PersistentVolumeClaims(platform.Namespace).Get(ctx, r.Claim, metav1.GetOptions{})
	if err := goneOr(err, "the claim is there"); err != nil {
		return err
	}
	_, err = r.stage.Cluster.CoreV1().PersistentVolumes().Get(ctx, r.Claim, metav1.GetOptions{})
	return goneOr(err, "the volume object is there")
}}

func goneOr(err error, otherwise string) error {
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err == nil:
		return errors.New(otherwise)
	}
	return err
}

var podStays = check{"its pod runs on, and so does its service", func(ctx context.Context, r *subject) error {
	pod, err := r.stage.Cluster.CoreV1().Pods(platform.Namespace).Get(ctx, r.Pod, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("its pod: %w", err)
	}
	if string(pod.UID) != r.PodUID || pod.DeletionTimestamp != nil {
		return errors.New("it is another one, or stopping")
	}
	if _, err = r.stage.Cluster.CoreV1().Services(platform.Namespace).Get(ctx, r.Pod+"-ssh", metav1.GetOptions{}); err != nil {
		return fmt.Errorf("its service: %w", err)
	}
	return nil
}}

// cleanup expects how the cleanup settled.
func cleanup(outcome string) check {
	return equals("its cleanup has settled: "+outcome, `
		select outcome from expiry.cleanups where reservation_id = $1 and settled_at is not null`, outcome)
}

// step expects how a step of the cleanup ended.
func step(name, outcome string) check {
	return equals("step "+name+": "+outcome, `
		select outcome from expiry.cleanup_steps where reservation_id = $1 and step = '`+name+`'`, outcome)
}

// facts expects what was announced of it, in order, numbered without a gap.
func facts(types ...string) check {
	return equals("announced in order: "+strings.Join(types, ", "), `
		select string_agg(regexp_replace(type, '^dev\.gpudev\.|\.v1$', '', 'g'), ', ' order by sequence)
		       || case when max(sequence) = count(*) then '' else ' with gaps' end
		from expiry.facts where subject = $1`, strings.Join(types, ", "))
}

var neverAnnounced = equals("nothing was announced of it", "select count(*) from expiry.facts where subject = $1", "0")

// untouched expects that nothing of its rows has changed, not even updated_at.
var untouched = check{"its rows are exactly as they were", func(ctx context.Context, r *subject) error {
	rows, err := rowsOf(ctx, r)
	if err == nil && rows != r.rows {
		err = fmt.Errorf("they were %s and are %s", r.rows, rows)
	}
	return err
}}

func rowsOf(ctx context.Context, r *subject) (string, error) {
	return r.stage.Text(ctx, `select jsonb_build_array(
		(select to_jsonb(x) from reservations x where reservation_id = $1),
		(select to_jsonb(d) from disks d where user_id = $2 and disk_name = $3))`, r.ID, r.User, r.Disk)
}

// reported expects that the sweeps name it among what makes no sense.
func reported(anomaly string) check {
	return equals("every sweep reports it as "+anomaly, `
		select count(*) > 0 and bool_and(anomalies @> jsonb_build_array(jsonb_build_object('kind', '`+anomaly+`', 'reservationIds', jsonb_build_array($1::text))))
		from expiry.sweeps where outcome <> 'running' and not paused`, "true")
}
