package aws

import (
	"errors"
	"fmt"
	"strings"

	"github.com/aws/smithy-go"

	"gpudev.internal/reservation-expiry/internal/fault"
)

// kinds maps AWS's error codes. A code that is not here is transient: nothing is concluded from it. A missing
// function, cluster, bucket or hosted zone is a wrong setting and not a thing that has gone.
var kinds = map[string]fault.Kind{
	"InvalidVolume.NotFound":     fault.Gone,
	"InvalidSnapshot.NotFound":   fault.Gone,
	"InvalidInstanceID.NotFound": fault.Gone,
	"InvalidAttachment.NotFound": fault.Gone,
	"RuleNotFound":               fault.Gone,
	"TargetGroupNotFound":        fault.Gone,

	"VolumeInUse":                fault.Conflict,
	"IncorrectState":             fault.Conflict,
	"IncorrectModificationState": fault.Conflict,
	"InvalidSnapshot.InUse":      fault.Conflict,
	"ResourceInUse":              fault.Conflict,
	"InvalidChangeBatch":         fault.Conflict, // a record is not as it was listed

	"AccessDenied":                   fault.Permanent,
	"AccessDeniedException":          fault.Permanent,
	"UnauthorizedOperation":          fault.Permanent,
	"AuthFailure":                    fault.Permanent,
	"OptInRequired":                  fault.Permanent,
	"InvalidClientTokenId":           fault.Permanent,
	"UnrecognizedClientException":    fault.Permanent,
	"SignatureDoesNotMatch":          fault.Permanent,
	"InvalidSignatureException":      fault.Permanent,
	"OperationNotPermitted":          fault.Permanent,
	"InvalidInput":                   fault.Permanent,
	"InvalidParameterValue":          fault.Permanent,
	"InvalidParameterCombination":    fault.Permanent,
	"InvalidParameter":               fault.Permanent,
	"InvalidParameterException":      fault.Permanent,
	"InvalidParameterValueException": fault.Permanent,
	"InvalidRequestContentException": fault.Permanent,
	"MissingParameter":               fault.Permanent,
	"UnknownParameter":               fault.Permanent,
	"ValidationError":                fault.Permanent,
	"ValidationException":            fault.Permanent,
	"TagLimitExceeded":               fault.Permanent,
	"RequestTooLargeException":       fault.Permanent,
	"KeyTooLongError":                fault.Permanent,
	"InvalidBucketName":              fault.Permanent,
	"NoSuchBucket":                   fault.Permanent,
	"PermanentRedirect":              fault.Permanent,
	"NoSuchHostedZone":               fault.Permanent,
	"ResourceNotFoundException":      fault.Permanent,
}

// kindOf classifies what the SDK returned.
func kindOf(err error) fault.Kind {
	if _, unsendable := errors.AsType[*smithy.SerializationError](err); unsendable {
		return fault.Permanent
	}
	var api smithy.APIError
	if !errors.As(err, &api) {
		return fault.Transient
	}
	if strings.HasSuffix(api.ErrorCode(), ".Malformed") {
		return fault.Permanent
	}
	return kinds[api.ErrorCode()]
}

// failed says what was being done when err came, nil for nil, and classifies it.
func failed(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(kindOf(err), "%s: %w", fmt.Sprintf(format, args...), err)
}
