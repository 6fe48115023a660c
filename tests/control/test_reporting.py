"""Events, redaction, log lines, metrics, and the objects as read from the API server."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from checkpoint_operator.__main__ import main
from checkpoint_operator.gather.observer import checkpoint_from, mirror_from
from checkpoint_operator.gather.pods import pod_from
from checkpoint_operator.gather.redaction import KEPT_BYTES, Redactor, working_on
from checkpoint_operator.model.observed import Key, StoreFault
from checkpoint_operator.process import logs
from checkpoint_operator.process.logs import LogFormat
from checkpoint_operator.report import events
from checkpoint_operator.report.metrics import Metrics
from checkpoint_operator.report.resources import event
from checkpoint_operator.report.status import status_of
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.policy import RestorePolicy, SavePolicy
from support.builders import OTHER_OWNER, OWNER, POD, History
from support.observations import KEY, changed, observed

# Events


def told(history: History, after: int = 0) -> list[str]:
    return [each.reason for each in events.for_entries(history.entries[after:], history.run)]


def test_the_events_of_a_run_tell_its_story_in_order() -> None:
    history = History().configured().started().committed(100).verified(100).evicted().started().restored()
    history.committed(200).verified(200).retired(100).purge_started(100).purged(100)
    assert told(history) == [
        "RunClaimed",
        "AttemptStarted",
        "SnapshotCommitted",
        "PodEvicted",
        "AttemptStarted",
        "Restored",
        "SnapshotCommitted",
        "SnapshotRetired",
        "SnapshotPurged",
    ]


def test_damage_rejection_failure_and_adoption_are_warnings() -> None:
    history = History().configured(restore=RestorePolicy(max_failures_per_snapshot=1)).started().committed(100, 200)
    history.found_damaged(200).started().failed_to_restore(100).committed(300, attempt=1).adopted()
    warnings = [each.reason for each in events.for_entries(history.entries, history.run) if each.warning]
    assert warnings == ["SnapshotQuarantined", "RestoreFailed", "SnapshotRejected", "RunAdopted"]


def test_the_event_of_a_commit_says_what_was_copied() -> None:
    history = History().configured().started().committed(100, bytes=4 << 30, copied_bytes=3 << 30)
    (draft,) = events.for_entries(history.entries[-1:], history.run)
    assert "4.0 GiB from 2 ranks, 3.0 GiB of it copied by the store in" in draft.message


def test_failed_saves_are_a_warning_that_says_why() -> None:
    (draft,) = events.for_entries(History().started().save_failed(7, failures=3).entries[-1:], History().run)
    assert (draft.reason, draft.warning) == ("SaveFailed", True)
    assert draft.message == "3 saves in a row of attempt 1 failed, at step 7; it trains on: the disk is full"


def test_an_eviction_names_the_pod_and_the_reason() -> None:
    (draft,) = events.for_entries(History().started().evicted("PreemptionByScheduler").entries[-1:], History().run)
    assert POD.name in draft.message
    assert "PreemptionByScheduler" in draft.message


def test_what_only_a_condition_says_is_reported_once() -> None:
    named = {"rollback": {"request": "back", "snapshot": "100-1-abcdefgh"}}
    history = History().configured().started().committed(100).verified(100)
    seen = changed(observed(history, restore=named), refusal="delete: object lock")
    before, after = status_of(observed(history)), status_of(seen)
    drafts = events.for_conditions(before, after)
    assert [each.reason for each in drafts] == ["RollbackNotFound", "DeletionRefused"]
    assert "100-1-abcdefgh" in drafts[0].message
    assert all(each.warning for each in drafts)
    assert events.for_conditions(after, after) == ()


def test_another_rollback_that_names_nothing_is_reported_again() -> None:
    history = History().configured().started().committed(100)

    def status(snapshot: str, generation: int) -> dict[str, Any]:
        named = {"rollback": {"request": snapshot, "snapshot": snapshot}}
        return status_of(observed(history, restore=named, generation=generation))

    one, other = status("100-1-abcdefgh", 1), status("200-1-abcdefgh", 2)
    first, second = events.for_conditions({}, one) + events.for_conditions(one, other)
    assert first.identifier != second.identifier


@pytest.mark.parametrize(
    ("status", "head", "numbers"),
    [
        pytest.param({"logSequence": 7}, 7, [], id="nothing new"),
        pytest.param({"logSequence": 7}, 9, [8, 9], id="what is new"),
        pytest.param({}, 3, [1, 2, 3], id="a young log"),
        pytest.param({}, 500, list(range(485, 501)), id="the end of an old log"),
        pytest.param({"logSequence": 1}, 500, list(range(451, 501)), id="the end of a long absence"),
        pytest.param({"logSequence": 90}, 2, [1, 2], id="another log under the same name"),
    ],
)
def test_entries_since_the_last_report(status: dict[str, int], head: int, numbers: list[int]) -> None:
    assert list(events.since_last_report(status, head)) == numbers


def test_two_operators_that_tell_the_same_entry_create_the_same_event() -> None:
    history = History().started().committed(100)
    checkpoint = observed(history).checkpoint
    names = {
        event(checkpoint, reason=h.reason, message=h.message, warning=False, identifier=h.identifier, time=history.now)[
            "metadata"
        ]["name"]
        for h in (*events.for_entries(history.entries, history.run), *events.for_entries(history.entries, history.run))
    }
    assert len(names) == 3


def test_an_event_of_any_alphabet_fits_into_what_the_api_server_takes() -> None:
    checkpoint = observed(None).checkpoint
    for message in ("x" * 5000, "\u00e4" * 1024, "\U0001f4be" * 300, "a" + "\U0001f4be" * 255 + "bcd", "\ud800"):
        body = event(checkpoint, reason="R", message=message, warning=True, identifier="1", time=History().now)
        assert len(body["message"].encode()) <= 1024
        assert body["message"][:200] in message or message == "\ud800"


def test_another_operator_is_reported_and_libraries_are_not() -> None:
    entries = History().configured().started().committed(100).entries
    written = [msgspec.structs.replace(entry, writer=f"library {number}") for number, entry in enumerate(entries)]
    assert events.for_other_operators(written, "operator 1 pod-a") == ()
    written[1] = msgspec.structs.replace(written[1], writer="operator 1 pod-b")
    written[2] = msgspec.structs.replace(written[2], writer="operator 1 pod-a")
    (warning,) = events.for_other_operators([*written, written[1]], "operator 1 pod-a")
    assert (warning.reason, warning.warning) == ("SecondOperator", True)
    assert "pod-b" in warning.message


# Redaction

SECRETS = ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "AKIAIOSFODNN7EXAMPLE")
SECRET = dict(zip(("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"), SECRETS, strict=True))


def knowing(secret: dict[str, str], key: Key = KEY) -> Redactor:
    redactor = Redactor()
    redactor.remember(key, secret)
    return redactor


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"denied for {SECRETS[0]} at bucket", SECRETS[0]),
        ("GET https://b.s3/x?X-Amz-Signature=abcdef012345&X-Amz-Date=1 failed", "abcdef012345"),
        ("https://user:pass-word@host/path refused", "pass-word"),
        ("{'Authorization': 'AWS4-HMAC-SHA256'}", "AWS4-HMAC-SHA256"),
        ("Authorization: Bearer eyJhbGciOiJSUzI1NiJ9", "eyJhbGciOiJSUzI1NiJ9"),
        ("sig=Zm9vYmFy&se=2026", "Zm9vYmFy"),
        ("x -----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY----- y", "MIIE"),
    ],
    ids=[
        "a known value",
        "a signed URL",
        "user and password",
        "a header",
        "a token",
        "a shared access signature",
        "a key",
    ],
)
def test_redaction_hides(text: str, hidden: str) -> None:
    with working_on(KEY):
        assert hidden not in knowing(SECRET).clean(text)


def test_redaction_leaves_ordinary_messages_alone() -> None:
    message = "read the run log s3://bucket/run/_log/00000000000000000001.json: it has format 2.0. Upgrade here."
    with working_on(KEY):
        redactor = knowing(
            {"AWS_ACCESS_KEY_ID": "", "AWS_SESSION_TOKEN": "s3", "other": "run log", "ca.crt": "s3://bucket"}
        )
        assert redactor.clean(message) == message


def test_redaction_leaves_nothing_of_a_secret_that_holds_another_one() -> None:
    redactor = knowing({"AWS_ACCESS_KEY_ID": "hunter22", "AWS_SECRET_ACCESS_KEY": "hunter22-and-a-tail"})
    with working_on(KEY):
        assert redactor.clean("hunter22-and-a-tail, hunter22") == "[redacted], [redacted]"


def test_secrets_of_one_checkpoint_change_no_text_about_another() -> None:
    hostile = Key("hostile", "run")
    redactor = knowing({"AWS_SECRET_ACCESS_KEY": "StorageAvailable", "AWS_ACCESS_KEY_ID": "AccessDenied"}, hostile)
    message = "StorageAvailable is False: AccessDenied"
    assert redactor.clean(message) == message
    with working_on(KEY):
        assert redactor.clean(message) == message
    with working_on(hostile):
        assert redactor.clean(message) == "[redacted] is False: [redacted]"
    redactor.forget(hostile)
    with working_on(hostile):
        assert redactor.clean(message) == message


def test_secrets_change_messages_of_a_status_and_nothing_that_means_something() -> None:
    history = History().configured().started().committed(100)
    seen = replace(observed(history), fault=StoreFault(Reason.ACCESS_DENIED, "the key hunter22 is refused"))
    status = status_of(seen)
    words = ["AccessDenied", "StorageAvailable", OWNER.cluster, str(OWNER), history.snapshot(100).id, "False   "]
    for word in [*words, "hunter22"]:
        with working_on(KEY):
            cleaned = knowing({"AWS_SECRET_ACCESS_KEY": word}).clean_messages(status)

        def without_messages(value: dict[str, Any]) -> dict[str, Any]:
            return {**value, "conditions": [{**each, "message": ""} for each in value["conditions"]]}

        assert without_messages(cleaned) == without_messages(status)
    assert "hunter22" not in json.dumps(cleaned)


def test_values_are_kept_after_a_rotation_within_bounds() -> None:
    redactor = Redactor()
    for number in range(5000):
        redactor.remember(
            KEY, {"AWS_SESSION_TOKEN": f"token-{number:04}-" + "x" * 1000, "AWS_ACCESS_KEY_ID": "y" * 10**6}
        )
    with working_on(KEY):
        assert redactor.clean("token-4998-" + "x" * 1000) == "[redacted]"
        assert redactor.clean("token-0000-" + "x" * 1000) != "[redacted]"
    assert sum(map(len, redactor._known[KEY])) <= KEPT_BYTES


def test_the_secret_fields_of_a_google_key_are_hidden_by_themselves() -> None:
    key = {"type": "service_account", "private_key": "MIIEvQIBADANBg", "client_email": "robot@example.com"}
    redactor = knowing({"GOOGLE_APPLICATION_CREDENTIALS_JSON": json.dumps(key)})
    redactor.remember(Key("team", "deep"), {"GOOGLE_APPLICATION_CREDENTIALS_JSON": "[" * 30_000})
    with working_on(KEY):
        assert redactor.clean("robot@example.com with MIIEvQIBADANBg") == "robot@example.com with [redacted]"


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_no_log_line_shows_a_secret_not_even_in_a_traceback(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    # A Secret may as well hold what structured lines consist of.
    logs.configure(log_format, redactor=knowing({**SECRET, "AWS_SESSION_TOKEN": "levelname"}))
    try:
        try:
            raise ValueError(f"cannot sign with {SECRETS[0]}")  # noqa: TRY301
        except ValueError:
            with working_on(KEY):
                logging.getLogger("test").exception("failed for %s", f"{SECRETS[1]}\nERROR forged")
    finally:
        root.handlers[:], level = before[0], before[1]
        root.setLevel(level)
    written = capsys.readouterr().err
    assert "cannot sign with [redacted]" in written
    assert not any(secret in written for secret in SECRETS)
    if log_format is LogFormat.JSON:
        assert json.loads(written)["message"] == r"failed for [redacted]\nERROR forged"
        assert json.loads(written)["levelname"] == "ERROR"
    assert "\nERROR forged" not in written


# Metrics


def test_metrics_say_what_is_true_and_count_what_happened() -> None:
    metrics = Metrics()
    history = History().configured().started().committed(100).committed(200, copied_bytes=900)
    history = history.verified(200).retired(100).purge_started(100)
    metrics.observe(observed(history), ready=True)
    metrics.count(KEY, history.entries)
    labels = {"namespace": KEY.namespace, "checkpoint": KEY.name}

    def value(name: str, **more: str) -> float | None:
        return metrics.registry.get_sample_value(f"checkpoint_operator_{name}", {**labels, **more})

    assert value("latest_snapshot_step") == 200
    assert value("latest_snapshot_timestamp_seconds") == history.snapshot(200).committed_at.timestamp()
    assert (value("snapshots"), value("retained_bytes")) == (1, 2000)
    assert (value("snapshots_committed_total"), value("saved_bytes_total")) == (2, 2000)
    assert value("copied_bytes_total") == 900
    metrics.observe(replace(observed(history), fault=StoreFault(Reason.ACCESS_DENIED, "no")), ready=False)
    assert (value("ready"), value("store_errors_total", reason="AccessDenied")) == (0, 1)
    metrics.observe(replace(observed(None), fault=StoreFault(Reason.SECRET_NOT_FOUND, "no")), ready=False)
    assert value("store_errors_total", reason="SecretNotFound") is None
    assert value("verifications_total", level="Sizes", outcome="passed") == 1
    assert value("verifications_total", level="Checksums", outcome="failed") == 0
    metrics.observe(changed(observed(history), refusal="object lock"), ready=True)
    assert value("deletion_refused") == 1
    for _ in range(2):
        metrics.count_loss(KEY, attempt=2, steps=30, seconds=12)
    assert (value("lost_steps_total"), value("lost_seconds_total")) == (30, 12)
    for lost in (0, 2):
        metrics.count_appends(KEY, lost_races=lost, unknown_outcomes=1)
        assert value("log_lost_races_total") == lost, "a counter that begins at 1 shows no increase"
    assert value("log_unknown_outcomes_total") == 2
    metrics.count_error(KEY)
    assert value("reconcile_errors_total") == 1
    metrics.forget(KEY)
    assert value("latest_snapshot_step") is None
    assert KEY.name not in str(list(metrics.registry.collect())), "no series of any kind stays"


def test_metrics_say_when_the_next_snapshot_is_due() -> None:
    metrics = Metrics()
    labels = {"namespace": KEY.namespace, "checkpoint": KEY.name}
    history = History().configured(save=SavePolicy(every_seconds=60)).started()
    pods = (replace(pod_from(pod_body()), phase=phase) for phase in ("Running", "Pending", "Succeeded"))
    metrics.observe(changed(observed(history), pods=tuple(pods)), ready=True)
    value = metrics.registry.get_sample_value
    assert value("checkpoint_operator_save_interval_seconds", labels) == 60
    assert value("checkpoint_operator_running_pods", labels) == 2
    assert history.run.attempt is not None
    started = history.run.attempt.started_at.timestamp()
    assert value("checkpoint_operator_attempt_started_timestamp_seconds", labels) == started
    by_steps = SavePolicy(every_steps=10, every_seconds=None)
    metrics.observe(observed(History().configured(save=by_steps).started()), ready=True)
    assert value("checkpoint_operator_save_interval_seconds", labels) is None


# Objects as read


def pod_body(**status: Any) -> dict[str, Any]:
    metadata = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "status": {"phase": "Running", **status}}


def test_why_a_pod_is_leaving_is_the_reason_of_its_disruption() -> None:
    disruption = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    assert pod_from(pod_body()).leaving == ""
    assert pod_from(pod_body(conditions=[{**disruption, "status": "False"}])).leaving == ""
    assert pod_from(pod_body(conditions=[disruption])).leaving == "EvictionByEvictionAPI"
    deleted = pod_body()
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    assert pod_from(deleted).leaving == "Deleted"


def test_the_snapshot_of_an_object_is_the_end_of_its_name() -> None:
    body = {"metadata": {"name": "a-run-7-1000-7-abcdefg2"}, "spec": {"disposition": "Hold"}}
    assert (mirror_from(body).snapshot, mirror_from(body).disposition) == ("1000-7-abcdefg2", "Hold")


def test_a_spec_that_does_not_decode_is_a_complaint_and_no_crash() -> None:
    metadata = {"uid": "u", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    checkpoint, complaint = checkpoint_from(KEY, {"metadata": metadata, "spec": {"storage": {"url": 7}}})
    assert checkpoint.spec is None
    assert "storage.url" in complaint


# Command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ambient-allow=team-a"],
        ["--ambient-allow=team-a=file:///data"],
        ["--ambient-allow=*=s3://training"],
        ["--endpoint-allow=ftp://host"],
        ["--quota=10Gi"],
        ["--quota=team-a=much"],
        ["--metrics=9090"],
        ["--resync=0s"],
        ["--resync=5"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_command_line_refuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert arguments[0].partition("=")[0] in capsys.readouterr().err


def test_owners_in_messages_are_those_of_the_status() -> None:
    (draft,) = events.for_entries(History(owner=OTHER_OWNER).adopted(OWNER).entries[-1:], History().run)
    assert str(OTHER_OWNER) in draft.message
