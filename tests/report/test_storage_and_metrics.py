"""Storage over time adds up the log's snapshots, the forecast follows the policy, and metrics name the best."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from checkpoint_cli.report.history import history_of
from checkpoint_cli.report.metrics import LARGEST, MAX_METRICS, metrics_of
from checkpoint_cli.report.storage import FORECAST_COMMITS, storage_of
from checkpoint_sidecar.core.heartbeat import Heartbeat
from checkpoint_sidecar.core.policy import KeepBest, RetentionPolicy
from checkpoint_sidecar.core.run import SnapshotState
from core.strategies import stories
from report.reports import eventful_facts, facts_of
from support.builders import History
from support.training_runs import TrainingRun


@given(stories())
def test_storage_ends_with_what_replay_says(history: History) -> None:
    storage = storage_of(history_of(facts_of(history)))
    snapshots = history.run.snapshots.values()
    live = sum(s.commit.bytes for s in snapshots if s.live)
    gone = (SnapshotState.RETIRED, SnapshotState.PURGING)
    retired = sum(s.commit.bytes for s in snapshots if s.state in gone)
    last = (storage.points[-1].live, storage.points[-1].retired) if storage.points else (0, 0)
    assert last == (live, retired)


def test_a_policy_that_keeps_the_last_ones_bounds_the_forecast() -> None:
    run = TrainingRun(RetentionPolicy(keep_last=3, grace_seconds=1200.0)).start().train(3000)
    forecast = storage_of(history_of(facts_of(run.history))).forecast
    assert forecast is not None
    # Three that are kept; a commit every ten minutes makes two that wait for the end of their grace period, and the
    # forecast looks at every second commit.
    assert 3 * forecast.bytes < forecast.peak <= 8 * forecast.bytes
    assert 590 < forecast.interval < 620


def test_without_a_policy_the_forecast_grows_with_every_commit() -> None:
    run = TrainingRun(retention=None).start().train(1000)
    forecast = storage_of(history_of(facts_of(run.history))).forecast
    assert forecast is not None
    growth = forecast.points[-1].total - forecast.points[0].total
    assert growth == FORECAST_COMMITS * forecast.bytes


def test_a_dry_run_deletes_nothing_in_the_forecast_either() -> None:
    run = TrainingRun(RetentionPolicy(keep_last=3, dry_run=True)).start().train(1000)
    forecast = storage_of(history_of(facts_of(run.history))).forecast
    assert forecast is not None
    assert forecast.points[-1].total - forecast.points[0].total == FORECAST_COMMITS * forecast.bytes


def test_a_run_that_has_ended_or_hardly_begun_has_no_forecast() -> None:
    run = TrainingRun().start().train(200)
    assert storage_of(history_of(facts_of(run.history))).forecast is None
    run.train(1000)
    facts = facts_of(run.history)
    assert storage_of(history_of(facts)).forecast is not None
    ended = replace(facts, heartbeat=Heartbeat(1, run.step, "", ended=True), heartbeat_at=facts.now)
    assert storage_of(history_of(ended)).forecast is None
    run.step += 10
    run.pause(60).save("Final")
    assert storage_of(history_of(facts_of(run.history))).forecast is None


def test_metrics_of_the_policy_come_first_and_name_the_best_that_is_kept() -> None:
    found = metrics_of(history_of(eventful_facts())).series
    assert [series.name for series in found] == ["eval/loss", "tokens", "train/loss"]
    loss = found[0]
    assert loss.best is not None
    assert loss.best.value == min(point.value for point in loss.points if point.kept)
    assert loss.best.best_for
    assert found[1].best is None
    assert {point.step for point in loss.abandoned} >= {7200, 8600}
    assert [point.step for point in loss.points] == sorted(point.step for point in loss.points)


def test_values_that_are_no_finite_numbers_are_left_out() -> None:
    history = History().started()
    for step, value in enumerate(("nan", "inf", "no number", "1e999999", str(2 * LARGEST), "0.5"), start=1):
        history.committed(step, metrics={"loss": value})
    (series,) = metrics_of(history_of(facts_of(history))).series
    assert [point.value for point in series.points] == [0.5]


def test_more_metrics_than_fit_are_counted() -> None:
    history = History().started().committed(1, metrics={f"metric-{number:02}": "1" for number in range(12)})
    found = metrics_of(history_of(facts_of(history)))
    assert (len(found.series), found.left_out) == (MAX_METRICS, 12 - MAX_METRICS)


def test_a_rule_for_a_metric_that_no_snapshot_has_draws_nothing() -> None:
    history = History().configured(retention=RetentionPolicy(keep_best=(KeepBest("absent"),))).started().committed(1)
    assert metrics_of(history_of(facts_of(history))).series == ()
