package main

import (
	"context"
	"log/slog"
	"time"

	"gpudev.internal/reservation-expiry/internal/availability"
	"gpudev.internal/reservation-expiry/internal/aws"
	"gpudev.internal/reservation-expiry/internal/cleanup"
	"gpudev.internal/reservation-expiry/internal/config"
	"gpudev.internal/reservation-expiry/internal/followup"
	"gpudev.internal/reservation-expiry/internal/instrument"
	"gpudev.internal/reservation-expiry/internal/kube"
	"gpudev.internal/reservation-expiry/internal/postgres"
	"gpudev.internal/reservation-expiry/internal/snapshot"
	"gpudev.internal/reservation-expiry/internal/sweep"
	"gpudev.internal/reservation-expiry/internal/telemetry"
	"gpudev.internal/reservation-expiry/internal/warning"
)

// world is all that serve and sweep work with. Nothing in it has been dialled yet, and no credential looked for.
type world struct {
	telemetry *telemetry.Telemetry
	db        *postgres.DB
	sweeper   *sweep.Sweeper
	actions   map[postgres.FollowUpKind]followup.Action
	lives     lives
}

// newWorld makes it from what is configured. The errors are about the environment.
func newWorld(ctx context.Context, c config.Config, clock func() time.Time, log *slog.Logger) (*world, error) {
	t, err := telemetry.Setup(ctx, telemetry.Options{Version: version, Now: clock})
	if err != nil {
		return nil, usageError{err}
	}
	db, err := postgres.Open(ctx, c.Postgres.URL().Reveal(), postgres.Options{Tracer: instrument.Postgres(t, c.Postgres.Host, c.Postgres.Port, c.Postgres.DB)})
	if err != nil {
		return nil, usageError{err}
	}
	amazon, err := aws.Load(ctx, c.Cloud.Region)
	if err != nil {
		db.Close()
		return nil, usageError{err}
	}
	amazon = instrument.AWS(t, amazon)
	source := kube.Source(kube.Kubeconfig)
	switch c.Cloud.ClusterAccess {
	case config.InCluster:
		source = kube.InCluster
	case config.EKS:
		source = aws.NewEKS(amazon, c.Cloud.EKSClusterName, time.Now).RESTConfig
	case config.Kubeconfig:
	}
	cluster := kube.New(source, kube.Options{WrapTransport: instrument.Kubernetes(t)})
	ec2, sts := aws.NewEC2(amazon), aws.NewSTS(amazon)

	disks := snapshot.World{Store: db, EC2: ec2, Cluster: cluster, Identity: sts}
	diskOptions := snapshot.Options{KeepVolumes: c.Rules.KeepVolumes, DriverGrace: c.Rules.DriverGrace, Log: log, Trace: t}
	rest := cleanup.World{
		Store: db, Cluster: cluster, EC2: ec2, Identity: sts, Router: aws.NewLoadBalancer(amazon), Disk: snapshot.NewKeeper(disks, diskOptions),
	}
	if c.Cloud.HostedZoneID != "" {
		rest.DNS = aws.NewRoute53(amazon, c.Cloud.HostedZoneID, c.Cloud.DomainName)
	}
	if c.Cloud.DiskContentsBucket != "" {
		rest.Bucket = aws.NewS3(amazon, c.Cloud.DiskContentsBucket)
	}
	var updater availability.Invoker
	if c.Cloud.AvailabilityFunction != "" {
		updater = aws.NewLambda(amazon, c.Cloud.AvailabilityFunction)
	}
	writing := warning.Options{Log: log, Trace: t}
	sweeping := sweepOptions(c.Rules)
	sweeping.Log, sweeping.Trace, sweeping.Now = log, t, clock
	return &world{
		telemetry: t, db: db,
		sweeper: sweep.New(db, sweep.Outside{Cluster: cluster, EC2: ec2, Account: sts}, sweeping),
		actions: map[postgres.FollowUpKind]followup.Action{
			postgres.Warning:            warning.NewWarnings(db, cluster, writing),
			postgres.Notice:             warning.NewNotices(db, cluster, writing),
			postgres.Cleanup:            cleanup.New(rest, cleanup.Options{Domain: c.Cloud.DomainName, Log: log, Trace: t}),
			postgres.SnapshotSync:       snapshot.NewSync(disks, diskOptions),
			postgres.SnapshotPurge:      snapshot.NewPurge(disks, diskOptions),
			postgres.AvailabilityUpdate: availability.New(updater, availability.Options{Log: log, Trace: t}),
		},
		lives: newLives(db, t, c.Traces, log),
	}, nil
}

// close sends what telemetry there still is, and lets go of the database and the collector.
func (w *world) close(ctx context.Context, log *slog.Logger) {
	written := write(ctx, w.lives, log)
	flush(ctx, w.telemetry, log)
	written()
	w.db.Close()
	if err := w.telemetry.Shutdown(ctx); err != nil {
		log.WarnContext(ctx, "the collector is not let go of", "error", err)
	}
}

func sweepOptions(r config.Rules) sweep.Options {
	return sweep.Options{
		Grace: r.Grace(), WarningMinutes: r.WarningMinutes, BrakePercent: r.BrakePercent, BrakeMin: r.BrakeMin,
		MissingConfirm: r.MissingConfirm, Spot: r.Spot, Timeout: r.SweepTimeout,
	}
}
