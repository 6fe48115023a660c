"""Crashes in the middle of a multipart upload to S3: no object is seen, and no part is paid for later."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from checkpoint_sidecar.store.opening import Driver, open_store
from crashes import evidence
from crashes.conftest import LONG, Matrix
from crashes.multipart import two_parts_are_stored, wrap
from crashes.operating import operate
from crashes.points import Crash, Mode, Point
from support.s3servers import Server
from training.checkpointer_ranks import Job, run

pytestmark = [pytest.mark.store, pytest.mark.distributed]

PART_BYTES = 8 << 20

WIDE = Job("", 0, sharding="fsdp2", width=1 << 18, part_bytes=PART_BYTES, options={"takeover_seconds": 0.0})
"""Every rank saves more than two parts."""

BEFORE, CRASHED, AFTERWARDS = 1, 2, 3

ABSENT = [
    "half snapshots",
    "half checkpoints for torch",
    "unknown keys",
    "open multipart uploads and orphans after collection",
]

POINT = Point(
    "after two parts of __1_0.distcp are stored", "upload", f"^step-0*{CRASHED}/.*/__1_0[.]distcp$", "during", rank=1
)

QUICK: list[tuple[Driver, Mode]] = [("native", "kill rank 1"), ("fsspec", "kill rank 1"), ("native", "exception")]
DRIVERS: list[Driver] = ["native", "fsspec"]
EVERY: list[tuple[Driver, Mode]] = [
    (driver, mode) for driver in DRIVERS for mode in ("kill rank 0", "kill rank 1", "exception", "bug")
]


@pytest.mark.parametrize(("driver", "mode"), EVERY if LONG else QUICK)
def test_a_crash_between_the_parts_of_a_file_leaves_parts_that_the_operator_discards(
    driver: Driver,
    mode: Mode,
    seaweed: Server,
    crash_at: Callable[[Point, Mode], Crash],
    matrix: Matrix,
    tmp_path: Path,
) -> None:
    settings = seaweed.settings()
    ready = partial(two_parts_are_stored, seaweed)
    crash = replace(crash_at(POINT, mode), min_bytes=2 * PART_BYTES, ready=ready)
    job = replace(WIDE, url=settings, every_steps=1)
    wrapped = partial(wrap, crash, settings, driver)
    crashed = run(replace(job, total=CRASHED, wrap_store=wrapped, on_failure="Raise"), tmp_path)
    assert crash.reached
    if mode.startswith("kill"):
        assert crashed[int(mode[-1])].code == -signal.SIGKILL
    assert all(outcome.code not in (0, None) for outcome in crashed)

    store = open_store(settings)
    found = evidence.replayed(store)
    assert evidence.live_steps(found) == [BEFORE]
    evidence.check_nothing_is_out_of_place(store, found)
    left = seaweed.open_uploads(settings.url)
    assert left or mode != "kill rank 1", "the crash came too late"
    assert all(key.endswith(f"__{mode[-1]}_0.distcp") for key in left), "a rank that lives aborts its own upload"
    orphans = evidence.orphans(store, found)

    resumed = run(replace(job, total=AFTERWARDS), tmp_path)
    assert [outcome.steps for outcome in resumed] == [(CRASHED, AFTERWARDS)] * 2
    assert operate(settings, retention={"keepLast": 10, "gracePeriod": "0s"}) == 0
    found = evidence.replayed(store)
    assert evidence.live_steps(found) == [BEFORE, CRASHED, AFTERWARDS]
    evidence.check_nothing_is_out_of_place(store, found)
    assert not evidence.orphans(store, found)
    assert not seaweed.open_uploads(settings.url)
    more = {"orphans": len(orphans), "uploads": len(left), "store": f"S3 through {driver}"}
    matrix.add("save in parts", crash, restored=BEFORE, absent=ABSENT, **more)
