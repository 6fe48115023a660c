"""The checks of ``doctor``: of a store, and of the run in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from checkpoint_cli.records import CheckRecord

if TYPE_CHECKING:
    from checkpoint_cli.bucket.door import AddressedRun
    from checkpoint_sidecar.conformance.suite import PromiseFinding
    from checkpoint_sidecar.core.run import Run

_MOST_SKEW_SECONDS = 60.0


def promises(at: AddressedRun, every_promise: bool) -> Iterator[CheckRecord]:
    """Yield whether the store keeps its promises, with trial objects."""
    from checkpoint_cli.bucket.stores import store_at
    from checkpoint_sidecar.conformance.promises import CHECKS, probed
    from checkpoint_sidecar.conformance.suite import examine
    from checkpoint_sidecar.store.base import RestsOnFilesystem

    store = at.store
    if isinstance(store, RestsOnFilesystem):
        other = store.another_client()
    else:
        other = store_at(at.url, at.endpoint, at.region, at.credentials_folder)
    for finding in examine(store, other, CHECKS if every_promise else probed(store)):
        yield _promise(finding)


def _promise(finding: PromiseFinding) -> CheckRecord:
    from checkpoint_sidecar.conformance.suite import PromiseVerdict

    results = {PromiseVerdict.KEPT: "ok", PromiseVerdict.BROKEN: "problem", PromiseVerdict.UNANSWERED: "problem"}
    detail = "" if finding.verdict is PromiseVerdict.KEPT else f"{finding.detail} Why it matters: {finding.check.why}"
    return CheckRecord(check=finding.check.promise, result=results[finding.verdict], detail=detail)


def clock(at: AddressedRun) -> Iterator[CheckRecord]:
    """Yield whether the store's clock and this machine's agree."""
    import secrets

    from checkpoint_cli.views import now
    from checkpoint_cli.words import duration
    from checkpoint_sidecar.core.errors import StoreError
    from checkpoint_sidecar.core.layout import CONFORMANCE_FOLDER

    key = f"{CONFORMANCE_FOLDER}{secrets.token_hex(8)}/clock"
    try:
        before = now()
        at.store.put(key, b"clock")
        after = now()
        found = at.store.stat(key)
        at.store.delete([key])
    except StoreError as error:
        yield CheckRecord(check="clock", result="unknown", detail=f"{error.cause}. {error.hint}")
        return
    if found is None:
        yield CheckRecord(check="clock", result="unknown", detail="the store does not show what was written")
        return
    # Stores keep whole seconds.
    skew = (found.modified - (before + (after - before) / 2)).total_seconds()
    if abs(skew) <= _MOST_SKEW_SECONDS:
        yield CheckRecord(check="clock", result="ok", detail="the store's and this machine's agree within a minute")
        return
    side = "ahead of" if skew > 0 else "behind"
    detail = f"the store's is {duration(abs(skew))} {side} this machine's. Set this machine's: S3 refuses old requests."
    yield CheckRecord(check="clock", result="problem", detail=detail)


def run_checks(at: AddressedRun) -> Iterator[CheckRecord]:
    """Yield what is to be said about the run. Only reads."""
    from checkpoint_cli.bucket.convert import run_record
    from checkpoint_cli.bucket.reading import findings
    from checkpoint_sidecar.core.errors import LogError, RunNotFoundError, StoreError

    try:
        found = findings(at, heartbeat=True)
    except RunNotFoundError as error:
        yield CheckRecord(check="run", result="ok", detail=f"{error.cause}: a new run can begin here")
        return
    except (LogError, StoreError) as error:
        yield CheckRecord(check="run log", result="problem", detail=f"{error.cause}. {error.hint}")
        return
    yield CheckRecord(check="run log", result="ok", detail=f"{found.run.head} entries, owner {found.run.owner}")
    yield CheckRecord(check="changes", result="ok", detail=_changes(found.run))
    record = run_record(found)
    for problem in record.problems:
        yield CheckRecord(check="health", result="problem", detail=problem)
    if not record.problems:
        yield CheckRecord(check="health", result="ok", detail=f"{record.snapshots} snapshots can be restored")


def _changes(run: Run) -> str:
    if not run.managed:
        return "no operator manages the run: the verbs of this program may change it"
    return "an operator manages the run: change it with kubectl ckpt"
