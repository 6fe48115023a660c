"""What belongs to a run: told by identity and by the log, never by the look of a name."""

from __future__ import annotations

import pytest

from checkpoint_sidecar.core.belongings import Foreign, belongings, describe, survey, traces
from checkpoint_sidecar.core.layout import SaveFolder, log_key
from support.builders import History, nonce_of

IDENTITY = History().run.short_identity
OURS = SaveFolder(200, 1, nonce_of(1), IDENTITY).path
UNSIGNED = SaveFolder(200, 1, nonce_of(1)).path
THEIRS = SaveFolder(200, 1, nonce_of(1), "01234567").path
COMPACTION = "_log-compacted/00000000000000000001-00000000000000000200.gz"


@pytest.fixture
def history() -> History:
    """Two attempts. The first one committed step 100, in a folder of version 0.1.0."""
    return History().started().committed(100).started()


@pytest.mark.parametrize(
    ("key", "owned"),
    [
        (log_key(1), True),
        (COMPACTION, True),
        ("_progress.json", True),
        ("_run.json", True),
        ("_probe/0123456789abcdef/created", True),
        ("_conformance/0123456789abcdef/a/b", True),
        (f"{OURS}/__0_0.distcp", True),
        (f"{OURS}/manifest.json", True),
        (f"{OURS}/stock.metadata", True),
        (f"{OURS}/notes.txt", False),
        (f"{OURS}/deeper/__0_0.distcp", False),
        (f"{UNSIGNED}/__0_0.distcp", False),
        (f"{THEIRS}/__0_0.distcp", False),
        (f"copy/{OURS}/__0_0.distcp", False),
        (f"nested/{log_key(1)}", False),
        ("_log/README", False),
        ("_log-compacted/notes.txt", False),
        ("_probe/notes.txt", False),
        ("notes.txt", False),
        ("step-200/__0_0.distcp", False),
    ],
)
def test_an_object_is_the_runs_if_something_proves_it(key: str, owned: bool, history: History) -> None:
    assert belongings(history.run, [key]).owns(key) is owned


def test_a_folder_of_version_0_1_0_is_the_runs_if_its_log_names_it(history: History) -> None:
    key = f"{history.snapshot(100).commit.path}/__0_0.distcp"
    for tell in (lambda: None, lambda: history.retired(100).purge_started(100).purged(100)):
        tell()
        assert belongings(history.run, [key]).owns(key)


def test_a_snapshot_stays_the_runs_beside_a_log_in_its_steps_folder_and_leftovers_do_not(history: History) -> None:
    snapshot, left = f"{history.snapshot(100).commit.path}/__0_0.distcp", f"{OURS}/__0_0.distcp"
    keys = [snapshot, left, f"step-100/{log_key(1)}", f"step-200/{log_key(1)}"]
    ours = belongings(history.run, keys)
    assert (ours.owns(snapshot), ours.owns(left)) == (True, False)


def test_an_unknown_run_owns_no_folder() -> None:
    ours = belongings(History(owner=None).run, [f"{OURS}/__0_0.distcp"])
    assert not ours.owns(f"{OURS}/__0_0.distcp")
    assert not ours.owns(f"{UNSIGNED}/__0_0.distcp")


DROP_IN = [f"step-7/{log_key(1)}", "step-7/0001-aaaaaaaa-01234567/__0_0.distcp", "step-7/.metadata"]
STOCK = ["step-9/.metadata", "step-9/__0_0.distcp"]


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ([], ()),
        (["notes.txt", "data/shard-0.bin"], ()),
        (STOCK, ()),
        (DROP_IN, ()),
        ([f"nested/{log_key(1)}", f"nested/{OURS}/__0_0.distcp"], ()),
        (["step-200/0001-aaaaaaaa/notes.txt"], ()),
        (["_progress.json"], ("_progress.json",)),
        (["_run.json"], ("_run.json",)),
        ([COMPACTION], (COMPACTION,)),
        ([f"{OURS}/__0_0.distcp", f"{OURS}/__1_0.distcp"], (f"{OURS}/",)),
        ([f"{UNSIGNED}/__0_0.distcp", *DROP_IN, *STOCK], (f"{UNSIGNED}/",)),
    ],
)
def test_what_tells_a_lost_log_from_a_new_prefix(keys: list[str], found: tuple[str, ...]) -> None:
    assert traces(keys) == found


def test_a_survey_names_what_others_have_put_there(history: History) -> None:
    mine = [log_key(1), f"{OURS}/__0_0.distcp", "step-200/.metadata", "_progress.json"]
    others = [*DROP_IN, *STOCK, f"{THEIRS}/__0_0.distcp", "notes.txt", "data/a", "data/b"]
    found = survey(history.run, [*mine, *others])
    assert found.pointers == {200, 7, 9}
    assert dict(found.foreign) == {
        "step-7/": Foreign.NESTED,
        "step-9/": Foreign.OTHER,
        f"{THEIRS}/": Foreign.UNPROVEN,
        "notes.txt": Foreign.OTHER,
        "data/": Foreign.OTHER,
    }
    assert ("step-9/.metadata", Foreign.POINTER) in found.with_pointers([9]).foreign


def test_a_description_is_bounded_and_names_other_runs_first() -> None:
    many = [(f"{'long' * 100}-{n}", Foreign.OTHER) for n in range(1000)]
    text = describe([*many, ("nested/", Foreign.NESTED)])
    assert text.startswith("nested/ (has a run log of its own), ")
    assert text.endswith("and 995 more")
    assert len(text) < 900
