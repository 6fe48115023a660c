"""The overwrite policy holds at replay, even against a library that ignores it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from checkpoint_sidecar.core.overwrite import base_of, existing_save
from checkpoint_sidecar.core.policy import OverwritePolicy
from support.builders import History

LIVE = ""


def saved_again(policy: OverwritePolicy | None, *, replaces: bool) -> Callable[[], History]:
    def tell() -> History:
        history = History() if policy is None else History().configured(overwrite=policy)
        history.started().committed(100).started().restored()
        return history.committed(100, replaces=history.id(100) if replaces else "")

    return tell


@pytest.mark.parametrize(
    ("tell", "reason"),
    [
        pytest.param(saved_again("Never", replaces=False), "StepExists", id="Never, the same step"),
        pytest.param(saved_again("Never", replaces=True), "ReplaceNotAllowed", id="Never, replacing"),
        pytest.param(saved_again("Skip", replaces=False), "StepExists", id="Skip, the same step"),
        pytest.param(saved_again("Skip", replaces=True), "ReplaceNotAllowed", id="Skip, replacing"),
        pytest.param(saved_again("Replace", replaces=False), "StepExists", id="Replace, not saying what"),
        pytest.param(saved_again("Replace", replaces=True), LIVE, id="Replace, replacing"),
        pytest.param(saved_again(None, replaces=False), "StepExists", id="no policy yet, the same step"),
        pytest.param(saved_again(None, replaces=True), LIVE, id="no policy yet, replacing"),
        pytest.param(
            lambda: saved_again("Replace", replaces=True)().configured(overwrite="Never").committed(200),
            LIVE,
            id="a stricter policy later changes nothing before it",
        ),
        pytest.param(
            lambda: History().started().committed(100, 200).rollback(100).started().restored().committed(200),
            LIVE,
            id="a step of an abandoned branch",
        ),
        pytest.param(
            lambda: History().started().committed(100, 200).retired(100).committed(100),
            LIVE,
            id="a step whose snapshot was retired",
        ),
    ],
)
def test_the_last_commit_is(tell: Callable[[], History], reason: str) -> None:
    last = list(tell().run.snapshots.values())[-1]
    assert "".join(last.reasons) == reason
    assert last.live is (reason == LIVE)


def test_the_newest_of_several_replacements_is_what_exists() -> None:
    history = saved_again("Replace", replaces=True)()
    base = base_of(history.run.attempts[2])
    existing = existing_save(history.run, base, 100)
    assert existing is not None
    assert existing.commit.attempt == 2
    history.retired(existing.id)
    assert existing_save(history.run, base, 100) == history.snapshot(existing.commit.replaces)
