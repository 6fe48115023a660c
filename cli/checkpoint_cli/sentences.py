"""Entries of a run log as sentences. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from checkpoint_cli.words import duration
from checkpoint_sidecar.core import log, removal
from checkpoint_sidecar.core.errors import NO_EVIDENCE
from checkpoint_sidecar.core.log import Body, Unknown
from checkpoint_sidecar.core.policy import NOT_CHECKED
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.core.units import counted, size
from checkpoint_sidecar.core.warm_start import address_of


def sentence(body: Body | Unknown, snapshots: Mapping[str, Snapshot]) -> str:
    """Return one sentence about an entry.

    Args:
        snapshots: Those of the run, by id, to name the steps of snapshots.
    """

    def named(identifier: str) -> str:
        found = snapshots.get(identifier)
        return f"step {found.step} ({identifier})" if found else identifier

    match body:
        case log.RunClaimed():
            return f"{body.owner} claimed the prefix."
        case log.RunAdopted():
            if body.owner.is_deleted:
                return f"{body.previous_owner} deleted the run."
            return f"{body.owner} took the run over from {body.previous_owner}."
        case log.SavesIdentified():
            return f"Folders of saves carry the identity {body.run} from here on."
        case log.RunConfigured():
            return f"The policy of generation {body.generation} applies."
        case log.RollbackRequested():
            return f"A rollback to {named(body.snapshot)} was requested, as {body.request}."
        case log.WarmStartChosen():
            return f"The run begins at {start_in_words(body)}, as {body.asked} was asked for."
        case log.WarmStartFinished():
            return _warm_start(body)
        case log.AttemptStarted(copies=str() as identity):
            return f"A copy of the run {identity[:8]} began."
        case log.AttemptStarted():
            aim = f", and will restore {named(body.candidate)}" if body.candidate else ", from scratch"
            return f"Attempt {body.attempt} started with {counted(body.world_size, 'rank')}{aim}."
        case log.RestoreStarted():
            return f"Attempt {body.attempt} reads {named(body.snapshot)}."
        case log.RestoreFinished():
            return _restore(body, named(body.snapshot))
        case log.SnapshotCommitted() | log.SnapshotCommittedSharing():
            copied = f", {size(body.copied_bytes)} of it copied by the store" if body.copied_bytes else ""
            shared = f", {size(body.shared_bytes)} of it shared with earlier snapshots" if body.shared_bytes else ""
            took = f"{size(body.bytes)} in {_took(body.seconds)}{copied}{shared}"
            metrics = "".join(f", {name}={value}" for name, value in body.metrics.items())
            return f"Attempt {body.attempt} saved step {body.step} ({body.snapshot}): {took}, {body.trigger}{metrics}."
        case log.SnapshotVerified():
            if body.passed:
                return f"{named(body.snapshot)} was verified by {body.level.lower()}.".replace("step", "Step", 1)
            return f"The check of {named(body.snapshot)} failed: {_because(body.evidence, body.message)}."
        case log.SnapshotRead():
            return f"A reader {'reads' if body.seconds else 'has read'} {named(body.snapshot)}."
        case log.SaveRequested():
            return f"Attempt {body.attempt} was asked to save: {body.reason or f'request {body.request}'}."
        case log.SaveFailed():
            times = f"{counted(body.failures, 'failure')} in a row"
            cause = body.message.rstrip(".") or "no cause given"
            return f"Attempt {body.attempt} could not save step {body.step} ({times}): {cause}."
        case log.EvictionNoticed():
            return f"Pod {body.pod.name} of attempt {body.attempt} is evicted: {body.reason}."
        case log.AttemptFenced():
            return f"Attempt {body.attempt} has ended and may no longer commit."
        case log.DispositionSet():
            return f"The disposition of {named(body.snapshot)} was set to {body.disposition}."
        case log.QuarantineReleased():
            return f"The evidence against {named(body.snapshot)} was discarded, as {body.request}."
        case log.SnapshotRetired(reasons=(removal.REMOVED,)):
            return f"A user removed {named(body.snapshot)}."
        case log.SnapshotRetired():
            return f"Retention retired {named(body.snapshot)}: {', '.join(body.reasons)}."
        case log.SnapshotReinstated():
            return f"{named(body.snapshot)} can be restored again.".replace("step", "Step", 1)
        case log.PurgeStarted():
            rest = " Files that other snapshots share stay." if body.keep else ""
            return f"The deletion of {named(body.snapshot)} began.{rest}"
        case log.SnapshotPurged():
            return f"The data of {named(body.snapshot)} is deleted, {size(body.bytes)}."
        case Unknown():
            return f"An entry of the kind {body.kind}, which this version does not know."


def _restore(body: log.RestoreFinished, snapshot: str) -> str:
    if not body.restored:
        cause = _because(body.evidence, body.message) or "interrupted"
        return f"Attempt {body.attempt} could not restore {snapshot}: {cause}."
    checked = "" if body.verified == NOT_CHECKED else f", verified by {body.verified.lower()}"
    return f"Attempt {body.attempt} restored {snapshot} in {_took(body.seconds)}{checked}."


def start_in_words(body: log.WarmStartChosen | log.WarmStartFinished) -> str:
    """Return where a run begins, as a part of a sentence."""
    whose = f"{body.part} of " if body.part else ""
    return f"{whose}step {body.step} of another run ({address_of(body)})"


def _warm_start(body: log.WarmStartFinished) -> str:
    if not body.restored:
        cause = _because(body.evidence, body.message) or "interrupted"
        return f"Attempt {body.attempt} could not begin at {start_in_words(body)}: {cause}."
    return f"Attempt {body.attempt} began at {start_in_words(body)}, in {_took(body.seconds)}."


def _took(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else duration(seconds)


def _because(evidence: str, message: str) -> str:
    return ": ".join(part for part in ("" if evidence == NO_EVIDENCE else evidence, message.rstrip(".")) if part)
