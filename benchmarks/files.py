"""Measures FileSnapshots against a plain upload of the same files by the same client, without checksums.

    PYTHONPATH=tests:tools .venv/bin/python benchmarks/files.py [--quick]

One process uploads large files, and then 10,000 small ones, from memory to an S3 server that costs nearly nothing. The
two take turns. The plain upload puts each file into an object of its own. FileSnapshots begins with one thread for
every fourth core, because training runs beside it, and adds more while they wait for the network.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import sink
from checkpoint_sidecar import FileSnapshots, SavePolicy
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.base import Store, Upload, VerifiesParts
from checkpoint_sidecar.store.opening import open_store
from sink_s3 import DROPPING

FULL_BYTES, QUICK_BYTES = 2_400_000_000, 300_000_000
THREADS = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer bytes and files")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    total, count = (QUICK_BYTES, 1000) if arguments.quick else (FULL_BYTES, 10_000)
    with sink.running() as endpoint:
        for name, files, size in (("large", 8, total // 8), ("small", count, 20_000)):
            # In memory, so that no disk is measured.
            with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
                for number in range(files):
                    place = Path(folder, "checkpoint", f"{number // 100}", f"{number}.bin")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(os.urandom(1 << 20) * (size >> 20) + os.urandom(size % (1 << 20)))
                compare(name, Path(folder), endpoint, arguments.repetitions)


def compare(name: str, folder: Path, endpoint: str, repetitions: int) -> None:
    credentials = Credentials.of({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"})
    settings = StoreSettings(f"s3://{DROPPING}/{name}", endpoint, "us-east-1", credentials=credentials)
    store = open_store(settings)
    paths = sorted(path for path in folder.rglob("*.bin"))
    save = SavePolicy(every_steps=None, every_seconds=None)
    plain: dict[int, list[tuple[float, float]]] = {threads: [] for threads in THREADS}
    ours: list[tuple[float, float]] = []
    blocked: list[float] = []
    with FileSnapshots(folder, settings, save=save) as snapshots:
        snapshots.restore()

        def snapshot(step: int) -> None:
            began = time.perf_counter()
            snapshots.save(step)
            blocked.append(time.perf_counter() - began)
            snapshots.wait()

        for step in range(1, repetitions + 2):
            for threads in THREADS:
                plain[threads].append(timed(partial(upload, store, folder, paths, threads)))
            # As after the trainer has written them again, so that nothing is unchanged.
            for path in paths:
                os.utime(path)
            ours.append(timed(partial(snapshot, step)))
    # The first of each opens connections.
    rows = {f"plain upload, {threads} threads": plain[threads][1:] for threads in THREADS} | {"FileSnapshots": ours[1:]}
    for what, runs in rows.items():
        seconds, cpu = (statistics.median(each[index] for each in runs) for index in (0, 1))
        ratio = statistics.median(mine[0] / other[0] for mine, other in zip(ours[1:], runs, strict=True))
        print(f"{name:5} {what:26} {seconds:6.2f} s {cpu:6.2f} CPU s; FileSnapshots takes {ratio:5.2f} of it")
    print(f"{name:5} training waited {statistics.median(blocked[1:]):.3f} s")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def upload(store: Store, folder: Path, paths: list[Path], threads: int) -> None:
    """Put each file into an object, in parts from several threads."""
    with ThreadPoolExecutor(threads) as pool:
        for group in (paths[start : start + 64] for start in range(0, len(paths), 64)):
            opened = []
            for path in group:
                context = store.upload(f"plain/{path.relative_to(folder)}", path.stat().st_size)
                opened.append((context, context.__enter__(), path))
            parts = [(each, path, *part) for _, each, path in opened for part in parts_of(each, path)]
            for _ in pool.map(lambda part: send(*part), parts):
                pass
            for _ in pool.map(lambda each: each[0].__exit__(None, None, None), opened):
                pass


def parts_of(opened: Upload, path: Path) -> Iterator[tuple[int, int, int]]:
    size = path.stat().st_size
    for index, start in enumerate(range(0, size, opened.part_bytes)):
        yield index, start, min(opened.part_bytes, size - start)


def send(opened: Upload, path: Path, index: int, start: int, length: int) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        buffer = bytearray(length)
        file.readinto(buffer)
    if isinstance(opened, VerifiesParts):
        # A made-up checksum, so that none is computed; this server does not look.
        opened.expect(index, 0)
    opened.write_part(index, [buffer])


if __name__ == "__main__":
    main()
