"""Golden buckets: runs as version 0.1.0 (commit 355deaf) left them, to be read, collected and continued by later ones.

The archives beside this file hold what that commit's own library and operator code wrote to the local store:

    git worktree add /tmp/base 355deaf
    PYTHONPATH=/tmp/base/tests:/tmp/base/operator:/tmp/base/sidecar python tests/store/golden/generate.py /tmp/golden
    cd tests/store/golden
    for run in $(ls /tmp/golden); do tar -C /tmp/golden -czf $run.tar.gz $run; done
"""

from __future__ import annotations

import sys
from pathlib import Path

from checkpoint_operator.act.execute import carry_out
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.model.actions import End
from checkpoint_sidecar.attempt.directory_save import DirectorySave
from checkpoint_sidecar.core import compaction, layout
from checkpoint_sidecar.core.log import RollbackRequested, RunConfigured, SaveRequested, SnapshotCommitted
from checkpoint_sidecar.core.manifest import Manifest, digest, encode
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.builders import OWNER
from support.trainers import Trainer


def store_at(folder: Path) -> LocalStore:
    folder.mkdir(parents=True)
    return LocalStore(StoreSettings(f"file://{folder}"))


def training(store: LocalStore) -> Trainer:
    """Two attempts: three snapshots, half a save of a killed attempt, and a commit that was rejected."""
    trainer = Trainer(store).start()
    policy = Policy(retention=RetentionPolicy(keep_last=2, grace_seconds=0))
    trainer.log.append(lambda _: RunConfigured("uid-1", 1, policy))
    trainer.commit(100)
    trainer.commit(200)
    store.put("step-300/0001-aaaaaaaa/__0_0.distcp", b"half of a save that was killed")
    trainer.start()
    rejected = layout.SaveFolder(250, 1, "bbbbbbbb")
    write_object(store, f"{rejected.path}/__0_0.distcp", b"of an attempt that was fenced")
    store.put(rejected.manifest, b"{}")
    late = SnapshotCommitted("250-1-bbbbbbbb", 250, 1, rejected.path, "0" * 64, 29, 1, 1, trigger="Schedule")
    trainer.log.append(lambda _: late)
    trainer.commit(300)
    trainer.report(310)
    return trainer


def drop_in(store: LocalStore, saves: int) -> None:
    for _ in range(saves):
        target = DirectorySave(store, overwrite=True, world_size=1)
        save = target.begin()
        for name in ("__0_0.distcp", ".metadata"):
            write_object(store, f"{save.folder.path}/{name}", f"{name} of {save.snapshot}".encode())
        prefix = save.folder.path.rpartition("/")[2]
        write_object(store, f"{save.folder.path}/stock.metadata", f"stock, {prefix}/__0_0.distcp".encode())
        listing = Manifest(save.snapshot, save.step, save.folder.attempt, world_size=1, files=())
        write_object(store, save.folder.manifest, encode(listing))
        target.commit(save, listing, digest(encode(listing)))


def main(root: Path) -> None:
    training(store_at(root / "training"))
    drop_in(store_at(root / "drop-in"), 2)
    trainer = training(store_at(root / "rolled-back"))
    trainer.log.append(lambda run: RollbackRequested("rollback-1", next(iter(run.snapshots))))
    trainer.start()
    trainer = Trainer(store_at(root / "compacted")).start()
    trainer.commit(100)
    while trainer.run.head < 203:
        trainer.log.append(lambda run: SaveRequested(f"save-{run.head}", 1))
    trainer.log.compact(compaction.due(trainer.run.head, frozenset())[0])
    trainer.commit(200)
    training(store_at(root / "being-deleted"))
    session = RunStore(StoreSettings(f"file://{root / 'being-deleted'}"), writer="operator 0.1.0")
    session.probe()
    assert [done.error for done in carry_out([End()], session, owner=OWNER)] == [None]
    session.store.delete(["step-100/.metadata"])
    nested = training(store_at(root / "nested"))
    drop_in(LocalStore(StoreSettings(f"file://{root / 'nested' / 'step-100'}")), 1)
    drop_in(LocalStore(StoreSettings(f"file://{root / 'nested' / 'step-700'}")), 1)
    assert nested.run.head


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
