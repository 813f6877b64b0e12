"""moto_server with the behaviour of fidelity.py, accounts apart, and a control API for tests.

Usage: emulator.py PORT_FILE    (serves on a free loopback port and writes its number there)

An access key id of twelve digits is the number of the account it acts in, so that every test has an
account of its own, and a child process needs nothing but AWS_ACCESS_KEY_ID.

Control API, JSON, under /_control/ACCOUNT:
  PUT settings          any of fidelity.Settings: {"snapshot_seconds": 0.2}
  PUT faults            replaces the rules, GET shows them with what they have "seen" and "hit":
                        [{"action": "ec2:CreateSnapshot", "skip": 0, "times": 1, "status": 503,
                          "code": "RequestLimitExceeded", "after": false, "drop": false, "delay_seconds": 0}]
                        action: a pattern for service:Action (ec2, elasticloadbalancing, sts) or
                        service:METHOD /path (the others); times 0: always; after: the call takes
                        effect and its answer is lost; drop: the connection is closed without answer;
                        neither code nor drop: only the delay
  PUT resources/ID      sets what no API call can: for snapshots {"state", "start_time", "owner_id",
                        "volume_id"}, volumes {"state", "attachment_state", "also_attached_to",
                        "create_time"}, instances {"state", "state_reason_code", "lifecycle"};
                        "state": null gives a snapshot or volume back to its course
  GET calls             every call of the account in order: [{"action", "params", "status"}]
"""

import io
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from datetime import datetime
from urllib.parse import parse_qsl

os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"  # else 1,180 snapshots seem ours

import fidelity
from moto.core.config import default_user_config
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_block_store import VolumeAttachment
from moto.ec2.models.instances import InstanceState, StateReason
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

INSTANCE_STATES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
CREDENTIAL = re.compile(r"Credential=([^/]+)/[^/]+/([^/]+)/([^/]+)/")


class Account:
    def __init__(self):
        self.faults, self.calls = [], []
        self.one_at_a_time = threading.Lock()  # moto looks, and then changes what another call has changed meanwhile


class Emulator:
    """The WSGI application: control API, accounts by access key, faults, then moto."""

    def __init__(self):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.accounts, self.lock = {}, threading.Lock()

    def account(self, number):
        with self.lock:
            return self.accounts.setdefault(number, Account())

    def __call__(self, environ, start):
        if environ["PATH_INFO"].startswith("/_control/"):
            return self.control(environ, start)
        match = CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
        if not match:
            return self.moto(environ, start)
        number, _, service = match.groups()
        if not re.fullmatch(r"\d{12}", number):
            return self.moto(environ, start)
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = number
        action, params = read_action(environ, service)
        account, call = self.account(number), {"action": action, "params": params, "status": 0}
        with self.lock:
            account.calls.append(call)
            fault = next((dict(f) for f in account.faults if strikes(f, action)), None)

        def recorded(status, headers, exc_info=None):
            call["status"] = int(status.split()[0])
            return start(status, headers, exc_info)

        def effect(start):
            with account.one_at_a_time:
                return list(self.moto(environ, start))

        if fault is None:
            return effect(recorded)
        return self.fail(fault, service, environ, recorded, effect)

    def fail(self, fault, service, environ, start, effect):
        if fault.get("after"):
            effect(lambda *_: None)
        time.sleep(fault.get("delay_seconds", 0))
        if fault.get("drop"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start("500 Dropped", [])
            return []
        if fault.get("code"):
            return error(start, service, fault.get("status", 503), fault["code"])
        return error(start, service, 503, "AnswerLost") if fault.get("after") else effect(start)

    def control(self, environ, start):
        _, _, number, what, *rest = environ["PATH_INFO"].split("/")
        account, body = self.account(number), read_body(environ)
        try:
            if environ["REQUEST_METHOD"] == "PUT":
                values = json.loads(body)
                with account.one_at_a_time, self.lock:
                    if what == "settings":
                        change(fidelity.settings(number), values)
                    elif what == "faults":
                        account.faults = [dict(rule, seen=0, hit=0) for rule in values]
                    elif what == "resources":
                        set_resource(number, rest[0], values)
                    else:
                        raise LookupError(what)
            with self.lock:
                answer = json.dumps({"faults": account.faults, "calls": account.calls}.get(what, {}))
            return respond(start, "200 OK", "application/json", answer)
        except (LookupError, ValueError, AttributeError) as err:
            return respond(start, "400 Bad Request", "text/plain", f"{type(err).__name__}: {err}")


def read_body(environ):
    """Reads the whole body, and leaves it for others to read."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def read_action(environ, service):
    """service:Action with its parameters, for the query protocol; else service:METHOD /path."""
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        params = dict(parse_qsl(read_body(environ).decode()))
        return f"{service}:{params.pop('Action', '')}", params
    return f"{service}:{environ['REQUEST_METHOD']} {environ['PATH_INFO']}", {}


def strikes(fault, action):
    if not re.fullmatch(fault["action"], action):
        return False
    fault["seen"] += 1
    times = fault.get("times", 0)
    if fault["seen"] <= fault.get("skip", 0) or (times and fault["hit"] >= times):
        return False
    fault["hit"] += 1
    return True


def change(target, values):
    for name, value in values.items():
        if not hasattr(target, name):
            raise LookupError(f"{type(target).__name__} has no {name}")
        setattr(target, name, value)


def set_resource(account, resource_id, values):
    backend = next(
        (b for b in ec2_backends[account].values() if find(b, resource_id)), None
    )
    if backend is None:
        raise LookupError(f"no {resource_id} in account {account}")
    resource = find(backend, resource_id)
    for name, value in values.items():
        if name == "state" and resource_id.startswith("i-"):
            resource._state = InstanceState(value, INSTANCE_STATES[value])
        elif name == "state":
            resource.forced_state = value
        elif name in ("start_time", "create_time"):
            setattr(resource, name, datetime.fromisoformat(value).replace(tzinfo=None))
        elif name == "owner_id":
            resource.owner_id = value
        elif name == "volume_id":
            resource.forced_volume_id = value
        elif name == "attachment_state":
            resource.attachment.status = value
        elif name == "also_attached_to":
            further = resource.__dict__.setdefault("further_attachments", [])
            further.append(VolumeAttachment(resource, backend.get_instance(value), "/dev/sdz", "attached"))
        elif name == "state_reason_code":
            resource.state_reason = StateReason(value, value)
        elif name == "lifecycle":
            resource.lifecycle = value
        else:
            raise LookupError(f"cannot set {name}")


def find(backend, resource_id):
    if resource_id.startswith("i-"):
        return next((i for i in backend.all_instances() if i.id == resource_id), None)
    return backend.snapshots.get(resource_id) or backend.volumes.get(resource_id)


def error(start, service, status, code):
    line, detail = f"{status} Fault", f"<Code>{code}</Code><Message>injected fault</Message>"
    if service in ("lambda", "eks"):
        body = json.dumps({"__type": code, "message": "injected fault"})
        return respond(start, line, "application/json", body, [("x-amzn-errortype", code)])
    if service == "ec2":
        body = f"<Response><Errors><Error>{detail}</Error></Errors><RequestID>{random.randrange(1 << 64):x}</RequestID></Response>"
    elif service == "s3":
        body = f"<Error>{detail}</Error>"
    else:
        body = f"<ErrorResponse><Error><Type>Sender</Type>{detail}</Error></ErrorResponse>"
    return respond(start, line, "text/xml", body)


def respond(start, status, content_type, text, headers=()):
    body = text.encode()
    start(status, [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers])
    return [body]


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections

    def log_request(self, *_):
        pass


def main(port_file):
    default_user_config["lambda"]["use_docker"] = False
    server = make_server("127.0.0.1", 0, Emulator(), threaded=True, request_handler=Handler)
    os.environ["MOTO_PORT"] = str(server.server_port)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with open(port_file + ".tmp", "w") as out:
        out.write(str(server.server_port))
    os.rename(port_file + ".tmp", port_file)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
