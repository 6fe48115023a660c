"""Which snapshots stay and which go, with the reasons a user reads; and what no policy can make it do."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint_sidecar.core.best import metric_value
from checkpoint_sidecar.core.policy import KeepBest, RetentionPolicy
from checkpoint_sidecar.core.purging import purge_due
from checkpoint_sidecar.core.retention import RetentionReason, RetentionVerdict, judge
from support.builders import History

KEEP_2 = RetentionPolicy(keep_last=2)


def run_of(*steps: int, retention: RetentionPolicy | None = KEEP_2) -> History:
    return History().configured(retention=retention, overwrite="Replace").started().committed(*steps)


def verdict(history: History, **later: float) -> RetentionVerdict:
    return judge(history.run, now=history.now + dt.timedelta(**later))


def by_step(history: History, reasons: Any) -> dict[int | str, tuple[str, ...]]:
    """Reasons by step; by id where another snapshot of the same step is meant by the step alone."""
    return {
        step if history.id(step := history.snapshot(identifier).step) == identifier else identifier: found
        for identifier, found in reasons.items()
    }


def resumed(history: History) -> History:
    return history.started().restored()


def rolled_back(history: History, to: int) -> History:
    return resumed(history.rollback(to))


BEST_2 = RetentionPolicy(keep_best=(KeepBest("loss", "Min", 2),))
SEVERAL_BEST = RetentionPolicy(keep_best=(KeepBest("loss", "Min", 1), KeepBest("accuracy", "Max", 2)))
REPLACED = "200-1-aaaaaaae"


def measured(*losses: str, rule: RetentionPolicy = BEST_2) -> History:
    history = run_of(retention=rule)
    for number, loss in enumerate(losses, 1):
        history.committed(100 * number, metrics={"loss": loss} if loss else {})
    return history.verified(100 * len(losses))


GOLDEN: dict[str, tuple[Callable[[], History], dict[int | str, str], dict[int | str, str]]] = {
    "no policy keeps everything": (
        lambda: run_of(100, 200, retention=None).verified(200),
        {100: "NoRetention", 200: "NoRetention"},
        {},
    ),
    "nothing verified keeps everything": (
        lambda: run_of(100, 200, 300, 400),
        dict.fromkeys((100, 200, 300, 400), "NothingVerified"),
        {},
    ),
    "verified, then damaged, is not verified": (
        lambda: run_of(100, 200, 300).verified(300).found_damaged(300),
        dict.fromkeys((100, 200, 300), "NothingVerified"),
        {},
    ),
    "keepLast": (
        lambda: run_of(100, 200, 300, 400).verified(400),
        {400: "Newest NewestVerified KeepLast", 300: "KeepLast"},
        {200: "NoRuleKeepsIt", 100: "NoRuleKeepsIt"},
    ),
    "the newest verified one is kept beyond keepLast": (
        lambda: run_of(100, 200, 300, 400).verified(100),
        {400: "Newest KeepLast", 300: "KeepLast", 100: "NewestVerified"},
        {200: "NoRuleKeepsIt"},
    ),
    "a damaged one does not count for keepLast": (
        lambda: run_of(100, 200, 300, 400).verified(300).found_damaged(400, 400),
        {300: "Newest NewestVerified KeepLast", 200: "KeepLast"},
        {400: "Damaged", 100: "NoRuleKeepsIt"},
    ),
    "a damaged one stays while there are fewer good ones than keepLast": (
        lambda: run_of(100, 200).verified(100).found_damaged(200, 200),
        {100: "Newest NewestVerified KeepLast", 200: "TooFewGood"},
        {},
    ),
    "one piece of evidence is a suspicion while the next restore would still try it": (
        lambda: run_of(100, 200, 300, 400).verified(300).found_damaged(400),
        {400: "Newest UnderSuspicion KeepLast", 300: "Newest NewestVerified KeepLast", 200: "KeepLast"},
        {100: "NoRuleKeepsIt"},
    ),
    "a suspect that no rule keeps goes for that and not for the evidence": (
        lambda: run_of(100, 200, 300).verified(300).found_damaged(100),
        {300: "Newest NewestVerified KeepLast", 200: "KeepLast"},
        {100: "NoRuleKeepsIt"},
    ),
    "a suspect keeps its place in keepLast, and the one that would take it stays too": (
        lambda: run_of(100, 200, 300, 400).verified(400).found_damaged(300),
        {400: "Newest NewestVerified KeepLast", 300: "KeepLast", 200: "KeepLast"},
        {100: "NoRuleKeepsIt"},
    ),
    "a suspect keeps its place in keepEverySteps, and the one that would take it stays too": (
        lambda: (
            run_of(100, 120, 180, 210, 290, retention=RetentionPolicy(keep_every_steps=100))
            .verified(290)
            .found_damaged(100)
        ),
        {290: "Newest NewestVerified", 100: "KeepEverySteps", 120: "KeepEverySteps", 210: "KeepEverySteps"},
        {180: "NoRuleKeepsIt"},
    ),
    "a suspect keeps its place in keepBest, and the one that would take it stays too": (
        lambda: measured("0.1", "0.2", "0.3", "0.9").found_damaged(100),
        {100: "KeepBest:loss", 200: "KeepBest:loss", 300: "KeepBest:loss", 400: "Newest NewestVerified"},
        {},
    ),
    "a quarantined one has lost its place": (
        lambda: measured("0.1", "0.2", "0.3", "0.9").found_damaged(100, 100),
        {200: "KeepBest:loss", 300: "KeepBest:loss", 400: "Newest NewestVerified"},
        {100: "Damaged"},
    ),
    "a suspect whose bytes prove whole is good again": (
        lambda: run_of(100, 200, 300, 400).verified(400).found_damaged(300).verified(300, level="Checksums"),
        {400: "Newest NewestVerified KeepLast", 300: "KeepLast"},
        {200: "NoRuleKeepsIt", 100: "NoRuleKeepsIt"},
    ),
    "Hold": (
        lambda: run_of(100, 200, 300).verified(300).disposed(100, "Hold"),
        {300: "Newest NewestVerified KeepLast", 200: "KeepLast", 100: "Hold"},
        {},
    ),
    "Retire is the user's word over the keep rules": (
        lambda: (
            run_of(100, 200, 300, retention=RetentionPolicy(keep_every_steps=100)).verified(300).disposed(100, "Retire")
        ),
        {300: "Newest NewestVerified KeepEverySteps", 200: "KeepEverySteps"},
        {100: "Disposition"},
    ),
    "Retire cannot take the newest verified one": (
        lambda: run_of(100, 200).verified(200).disposed(200, "Retire"),
        {200: "Newest NewestVerified KeepLast", 100: "KeepLast"},
        {},
    ),
    "in use": (
        lambda: run_of(100, 200, 300, 400).verified(400).started().restoring(100),
        {400: "Newest NewestVerified KeepLast", 300: "KeepLast", 100: "InUse"},
        {200: "NoRuleKeepsIt"},
    ),
    "the target of a pending rollback": (
        lambda: run_of(100, 200, 300, 400).verified(400).rollback(100),
        {400: "Newest NewestVerified KeepLast", 300: "KeepLast", 100: "RollbackTarget"},
        {200: "NoRuleKeepsIt"},
    ),
    "keepEverySteps keeps the oldest of each interval": (
        lambda: run_of(100, 120, 180, 210, 290, retention=RetentionPolicy(keep_every_steps=100)).verified(290),
        {290: "Newest NewestVerified", 210: "KeepEverySteps", 100: "KeepEverySteps"},
        {180: "NoRuleKeepsIt", 120: "NoRuleKeepsIt"},
    ),
    "keepEvery keeps the oldest of each interval of time": (
        lambda: (
            run_of(1, 2, retention=RetentionPolicy(keep_every_seconds=3600.0))
            .wait(hours=1)
            .committed(3, 4)
            .wait(hours=1)
            .committed(5)
            .verified(5)
        ),
        {5: "Newest NewestVerified KeepEvery", 3: "KeepEvery", 1: "KeepEvery"},
        {4: "NoRuleKeepsIt", 2: "NoRuleKeepsIt"},
    ),
    "keepBest, smallest": (
        lambda: measured("0.5", "0.3", "0.4", "0.6"),
        {400: "Newest NewestVerified", 300: "KeepBest:loss", 200: "KeepBest:loss"},
        {100: "NoRuleKeepsIt"},
    ),
    "keepBest, largest": (
        lambda: measured("0.5", "0.3", "0.4", "0.6", rule=RetentionPolicy(keep_best=(KeepBest("loss", "Max", 2),))),
        {400: "Newest NewestVerified KeepBest:loss", 100: "KeepBest:loss"},
        {300: "NoRuleKeepsIt", 200: "NoRuleKeepsIt"},
    ),
    "NaN, infinity and nonsense are never best": (
        lambda: measured("9", "nan", "-inf", "best", "", "8"),
        {600: "Newest NewestVerified KeepBest:loss", 100: "KeepBest:loss"},
        dict.fromkeys((200, 300, 400, 500), "NoRuleKeepsIt"),
    ),
    "of equally good ones the newer is best": (
        lambda: measured("0.5", "0.50", "0.5", "0.6"),
        {400: "Newest NewestVerified", 300: "KeepBest:loss", 200: "KeepBest:loss"},
        {100: "NoRuleKeepsIt"},
    ),
    "keepBest by several metrics, each in its own direction": (
        lambda: (
            run_of(retention=SEVERAL_BEST)
            .committed(100, metrics={"loss": "0.1", "accuracy": "0.1"})
            .committed(200, metrics={"loss": "0.5", "accuracy": "0.9"})
            .committed(300, metrics={"loss": "0.6", "accuracy": "0.8"})
            .committed(400, metrics={"loss": "0.7"})
            .verified(400)
        ),
        {
            400: "Newest NewestVerified",
            300: "KeepBest:accuracy",
            200: "KeepBest:accuracy",
            100: "KeepBest:loss",
        },
        {},
    ),
    "an interval whose oldest snapshot is too old keeps no other instead": (
        lambda: (
            run_of(100, retention=RetentionPolicy(keep_every_steps=100, max_age_seconds=7200.0))
            .wait(hours=3)
            .committed(150, 200)
            .verified(200)
        ),
        {200: "Newest NewestVerified KeepEverySteps"},
        {150: "NoRuleKeepsIt", 100: "MaxAge"},
    ),
    "a snapshot stays if any rule keeps it": (
        lambda: run_of(100, 150, 200, 250, retention=RetentionPolicy(keep_last=1, keep_every_steps=200)).verified(250),
        {250: "Newest NewestVerified KeepLast", 200: "KeepEverySteps", 100: "KeepEverySteps"},
        {150: "NoRuleKeepsIt"},
    ),
    "maxAge over the keep rules, never over the floors": (
        lambda: (
            run_of(100, 200, 300, retention=RetentionPolicy(keep_last=1, keep_every_steps=100, max_age_seconds=60.0))
            .verified(300)
            .wait(days=9)
        ),
        {300: "Newest NewestVerified KeepLast"},
        {200: "MaxAge", 100: "MaxAge"},
    ),
    "a limit alone keeps what is within it": (
        lambda: (
            run_of(100, retention=RetentionPolicy(max_age_seconds=3600.0))
            .wait(hours=2)
            .committed(200, 300)
            .verified(300)
        ),
        {300: "Newest NewestVerified NoKeepRule", 200: "NoKeepRule"},
        {100: "MaxAge"},
    ),
    "maxTotalSize keeps the newest that fit": (
        lambda: run_of(100, 200, 300, 400, retention=RetentionPolicy(max_total_bytes=3500)).verified(400),
        {400: "Newest NewestVerified NoKeepRule", 300: "NoKeepRule", 200: "NoKeepRule"},
        {100: "MaxTotalSize"},
    ),
    "maxTotalSize makes room for held ones first": (
        lambda: (
            run_of(100, 200, 300, 400, retention=RetentionPolicy(max_total_bytes=3000))
            .verified(400)
            .disposed(100, "Hold")
        ),
        {400: "Newest NewestVerified NoKeepRule", 300: "NoKeepRule", 100: "Hold NoKeepRule"},
        {200: "MaxTotalSize"},
    ),
    "maxTotalSize never takes the floors": (
        lambda: run_of(100, 200, 300, retention=RetentionPolicy(keep_last=2, max_total_bytes=1)).verified(300),
        {300: "Newest NewestVerified KeepLast", 200: "KeepLast"},
        {100: "NoRuleKeepsIt"},
    ),
    "maxTotalSize does not count what goes anyway": (
        lambda: run_of(
            100, 150, 200, 250, retention=RetentionPolicy(keep_last=1, keep_every_steps=200, max_total_bytes=3000)
        ).verified(250),
        {250: "Newest NewestVerified KeepLast", 200: "KeepEverySteps", 100: "KeepEverySteps"},
        {150: "NoRuleKeepsIt"},
    ),
    "a replaced one stays until its replacement is verified": (
        lambda: run_of(100, 200).verified(200).committed(200, replaces=REPLACED),
        {200: "Newest KeepLast", "200-1-aaaaaaae": "NewestVerified ReplacementUnverified", 100: "KeepLast"},
        {},
    ),
    "a replaced one goes once its replacement is verified": (
        lambda: run_of(100, 200).verified(200).committed(200, replaces=REPLACED).verified(200),
        {200: "Newest NewestVerified KeepLast", 100: "KeepLast"},
        {"200-1-aaaaaaae": "Replaced"},
    ),
    "a replaced one stands again when its replacement proves damaged": (
        lambda: run_of(100, 200).verified(200).committed(200, replaces=REPLACED).found_damaged(200, 200),
        {"200-1-aaaaaaae": "Newest NewestVerified KeepLast", 100: "KeepLast"},
        {200: "Damaged"},
    ),
    "a user who retires the replacement wants the replaced one back": (
        lambda: (
            run_of(100, 200, retention=RetentionPolicy(keep_every_steps=100))
            .committed(200, replaces=REPLACED)
            .committed(300)
            .verified(200, 300)
            .disposed(200, "Retire")
        ),
        {
            300: "Newest NewestVerified KeepEverySteps",
            "200-1-aaaaaaae": "KeepEverySteps",
            100: "KeepEverySteps",
        },
        {200: "Disposition"},
    ),
    "a replacement inherits the place of the old one under the rules": (
        lambda: (
            run_of(100, 200, retention=RetentionPolicy(keep_last=1, keep_every_steps=100))
            .committed(200, replaces=REPLACED)
            .committed(250, 300)
            .verified(300)
        ),
        {
            300: "Newest NewestVerified KeepLast KeepEverySteps",
            200: "KeepEverySteps",
            "200-1-aaaaaaae": "ReplacementUnverified",
            100: "KeepEverySteps",
        },
        {250: "NoRuleKeepsIt"},
    ),
    "a superseded branch stays until the new one has keepLast": (
        lambda: rolled_back(run_of(100, 200, 300).verified(300), 100),
        {300: "Newest NewestVerified KeepLast", 200: "KeepLast", 100: "InUse RollbackTarget"},
        {},
    ),
    "a superseded branch goes once the new one has keepLast": (
        lambda: rolled_back(run_of(100, 200, 300), 100).committed(150, 160).verified(160),
        {160: "Newest NewestVerified KeepLast", 150: "KeepLast"},
        {200: "Superseded", 300: "Superseded", 100: "NoRuleKeepsIt"},
    ),
    "a new branch that is too short keeps the superseded one": (
        lambda: (
            rolled_back(run_of(100, 200, 300, retention=RetentionPolicy(keep_last=3)), 100).committed(150).verified(150)
        ),
        {
            150: "Newest NewestVerified KeepLast",
            100: "KeepLast",
            200: "BranchTooYoung",
            300: "BranchTooYoung",
        },
        {},
    ),
    "a new branch without a verified snapshot keeps the superseded one": (
        lambda: rolled_back(run_of(100, 200, 300), 100).committed(150, 160).found_damaged(100),
        dict.fromkeys((160, 150, 100, 200, 300), "NothingVerified"),
        {},
    ),
    "a held snapshot of a superseded branch stays": (
        lambda: rolled_back(run_of(100, 200, 300), 100).committed(150, 160).verified(160).disposed(300, "Hold"),
        {160: "Newest NewestVerified KeepLast", 150: "KeepLast", 300: "Hold"},
        {200: "Superseded", 100: "NoRuleKeepsIt"},
    ),
    "a retired one the policy wants back is to be kept": (
        lambda: run_of(100, 200, 300).verified(300).retired(200),
        {300: "Newest NewestVerified KeepLast", 200: "KeepLast", 100: "KeepLast"},
        {},
    ),
    "a retired one counts for nothing until it is reinstated": (
        lambda: run_of(100, 200, 300).verified(200).retired(200),
        dict.fromkeys((100, 200, 300), "NothingVerified"),
        {},
    ),
}


@pytest.mark.parametrize(("tell", "keep", "retire"), GOLDEN.values(), ids=GOLDEN)
def test_the_verdict_is(tell: Callable[[], History], keep: dict[int | str, str], retire: dict[int | str, str]) -> None:
    history = tell()
    found = verdict(history)
    assert {step: " ".join(reasons) for step, reasons in by_step(history, found.keep).items()} == keep
    assert {step: " ".join(reasons) for step, reasons in by_step(history, found.retire).items()} == retire


# Purging


def steps_due(history: History, **later: float) -> list[int]:
    return [history.snapshot(i).step for i in purge_due(judge(history.run, now=history.now + dt.timedelta(**later)))]


def test_a_retired_snapshot_is_purged_after_the_grace_period_and_not_a_second_before() -> None:
    history = run_of(100, 200, 300).verified(300).retired(100)
    assert steps_due(history, seconds=3599) == []
    assert steps_due(history, seconds=3600) == [100]


def test_grace_counts_on_the_stores_clock_which_may_jump_back() -> None:
    history = run_of(100, 200, 300).verified(300).retired(100)
    assert steps_due(history, days=-365) == []


def test_nothing_live_is_ever_due() -> None:
    history = run_of(100, 200, 300, 400).verified(400)
    assert steps_due(history, days=365) == []


def test_a_snapshot_retired_under_an_old_policy_is_judged_again_before_it_is_purged() -> None:
    history = run_of(100, 200, 300).verified(300).retired(100)
    assert steps_due(history.configured(retention=RetentionPolicy(keep_last=3)), days=1) == []


@pytest.mark.parametrize(
    "rescue",
    [
        pytest.param(lambda h: h.disposed(100, "Hold"), id="it is held"),
        pytest.param(lambda h: h.rollback(100), id="a rollback to it is pending"),
        pytest.param(lambda h: h.started().reinstated(100, attempt=2), id="an attempt reinstated it"),
        pytest.param(lambda h: h.started().restoring(100), id="an attempt is reading it"),
        pytest.param(lambda h: h.found_damaged(300), id="the last verified one proved damaged"),
        pytest.param(lambda h: h.found_damaged(200, 300).verified(200), id="newer ones proved damaged"),
        pytest.param(lambda h: h.configured(retention=None), id="the policy was removed"),
        pytest.param(lambda h: h.configured(retention=RetentionPolicy(keep_last=2, dry_run=True)), id="dry run"),
    ],
)
def test_a_retired_snapshot_is_not_purged_when(rescue: Callable[[History], History]) -> None:
    history = run_of(100, 200, 300).verified(300).retired(100)
    assert steps_due(history, days=1) == [100]
    assert steps_due(rescue(history), days=1) == []


def test_a_purge_that_began_always_continues() -> None:
    history = run_of(100, 200, 300).verified(300).retired(100).purge_started(100)
    assert steps_due(history.configured(retention=None)) == [100]
    assert steps_due(history.disposed(100, "Hold")) == [100]
    assert steps_due(history.purged(100)) == []


@pytest.mark.parametrize(
    ("text", "finite"),
    [("0.5", True), ("-3e2", True), ("nan", False), ("sNaN", False), ("inf", False), ("", False), ("0x1", False)],
)
def test_only_a_finite_number_is_a_metric(text: str, finite: bool) -> None:
    snapshot = run_of().committed(100, metrics={"loss": text}).snapshot(100)
    assert (metric_value(snapshot, "loss") is not None) is finite


def test_a_hostile_metric_stops_nothing() -> None:
    huge = RetentionPolicy(keep_best=(KeepBest("loss", "Max", 1),))
    history = measured("1e999999999", "-1e999999999", "1", rule=huge)
    assert "KeepBest:loss" in verdict(history).keep[history.id(100)]


def test_every_reason_is_in_the_table_above_and_in_the_documentation() -> None:
    told = {
        word.split(":")[0]
        for _, *sides in GOLDEN.values()
        for side in sides
        for text in side.values()
        for word in text.split()
    }
    # No parts of a policy: see test_quota.py, test_purging.py and tests/control/test_warm_starts.py.
    told |= {"Quota", "NewestCompared", "BeingRead", "WarmStart"}
    assert set(RetentionReason) == told
    documentation = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert sorted(word for word in told if f"`{word}" not in documentation) == []
