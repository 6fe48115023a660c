"""Every way in which a training process can end: its exit code, its last words, and what is in the bucket afterwards.

The promise: an end never takes longer than the grace period, or a bound, and never looks like success while something
that was asked for is not saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from checkpoint_sidecar.core.log import SnapshotCommitted
from training.checkpointer_runs import RunStorage
from training.ending_processes import BUSY, Case, Ending, Host

pytestmark = pytest.mark.distributed

SECONDS = 60.0
"""From the signal, or the start, to the end, on a machine that is busy with other things; a hung process never ends."""

DATA = ("upload", ".distcp")
COMMIT = ("put_if_absent", "_log/00000000000000000004")
"""The first snapshot's: the run, the attempt and the identity of its saves are recorded before it."""


@dataclass(frozen=True)
class Expected:
    """What becomes of a case.

    Attributes:
        code: Of every rank; or several, where it depends on how busy the machine is.
        says: A pattern that is found in the log of rank 0.
        commits: The steps that are committed.
        data: Whether the bucket may hold data of saves that are not committed.
    """

    code: int | tuple[int, ...]
    says: str = ""
    commits: tuple[int, ...] = ()
    data: bool = False


def sigterm(marker: str, rank: int = 0) -> tuple[tuple[str, int, str], ...]:
    return (("TERM", rank, marker),)


FULL = "the disk is full"
SILENT = "did not end in time: no data was sent or received for 2 s"
TOO_LATE = "the steps after 0 are lost"

TABLE: dict[str, tuple[Case, Expected]] = {
    # Nothing goes wrong
    "returns": (Case(), Expected(0, commits=(5,))),
    "returns, not closed": (Case(close=False), Expected(0, commits=(5,))),
    "raises": (Case(end="raise"), Expected(1, "ZeroDivisionError", commits=(5,))),
    "raises, not closed": (Case(end="raise", close=False), Expected(1, "ZeroDivisionError", commits=(5,))),
    "sys.exit(0)": (Case(end="exit 0"), Expected(0, commits=(5,))),
    "sys.exit(3), not closed": (Case(end="exit 3", close=False), Expected(3, commits=(5,))),
    # The last save fails
    "returns, save fails": (Case(fail=DATA), Expected(1, FULL)),
    "returns, not closed, save fails": (Case(close=False, fail=DATA), Expected(120, FULL)),
    "raises, save fails": (Case(end="raise", fail=DATA), Expected(1, "save had failed.*disk is full")),
    "sys.exit(0), save fails": (Case(end="exit 0", fail=DATA), Expected(1, FULL)),
    "sys.exit(0), not closed, save fails": (Case(end="exit 0", close=False, fail=DATA), Expected(120, FULL)),
    "sys.exit(3), save fails": (Case(end="exit 3", fail=DATA), Expected(3, "save had failed.*disk is full")),
    "returns, every save fails": (Case(every_steps=2, fail=DATA), Expected(1, FULL)),
    "returns, not closed, every save fails": (Case(every_steps=2, close=False, fail=DATA), Expected(120, FULL)),
    "the first failed save raises": (Case(every_steps=1, fail=DATA, on_failure="Raise"), Expected(1, FULL)),
    # Threads, memory and children
    "a background thread ends without a word": (Case(on="die"), Expected(1, "neither a result nor an error")),
    "a native client panics": (Case(on="panic"), Expected(1, "Panic: rust panicked")),
    "a setting cannot be read": (
        Case(environment={"0": {"CHECKPOINT_MEMORY": "512MB"}}),
        Expected(1, "CHECKPOINT_MEMORY: '512MB' is not valid"),
    ),
    "the generator that trains is left": (Case(on="generator"), Expected(0, commits=(5,))),
    "the generator that trains is left, save fails": (Case(on="generator", fail=DATA), Expected(120, FULL)),
    "SIGTERM, after training in another thread": (
        Case(on="thread", signals=sigterm("stoppable")),
        Expected(-15, commits=(5,)),
    ),
    "SIGTERM, the event loop has taken it": (
        Case(on="loop", every_steps=None, signals=sigterm("training")),
        Expected(143, r"terminated after step \d+, which is saved"),
    ),
    "a forked child leaves by itself": (Case(on="fork", every_steps=5), Expected(0, commits=(5,))),
    # The store keeps silent, and no signal comes
    "returns, upload hangs": (Case(hang=DATA), Expected(1, SILENT, data=True)),
    "returns, commit hangs": (
        Case(hang=COMMIT),
        Expected(1, SILENT, data=True),
    ),
    "returns, commit hangs, not closed": (
        Case(hang=COMMIT, close=False),
        Expected(1, SILENT, data=True),
    ),
    "returns, publishing hangs": (Case(hang=("put", "step-5/.metadata")), Expected(0, commits=(5,))),
    "returns, goodbye hangs": (Case(hang=("put", "_progress.json")), Expected(0, commits=(5,))),
    # SIGTERM
    "SIGTERM, training": (
        Case(end="train on", every_steps=None, signals=sigterm("training")),
        Expected(143, r"terminated after step \d+, which is saved"),
    ),
    "SIGTERM as PID 1, training": (
        Case(end="train on", every_steps=None, init=True, signals=sigterm("training")),
        Expected(143, r"terminated after step \d+, which is saved"),
    ),
    "SIGTERM, the claim hangs": (
        Case(hang=("put_if_absent", "_log/00000000000000000001"), signals=sigterm("hanging")),
        Expected(143, "nothing was trained yet"),
    ),
    "SIGTERM as PID 1, the start hangs": (
        Case(hang=("put_if_absent", "_log/00000000000000000002"), init=True, signals=sigterm("hanging")),
        Expected(143, "nothing was trained yet"),
    ),
    "SIGTERM, staging hangs": (
        Case(hang=("state_dict", ""), signals=sigterm("hanging")),
        Expected(143, "does not end in time, so the process does"),
    ),
    "SIGTERM, upload hangs": (
        Case(end="train on", hang=DATA, signals=sigterm("hanging")),
        Expected(143, r"terminated after step \d+: " + TOO_LATE, data=True),
    ),
    "SIGTERM, commit hangs": (
        Case(end="train on", hang=COMMIT, signals=sigterm("hanging")),
        Expected(143, r"terminated after step \d+: " + TOO_LATE, data=True),
    ),
    "SIGTERM, publishing hangs": (
        Case(end="train on", every_steps=None, hang=("put", "/.metadata"), signals=sigterm("training")),
        Expected(143, r"terminated after step \d+, which is saved"),
    ),
    "SIGTERM, the last save hangs": (
        Case(hang=DATA, stall=600, signals=sigterm("hanging")),
        Expected((1, 143), "(did|does) not end in time", data=True),
    ),
    "SIGTERM, the last save hangs, not closed": (
        Case(hang=DATA, stall=600, close=False, signals=sigterm("hanging")),
        Expected(143, "did not end in time: the grace period is over", data=True),
    ),
    "SIGTERM, the last save fails": (
        Case(end="train on", every_steps=None, fail=DATA, signals=sigterm("training")),
        Expected(143, TOO_LATE),
    ),
    # Other signals
    "Ctrl-C, training": (
        Case(end="train on", every_steps=None, signals=(("INT", 0, "training"),)),
        Expected(-2, "KeyboardInterrupt"),
    ),
    "Ctrl-C, the last save hangs": (
        Case(hang=DATA, stall=600, signals=(("INT", 0, "hanging"),)),
        Expected(-2, "KeyboardInterrupt", data=True),
    ),
    "a signal of the job's own": (
        Case(end="stop by itself", every_steps=None, signals=(("USR1", 0, "stoppable"),)),
        Expected(143, r"terminated after step \d+, which is saved"),
    ),
    # Two ranks: what befalls one ends both
    "2 ranks return": (Case(ranks=2), Expected(0, commits=(5,))),
    "2 ranks return, save fails": (Case(ranks=2, fail=DATA), Expected(1, FULL)),
    "2 ranks leave by sys.exit(0), save fails": (Case(ranks=2, end="exit 0", fail=DATA), Expected(1, FULL)),
    "2 ranks, not closed, save fails": (Case(ranks=2, close=False, fail=DATA), Expected(120, FULL)),
    "a native client of one of 2 ranks panics": (Case(ranks=2, on="panic"), Expected(1, "Panic: rust panicked")),
    "a setting of one of 2 ranks cannot be read": (
        Case(ranks=2, environment={"1": {"CHECKPOINT_MEMORY": "512MB"}}),
        Expected(1, "CHECKPOINT_MEMORY: '512MB' is not valid"),
    ),
    "2 ranks return, commit hangs": (
        Case(ranks=2, hang=COMMIT),
        Expected(1, SILENT, data=True),
    ),
    "2 ranks return, upload of one hangs": (Case(ranks=2, hang=DATA, hang_rank=1), Expected(1, SILENT, data=True)),
    "SIGTERM at one of 2 ranks": (
        Case(ranks=2, end="train on", every_steps=None, signals=sigterm("training", 1)),
        Expected(143, r"terminated after step \d+, which is saved"),
    ),
    "SIGTERM at 2 ranks, the start hangs": (
        Case(
            ranks=2,
            hang=("put_if_absent", "_log/00000000000000000002"),
            signals=(("TERM", 1, "hanging-0"), ("TERM", 0, "hanging")),
        ),
        Expected(143, "nothing was trained yet"),
    ),
    "SIGTERM at one of 2 ranks, commit hangs": (
        Case(
            ranks=2,
            end="train on",
            hang=COMMIT,
            signals=(("TERM", 1, "training"),),
        ),
        Expected(143, r"terminated after step \d+: " + TOO_LATE, data=True),
    ),
}


Outcome = Future[tuple[list[Ending], Path]]


@pytest.fixture(scope="module")
def endings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """All cases that were selected, begun at once: they mostly wait."""
    here = [item for item in request.session.items if item.path == request.path]
    names = [str(item.callspec.params["name"]) for item in here if isinstance(item, pytest.Function)]
    host = Host()
    with ThreadPoolExecutor(BUSY) as pool:

        def run(name: str, folder: Path) -> tuple[list[Ending], Path]:
            return host.run(TABLE[name][0], folder, timeout=2 * SECONDS), folder

        yield {name: pool.submit(run, name, tmp_path_factory.mktemp("ending")) for name in names}
    host.close()


@pytest.mark.parametrize("name", TABLE)
def test_how_a_process_ends_that(name: str, endings: dict[str, Outcome]) -> None:
    case, expected = TABLE[name]
    ranks, folder = endings[name].result()
    if case.init and ranks[0].code == 77:
        pytest.skip("making a PID namespace needs root")
    told = "\n".join(f"--- rank {rank}\n" + "\n".join(ending.log) for rank, ending in enumerate(ranks))
    codes = expected.code if isinstance(expected.code, tuple) else (expected.code,)
    assert all(ending.code in codes for ending in ranks), told
    assert all(ending.seconds < SECONDS for ending in ranks), told
    assert re.search(expected.says, "\n".join(ranks[0].log)), told
    storage = RunStorage(f"file://{folder}/run")
    commits = storage.bodies(SnapshotCommitted) if (folder / "run").exists() else []
    if "which is saved" in expected.says:
        assert f"terminated after step {commits[-1].step}, which is saved" in told
    else:
        assert tuple(commit.step for commit in commits) == expected.commits, told
    if not commits and not expected.data and (folder / "run").exists():
        assert not list(storage.store.list("step-")), told
