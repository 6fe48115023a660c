"""What the API server admits, defaults, refuses and shows: the schemas as users meet them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from checkpoint_operator.gather.endpoint_rules import Endpoint
from checkpoint_sidecar.core import api
from checkpoint_sidecar.core.api_sources import WarmStartStatus
from checkpoint_sidecar.core.environment import RunEnvironment
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import check_url
from support.admission import Namespace, RefusedError, checkpoint, snapshot

pytestmark = pytest.mark.api

TIME = "2026-11-24T10:00:00Z"

GOOD_URLS = [
    "s3://bucket",
    "s3://bucket/",
    "s3://bucket/a/b-c_d=e.f/v1..2",
    "gs://my.bucket/run",
    "az://container/run",
    "file:///mnt/checkpoints/run",
]
BAD_URLS = {
    "ftp://host/run": "url must start with s3://, gs://, az:// or file://",
    "bucket/run": "url must start with s3://, gs://, az:// or file://",
    "s3://bucket/a::b": "url must not chain protocols with '::'",
    "simplecache::s3://bucket/run": "url must not chain protocols with '::'",
    "s3://bucket/../other": "url must not contain '.' or '..' as a segment of its path",
    "s3://bucket/a/.": "url must not contain '.' or '..' as a segment of its path",
    "s3://key:secret@bucket/run": "put credentials into the Secret that credentialsSecret names",
    "s3://bucket/run?versionId=1": "url must not contain a user, a password, a query",
    "s3://bucket/a%2e%2e/b": "url must not contain a user, a password, a query, a fragment or an escape",
    "s3:///run": "url must name a bucket",
    "s3://bucket:9000/run": "url must name a bucket",
    "file://host/run": "a file URL must have the form file:///<absolute path>",
    "file:///": "a file URL must have the form file:///<absolute path>",
    "s3://bucket//run": "no empty segments",
    "s3://bucket/a b": "letters, digits and",
    "s3://bucket/übung": "letters, digits and",
    "s3://bucket/" + "x" * 512: "than 512",
}

GOOD_SPECS: dict[str, dict[str, Any]] = {
    "the least": {},
    "an endpoint": {"storage": {"url": "s3://b/r", "endpoint": "https://s3.internal:9000", "region": "eu-west-1"}},
    "take over": {"storage": {"url": "s3://b/r", "takeOverFrom": "8a-1/team-a/old.run"}},
    "steps only": {"save": {"everySteps": 500, "every": "0s"}},
    "a request": {"save": {"request": "2026-11-24T10:00:00+01:00"}},
    "all rules": {
        "retention": {
            "keepLast": 3,
            "keepEverySteps": 5000,
            "keepEvery": "24h",
            "keepBest": [{"metric": "loss"}, {"metric": "accuracy", "mode": "Max", "count": 2}],
            "maxAge": "720h",
            "maxTotalSize": "2Ti",
            "gracePeriod": "0s",
        }
    },
    "composed durations": {"save": {"every": "1h30m"}},
    "a start from a neighbor": {"restore": {"startFrom": {"checkpoint": "base@1000-7-abcdefg2", "part": "model"}}},
    "a start from a url": {"restore": {"startFrom": {"url": "s3://b/base@best", "region": "eu-west-1"}}},
    "a grant": {"grants": [{"namespace": "team-b", "snapshots": ["latest", "held", "1000-7-abcdefg2", "500"]}]},
    "roll back to a snapshot": {"restore": {"rollback": {"request": "1", "snapshot": "1000-7-abcdefg2"}}},
    "roll back to the best": {
        "restore": {"rollback": {"request": "1", "to": "Best"}},
        "retention": {"keepBest": [{"metric": "loss"}]},
    },
}
BAD_SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "no storage": ({"storage": None}, "spec.storage: Required value"),
    "no url": ({"storage": {}}, "spec.storage.url: Required value"),
    "keep none": (
        {"retention": {"keepLast": 0}},
        "spec.retention.keepLast in body should be greater than or equal to 1",
    ),
    "keep fewer than none": ({"retention": {"keepLast": -1}}, "should be greater than or equal to 1"),
    "keep a huge number": ({"retention": {"keepLast": 10**9}}, "should be less than or equal to 10000"),
    "keep a word": ({"retention": {"keepLast": "three"}}, "must be of type integer"),
    "days": (
        {"retention": {"maxAge": "30d"}},
        "maxAge must be a duration such as 90s, 15m or 720h (days are not supported)",
    ),
    "no unit": ({"save": {"every": "900"}}, "every must be a duration such as 90s, 15m or 720h"),
    "a negative duration": ({"retention": {"gracePeriod": "-1h"}}, "gracePeriod must be a duration such as"),
    "an empty duration": ({"save": {"every": ""}}, "spec.save.every in body should be at least 1 chars long"),
    "no age at all": ({"retention": {"maxAge": "0s"}}, "maxAge must be positive; omit it to disable"),
    "an interval of nothing": ({"retention": {"keepEvery": "0h"}}, "keepEvery must be positive"),
    "no quantity": ({"retention": {"maxTotalSize": "2 TB"}}, "must be a quantity of bytes such as 500Gi or 2Ti"),
    "no size at all": ({"retention": {"maxTotalSize": "0"}}, "maxTotalSize must be positive"),
    "the same metric twice": (
        {"retention": {"keepBest": [{"metric": "loss"}, {"metric": "loss", "mode": "Max"}]}},
        "Duplicate value",
    ),
    "an unknown policy": ({"overwritePolicy": "Always"}, 'supported values: "Never", "Skip", "Replace"'),
    "an unknown way with unchanged tensors": (
        {"save": {"unchanged": "Link"}},
        'spec.save.unchanged: Unsupported value: "Link": supported values: "Send", "Copy", "Share"',
    ),
    "a snapshot without an id": (
        {"restore": {"rollback": {"request": "1"}}},
        "rollback.to: Snapshot requires rollback.snapshot",
    ),
    "the best, and an id": (
        {
            "restore": {"rollback": {"request": "1", "to": "Best", "snapshot": "1000-7-abcdefg2"}},
            "retention": {"keepBest": [{"metric": "loss"}]},
        },
        "rollback.snapshot is allowed with rollback.to: Snapshot only",
    ),
    "the best of nothing": (
        {"restore": {"rollback": {"request": "1", "to": "Best"}}},
        "restore.rollback.to: Best requires a rule in retention.keepBest",
    ),
    "the name of an object as id": (
        {"restore": {"rollback": {"request": "1", "snapshot": "run-1000-7-abcdefg2"}}},
        'the name of the CheckpointSnapshot without the leading "<checkpoint>-"',
    ),
    "a rollback without request": (
        {"restore": {"rollback": {"snapshot": "1000-7-abcdefg2"}}},
        "spec.restore.rollback.request: Required value",
    ),
    "an endpoint with a password": (
        {"storage": {"url": "s3://b/r", "endpoint": "https://key:secret@host"}},
        "endpoint must have the form http(s)://<host>[:<port>]",
    ),
    "an endpoint without scheme": (
        {"storage": {"url": "s3://b/r", "endpoint": "host:9000"}},
        "endpoint must have the form http(s)://<host>[:<port>]",
    ),
    "taking over from no owner": (
        {"storage": {"url": "s3://b/r", "takeOverFrom": "old-run"}},
        "takeOverFrom must have the form <cluster>/<namespace>/<name>",
    ),
    "a Secret by the value of a variable": (
        {"storage": {"url": "s3://b/r", "credentialsSecret": {"name": "$(NAME)"}}},
        "spec.storage.credentialsSecret.name in body should match",
    ),
    "a region by the value of a variable": (
        {"storage": {"url": "s3://b/r", "region": "$(NAME)"}},
        "spec.storage.region in body should match",
    ),
    "a url by the value of a variable": (
        {"storage": {"url": "s3://b/$(NAME)"}},
        "the path of url must contain only letters, digits and",
    ),
    "a Secret elsewhere": (
        {"storage": {"url": "s3://b/r", "credentialsSecret": {"name": "keys", "namespace": "other"}}},
        'unknown field "spec.storage.credentialsSecret.namespace"',
    ),
    "a start from nowhere": (
        {"restore": {"startFrom": {"part": "model"}}},
        "startFrom must have either checkpoint or url",
    ),
    "a start from itself": (
        {"restore": {"startFrom": {"checkpoint": "run@best"}}},
        "restore.startFrom.checkpoint must name another Checkpoint",
    ),
    "a start at two places": (
        {"restore": {"startFrom": {"checkpoint": "base", "url": "s3://b/base"}}},
        "startFrom must have either checkpoint or url",
    ),
    "a start from a Checkpoint at another server": (
        {"restore": {"startFrom": {"checkpoint": "base", "region": "eu-west-1"}}},
        "startFrom.endpoint, region and addressingStyle are allowed with startFrom.url only",
    ),
    "a start at a server that gets the own credentials": (
        {"restore": {"startFrom": {"url": "s3://b/base", "endpoint": "https://host"}}},
        "startFrom.endpoint requires startFrom.credentialsSecret",
    ),
    "a start from an address that is none": (
        {"restore": {"startFrom": {"checkpoint": "a/b/c"}}},
        "startFrom.checkpoint must have the form",
    ),
    "a start from a url with a password": (
        {"restore": {"startFrom": {"url": "s3://key:secret@b/base"}}},
        "startFrom.url must not contain a user",
    ),
    "a grant of something unknown": (
        {"grants": [{"namespace": "team", "snapshots": ["newest"]}]},
        "spec.grants[0].snapshots[0] in body should match",
    ),
    "a grant of nothing": (
        {"grants": [{"namespace": "team", "snapshots": []}]},
        "spec.grants[0].snapshots in body should have at least 1 items",
    ),
    "a misspelled field": ({"retension": {"keepLast": 3}}, 'unknown field "spec.retension"'),
}


GOOD_ENDPOINTS = [
    "https://s3.internal:9000",
    "http://10.0.0.7",
    "https://[fd00::7]:9000/",
    "https://minio_1.team-a.svc",
    "https://S3.Example.COM/",
]
BAD_ENDPOINTS = [
    "https://key:secret@host",
    "host:9000",
    "ftp://host",
    "https://",
    "https://host/path",
    "https://host?x=1",
    "https://host#x",
    "https://host:port",
    "https://host:123456",
    "https://$(AWS_SECRET_ACCESS_KEY).example.com",
    "https://$$host",
    "https://${KEY}.example.com",
    "https://host\\@other",
    "https://h\u00f6st",
    "https://h%6fst",
    "https://ho st",
    "https://host\n",
    "https://[fd00::7",
    "https://[host]",
]


@pytest.mark.parametrize("endpoint", GOOD_ENDPOINTS)
def test_a_good_endpoint_is_admitted_by_the_server_and_by_the_code(anywhere: Namespace, endpoint: str) -> None:
    assert anywhere.refusal(checkpoint(storage={"url": "s3://b/r", "endpoint": endpoint})) == ""
    assert str(Endpoint.parse(endpoint)).startswith(endpoint[:5])


@pytest.mark.parametrize("endpoint", BAD_ENDPOINTS)
def test_a_bad_endpoint_is_refused_by_the_server_and_by_the_code(anywhere: Namespace, endpoint: str) -> None:
    refusal = anywhere.refusal(checkpoint(storage={"url": "s3://b/r", "endpoint": endpoint}))
    assert "endpoint must have the form http(s)://<host>[:<port>]" in refusal
    with pytest.raises(ValueError, match="not http") as refused:
        Endpoint.parse(endpoint)
    assert "secret" not in str(refused.value)
    injected = {"CHECKPOINT_RUN": "c/n/run", "CHECKPOINT_URL": "s3://b/r", "CHECKPOINT_ENDPOINT": endpoint}
    with pytest.raises(ConfigurationError):
        RunEnvironment.parse(injected)


@pytest.mark.parametrize("url", GOOD_URLS)
def test_a_good_url_is_admitted_by_the_server_and_by_the_library(anywhere: Namespace, url: str) -> None:
    assert anywhere.refusal(checkpoint(storage={"url": url})) == ""
    assert check_url(url) == url.rstrip("/")


@pytest.mark.parametrize(("url", "message"), BAD_URLS.items())
def test_a_bad_url_is_refused_with_the_reason(anywhere: Namespace, url: str, message: str) -> None:
    assert message in anywhere.refusal(checkpoint(storage={"url": url}))


@pytest.mark.parametrize("url", sorted(BAD_URLS.keys() - {"s3://bucket//run"}))
def test_the_library_refuses_the_same_urls_but_for_a_doubled_slash_that_it_ignores(url: str) -> None:
    with pytest.raises(ConfigurationError):
        check_url(url)


@pytest.mark.parametrize("spec", GOOD_SPECS.values(), ids=GOOD_SPECS)
def test_a_good_spec_is_admitted(anywhere: Namespace, spec: dict[str, Any]) -> None:
    assert anywhere.refusal(checkpoint(**spec)) == ""


@pytest.mark.parametrize(("spec", "message"), BAD_SPECS.values(), ids=BAD_SPECS)
def test_a_bad_spec_is_refused_with_the_reason(anywhere: Namespace, spec: dict[str, Any], message: str) -> None:
    assert message in anywhere.refusal(checkpoint(**spec))


def test_names_fit_into_labels(anywhere: Namespace) -> None:
    assert anywhere.refusal(checkpoint("x" * 63)) == ""
    assert "the name of a Checkpoint must have at most 63 characters" in anywhere.refusal(checkpoint("x" * 64))


def test_defaults_are_visible_and_are_those_of_the_library(namespace: Namespace) -> None:
    stored = namespace.create(checkpoint())["spec"]
    assert stored == {
        "storage": {
            "url": "s3://bucket/run",
            "endpoint": "",
            "region": "",
            "addressingStyle": "Auto",
            "takeOverFrom": "",
        },
        "save": {
            "every": "15m",
            "onTermination": True,
            "onFailure": "Continue",
            "maxFailures": 5,
            "request": "",
            "unchanged": "Send",
            "keyframeEvery": 20,
        },
        "overwritePolicy": "Never",
        "restore": {
            "mode": "Latest",
            "verify": "Checksums",
            "maxFailuresPerSnapshot": 2,
            "maxFallback": 3,
            "onMissing": "Auto",
        },
        "reschedule": {"recreateBarePods": False, "restartGang": False},
        "suspend": False,
        "deletionPolicy": "Retain",
    }
    assert msgspec.convert(stored, api.CheckpointSpec) == api.CheckpointSpec(api.Storage("s3://bucket/run"))


def test_retention_is_absent_unless_given_and_then_has_its_defaults(namespace: Namespace) -> None:
    stored = namespace.create(checkpoint(retention={"keepBest": [{"metric": "loss"}]}))["spec"]["retention"]
    assert stored == {
        "keepBest": [{"metric": "loss", "mode": "Min", "count": 1}],
        "gracePeriod": "1h",
        "dryRun": False,
    }


def test_the_url_cannot_change_but_the_way_to_it_can(namespace: Namespace) -> None:
    namespace.create(checkpoint())
    assert "url is immutable" in namespace.patch_refusal(
        "checkpoints", "run", {"storage": {"url": "s3://bucket/other"}}
    )
    assert "url: Required value" in namespace.patch_refusal("checkpoints", "run", {"storage": {"url": None}})
    assert namespace.patch_refusal("checkpoints", "run", {"storage": {"endpoint": "https://s3.internal"}}) == ""


def test_a_rollback_request_keeps_its_target(namespace: Namespace) -> None:
    namespace.create(checkpoint(restore={"rollback": {"request": "1", "snapshot": "1000-7-abcdefg2"}}))

    def move(request: str) -> str:
        rollback = {"request": request, "snapshot": "500-7-abcdefg3"}
        return namespace.patch_refusal("checkpoints", "run", {"restore": {"rollback": rollback}})

    assert "set a new rollback.request for another target" in move("1")
    assert move("2") == ""


@pytest.mark.parametrize(
    "change",
    [
        {"checkpointRef": {"name": "other"}},
        {"step": 2000},
        {"attempt": 8},
        {"path": "step-1000/0008-abcdefg2"},
        {"manifestDigest": "1" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_snapshot_never_changes(namespace: Namespace, change: dict[str, Any]) -> None:
    (field,) = change
    namespace.create(snapshot())
    assert f"{field} is immutable" in namespace.patch_refusal("checkpointsnapshots", "run-1000-7-abcdefg2", change)
    assert "Required value" in namespace.patch_refusal("checkpointsnapshots", "run-1000-7-abcdefg2", {field: None})


def test_only_the_disposition_of_a_snapshot_changes(namespace: Namespace) -> None:
    assert namespace.create(snapshot())["spec"]["disposition"] == "Auto"
    assert namespace.patch_refusal("checkpointsnapshots", "run-1000-7-abcdefg2", {"disposition": "Hold"}) == ""
    refusal = namespace.patch_refusal("checkpointsnapshots", "run-1000-7-abcdefg2", {"disposition": "Delete"})
    assert 'supported values: "Auto", "Hold", "Retire"' in refusal


@pytest.mark.parametrize("path", ["../0007-abcdefg2", "step-1000", "step-1000/../../x", "/etc"])
def test_a_snapshot_lies_in_a_folder_of_a_save(anywhere: Namespace, path: str) -> None:
    assert "path must have the form step-<step>/<attempt>-<nonce>" in anywhere.refusal(snapshot(path=path))


CONDITION = api.Condition("Ready", "True", "Configured", "All is well.", TIME, 1)
CHECKPOINT_STATUS = api.CheckpointStatus(
    observed_generation=1,
    conditions=(CONDITION,),
    claimed_by="cluster/namespace/run",
    latest=api.LatestSnapshot(1000, "1000-7-abcdefg2", TIME, 1 << 40, 16),
    best=api.BestSnapshot(1000, "1000-7-abcdefg2", "loss", "0.5"),
    last_restore=api.LastRestore(7, "Fallback", TIME, 900, "900-6-abcdefg2", ("950-6-abcdefg3",), 50, 60, 4),
    warm_start=WarmStartStatus(
        "Pending",
        "s3://bucket/base",
        "900-6-abcdefg2",
        900,
        "model",
        "team/base",
        1,
        "https://host",
        "eu-west-1",
        "Path",
        api.LocalReference("keys"),
    ),
    attempt=api.AttemptStatus(7, TIME, 900, 2, ("trainer-0", "trainer-1"), "Node node-a is cordoned."),
    snapshots=3,
    retained_bytes=3 << 40,
    retained_size="3.0Ti",
    pending_purge=(api.PendingPurge("100-1-abcdefg2", 1 << 40, TIME, ("NoRuleKeepsIt",)),),
    quarantined=(api.QuarantinedSnapshot("950-6-abcdefg3", 2, "ChecksumMismatch: block 7"),),
    quarantined_snapshots=1,
    last_save_request="now",
    last_rollback="back",
    log_sequence=42,
)
SNAPSHOT_STATUS = api.CheckpointSnapshotStatus(
    observed_generation=1,
    conditions=(CONDITION, api.Condition("Verified", "True", "ChecksumsMatch", "", TIME)),
    committed_at=TIME,
    bytes=1 << 40,
    copied_bytes=1 << 39,
    shared_bytes=1 << 38,
    size="1.0Ti",
    files=17,
    world_size=16,
    metrics={"loss": "0.5"},
    saved_in="1m30s",
    trigger="Schedule",
    retention=api.SnapshotRetention(True, ("KeepLast",)),
    retired_at=TIME,
    purge_after=TIME,
)


@pytest.mark.parametrize(
    ("kind", "name", "status"),
    [("checkpoints", "run", CHECKPOINT_STATUS), ("checkpointsnapshots", "run-1000-7-abcdefg2", SNAPSHOT_STATUS)],
    ids=["Checkpoint", "CheckpointSnapshot"],
)
def test_a_full_status_is_stored_whole(namespace: Namespace, kind: str, name: str, status: msgspec.Struct) -> None:
    namespace.create(checkpoint())
    namespace.create(snapshot())
    stored = namespace.patch(kind, name, {"status": msgspec.to_builtins(status)}, status=True)
    assert msgspec.convert(stored["status"], type(status)) == status


def test_status_is_a_subresource(namespace: Namespace) -> None:
    namespace.create(checkpoint())
    patched = namespace.patch("checkpoints", "run", {"status": {"snapshots": 5}})
    assert "status" not in patched


def test_an_empty_status_is_admitted(namespace: Namespace) -> None:
    namespace.create(checkpoint())
    empty = msgspec.to_builtins(api.CheckpointStatus())
    assert empty == {}
    namespace.patch("checkpoints", "run", {"status": empty}, status=True)


def test_a_metric_is_a_decimal_string(namespace: Namespace) -> None:
    namespace.create(snapshot())
    with pytest.raises(RefusedError, match="must be of type string"):
        namespace.patch(
            "checkpointsnapshots", "run-1000-7-abcdefg2", {"status": {"metrics": {"loss": 0.5}}}, status=True
        )


def headers(namespace: Namespace, kind: str, *flags: str) -> list[str]:
    return namespace.kubectl("get", kind, *flags).splitlines()[0].split()


def test_columns_tell_the_state_of_a_run(namespace: Namespace) -> None:
    namespace.create(checkpoint())
    namespace.patch("checkpoints", "run", {"status": msgspec.to_builtins(CHECKPOINT_STATUS)}, status=True)
    short = ["NAME", "STEP", "LATEST", "SNAPSHOTS", "SIZE", "ATTEMPT", "READY", "AGE"]
    assert headers(namespace, "ckpt") == short
    assert headers(namespace, "ckpt", "--output=wide") == [*short, "URL", "RESTORED-FROM", "QUARANTINED"]
    row = namespace.kubectl("get", "ckpt", "run", "--output=wide", "--no-headers").split()
    assert row[0:2] == ["run", "1000"]
    assert row[3:7] == ["3", "3.0Ti", "7", "True"]
    assert row[8:] == ["s3://bucket/run", "900-6-abcdefg2", "1"]


def test_columns_tell_the_state_of_a_snapshot(namespace: Namespace) -> None:
    namespace.create(snapshot())
    short = ["NAME", "CHECKPOINT", "STEP", "READY", "REASON", "SIZE", "AGE"]
    assert headers(namespace, "ckptsnap") == short
    wide = [*short, "ATTEMPT", "VERIFIED", "DISPOSITION", "TRIGGER", "PATH"]
    assert headers(namespace, "ckptsnap", "--output=wide") == wide


def test_snapshots_are_selected_by_their_checkpoint(namespace: Namespace) -> None:
    if int(namespace.api.get("/version")["minor"]) < 31:
        pytest.skip("this API server has no field selectors for other kinds, which Kubernetes has since 1.31")
    namespace.create(snapshot())
    namespace.create(snapshot("other-1000-7-abcdefg2", checkpointRef={"name": "other"}))
    found = namespace.kubectl("get", "ckptsnap", "--field-selector=spec.checkpointRef.name=other", "--output=json")
    assert [item["metadata"]["name"] for item in json.loads(found)["items"]] == ["other-1000-7-abcdefg2"]


def test_one_word_lists_both_kinds(namespace: Namespace) -> None:
    namespace.create(checkpoint())
    namespace.create(snapshot())
    listed = namespace.kubectl("get", "checkpoint-operator", "--output=name").split()
    assert sorted(name.partition(".")[0] for name in listed) == ["checkpoint", "checkpointsnapshot"]


def test_kubectl_waits_for_ready(namespace: Namespace) -> None:
    namespace.create(checkpoint())
    namespace.patch("checkpoints", "run", {"status": msgspec.to_builtins(CHECKPOINT_STATUS)}, status=True)
    assert "condition met" in namespace.kubectl("wait", "--for=condition=Ready", "ckpt/run", "--timeout=5s")
