"""Where moto 5.2.1 answers otherwise than AWS does, and it matters to us, it is put right here.

Each section says what AWS does. Timings come from the calling account's settings (see emulator.py).
"""

import base64
import threading
from datetime import timedelta

from moto.awslambda_simple.models import LambdaSimpleBackend
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.ec2 import exceptions as ec2_errors
from moto.ec2.models import core as ec2_core
from moto.ec2.models import elastic_block_store as ebs
from moto.ec2.responses.elastic_block_store import ElasticBlockStore
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix
from moto.elbv2.exceptions import RuleNotFoundError
from moto.elbv2.models import ELBv2Backend
from moto.route53.exceptions import Route53ClientError
from moto.route53.models import Route53Backend


class Settings:
    """How long things take in one account, in seconds; a negative snapshot time means never."""

    def __init__(self):
        self.snapshot_seconds = 1.0
        self.volume_create_seconds = 0.0
        self.volume_delete_seconds = 0.0
        self.detach_seconds = 0.0


_settings, _settings_lock = {}, threading.Lock()


def settings(account):
    with _settings_lock:
        return _settings.setdefault(account, Settings())


def settings_of(resource):
    return settings(resource.ec2_backend.account_id)


def older_than(moment, seconds):
    return utcnow() - moment >= timedelta(seconds=seconds)


class Ec2Error(ec2_errors.EC2ClientError):
    pass


# Tags: moto scans every tag of the account for each resource it describes.


def tags_of(self):
    kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(self.id), "") if self.id else ""
    tags = self.ec2_backend.tags.get(self.id) or {}
    return [
        {"resource_id": self.id, "key": k, "value": v, "resource_type": kind}
        for k, v in list(tags.items())
    ]


ec2_core.TaggedEC2Resource.get_tags = tags_of

# Snapshots: pending at first, with a progress; a forced state (control API) outranks the clock.


def snapshot_status(self):
    forced = self.__dict__.get("forced_state")
    if forced:
        return forced
    seconds = settings_of(self).snapshot_seconds
    return "completed" if seconds >= 0 and older_than(self.start_time, seconds) else "pending"


def snapshot_progress(self):
    status, seconds = self.status, settings_of(self).snapshot_seconds
    if status == "completed":
        return "100%"
    elapsed = (utcnow() - self.start_time).total_seconds()
    return "%d%%" % (min(99, 100 * elapsed / seconds) if seconds > 0 else 0)


def volume_id_of_snapshot(self):
    return self.__dict__.get("forced_volume_id") or self.volume.id


ebs.Snapshot.status = property(snapshot_status, lambda self, value: None)
ebs.Snapshot.progress = property(snapshot_progress)
ebs.Snapshot.volume_id = property(volume_id_of_snapshot)

_snapshot_filter = ebs.Snapshot.get_filter_value


def snapshot_filter(self, name, method_name=None):
    return self.volume_id if name == "volume-id" else _snapshot_filter(self, name, method_name)


ebs.Snapshot.get_filter_value = snapshot_filter

# CopySnapshot: the copy's volume id is arbitrary, and its description says where it came from.

_copy_snapshot = ebs.EBSBackend.copy_snapshot


def copy_snapshot(self, source_snapshot_id, source_region, description, kms_key_id):
    description = description or f"[Copied {source_snapshot_id} from {source_region}]"
    copy = _copy_snapshot(self, source_snapshot_id, source_region, description, kms_key_id)
    copy.forced_volume_id = "vol-ffffffff"
    return copy


ebs.EBSBackend.copy_snapshot = copy_snapshot

# Volumes: creating at first; detaching and deleting take their time; some are attached twice.


def attachment(self):
    current = self.__dict__.get("current_attachment")
    since = getattr(current, "detaching_since", None)
    if since and older_than(since, settings_of(self).detach_seconds):
        current = self.__dict__["current_attachment"] = None
    return current


def attachments(self):
    first = [self.attachment] if self.attachment else []
    return first + self.__dict__.get("further_attachments", [])


def volume_status(self):
    forced = self.__dict__.get("forced_state")
    if forced:
        return forced
    if self.attachments:
        return "in-use"
    created = older_than(self.create_time, settings_of(self).volume_create_seconds)
    return "available" if created else "creating"


ebs.Volume.attachment = property(
    attachment, lambda self, value: self.__dict__.__setitem__("current_attachment", value)
)
ebs.Volume.attachments = property(attachments)
ebs.Volume.status = property(volume_status)

_detach_volume = ebs.EBSBackend.detach_volume
_delete_volume = ebs.EBSBackend.delete_volume


def detach_volume(self, volume_id, instance_id, device_path):
    volume = self.get_volume(volume_id)
    current = volume.attachment
    if not current:
        raise Ec2Error("IncorrectState", f"Volume '{volume_id}' is in the 'available' state.")
    if not settings_of(volume).detach_seconds:
        return _detach_volume(self, volume_id, instance_id or current.instance.id, device_path)
    current.status, current.detaching_since = "detaching", utcnow()
    return current


def delete_volume(self, volume_id):
    volume = self.get_volume(volume_id)
    if volume.attachments:
        raise ec2_errors.VolumeInUseError(volume_id, volume.attachments[0].instance.id)
    if not settings_of(volume).volume_delete_seconds:
        return _delete_volume(self, volume_id)
    volume.forced_state, volume.deleting_since = "deleting", utcnow()
    return volume


def without_deleted(method):
    """Forgets the volumes whose deletion has taken its time, before anybody looks."""

    def handler(self, *args, **kwargs):
        for volume in list(self.volumes.values()):
            since = getattr(volume, "deleting_since", None)
            if since and older_than(since, settings_of(volume).volume_delete_seconds):
                self.volumes.pop(volume.id, None)
        return method(self, *args, **kwargs)

    return handler


ebs.EBSBackend.detach_volume = detach_volume
ebs.EBSBackend.delete_volume = delete_volume
ebs.EBSBackend.get_volume = without_deleted(ebs.EBSBackend.get_volume)
ebs.EBSBackend.describe_volumes = without_deleted(ebs.EBSBackend.describe_volumes)

# DescribeSnapshots and DescribeVolumes: pages, owners, and a 400 for a filter that does not exist.


def paged(describe, result_key, ids_param):
    def handler(self):
        limit, token = self._get_param("MaxResults"), self._get_param("NextToken")
        if limit is not None:
            if self._get_param(ids_param, []):
                raise ec2_errors.InvalidParameterCombination(
                    f"The parameter {ids_param[:-1]}Set cannot be used with the parameter MaxResults"
                )
            limit = min(int(limit), 1000)
            if limit < 5:
                raise invalid(f"Value ( {limit} ) for parameter maxResults is invalid. Expecting a value greater than or equal to 5.")
        try:
            items = list(describe(self)._result[result_key])
        except ec2_errors.FilterNotImplementedError as err:
            raise invalid(str(err))
        owners = self._get_param("OwnerIds", [])
        if owners:
            owners = {self.current_account if o == "self" else o for o in owners}
            items = [i for i in items if i.owner_id in owners]
        start = decode(token) if token else 0
        page = items[start : start + limit] if limit else items[start:]
        result = {result_key: page}
        if start + len(page) < len(items):
            result["NextToken"] = base64.urlsafe_b64encode(b"%d" % (start + len(page))).decode()
        return ActionResult(result)

    return handler


def decode(token):
    try:
        return int(base64.urlsafe_b64decode(token))
    except ValueError:
        raise invalid(f"The token '{token}' is invalid")


def invalid(message):
    return Ec2Error("InvalidParameterValue", message)


ElasticBlockStore.describe_snapshots = paged(
    ElasticBlockStore.describe_snapshots, "Snapshots", "SnapshotIds"
)
ElasticBlockStore.describe_volumes = paged(
    ElasticBlockStore.describe_volumes, "Volumes", "VolumeIds"
)

# Route 53: a DELETE must name an existing record set with exactly its present values, and a CREATE none.

_change_records = Route53Backend.change_resource_record_sets


def change_records(self, zoneid, change_list):
    zone = self.get_hosted_zone(zoneid)
    for change in change_list:
        wanted = change["ResourceRecordSet"]
        name, kind = wanted["Name"].rstrip(".") + ".", wanted["Type"]
        found = [
            r
            for r in zone.rrsets
            if (r.name, r.type, r.set_identifier) == (name, kind, wanted.get("SetIdentifier"))
        ]
        label = f"resource record set [name='{name}', type='{kind}']"
        if change["Action"] == "CREATE" and found:
            refuse(f"Tried to create {label} but it already exists")
        if change["Action"] == "DELETE":
            if not found:
                refuse(f"Tried to delete {label} but it was not found")
            values = sorted(r["Value"] for r in wanted.get("ResourceRecords", []))
            if values != sorted(found[0].records) or str(wanted.get("TTL", 0)) != str(found[0].ttl):
                refuse(f"Tried to delete {label} but the values provided do not match the current values")
    _change_records(self, zoneid, change_list)


def refuse(message):
    raise Route53ClientError("InvalidChangeBatch", f"[{message}]")


Route53Backend.change_resource_record_sets = change_records

# Load balancers and functions: what is not there is refused.

_delete_rule = ELBv2Backend.delete_rule
_invoke = LambdaSimpleBackend.invoke


def delete_rule(self, arn):
    listeners = [li for lb in self.load_balancers.values() for li in lb.listeners.values()]
    if not any(rule.arn == arn for li in listeners for rule in li.rules.values()):
        raise RuleNotFoundError()
    _delete_rule(self, arn)


def invoke(self, function_name, *rest):
    self.get_function(function_name)
    return _invoke(self, function_name, *rest)


ELBv2Backend.delete_rule = delete_rule
LambdaSimpleBackend.invoke = invoke
