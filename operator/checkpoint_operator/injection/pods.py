"""Decides what injection adds to a labelled pod, and why a pod is denied. Pure.

The chart's admission policies (``templates/injection.yaml``) say the same in CEL. One table of pods goes through both
in ``tests/api/test_injection.py``, so a change here needs the same change there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoint_sidecar.core import environment

PREFIX_CLAIMED = "PrefixClaimed"
"""Reason of a condition: another run has the prefix."""

_LIBRARY = environment.LIBRARY_ANNOTATION
_PYTHON_PATH = "PYTHONPATH"

Body = Mapping[str, Any]
Patch = dict[str, Any]
"""An operation of a JSON patch (RFC 6902)."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What injected containers see as a folder: a volume of the pod, and how they mount it."""

    volume: Body
    mount: Body


@dataclass(frozen=True, slots=True)
class Library:
    """The library for pods whose image lacks it, as the chart describes it.

    Attributes:
        folder: Where it is.
        python_path: What goes to the end of PYTHONPATH.
        init_container: Fills the folder; None for a volume that is full already.
    """

    folder: Folder
    python_path: str
    init_container: Body | None = None

    @classmethod
    def parse(cls, text: str) -> Library:
        """Read the JSON of the chart.

        Raises:
            ValueError: It is something else.
        """
        try:
            found = json.loads(text)
            folder = Folder(found["volume"], found["mount"])
            return cls(folder, found["pythonPath"], found.get("initContainer"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a description of the library: {text}") from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pod is created.

    Attributes:
        namespace: Its namespace.
        cluster_id: Identity of the cluster in the owners of runs; empty: as the Checkpoint's claim says.
        library: What the pods there get beside it, if anything.
    """

    namespace: str
    cluster_id: str
    library: Library | None = None


def usable(checkpoint: Body | None, place: Place) -> bool:
    """Whether it is known by now what the pods of this Checkpoint get."""
    if checkpoint is None:
        return False
    return (bool(place.cluster_id) or _claimed(checkpoint, place)) and _begins_somewhere(checkpoint)


def patches_of(pod: Body, checkpoint: Body, place: Place) -> list[Patch]:
    """Return the operations that inject a Checkpoint into a pod; none where it has everything already.

    Args:
        pod: As the API server sends it for review.
        checkpoint: Of the pod's label and namespace, and ``usable``.
    """
    library = place.library if pod["metadata"].get("annotations", {}).get(_LIBRARY) != "false" else None
    folders = _secrets(checkpoint) + ([library.folder] if library else [])
    entries = _environment(pod, checkpoint, place)
    if library:
        entries.append({"name": _PYTHON_PATH, "value": library.python_path})
    targets = list(_targets(pod))
    patches: list[Patch] = []
    for path, container in targets:
        patches += _python_path(path, container, library.python_path) if library else ()
        patches += _variables(path, container, entries)
    if folders and "volumes" not in pod["spec"]:
        patches.append(_add("/spec/volumes", []))
    present = {volume["name"] for volume in pod["spec"].get("volumes", ())}
    patches += [_add("/spec/volumes/-", folder.volume) for folder in folders if folder.volume["name"] not in present]
    for path, container in targets if folders else ():
        patches += _mounts(path, container, folders)
    # The last one, because it moves the other init containers.
    return patches + list(_copier(pod, library.init_container if library else None))


def denial_of(pod: Body, place: Place) -> str:
    """Return why this labelled pod must not be created, or an empty text. Call it on the pod as injected."""
    containers = [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]
    names = [container["name"] for container in containers]
    selected = _selected(pod)
    strangers = [name for name in selected if name not in names]
    if strangers:
        listed, present = '", "'.join(strangers), '", "'.join(names)
        return (
            f'the annotation {environment.CONTAINERS_ANNOTATION} names "{listed}", but the containers of this pod are '
            f'"{present}"'
        )
    # Not all containers: another policy or webhook may have added one after the injection.
    if any(container["name"] in selected and _injected(container) for container in containers):
        return ""
    claimed = "" if place.cluster_id else "with a claimed prefix "
    return (
        f'no Checkpoint "{label_of(pod)}" {claimed}in namespace "{place.namespace}" yet: create it, or correct the '
        f"label {environment.POD_LABEL}. If it exists, its condition RestoreEnforced says why its "
        "spec.restore.startFrom cannot be followed yet. Workload controllers retry automatically."
    )


def label_of(pod: Body) -> str:
    """Return the name of the Checkpoint that a pod is labelled with, or an empty text."""
    return str(pod["metadata"].get("labels", {}).get(environment.POD_LABEL, ""))


def _claimed(checkpoint: Body, place: Place) -> bool:
    # Another cluster may hold the prefix under the same namespace and name; its identity must not be handed out.
    status = checkpoint.get("status", {})
    return status.get("claimedBy", "").endswith(f"/{place.namespace}/{checkpoint['metadata']['name']}") and not any(
        condition.get("reason") == PREFIX_CLAIMED for condition in status.get("conditions", ())
    )


def _begins_somewhere(checkpoint: Body) -> bool:
    # Without the snapshot of the other run, a pod would begin at step 0.
    if "checkpoint" not in (_start_from(checkpoint) or {}):
        return True
    status = checkpoint.get("status", {})
    warm = status.get("warmStart")
    if not warm:
        return False
    current: bool = status.get("observedGeneration") == checkpoint["metadata"]["generation"]
    return current or warm.get("state") != "Pending"


def _start_from(checkpoint: Body) -> Body | None:
    found: Body | None = checkpoint["spec"].get("restore", {}).get("startFrom")
    return found


def _start(checkpoint: Body) -> Body:
    """Where the run begins, until its first commit; and how that is accessed, if not like its own prefix."""
    given = _start_from(checkpoint)
    warm: Body = checkpoint.get("status", {}).get("warmStart") or {}
    if given is None or warm.get("state", "Pending") != "Pending":
        return {}
    return warm if "checkpoint" in given else given


def _secrets(checkpoint: Body) -> list[Folder]:
    own, start = (_secret(holder) for holder in (checkpoint["spec"]["storage"], _start(checkpoint)))
    found = (
        ("checkpoint-operator-credentials", own, environment.CREDENTIALS_MOUNT),
        ("checkpoint-operator-start-from", start, environment.START_FROM_CREDENTIALS_MOUNT),
    )
    return [
        Folder({"name": name, "secret": {"secretName": secret}}, {"name": name, "mountPath": path, "readOnly": True})
        for name, secret, path in found
        if secret
    ]


def _secret(holder: Body) -> str:
    return str(holder.get("credentialsSecret", {}).get("name", ""))


def _environment(pod: Body, checkpoint: Body, place: Place) -> list[Patch]:
    metadata, storage, status = checkpoint["metadata"], checkpoint["spec"]["storage"], checkpoint.get("status", {})
    start = _start(checkpoint)
    grace = pod["spec"].get("terminationGracePeriodSeconds", int(environment.DEFAULT_GRACE_SECONDS))
    own = f"{place.cluster_id}/{place.namespace}/{metadata['name']}"
    snapshot = f"@{start['snapshot']}" if "snapshot" in start and "checkpoint" in start else ""
    tags = storage.get("tags", {})
    values = {
        environment.RUN: own if place.cluster_id else status["claimedBy"],
        environment.URL: storage["url"],
        environment.ENDPOINT: storage.get("endpoint", ""),
        environment.REGION: storage.get("region", ""),
        environment.ADDRESSING_STYLE: storage.get("addressingStyle", ""),
        environment.SERVER_SIDE_ENCRYPTION: storage.get("serverSideEncryption", ""),
        environment.KMS_KEY_ID: storage.get("kmsKeyId", ""),
        environment.REQUESTER_PAYS: "true" if storage.get("requesterPays") else "",
        environment.TAGS: "&".join(f"{name}={tags[name]}" for name in sorted(tags)),
        environment.CREDENTIALS_FOLDER: environment.CREDENTIALS_MOUNT if _secret(storage) else "",
        environment.GRACE_SECONDS: str(grace),
        environment.LOG_FLOOR: _log_floor(checkpoint),
        environment.START_FROM: start.get("url", "") + snapshot,
        environment.START_FROM_PART: start.get("part", ""),
        environment.START_FROM_ENDPOINT: start.get("endpoint", ""),
        environment.START_FROM_REGION: start.get("region", ""),
        environment.START_FROM_ADDRESSING_STYLE: start.get("addressingStyle", ""),
        environment.START_FROM_CREDENTIALS_FOLDER: environment.START_FROM_CREDENTIALS_MOUNT if _secret(start) else "",
        environment.ELASTIC_SHUTDOWN_TIMEOUT: str(grace - 5 if grace > 6 else 1),
    }
    # Each $ is doubled, or the kubelet would replace $(NAME) with the value of that variable.
    entries: list[Patch] = [
        {"name": name, "value": value.replace("$", "$$")} for name, value in values.items() if value
    ]
    fields = {environment.POD_NAME: "metadata.name", environment.POD_UID: "metadata.uid"}
    return entries + [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]


def _log_floor(checkpoint: Body) -> str:
    # Lets a pod notice that a log was lost, instead of taking the empty prefix for a new run.
    if checkpoint["spec"].get("restore", {}).get("onMissing") == "StartFresh":
        return ""
    return str(checkpoint.get("status", {}).get("logSequence", ""))


def _selected(pod: Body) -> list[str]:
    """All containers, or those of the annotation, which may also list init containers."""
    annotation = pod["metadata"].get("annotations", {}).get(environment.CONTAINERS_ANNOTATION)
    if annotation is None:
        return [container["name"] for container in pod["spec"]["containers"]]
    return [name.strip() for name in annotation.split(",")]


def _targets(pod: Body) -> Iterator[tuple[str, Body]]:
    selected = _selected(pod)
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(pod["spec"].get(kind, ())):
            if container["name"] in selected:
                yield f"/spec/{kind}/{index}", container


def _variables(path: str, container: Body, entries: list[Patch]) -> Iterator[Patch]:
    """What is injected comes first, so that the pod's own can refer to it, as in $(CHECKPOINT_URL)."""
    if "env" not in container:
        yield _add(f"{path}/env", [])
    present = {entry["name"] for entry in container.get("env", ())}
    missing = [entry for entry in entries if entry["name"] not in present]
    for index, entry in enumerate(missing):
        yield _add(f"{path}/env/{index}", entry)


def _python_path(path: str, container: Body, folder: str) -> Iterator[Patch]:
    """Append to the pod's own PYTHONPATH, if it is written there."""
    for index, entry in enumerate(container.get("env", ())):
        value = entry.get("value", "")
        if entry["name"] == _PYTHON_PATH and "valueFrom" not in entry and folder not in value.split(":"):
            yield _add(f"{path}/env/{index}/value", f"{value}:{folder}" if value else folder)


def _mounts(path: str, container: Body, folders: list[Folder]) -> Iterator[Patch]:
    if "volumeMounts" not in container:
        yield _add(f"{path}/volumeMounts", [])
    present = {mount["mountPath"] for mount in container.get("volumeMounts", ())}
    for folder in folders:
        if folder.mount["mountPath"] not in present:
            yield _add(f"{path}/volumeMounts/-", folder.mount)


def _copier(pod: Body, init_container: Body | None) -> Iterator[Patch]:
    present = pod["spec"].get("initContainers")
    if init_container is None or init_container["name"] in {container["name"] for container in present or ()}:
        return
    if present is None:
        yield _add("/spec/initContainers", [])
    yield _add("/spec/initContainers/0", init_container)


def _injected(container: Body) -> bool:
    return {environment.RUN, environment.URL} <= {entry["name"] for entry in container.get("env", ())}


def _add(path: str, value: object) -> Patch:
    return {"op": "add", "path": path, "value": value}
