"""Each alert fires when it should and not otherwise, as Prometheus itself evaluates the rules; every metric exists."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkpoint_operator.report.metrics import Metrics

from . import promtool

FILES = Path(__file__).parents[2] / "charts" / "checkpoint-operator" / "files"
RULES = FILES / "alerts.yaml"
DASHBOARD = FILES / "dashboard.json"
RUN = 'namespace="team",checkpoint="run"'

# Series by minute, in promtool's notation: "0x59" is sixty zeros, "0+60x59" counts up by 60.
WRONG: dict[str, dict[str, str]] = {
    "CheckpointNoRecentSnapshot": {
        "latest_snapshot_timestamp_seconds": "0x200",
        "attempt_started_timestamp_seconds": "0x200",
        "save_interval_seconds": "900x200",
        "running_pods": "2x200",
    },
    "CheckpointSavesFailing": {"saves_failing": "0x150 1x49", "running_pods": "2x200"},
    "CheckpointVerificationFailed": {'verifications_total,level="Checksums",outcome="failed"': "0x150 1x49"},
    "CheckpointSnapshotQuarantined": {"quarantined_snapshots": "0x150 1x49"},
    "CheckpointStoreUnavailable": {'store_errors_total,reason="AccessDenied"': "0+1x200", "ready": "0x200"},
    "CheckpointDeletionRefused": {"deletion_refused": "1x200"},
    "CheckpointQuotaExceeded": {"quota_exceeded": "1x200"},
    "CheckpointReconcileErrors": {"reconcile_errors_total": "0+1x200"},
}
FINE: dict[str, dict[str, dict[str, str]]] = {
    "CheckpointNoRecentSnapshot": {
        "recent": {**WRONG["CheckpointNoRecentSnapshot"], "latest_snapshot_timestamp_seconds": "0+60x200"},
        "just restarted": {**WRONG["CheckpointNoRecentSnapshot"], "attempt_started_timestamp_seconds": "10000x200"},
        "not running": {**WRONG["CheckpointNoRecentSnapshot"], "running_pods": "0x200"},
        "by steps only": {**WRONG["CheckpointNoRecentSnapshot"], "save_interval_seconds": "_x200"},
    },
    "CheckpointSavesFailing": {
        "over": {"saves_failing": "1x190 0x10", "running_pods": "2x200"},
        "not running": {"saves_failing": "1x200", "running_pods": "0x200"},
    },
    "CheckpointVerificationFailed": {
        "passed": {
            'verifications_total,level="Checksums",outcome="failed"': "0x200",
            'verifications_total,level="Checksums",outcome="passed"': "0+1x200",
        },
        "long ago": {'verifications_total,level="Checksums",outcome="failed"': "0x10 1x190"},
    },
    "CheckpointSnapshotQuarantined": {"released": {"quarantined_snapshots": "1x100 0x100"}},
    "CheckpointStoreUnavailable": {
        "recovered": {'store_errors_total,reason="AccessDenied"': "0+1x200", "ready": "0x190 1x10"},
        "not Ready for other reasons": {"ready": "0x200"},
    },
    "CheckpointDeletionRefused": {"for a while": {"deletion_refused": "0x120 1x80"}},
    "CheckpointQuotaExceeded": {"for a while": {"quota_exceeded": "0x190 1x10"}},
    "CheckpointReconcileErrors": {"now and then": {"reconcile_errors_total": "0x50 1x50 2x100"}},
}


def fires(alert: str, series: dict[str, str], folder: Path) -> bool:
    """Whether the alert fires 200 minutes after the beginning."""
    program = promtool.find()
    if program is None:
        pytest.skip("promtool is neither installed nor cached: run `python tests/alerts/promtool.py` (needs apt or Go)")
    inputs = []
    for name, values in series.items():
        metric, _, labels = name.partition(",")
        selector = ",".join(filter(None, (RUN, labels)))
        inputs.append({"series": f"checkpoint_operator_{metric}{{{selector}}}", "values": values})
    case = {"interval": "1m", "input_series": inputs, "alert_rule_test": [{"eval_time": "200m", "alertname": alert}]}
    file = folder / "case.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run([str(program), "test", "rules", str(file)], capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        # The case expects no alert; promtool then lists what it got.
        assert f"alertname: {alert}" in said, said
        assert "got:" in said, said
        assert 'namespace="team"' in said, said
    return done.returncode != 0


@pytest.mark.parametrize("alert", WRONG)
def test_the_alert_fires(alert: str, tmp_path: Path) -> None:
    assert fires(alert, WRONG[alert], tmp_path)


@pytest.mark.parametrize(("alert", "why"), [(alert, why) for alert, cases in FINE.items() for why in cases])
def test_the_alert_does_not_fire(alert: str, why: str, tmp_path: Path) -> None:
    assert not fires(alert, FINE[alert][why], tmp_path)


def test_every_alert_is_tried_both_ways() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == WRONG.keys() == FINE.keys()


def exported() -> set[str]:
    """Names of all series, as the operator's registry announces them."""
    names: set[str] = set()
    for family in Metrics().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    return names


def expressions() -> list[str]:
    rules: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    dashboard = json.loads(DASHBOARD.read_text())
    variables = [each["query"] for each in dashboard["templating"]["list"]]
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [*(rule["expr"] for rule in rules), *variables, *panels]


def test_alerts_and_dashboard_name_metrics_that_exist() -> None:
    named = {name for text in expressions() for name in re.findall(r"checkpoint_operator_\w+", text)}
    assert named - exported() == set()
    assert len(named) > 15
