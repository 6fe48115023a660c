"""``fork`` of the cluster door: a new Checkpoint that begins at a snapshot of another one."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from checkpoint_cli import views
from checkpoint_cli.cluster.door import NamedRun, of_checkpoint
from checkpoint_cli.cluster.kubectl import Body
from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.options import DryRun, Output, Part
from checkpoint_cli.output import OutputFormat, write
from checkpoint_cli.records import ChangeRecord
from checkpoint_sidecar.core.api import API_VERSION, CHECKPOINT_KIND

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_COPIED = ("save", "overwritePolicy", "retention", "reschedule")
_OWN = ("takeOverFrom", "url")


@of_checkpoint
def fork(
    at: NamedRun,
    new_name: Annotated[str, typer.Argument(metavar="NEW_NAME", help="Name of the new Checkpoint.")],
    url: Annotated[str, typer.Option("--url", help="Where its snapshots go; default: beside those of NAME.")] = "",
    part: Part = "",
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Create a Checkpoint with the same settings, whose run begins at a snapshot of this one.

    With --dry-run, print its YAML instead, to review and apply it. Label the pods of the new run with the new name.

    Example: {program} fork llama-7b@best llama-7b-fork --dry-run
    """
    if not _NAME.fullmatch(new_name) or new_name == at.name:
        cause = "it is that of the other run" if new_name == at.name else "it is not a name in Kubernetes"
        raise CommandRefusedError(
            "create the Checkpoint", repr(new_name), cause, "Choose another name.", status=ExitStatus.USAGE
        )
    body = forked(at.checkpoint(), new_name, selector=at.selector, url=url, part=part)
    if dry_run and output is OutputFormat.TABLE:
        import yaml

        write(str(yaml.safe_dump(body, sort_keys=False, width=120)).rstrip())
        return
    at.kubectl.create(body, dry_run=dry_run)
    shown = f"{at.kubectl.namespace}/{new_name}"
    verb = "would begin" if dry_run else "begins"
    start, storage = body["spec"]["restore"]["startFrom"], body["spec"]["storage"]
    text = f"{shown} {verb} at a snapshot of {start['checkpoint']}, at {storage['url']}."
    record = ChangeRecord(verb="fork", run=shown, snapshot="", request="", done=not dry_run, text=text)
    views.show_change(record, output)


def forked(checkpoint: Body, name: str, *, selector: str, url: str, part: str) -> dict[str, Any]:
    """Return a Checkpoint like another one, which begins at a snapshot of that."""
    spec, source = checkpoint["spec"], checkpoint["metadata"]["name"]
    storage = {key: value for key, value in spec["storage"].items() if key not in _OWN and value not in ("", None)}
    start = {"checkpoint": f"{source}@{selector}" if selector else source} | ({"part": part} if part else {})
    restore = {key: value for key, value in (spec.get("restore") or {}).items() if key in ("verify", "maxFallback")}
    copied = {key: spec[key] for key in _COPIED if key in spec}
    copied["save"] = {key: value for key, value in (spec.get("save") or {}).items() if key != "request"}
    beside = f"{spec['storage']['url'].rstrip('/').rpartition('/')[0]}/{name}"
    return {
        "apiVersion": API_VERSION,
        "kind": CHECKPOINT_KIND,
        "metadata": {"name": name},
        "spec": {"storage": {"url": url or beside} | storage, **copied, "restore": restore | {"startFrom": start}},
    }
