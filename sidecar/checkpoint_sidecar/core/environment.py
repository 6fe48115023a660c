"""The environment of an injected pod: its identity and the location of its run. The log decides what to load.

The injection of the chart, an admission policy or a webhook, sets these variables in pods that carry ``POD_LABEL``.
Without it, the same variables are set by hand in the pod template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import parse_endpoint
from checkpoint_sidecar.core.log import Owner, PodIdentity

POD_LABEL = "checkpoint-operator.dev/checkpoint"
CONTAINERS_ANNOTATION = "checkpoint-operator.dev/containers"
LIBRARY_ANNOTATION = "checkpoint-operator.dev/inject-library"

RUN = "CHECKPOINT_RUN"
URL = "CHECKPOINT_URL"
ENDPOINT = "CHECKPOINT_ENDPOINT"
REGION = "CHECKPOINT_REGION"
ADDRESSING_STYLE = "CHECKPOINT_ADDRESSING_STYLE"
CREDENTIALS_FOLDER = "CHECKPOINT_CREDENTIALS_FOLDER"
SERVER_SIDE_ENCRYPTION = "CHECKPOINT_SERVER_SIDE_ENCRYPTION"
KMS_KEY_ID = "CHECKPOINT_KMS_KEY_ID"
REQUESTER_PAYS = "CHECKPOINT_REQUESTER_PAYS"
TAGS = "CHECKPOINT_TAGS"
POD_NAME = "CHECKPOINT_POD_NAME"
POD_UID = "CHECKPOINT_POD_UID"
GRACE_SECONDS = "CHECKPOINT_GRACE_SECONDS"
LOG_FLOOR = "CHECKPOINT_LOG_FLOOR"
START_FROM = "CHECKPOINT_START_FROM"
START_FROM_PART = "CHECKPOINT_START_FROM_PART"
START_FROM_ENDPOINT = "CHECKPOINT_START_FROM_ENDPOINT"
START_FROM_REGION = "CHECKPOINT_START_FROM_REGION"
START_FROM_ADDRESSING_STYLE = "CHECKPOINT_START_FROM_ADDRESSING_STYLE"
START_FROM_CREDENTIALS_FOLDER = "CHECKPOINT_START_FROM_CREDENTIALS_FOLDER"
ELASTIC_RUN_ID = "TORCHELASTIC_RUN_ID"
ELASTIC_SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"

CREDENTIALS_MOUNT = "/var/run/checkpoint-operator/credentials"
START_FROM_CREDENTIALS_MOUNT = "/var/run/checkpoint-operator/start-from-credentials"
LIBRARY_MOUNT = "/var/run/checkpoint-operator/library"
DEFAULT_GRACE_SECONDS = 30.0  # of Kubernetes, when a pod does not say otherwise; torchrun has the same default

AddressingStyle: TypeAlias = Literal["Auto", "Path", "Virtual"]
_ADDRESSING_STYLES: dict[str, AddressingStyle] = {"": "Auto", "Auto": "Auto", "Path": "Path", "Virtual": "Virtual"}

_ENCRYPTIONS = ("", "AES256", "aws:kms", "aws:kms:dsse")
_KMS_KEY_ID = re.compile(r"[A-Za-z0-9:/_.-]{0,512}")
_TAG = re.compile(r"([A-Za-z0-9 ._:/@+-]{1,128})=([A-Za-z0-9 ._:/@+=-]{0,256})")
_BOOLEANS = {"": False, "false": False, "true": True}

_OPERATION = "read the environment variable"


@dataclass(frozen=True, slots=True)
class RunEnvironment:
    """The settings of an injected pod.

    Attributes:
        owner: The Checkpoint this pod trains under.
        url: The run's root in the object store.
        endpoint, region: Endpoint and region; empty for the provider's own.
        server_side_encryption, kms_key_id, requester_pays, tags: Options of each S3 request.
        credentials_folder: Folder in which the Secret is mounted; empty for ambient identity.
        pod: This pod, or None outside Kubernetes.
        grace_seconds: Time between SIGTERM and SIGKILL: the pod's, or torchrun's if that is shorter.
        log_floor: Number of the newest log entry that the operator had seen when the pod was created; 0 for none.
        start_from: Address of a snapshot of another run at which this one begins, or empty.
        start_from_part: The only object to load from it; empty for all.
        start_from_endpoint, start_from_region, start_from_addressing_style, start_from_credentials_folder: Access to
            that run; without an endpoint and a folder it is accessed like the own one.
    """

    owner: Owner
    url: str
    endpoint: str = ""
    region: str = ""
    addressing_style: AddressingStyle = "Auto"
    credentials_folder: str = ""
    server_side_encryption: str = ""
    kms_key_id: str = ""
    requester_pays: bool = False
    tags: tuple[tuple[str, str], ...] = ()
    pod: PodIdentity | None = None
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    log_floor: int = 0
    start_from: str = ""
    start_from_part: str = ""
    start_from_endpoint: str = ""
    start_from_region: str = ""
    start_from_addressing_style: AddressingStyle = "Auto"
    start_from_credentials_folder: str = ""

    @classmethod
    def parse(cls, environ: Mapping[str, str]) -> RunEnvironment:
        """Read a mapping such as ``os.environ``. ``core.location`` checks the URL when the store is opened.

        Raises:
            ConfigurationError: The pod was not injected, or a variable is invalid.
        """
        missing = [name for name in (RUN, URL) if not environ.get(name)]
        if missing:
            raise ConfigurationError(
                _OPERATION,
                ", ".join(missing),
                "this pod was not injected, so nothing set it",
                f"Label the pod template with {POD_LABEL}: <name of the Checkpoint> (with the annotation "
                f"{CONTAINERS_ANNOTATION}, only the containers it lists), and create it again: with injection.mode "
                "Auto, Policy or Webhook of the chart, pods are injected when they are created. Without injection, or "
                f"outside Kubernetes, set {RUN}=<cluster>/<namespace>/<name> and {URL}=<scheme>://<bucket>/<prefix> "
                "yourself, or construct Checkpointer(state, url=...). docs/api.md lists all variables.",
            )
        try:
            owner = Owner.parse(environ[RUN])
        except ValueError as error:
            raise ConfigurationError(_OPERATION, RUN, str(error), "The injection sets it.") from error
        return cls(
            owner=owner,
            url=environ[URL],
            endpoint=_endpoint(environ, ENDPOINT),
            region=environ.get(REGION, ""),
            addressing_style=_addressing_style(environ, ADDRESSING_STYLE),
            credentials_folder=environ.get(CREDENTIALS_FOLDER, ""),
            server_side_encryption=_encryption(environ.get(SERVER_SIDE_ENCRYPTION, "")),
            kms_key_id=_kms_key_id(environ.get(KMS_KEY_ID, "")),
            requester_pays=_boolean(REQUESTER_PAYS, environ.get(REQUESTER_PAYS, "")),
            tags=_tags(environ.get(TAGS, "")),
            pod=_pod(environ),
            grace_seconds=_grace_seconds(environ),
            log_floor=_log_floor(environ.get(LOG_FLOOR, "")),
            start_from=environ.get(START_FROM, ""),
            start_from_part=environ.get(START_FROM_PART, ""),
            start_from_endpoint=_endpoint(environ, START_FROM_ENDPOINT),
            start_from_region=environ.get(START_FROM_REGION, ""),
            start_from_addressing_style=_addressing_style(environ, START_FROM_ADDRESSING_STYLE),
            start_from_credentials_folder=environ.get(START_FROM_CREDENTIALS_FOLDER, ""),
        )


def _endpoint(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "")
    if text:
        try:
            parse_endpoint(text)
        except ValueError as error:
            raise ConfigurationError(
                _OPERATION, name, str(error), "Correct the endpoint in the spec of the Checkpoint, or the variable."
            ) from None
    return text


def _addressing_style(environ: Mapping[str, str], name: str) -> AddressingStyle:
    text = environ.get(name, "")
    try:
        return _ADDRESSING_STYLES[text]
    except KeyError:
        raise ConfigurationError(
            _OPERATION, name, f"{text!r} is not an addressing style", "Use Auto, Path or Virtual."
        ) from None


def _encryption(text: str) -> str:
    if text not in _ENCRYPTIONS:
        raise ConfigurationError(
            _OPERATION, SERVER_SIDE_ENCRYPTION, f"{text!r} is not supported", "Use AES256, aws:kms or aws:kms:dsse."
        )
    return text


def _kms_key_id(text: str) -> str:
    if not _KMS_KEY_ID.fullmatch(text):
        raise ConfigurationError(
            _OPERATION, KMS_KEY_ID, f"{text!r} does not name a key", "Use the key's id, alias or ARN."
        )
    return text


def _boolean(name: str, text: str) -> bool:
    if text not in _BOOLEANS:
        raise ConfigurationError(_OPERATION, name, f"{text!r} is neither true nor false", "Use true or false.")
    return _BOOLEANS[text]


def _tags(text: str) -> tuple[tuple[str, str], ...]:
    tags = []
    for part in filter(None, text.split("&")):
        match = _TAG.fullmatch(part)
        if match is None:
            raise ConfigurationError(
                _OPERATION, TAGS, f"{part!r} is not a tag", "Write tags as <name>=<value>, joined by &."
            )
        tags.append((match[1], match[2]))
    return tuple(sorted(tags))


def _pod(environ: Mapping[str, str]) -> PodIdentity | None:
    name, uid = environ.get(POD_NAME, ""), environ.get(POD_UID, "")
    if bool(name) != bool(uid):
        absent = POD_UID if name else POD_NAME
        raise ConfigurationError(
            _OPERATION,
            absent,
            "only one of the pod's name and UID is set",
            "Take both from the downward API (metadata.name, metadata.uid), or neither.",
        )
    return PodIdentity(name, uid) if name else None


def _log_floor(text: str) -> int:
    if not re.fullmatch(r"[0-9]{0,19}", text):
        raise ConfigurationError(
            _OPERATION,
            LOG_FLOOR,
            f"{text!r} is not the number of a log entry",
            "The injection sets it.",
        )
    return int(text or 0)


def _grace_seconds(environ: Mapping[str, str]) -> float:
    grace = _seconds(environ, GRACE_SECONDS)
    if environ.get(ELASTIC_RUN_ID):
        return min(grace, _seconds(environ, ELASTIC_SHUTDOWN_TIMEOUT))
    return grace


def _seconds(environ: Mapping[str, str], name: str) -> float:
    text = environ.get(name, "") or str(DEFAULT_GRACE_SECONDS)
    if not re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text):
        raise ConfigurationError(
            _OPERATION,
            name,
            f"{text!r} is not a number of seconds",
            f"{GRACE_SECONDS} is terminationGracePeriodSeconds.",
        )
    return float(text)
