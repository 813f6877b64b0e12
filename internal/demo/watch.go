package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/jackc/pgx/v5"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/demo/platform"
)

// line is what the table shows of a subject: columns, in order.
type line [7]string

var columns = line{"what it is", "status", "warned", "pod", "disk", "cleanup", "note"}

// world is everything as it is at one moment, by the database, the Kubernetes API and the AWS API.
type world struct {
	rows      map[string]row            // by reservation id
	disks     map[string]diskState      // by user/name
	pods      map[string]corev1.Pod     // by name
	volumes   map[string]types.Volume   // by id
	snapshots map[string]types.Snapshot // by id
	made      map[string]types.Snapshot // by the reservation whose cleanup made it
	sweeps    int
	braked    string // why the newest sweep has held something back; empty: it has not
	replayed  bool   // the dead letter was
}

type row struct {
	ID, Status, Said, Warned, Outcome, Step string
	Finished                                int // steps of the cleanup
}

type diskState struct {
	Key    string
	InUse  bool
	Count  int
	Volume string
}

const stepsOfACleanup = 9

func look(ctx context.Context, p *platform.Platform) (*world, error) {
	w := &world{rows: map[string]row{}, disks: map[string]diskState{}, pods: map[string]corev1.Pod{},
		volumes: map[string]types.Volume{}, snapshots: map[string]types.Snapshot{}, made: map[string]types.Snapshot{}}
	found, err := p.SQL.Query(ctx, `
		select r.reservation_id, r.status, coalesce(r.failure_reason, r.current_detailed_status, ''),
		       coalesce((select string_agg(split_part(f.key, '/', 3), ', ' order by f.finished_at) from expiry.follow_ups f
		                 where f.kind = 'warning' and f.reservation_id = r.reservation_id and f.outcome = 'sent'), ''),
		       case when c.reservation_id is null then '' else coalesce(c.outcome, 'under way') end,
		       coalesce((select coalesce(s.last_error, s.detail) from expiry.cleanup_steps s
		                 where s.reservation_id = r.reservation_id and s.finished_at is null order by s.started_at desc limit 1), ''),
		       (select count(*) from expiry.cleanup_steps s where s.reservation_id = r.reservation_id and s.finished_at is not null)
		from reservations r left join expiry.cleanups c using (reservation_id)`)
	if err != nil {
		return nil, fmt.Errorf("look at the reservations: %w", err)
	}
	rows, err := pgx.CollectRows(found, pgx.RowToStructByPos[row])
	if err != nil {
		return nil, fmt.Errorf("look at the reservations: %w", err)
	}
	for _, r := range rows {
		w.rows[r.ID] = r
	}
	if found, err = p.SQL.Query(ctx, `select user_id || '/' || disk_name, in_use, snapshot_count, coalesce(ebs_volume_id, '') from disks`); err != nil {
		return nil, fmt.Errorf("look at the disks: %w", err)
	}
	disks, err := pgx.CollectRows(found, pgx.RowToStructByPos[diskState])
	if err != nil {
		return nil, fmt.Errorf("look at the disks: %w", err)
	}
	for _, d := range disks {
		w.disks[d.Key] = d
	}
	if err := p.SQL.QueryRow(ctx, "select count(*) from expiry.sweeps where finished_at is not null").Scan(&w.sweeps); err != nil {
		return nil, fmt.Errorf("look at the sweeps: %w", err)
	}
	if err := p.SQL.QueryRow(ctx, `
		select coalesce((select case when braked then brake->>'reason' end from expiry.sweeps where finished_at is not null and not paused
		                 order by started_at desc limit 1), ''),
		       exists (select from expiry.dead_letters where replayed_at is not null)`).Scan(&w.braked, &w.replayed); err != nil {
		return nil, fmt.Errorf("look at the brake and the dead letters: %w", err)
	}
	return w, w.lookOutside(ctx, p)
}

func (w *world) lookOutside(ctx context.Context, p *platform.Platform) error {
	pods, err := p.Cluster.CoreV1().Pods(platform.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("look at the pods: %w", err)
	}
	for _, pod := range pods.Items {
		w.pods[pod.Name] = pod
	}
	volumes, err := p.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		w.volumes[*v.VolumeId] = v
	}
	snapshots, err := p.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		w.snapshots[*s.SnapshotId] = s
		if maker := tagOf(s.Tags, "gpu-dev-reservation-id"); maker != "" {
			w.made[maker] = s
		}
	}
	return nil
}

// lines is the table.
func (w *world) lines(subjects []*subject) []line {
	var lines []line
	for _, r := range subjects {
		if !r.hidden {
			lines = append(lines, w.of(r))
		}
	}
	return lines
}

// of describes a subject.
func (w *world) of(r *subject) line {
	l := line{r.title, "–"}
	l[3] = w.podOf(r)
	l[4] = w.diskOf(r)
	switch {
	case r.letter && w.replayed:
		l[1] = "replayed"
	case r.letter:
		l[1] = "dead letter"
	}
	found, ok := w.rows[r.ID]
	if !ok {
		return l
	}
	l[1], l[2] = found.Status, found.Warned
	switch found.Outcome {
	case "under way":
		l[5] = fmt.Sprintf("%d of %d steps", found.Finished, stepsOfACleanup)
		l[6] = cmp.Or(found.Step, found.Said)
	default:
		l[5] = strings.ReplaceAll(found.Outcome, "_", " ")
		l[6] = strings.TrimPrefix(found.Said, found.Status+": ")
	}
	if found.Status == "active" && l[3] == "gone" && w.braked != "" {
		l[6] = "the brake: " + w.braked
	}
	return l
}

func (w *world) podOf(r *subject) string {
	pod, there := w.pods[r.Pod]
	switch {
	case r.PodUID == "":
		return "–"
	case !there || string(pod.UID) != r.PodUID:
		return "gone"
	case pod.DeletionTimestamp != nil:
		return "stopping"
	case pod.Status.Reason != "":
		return strings.ToLower(pod.Status.Reason)
	}
	return strings.ToLower(string(pod.Status.Phase))
}

func (w *world) diskOf(r *subject) string {
	if r.Disk == "" {
		return "–"
	}
	d := w.disks[r.User+"/"+r.Disk]
	var parts []string
	if v, there := w.volumes[r.Volume]; there {
		state := string(v.State)
		if len(v.Attachments) > 0 {
			state = string(v.Attachments[0].State)
		}
		parts = append(parts, state)
	}
	if s, there := w.made[r.ID]; there {
		state := "snapshot"
		if s.State != types.SnapshotStateCompleted {
			state += " " + *s.Progress
		}
		parts = append(parts, state)
	}
	if len(r.kept) > 0 {
		n := 0
		for _, id := range r.kept {
			if _, there := w.snapshots[id]; there {
				n++
			}
		}
		parts = append(parts, fmt.Sprintf("%d snapshots", n))
	}
	if d.InUse {
		parts = append(parts, "locked")
	} else {
		parts = append(parts, "free")
	}
	return strings.Join(parts, ", ")
}
