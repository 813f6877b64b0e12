package telemetry

import (
	"strings"

	"github.com/cloudevents/sdk-go/v2/event"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// Attribute names of our own, where the semantic conventions have none.
const (
	KeyReservationID       = attribute.Key("reservation.id")
	KeyReservationStatus   = attribute.Key("reservation.status")
	KeyReservationOutcome  = attribute.Key("reservation.outcome")
	KeyReservationDeadline = attribute.Key("reservation.deadline") // RFC 3339, UTC
	KeyReservationReason   = attribute.Key("reservation.reason")   // why it ended
	KeyGPUType             = attribute.Key("gpu.type")
	KeyDeliveryOutcome     = attribute.Key("delivery.outcome") // what reservation.outcome is for work on no reservation
	KeyDiskName            = attribute.Key("disk.name")
	KeyVolumeID            = attribute.Key("aws.ebs.volume_id")
	KeySnapshotID          = attribute.Key("aws.ebs.snapshot_id")
	KeyWarningLevel        = attribute.Key("warning.level") // minutes before the deadline
	KeyCleanupStep         = attribute.Key("cleanup.step")
	KeyCleanupFailed       = attribute.Key("cleanup.failed") // the step, where this attempt at it has failed: searches combine any spans' words
	KeyDiskHeld            = attribute.Key("disk.held")      // "long" on the phase, where it lasted for over six hours
	KeyAttempt             = attribute.Key("attempt")        // 1 for the first
)

// Attributes of the semantic conventions that the services set themselves.
const (
	KeyPodName       = semconv.K8SPodNameKey
	KeyPodUID        = semconv.K8SPodUIDKey
	KeyNamespace     = semconv.K8SNamespaceNameKey
	KeyContainerName = semconv.K8SContainerNameKey
	KeyUserID        = semconv.UserIDKey
	KeyErrorType     = semconv.ErrorTypeKey
)

// pingType is what a PingSource sends: the one event that a timer, not a message, brings.
const pingType = "dev.knative.sources.ping"

// Delivery describes the event that caused a span. Cold is true for the first event of a process.
func Delivery(e event.Event, cold bool) []attribute.KeyValue {
	trigger := semconv.FaaSTriggerPubSub
	if e.Type() == pingType {
		trigger = semconv.FaaSTriggerTimer
	}
	attrs := append(CloudEvent(e), trigger)
	if cold {
		attrs = append(attrs, semconv.FaaSColdstart(true))
	}
	return attrs
}

// Command describes a span that a person or a CronJob caused from the shell.
func Command() []attribute.KeyValue { return []attribute.KeyValue{semconv.FaaSTriggerOther} }

// CloudEvent describes an event, received or sent.
func CloudEvent(e event.Event) []attribute.KeyValue {
	attrs := []attribute.KeyValue{
		semconv.CloudEventsEventID(e.ID()),
		semconv.CloudEventsEventSource(e.Source()),
		semconv.CloudEventsEventSpecVersion(e.SpecVersion()),
		semconv.CloudEventsEventType(e.Type()),
	}
	if e.Subject() != "" {
		attrs = append(attrs, semconv.CloudEventsEventSubject(e.Subject()))
	}
	return attrs
}

// Pod describes a pod; namespace and uid may be unknown. Without a name there is none.
func Pod(namespace, name, uid string) []attribute.KeyValue {
	if name == "" {
		return nil
	}
	attrs := []attribute.KeyValue{semconv.K8SPodName(name)}
	if namespace != "" {
		attrs = append(attrs, semconv.K8SNamespaceName(namespace))
	}
	if uid != "" {
		attrs = append(attrs, semconv.K8SPodUID(uid))
	}
	return attrs
}

// Volume describes a disk's volume; what is empty is not known.
func Volume(id, diskName string) (attrs []attribute.KeyValue) {
	if id != "" {
		attrs = append(attrs, KeyVolumeID.String(id))
	}
	if diskName != "" {
		attrs = append(attrs, KeyDiskName.String(diskName))
	}
	return attrs
}

// Object describes what is stored at s3://bucket/key; of any other address nothing.
func Object(url string) []attribute.KeyValue {
	rest, is := strings.CutPrefix(url, "s3://")
	bucket, key, found := strings.Cut(rest, "/")
	if !is || !found {
		return nil
	}
	return []attribute.KeyValue{semconv.AWSS3Bucket(bucket), semconv.AWSS3Key(key)}
}
